"""Each alert, tried by Prometheus' own promtool: it comes where it should, and stays away where all is well."""

import subprocess
from dataclasses import dataclass, field

import pytest
import yaml

from cluster import go_build
from tests.monitoring import FILES, load_alerts
from tests.prometheus import find_program

OPERATOR = {"namespace": "pierhead-system"}
MODEL = {"namespace": "team-a", "endpoint": "photos", "deployed_model": "photos-1"}
PODS = {"namespace": "team-a", "pierhead_dev_endpoint": "photos", "pierhead_dev_deployed_model": "photos-1"}
JOB = {"namespace": "team-a", "pierhead_dev_batch_prediction_job": "nightly"}


@dataclass(frozen=True)
class Case:
    """What Prometheus sees, in its notation of a value each minute, and what it warns of, once `minutes` are over."""

    alert: str
    minutes: int
    labels: dict[str, str]
    summary: str
    bad: dict[str, str]
    good: dict[str, str]
    common: dict[str, str] = field(default_factory=dict)


def _series(name, *labels, **more):
    """A series' name, with the labels that its target gave and its own."""
    all_labels = {key: value for given in (*labels, more) for key, value in given.items()}
    inside = ",".join(f'{key}="{value}"' for key, value in all_labels.items())
    return f"{name}{{{inside}}}"


def _operator(name, **labels):
    return _series(f"pierhead_operator_{name}", OPERATOR, {"pod": "operator-0"}, labels)


def _told(name, labels=MODEL):
    return _series(f"pierhead_operator_{name}", labels, {"pod": "operator-0"})


def _server(name, **labels):
    return _series(f"pierhead_{name}", PODS, {"pod": "photos-1-a"}, labels)


def _worker(name, **labels):
    return _series(name, JOB, {"pod": "nightly-0"}, labels)


AVAILABLE, WANTED = _told("deployed_model_replicas_available"), _told("deployed_model_replicas_wanted")
ENDPOINT = {"namespace": "team-a", "endpoint": "photos"}
SHADOWED = {"namespace": "team-a", "endpoint": "shadowed"}
FAST = _server("predict_request_duration_seconds_bucket", dialect="vertex", le="1.0")
SLOW = _server("predict_request_duration_seconds_bucket", dialect="vertex", le="5.0")
ALL = _server("predict_request_duration_seconds_bucket", dialect="vertex", le="+Inf")
OK, BROKEN = (_server("predict_requests_total", dialect="vertex", code=code) for code in ("200", "500"))
REFUSED = _server("predict_requests_rejected_total", reason="queue_full")
API_OK, API_BROKEN = (
    _series("pierhead_api_requests_total", OPERATOR, verb="list", resource="models", code=code)
    for code in ("200", "503")
)
API_UNSERVED = _series("pierhead_api_requests_total", OPERATOR, verb="predict", resource="unserved", code="503")
KUBE_OK, KUBE_BROKEN = (_operator("api_requests_total", verb="list", kind="Pod", code=code) for code in ("200", "none"))
CHUNKS = _worker("pierhead_batch_chunks_total")
FAILED = _series(
    "pierhead_operator_batch_prediction_job_failed_timestamp_seconds",
    namespace="team-a",
    batch_prediction_job="nightly",
)

CASES = (
    Case(
        "PierheadOperatorWithoutLeader",
        3,
        OPERATOR,
        "No operator acts, so changes to Pierhead's resources have no effect.",
        bad={_operator("leader"): "0x10"},
        good={_operator("leader"): "0x10", _series("pierhead_operator_leader", OPERATOR, pod="operator-1"): "1x10"},
    ),
    Case(
        "PierheadOperatorWithoutLeader",
        3,
        {},
        "No operator acts, so changes to Pierhead's resources have no effect.",
        bad={},
        good={_operator("leader"): "1x10"},
    ),
    Case(
        "PierheadOperatorResyncStale",
        20,
        {**OPERATOR, "pod": "operator-0"},
        "operator-0 has not seen the whole cluster for 20m 0s.",
        bad={_operator("resync_age_seconds"): "0+60x30"},
        good={_operator("resync_age_seconds"): "0 60 0 60 0 60 0 60 0 60 0 60 0 60 0 60 0 60 0 60 0 60"},
    ),
    Case(
        "PierheadOperatorQueueStuck",
        25,
        {**OPERATOR, "pod": "operator-0"},
        "The queue of operator-0 was not empty for a moment in 15 minutes; 3 resources wait at the least.",
        bad={_operator("queue_length"): "3x30", _operator("leader"): "1x30"},
        good={_operator("queue_length"): "3x30", _operator("leader"): "0x30"},
    ),
    Case(
        "PierheadOperatorBug",
        5,
        {**OPERATOR, "kind": "Model"},
        "The operator met an error of its own while it looked after a Model.",
        bad={_operator("reconcile_errors_total", kind="Model", reason="bug"): "0 0 1 1 1 1"},
        good={
            _operator("reconcile_errors_total", kind="Model", reason="bug"): "0x5",
            _operator("reconcile_errors_total", kind="Model", reason="environment"): "0+1x5",
        },
    ),
    Case(
        "PierheadOperatorApiErrors",
        20,
        OPERATOR,
        "10% of the operator's requests to the Kubernetes API fail.",
        bad={KUBE_OK: "0+90x20", KUBE_BROKEN: "0+10x20"},
        good={KUBE_OK: "0+99x20", KUBE_BROKEN: "0+1x20"},
    ),
    Case(
        "PierheadModelNotServing",
        20,
        MODEL,
        "No pod of DeployedModel team-a/photos-1 can predict.",
        # The operator's restart, in which nobody tells anything, does not begin it anew.
        bad={AVAILABLE: "0x10 _x3 0x10", WANTED: "1x10 _x3 1x10"},
        good={AVAILABLE: "0x20", WANTED: "0x20"},
    ),
    Case(
        "PierheadModelNotReady",
        20,
        MODEL,
        "DeployedModel team-a/photos-1 serves, but not as its spec asks for.",
        bad={_told("deployed_model_ready"): "0x20", AVAILABLE: "1x20"},
        good={_told("deployed_model_ready"): "0x10 1 0x10", AVAILABLE: "1x20"},
    ),
    Case(
        "PierheadModelNotScaling",
        20,
        MODEL,
        "The autoscaler of DeployedModel team-a/photos-1 cannot tell how many replicas are wanted.",
        bad={_told("deployed_model_scaling_active"): "0x20"},
        good={_told("deployed_model_scaling_active"): "0x5 1x15"},
    ),
    Case(
        "PierheadEndpointNotReady",
        20,
        ENDPOINT,
        "The traffic of Endpoint team-a/photos does not go where its spec wants it.",
        bad={_told("endpoint_ready", ENDPOINT): "0x20", _told("traffic_split_wanted_percent"): "100x20"},
        good={
            _told("endpoint_ready", ENDPOINT): "0x20",
            # Another one, whose mirror does not serve.
            _told("endpoint_ready", SHADOWED): "0x20",
            _told("traffic_split_wanted_percent", SHADOWED): "100x20",
            _told("endpoint_mirror_not_serving", SHADOWED): "1x20",
        },
        common={_told("endpoint_mirror_not_serving", ENDPOINT): "0x20"},
    ),
    Case(
        "PierheadModelErrors",
        20,
        PODS,
        "10% of the predictions of team-a/photos-1 end in a 5xx.",
        bad={OK: "0+90x20", BROKEN: "0+10x20"},
        good={OK: "0+99x20", BROKEN: "0+1x20"},
        # Nobody's prediction.
        common={_server("predict_requests_total", dialect="probe", code="500"): "0+100x20"},
    ),
    Case(
        "PierheadModelSlow",
        25,
        PODS,
        "One of 20 predictions of team-a/photos-1 takes 4.5s or longer.",
        bad={FAST: "0+60x25", SLOW: "0+100x25", ALL: "0+100x25"},
        good={FAST: "0+99x25", SLOW: "0+100x25", ALL: "0+100x25"},
    ),
    Case(
        "PierheadModelQueueFull",
        20,
        PODS,
        "10% of the predictions of team-a/photos-1 are refused with 429.",
        bad={OK: "0+100x20", REFUSED: "0+10x20"},
        good={OK: "0+200x20", REFUSED: "0+1x20"},
    ),
    Case(
        "PierheadModelProcessRestarts",
        30,
        PODS,
        "Processes of team-a/photos-1 died 3 times in 30 minutes.",
        bad={_server("model_process_restarts_total"): "0x10 1x5 2x5 3x10"},
        good={_server("model_process_restarts_total"): "0x10 1x20"},
    ),
    Case(
        "PierheadModelProcessDies",
        8,
        PODS,
        "The model's process in a pod of team-a/photos-1 dies again and again, so the pod takes no requests.",
        # Ready again for a minute or two, and out again.
        bad={_server("model_process_dies"): "0 0 0 0 0 1 0 0 0 0"},
        good={_server("model_process_dies"): "1 0 0 0 0 0 0 0 0 0"},
    ),
    Case(
        "PierheadBatchFailed",
        10,
        {"namespace": "team-a", "batch_prediction_job": "nightly"},
        "BatchPredictionJob team-a/nightly ended without all of its predictions.",
        bad={FAILED: "_x5 300x10"},
        # Long ago.
        good={FAILED: "-3600x10"},
    ),
    Case(
        "PierheadBatchStalled",
        35,
        {**JOB, "pod": "nightly-0"},
        "nightly-0 of BatchPredictionJob team-a/nightly commits nothing.",
        bad={CHUNKS: "7x40"},
        good={CHUNKS: "0+1x40"},
        common={_worker("up"): "1x40"},
    ),
    Case(
        "PierheadBatchStorageRetries",
        25,
        JOB,
        "Storage failed 75 requests of BatchPredictionJob team-a/nightly in 15 minutes.",
        bad={_worker("pierhead_batch_storage_retries_total"): "0+5x30"},
        good={_worker("pierhead_batch_storage_retries_total"): "0+1x30"},
    ),
    Case(
        "PierheadApiErrors",
        20,
        OPERATOR,
        "10% of the REST API's answers are a 5xx.",
        bad={API_OK: "0+90x20", API_BROKEN: "0+10x20"},
        good={API_OK: "0+99x20", API_BROKEN: "0+1x20", API_UNSERVED: "0+99x20"},
    ),
)
SEVERITIES = {alert["alert"]: alert["labels"]["severity"] for alert in load_alerts()}


def _make_test(case, series, *expected):
    check = {"alertname": case.alert, "eval_time": f"{case.minutes}m", "exp_alerts": list(expected)}
    values = [{"series": name, "values": values} for name, values in (series | case.common).items()]
    return {"interval": "1m", "input_series": values, "alert_rule_test": [check]}


def _make_tests(case):
    """What is wrong for long enough, and what is well."""
    warning = {
        "exp_labels": {"severity": SEVERITIES[case.alert], **case.labels},
        "exp_annotations": {"summary": case.summary, "runbook_url": f"docs/runbooks/{case.alert}.md"},
    }
    return [_make_test(case, case.bad, warning), _make_test(case, case.good)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_alert_comes_where_it_should_and_only_there(tmp_path, case):
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(FILES / "alerts.yaml")], "tests": _make_tests(case)}))
    promtool = find_program(go_build.PROMETHEUS, "promtool")
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried():
    assert {case.alert for case in CASES} == SEVERITIES.keys()
