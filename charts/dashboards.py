"""Grafana's dashboards, from one source: `python -m charts.dashboards FOLDER` writes one file each.

Their labels are those that the chart's PodMonitors put beside the metrics' own.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COLUMNS = 24  # of Grafana's grid
_WIDTH, _HEIGHT = 8, 8  # of a panel
_SCHEMA_VERSION = 39  # of Grafana 11; later ones upgrade it as they read it
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}

_DEPLOYED_MODEL = "namespace, pierhead_dev_deployed_model"
_ENDPOINT = 'namespace=~"$namespace",pierhead_dev_endpoint=~"$endpoint",pierhead_dev_deployed_model!=""'
_SERVING = f'{_ENDPOINT},pierhead_dev_deployed_model=~"$deployed_model"'
# Those of an Endpoint, whichever DeployedModels are chosen: shares are of all.
_ALL_PREDICTIONS = f'{_ENDPOINT},dialect!="probe"'
_PREDICTIONS = f'{_SERVING},dialect!="probe"'
# What the operator tells of resources has the resources' own names as labels.
_TOLD_DEPLOYED_MODEL = "namespace, endpoint, deployed_model"
_TOLD = 'namespace=~"$namespace",endpoint=~"$endpoint",deployed_model=~"$deployed_model"'
_TOLD_LEGEND = "{{namespace}}/{{deployed_model}}"
_BATCH = 'namespace=~"$namespace",pierhead_dev_batch_prediction_job=~"$batch_prediction_job"'
_BATCH_JOB = "namespace, pierhead_dev_batch_prediction_job"
_MODEL_LEGEND = "{{namespace}}/{{pierhead_dev_deployed_model}}"
_BATCH_LEGEND = "{{namespace}}/{{pierhead_dev_batch_prediction_job}}"


@dataclass(frozen=True)
class Query:
    """What a panel asks Prometheus, and what each line of the answer is called."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """Lines over time; `unit` is one of Grafana's."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str = ""


@dataclass(frozen=True)
class Dashboard:
    """`variables` are what it can be narrowed to: a name, and the metric and label whose values it takes."""

    name: str
    title: str
    variables: tuple[tuple[str, str, str], ...]
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


def told(metric: str, labels: str, by: str) -> str:
    """A figure of resources, in a moment in which one operator takes over from another, too."""
    return f"max by ({by}) (pierhead_operator_{metric}{{{labels}}})"


def rate(metric: str, labels: str, by: str) -> str:
    """A counter's increase a second."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(share: float, metric: str, labels: str, by: str) -> str:
    """That many of a histogram's observations were no more than this."""
    by = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, by)})"


def mean(metric: str, labels: str, by: str) -> str:
    """A histogram's mean."""
    return f"{rate(f'{metric}_sum', labels, by)} / {rate(f'{metric}_count', labels, by)}"


_TRAFFIC = (
    Panel(
        "Predictions a second",
        "reqps",
        (Query(rate("pierhead_predict_requests_total", _PREDICTIONS, _DEPLOYED_MODEL), _MODEL_LEGEND),),
    ),
    Panel(
        "Split, wanted and effective",
        "percent",
        tuple(
            Query(
                told(f"traffic_split_{split}_percent", _TOLD, _TOLD_DEPLOYED_MODEL),
                f"{{{{namespace}}}}/{{{{endpoint}}}}: {{{{deployed_model}}}} {split}",
            )
            for split in ("wanted", "effective")
        ),
        "What the spec asks for, and what the gateway is told: weight goes only to what serves.",
    ),
    Panel(
        "Split, as predictions are answered",
        "percentunit",
        (
            Query(
                f"{rate('pierhead_predict_requests_total', _PREDICTIONS, f'{_DEPLOYED_MODEL}, pierhead_dev_endpoint')}"
                " / on (namespace, pierhead_dev_endpoint) group_left "
                f"{rate('pierhead_predict_requests_total', _ALL_PREDICTIONS, 'namespace, pierhead_dev_endpoint')}",
                "{{namespace}}/{{pierhead_dev_endpoint}}: {{pierhead_dev_deployed_model}}",
            ),
        ),
        "The share of an Endpoint's predictions that each DeployedModel answered.",
    ),
    Panel(
        "In flight",
        "short",
        (
            Query(
                f"sum by ({_DEPLOYED_MODEL}) (pierhead_predict_requests_in_flight{{{_SERVING}}})",
                _MODEL_LEGEND,
            ),
        ),
    ),
)
_LATENCY = (
    *(
        Panel(
            f"Latency, {name}",
            "s",
            (
                Query(
                    quantile(share, "pierhead_predict_request_duration_seconds", _PREDICTIONS, _DEPLOYED_MODEL),
                    _MODEL_LEGEND,
                ),
            ),
        )
        for name, share in (("median", 0.5), ("95 %", 0.95), ("99 %", 0.99))
    ),
    Panel(
        "What a prediction costs, by stage",
        "s",
        (Query(mean("pierhead_model_duration_seconds", _SERVING, f"{_DEPLOYED_MODEL}, stage"), "{{stage}}"),),
        "The mean, of a worker's time.",
    ),
)
_ERRORS = (
    Panel(
        "Errors a second",
        "reqps",
        (
            Query(
                rate("pierhead_predict_requests_total", f'{_PREDICTIONS},code!="200"', f"{_DEPLOYED_MODEL}, code"),
                f"{_MODEL_LEGEND}: {{{{code}}}}",
            ),
        ),
    ),
    Panel(
        "Refused without a look, a second",
        "reqps",
        (
            Query(
                rate("pierhead_predict_requests_rejected_total", _SERVING, f"{_DEPLOYED_MODEL}, reason"),
                f"{_MODEL_LEGEND}: {{{{reason}}}}",
            ),
        ),
    ),
    Panel(
        "Processes that died",
        "short",
        (
            Query(
                f"sum by ({_DEPLOYED_MODEL})"
                f" (increase(pierhead_model_process_restarts_total{{{_SERVING}}}[$__rate_interval]))",
                _MODEL_LEGEND,
            ),
        ),
    ),
)
_QUEUE = (
    Panel(
        "Queue",
        "short",
        (Query(f"sum by ({_DEPLOYED_MODEL}) (pierhead_queue_length{{{_SERVING}}})", _MODEL_LEGEND),),
        "Predictions that wait for the model.",
    ),
    Panel(
        "Wait in the queue, 95 %",
        "s",
        (Query(quantile(0.95, "pierhead_queue_duration_seconds", _SERVING, _DEPLOYED_MODEL), _MODEL_LEGEND),),
    ),
    Panel(
        "Requests in a batch",
        "short",
        (Query(mean("pierhead_batch_size", _SERVING, _DEPLOYED_MODEL), _MODEL_LEGEND),),
        "The mean; 1 is one that was computed alone.",
    ),
    Panel(
        "Instances a second",
        "short",
        (Query(rate("pierhead_predict_instances_sum", _SERVING, _DEPLOYED_MODEL), _MODEL_LEGEND),),
    ),
)
_ROLLOUT = (
    Panel(
        "DeployedModels that are ready",
        "short",
        (Query(told("deployed_model_ready", _TOLD, _TOLD_DEPLOYED_MODEL), _TOLD_LEGEND),),
        "1 where every replica of the wanted version answers predictions.",
    ),
    Panel(
        "Endpoints that are ready",
        "short",
        (
            Query(
                told("endpoint_ready", 'namespace=~"$namespace",endpoint=~"$endpoint"', "namespace, endpoint"),
                "{{namespace}}/{{endpoint}}",
            ),
        ),
        "1 where traffic is split as wanted.",
    ),
    Panel(
        "Replicas",
        "short",
        tuple(
            Query(told(f"deployed_model_replicas_{which}", _TOLD, _TOLD_DEPLOYED_MODEL), f"{_TOLD_LEGEND} {which}")
            for which in ("wanted", "updated", "available")
        ),
        "In a rollout fewer are updated than wanted.",
    ),
    Panel(
        "Pods by version and form",
        "short",
        (
            Query(
                f"count by ({_DEPLOYED_MODEL}, model_version_id, form) (pierhead_model_info{{{_SERVING}}})",
                f"{_MODEL_LEGEND}: {{{{model_version_id}}}} {{{{form}}}}",
            ),
        ),
        "While a version rolls out there are two.",
    ),
    Panel(
        "Processes that compute",
        "short",
        (Query(f"sum by ({_DEPLOYED_MODEL}) (pierhead_workers{{{_SERVING}}})", _MODEL_LEGEND),),
    ),
    Panel(
        "GPU",
        "percent",
        (
            Query(
                f"avg by ({_DEPLOYED_MODEL}) (DCGM_FI_DEV_GPU_UTIL * on (namespace, pod) group_left"
                f" (pierhead_dev_deployed_model) group by ({_DEPLOYED_MODEL}, pod) (pierhead_workers{{{_SERVING}}}))",
                _MODEL_LEGEND,
            ),
        ),
        "The mean over pods, where NVIDIA's dcgm-exporter runs and names the pods of its GPUs.",
    ),
)
_WORK = (
    Panel(
        "Jobs by state",
        "short",
        (
            Query(
                told("batch_prediction_jobs", 'namespace=~"$namespace"', "namespace, state"), "{{namespace}}: {{state}}"
            ),
        ),
    ),
    Panel(
        "Lines a second",
        "short",
        (
            Query(
                rate("pierhead_batch_lines_total", _BATCH, f"{_BATCH_JOB}, outcome"),
                f"{_BATCH_LEGEND}: {{{{outcome}}}}",
            ),
        ),
    ),
    Panel(
        "Input",
        "Bps",
        (Query(rate("pierhead_batch_input_bytes_total", _BATCH, _BATCH_JOB), _BATCH_LEGEND),),
    ),
    Panel(
        "Workers",
        "short",
        (Query(f"count by ({_BATCH_JOB}) (pierhead_batch_chunks_total{{{_BATCH}}})", _BATCH_LEGEND),),
    ),
)
_STORAGE = (
    Panel(
        "Chunks committed a second",
        "short",
        (Query(rate("pierhead_batch_chunks_total", _BATCH, _BATCH_JOB), _BATCH_LEGEND),),
    ),
    Panel(
        "Requests to storage tried again, a second",
        "reqps",
        (Query(rate("pierhead_batch_storage_retries_total", _BATCH, _BATCH_JOB), _BATCH_LEGEND),),
    ),
    Panel(
        "Time in which the model waits for storage",
        "percentunit",
        (
            Query(
                f"avg by ({_BATCH_JOB})"
                f" (rate(pierhead_batch_storage_wait_seconds_total{{{_BATCH}}}[$__rate_interval]))",
                _BATCH_LEGEND,
            ),
        ),
    ),
)
_NAMESPACE = 'namespace=~"$namespace"'
_OPERATOR = (
    Panel(
        "Who acts",
        "short",
        (Query(f"pierhead_operator_leader{{{_NAMESPACE}}}", "{{pod}}"),),
        "1 where it does; never two of an installation.",
    ),
    Panel("Queue", "short", (Query(f"pierhead_operator_queue_length{{{_NAMESPACE}}}", "{{pod}}"),)),
    Panel(
        "Wait in the queue, 99 %",
        "s",
        (Query(quantile(0.99, "pierhead_operator_queue_seconds", _NAMESPACE, "pod"), "{{pod}}"),),
    ),
    Panel(
        "Reconciles a second",
        "ops",
        (Query(rate("pierhead_operator_reconcile_seconds_count", _NAMESPACE, "kind"), "{{kind}}"),),
    ),
    Panel(
        "Reconcile, 99 %",
        "s",
        (Query(quantile(0.99, "pierhead_operator_reconcile_seconds", _NAMESPACE, "kind"), "{{kind}}"),),
    ),
    Panel(
        "Reconciles that failed, a second",
        "ops",
        (Query(rate("pierhead_operator_reconcile_errors_total", _NAMESPACE, "kind, reason"), "{{kind}}: {{reason}}"),),
    ),
)
_CLUSTER = (
    Panel(
        "Requests to the Kubernetes API a second",
        "reqps",
        (Query(rate("pierhead_operator_api_requests_total", _NAMESPACE, "verb, code"), "{{verb}} {{code}}"),),
    ),
    Panel(
        "Requests to the Kubernetes API, 99 %",
        "s",
        (Query(quantile(0.99, "pierhead_operator_api_request_seconds", _NAMESPACE, "verb"), "{{verb}}"),),
    ),
    Panel("Since the last resync", "s", (Query(f"pierhead_operator_resync_age_seconds{{{_NAMESPACE}}}", "{{pod}}"),)),
    Panel(
        "Resources",
        "short",
        (Query(f"max by (kind) (pierhead_operator_resources{{{_NAMESPACE}}})", "{{kind}}"),),
    ),
)
_API = (
    Panel(
        "Requests a second",
        "reqps",
        (Query(rate("pierhead_api_requests_total", _NAMESPACE, "verb, resource"), "{{verb}} {{resource}}"),),
    ),
    Panel(
        "Errors a second",
        "reqps",
        (
            Query(
                rate("pierhead_api_requests_total", f'{_NAMESPACE},code=~"[45].."', "verb, code"), "{{verb}} {{code}}"
            ),
        ),
    ),
    Panel(
        "Latency, 95 %",
        "s",
        (Query(quantile(0.95, "pierhead_api_request_seconds", _NAMESPACE, "verb"), "{{verb}}"),),
    ),
    Panel("Predictions being forwarded", "short", (Query(f"pierhead_api_forwarding{{{_NAMESPACE}}}", "{{pod}}"),)),
)

DASHBOARDS = (
    Dashboard(
        "pierhead-models",
        "Pierhead: models",
        (
            ("namespace", "pierhead_operator_deployed_model_ready", "namespace"),
            ("endpoint", 'pierhead_operator_deployed_model_ready{namespace=~"$namespace"}', "endpoint"),
            (
                "deployed_model",
                'pierhead_operator_deployed_model_ready{namespace=~"$namespace",endpoint=~"$endpoint"}',
                "deployed_model",
            ),
        ),
        (
            ("Traffic", _TRAFFIC),
            ("Latency", _LATENCY),
            ("Errors", _ERRORS),
            ("Queue and batches", _QUEUE),
            ("Readiness, rollouts and GPU", _ROLLOUT),
        ),
    ),
    Dashboard(
        "pierhead-batch",
        "Pierhead: batch prediction jobs",
        (
            ("namespace", "pierhead_batch_chunks_total", "namespace"),
            (
                "batch_prediction_job",
                'pierhead_batch_chunks_total{namespace=~"$namespace"}',
                "pierhead_dev_batch_prediction_job",
            ),
        ),
        (("Work", _WORK), ("Storage", _STORAGE)),
    ),
    Dashboard(
        "pierhead-platform",
        "Pierhead: operator and API",
        (("namespace", "pierhead_operator_leader", "namespace"),),
        (("Operator", _OPERATOR), ("Kubernetes", _CLUSTER), ("REST API", _API)),
    ),
)


def _make_variable(name: str, metric: str, label: str) -> dict[str, Any]:
    query = f"label_values({metric}, {label})"
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,  # when the time range changes too: what has ended has a name still
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


def _make_panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _make_panels(rows: tuple[tuple[str, tuple[Panel, ...]], ...]) -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in rows:
        place = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place})
        y += 1
        for index, panel in enumerate(row):
            line, column = divmod(index * _WIDTH, _COLUMNS)
            panels.append(_make_panel(len(panels) + 1, panel, column, y + line * _HEIGHT))
        y += -(-len(row) * _WIDTH // _COLUMNS) * _HEIGHT
    return panels


def make_dashboard(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
    return {
        "uid": dashboard.name,
        "title": dashboard.title,
        "tags": ["pierhead"],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [source, *(_make_variable(*variable) for variable in dashboard.variables)]},
        "panels": _make_panels(dashboard.rows),
    }


def render(dashboard: Dashboard) -> str:
    """The text of the committed file."""
    return json.dumps(make_dashboard(dashboard), indent=1) + "\n"


def main() -> None:
    """Writes all dashboards into the folder that is named."""
    folder = Path(sys.argv[1])
    for dashboard in DASHBOARDS:
        (folder / f"{dashboard.name}.json").write_text(render(dashboard))


if __name__ == "__main__":
    main()
