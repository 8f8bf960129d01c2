"""The alerts and dashboards speak of metrics that there are, and each alert has its page."""

import json
import re

import pytest
from pierhead_api.metrics import Metrics as ApiMetrics
from pierhead_operator import names
from pierhead_operator.metrics import Metrics as OperatorMetrics
from pierhead_operator.resource_metrics import ResourceMetrics
from pierhead_operator.settings import AutoscalingSettings
from pierhead_server.batch.pulse import Pulse
from pierhead_server.messages import Reply
from pierhead_server.metrics import Metrics as ServerMetrics
from pierhead_server.protocol import ServedModel
from prometheus_client.parser import text_string_to_metric_families

from charts import dashboards
from tests.monitoring import FILES, REPOSITORY, load_alerts, load_queries
from tests.unit.operator.resources import make_store

RUNBOOKS = REPOSITORY / "docs" / "runbooks"
TEMPLATE = (REPOSITORY / "charts" / "pierhead" / "templates" / "monitoring.yaml").read_text()

TARGET = {"namespace", "pod"}  # what a PodMonitor puts beside all that a pod exports
SERVING = {names.LABEL_ENDPOINT, names.LABEL_DEPLOYED_MODEL}
BATCH = {names.LABEL_BATCH_PREDICTION_JOB}


def as_label(key):
    """A pod's label as the Prometheus operator writes it on what the pod exports."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", key)


def make_operators():
    metrics = OperatorMetrics()
    with metrics.time_reconcile("Model"):
        pass
    metrics.observe_request("list", "Model", "200", 0.1)
    metrics.set_resources("Model", 1)
    return metrics.render() + ResourceMetrics(make_store(), lambda: True).render()


def make_apis():
    metrics = ApiMetrics()
    metrics.observe("list", "endpoints", 200, 0.1)
    return metrics.render()


def make_servers():
    metrics = ServerMetrics(ServedModel("photos-2", "projects/p/locations/l/models/photos", "Photos", "2"))
    metrics.set_form("quick")
    with metrics.request():
        metrics.observe_reply(Reply(200, b"{}", instances=1))
    return metrics.expose()


def make_workers():
    metrics = ServerMetrics(ServedModel("", "", "Photos", "2"))
    Pulse(metrics.registry)
    return metrics.expose()


def read_labels(text, of_pods):
    """Each sample's name and the labels that it can have, of those that an exposition has."""
    labels = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels, TARGET, map(as_label, of_pods))
    return labels


def find_exported():
    """By name of a sample, the labels that it can have in Prometheus."""
    exported = {"up": TARGET | set(map(as_label, SERVING | BATCH))}
    parts = ((make_operators(), ()), (make_apis(), ()), (make_servers(), SERVING), (make_workers(), BATCH))
    for text, of_pods in parts:
        for name, labels in read_labels(text, of_pods).items():
            exported.setdefault(name, set()).update(labels)
    # Exported by NVIDIA's dcgm-exporter, under the name by which the autoscaler knows it.
    return exported | {AutoscalingSettings().gpu_duty_cycle_metric: TARGET}


EXPORTED = find_exported()

GROUPING = re.compile(r"\b(?:by|on|group_left)\s*\(([^)]*)\)")
STRING = re.compile(r'"[^"]*"')
RANGE = re.compile(r"\[[^\]]*\]")
# A name and what is in braces behind it; one before a parenthesis is a function's.
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{([^}]*)\}|(?!\w|\s*\())")
WORDS = {"and", "or", "unless", "group_left"}


def find_selectors(query):
    """Each metric that a query names, with the labels that it is chosen by."""
    bare = RANGE.sub("", GROUPING.sub(" ", STRING.sub('""', query)))
    for name, matchers in SELECTOR.findall(bare):
        if name not in WORDS:
            yield name, set(re.findall(r"\w+(?=\s*[=!])", matchers))


def find_grouping(query):
    return {label.strip() for labels in GROUPING.findall(query) for label in labels.split(",") if label.strip()}


QUERIES = list(load_queries())


@pytest.mark.parametrize("query", QUERIES)
def test_query_asks_for_metrics_and_labels_that_there_are(query):
    selectors = list(find_selectors(query))
    assert selectors
    for name, labels in selectors:
        assert labels <= EXPORTED[name], name
    assert find_grouping(query) <= set.union(*(EXPORTED[name] for name, _ in selectors))


@pytest.mark.parametrize(
    "query",
    [
        "rate(pierhead_predict_requests[5m])",
        'sum by (namespace) (pierhead_queue_length{model="photos"})',
        "sum by (model) (pierhead_queue_length)",
        "sum by (pierhead_dev_deployed_model) (pierhead_operator_leader)",
        'pierhead_workers > 1 and up{code="200"}',
    ],
)
def test_query_for_what_there_is_not_is_found(query):
    with pytest.raises((AssertionError, KeyError)):
        test_query_asks_for_metrics_and_labels_that_there_are(query)


@pytest.mark.parametrize("dashboard", dashboards.DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_committed_dashboard_is_current(dashboard):
    path = FILES / "dashboards" / f"{dashboard.name}.json"
    assert path.read_text() == dashboards.render(dashboard), "run `make dashboards` and commit what it writes"


def test_no_dashboard_is_left_over():
    assert {path.stem for path in (FILES / "dashboards").iterdir()} == {one.name for one in dashboards.DASHBOARDS}


@pytest.mark.parametrize("dashboard", dashboards.DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_variables_take_their_values_from_labels_that_there_are(dashboard):
    for _, selector, label in dashboard.variables:
        [(name, labels)] = find_selectors(selector)
        assert labels | {label} <= EXPORTED[name]


@pytest.mark.parametrize("dashboard", dashboards.DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_legend_names_labels_that_the_query_leaves(dashboard):
    for _, panels in dashboard.rows:
        for query in (query for panel in panels for query in panel.queries):
            left = find_grouping(query.expression) or TARGET
            assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= left


@pytest.mark.parametrize("dashboard", dashboards.DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_panels_do_not_lie_on_each_other(dashboard):
    panels = json.loads(dashboards.render(dashboard))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert all(x < 24 for x, _ in taken)


def test_pod_monitors_copy_the_labels_that_are_asked_for():
    copied = [set(keys.split(", ")) for keys in re.findall(r"podTargetLabels: \[(.*)\]", TEMPLATE)]
    assert copied == [SERVING, BATCH]


ALERTS = load_alerts()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_says_how_grave_it_is_and_has_a_page(alert):
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["runbook_url"] == f"docs/runbooks/{alert['alert']}.md"
    page = (RUNBOOKS / f"{alert['alert']}.md").read_text()
    assert page.startswith(f"# {alert['alert']}\n")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [
        "What it means",
        "What users feel",
        "How to look",
        "How to mend it",
    ]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_summary_names_labels_that_the_alert_has(alert):
    assert set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"])) <= find_grouping(alert["expr"])


def test_every_alert_is_documented_and_no_page_is_left_over():
    alerts = {alert["alert"]: alert["labels"]["severity"] for alert in ALERTS}
    page = (REPOSITORY / "docs" / "monitoring.md").read_text()
    assert dict(re.findall(r"^\| \[`(\w+)`\]\(runbooks/\1\.md\) \| (\w+) \|", page, re.MULTILINE)) == alerts
    assert {path.stem for path in RUNBOOKS.iterdir()} == set(alerts)
