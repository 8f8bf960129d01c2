"""What the operator tells Prometheus of resources: read from what the watches told, gone with them."""

import pytest
from pierhead_operator.resource_metrics import ResourceMetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.operator.conftest import make_batch, make_deployed_model, make_endpoint
from tests.unit.operator.resources import SCALING, make_deployment, make_empty_store, make_ended, put

READY = {"type": "Ready", "status": "True", "reason": "Serving", "lastTransitionTime": "2026-11-22T11:00:00Z"}


@pytest.fixture
def store():
    return make_empty_store()


PREFIX = "pierhead_operator_"
LABELS = ("namespace", "endpoint", "deployed_model", "batch_prediction_job", "state", "kind")


def read(store, leads=True):
    """Each value that is told of resources: by the metric without its prefix, by the labels' values."""
    told = {}
    for family in text_string_to_metric_families(ResourceMetrics(store, lambda: leads).render().decode()):
        for sample in family.samples:
            key = "/".join(sample.labels[label] for label in LABELS if label in sample.labels)
            told.setdefault(family.name.removeprefix(PREFIX), {})[key] = sample.value
    return told


NOTHING = {"unreadable_resources": {"Endpoint": 0, "DeployedModel": 0, "BatchPredictionJob": 0}}


def test_nothing_is_told_where_nothing_is(store):
    assert read(store) == NOTHING


def test_what_cannot_be_read_is_counted_and_spoils_nothing(store):
    put(store, make_endpoint())
    later = make_deployed_model("a")
    later["spec"]["dedicatedResources"] = {"minReplicaCount": "many"}
    put(store, later)
    told = read(store)
    assert told["unreadable_resources"] == {"Endpoint": 0, "DeployedModel": 1, "BatchPredictionJob": 0}
    assert told["endpoint_ready"] == {"default/photos": 0}


def test_only_who_acts_tells(store):
    put(store, make_endpoint())
    assert read(store)
    assert read(store, leads=False) == {}


@pytest.mark.parametrize(
    ("split", "there", "effective", "wanted"),
    [
        ({"a": 80, "b": 20}, ["a", "b"], {"a": 100}, {"a": 80, "b": 20}),
        ({"b": 100}, ["a", "b"], {"a": 100}, {"a": 0, "b": 100}),
        (None, ["a"], {}, {"a": 100}),
        (None, ["a", "b"], {"a": 100}, {}),
        (None, [], {}, {}),
    ],
    ids=["one waits", "moves on", "the only one", "not told", "nobody"],
)
def test_both_splits_are_told(store, split, there, effective, wanted):
    put(store, make_endpoint(split, trafficSplit=effective))
    for name in there:
        put(store, make_deployed_model(name))
    told = read(store)
    assert told.get("traffic_split_wanted_percent", {}) == {
        f"default/photos/{name}": share for name, share in wanted.items()
    }
    assert told.get("traffic_split_effective_percent", {}) == {
        f"default/photos/{name}": effective.get(name, 0) for name in {*wanted, *effective}
    }


@pytest.mark.parametrize(("conditions", "value"), [([READY], 1), ([{**READY, "status": "False"}], 0), ([], 0)])
def test_readiness_is_the_conditions(store, conditions, value):
    put(store, make_endpoint(conditions=conditions))
    live = make_deployed_model("a")
    put(store, {**live, "status": {"conditions": conditions}})
    told = read(store)
    assert told["endpoint_ready"] == {"default/photos": value}
    assert told["deployed_model_ready"] == {"default/photos/a": value}


@pytest.mark.parametrize(("status", "value"), [("True", 1), ("False", 0)])
def test_autoscaler_is_told_where_there_is_one(store, status, value):
    for name, conditions in (("a", [{**SCALING, "status": status}]), ("b", [READY])):
        put(store, {**make_deployed_model(name), "status": {"conditions": conditions}})
    assert read(store)["deployed_model_scaling_active"] == {"default/photos/a": value}


@pytest.mark.parametrize(
    ("mirror", "reason", "told"),
    [
        ({"deployedModel": "a"}, "MirrorNotServing", 1),
        ({"deployedModel": "a"}, "WaitingForDeployedModels", 0),
        (None, "WaitingForDeployedModels", None),
    ],
    ids=["the mirror alone", "more than that", "no mirror"],
)
def test_endpoint_that_waits_for_its_mirror_alone_is_told(store, mirror, reason, told):
    live = make_endpoint(conditions=[{**READY, "status": "False", "reason": reason}])
    put(store, {**live, "spec": {"mirror": mirror}})
    found = read(store)
    assert found["endpoint_ready"] == {"default/photos": 0}
    assert found.get("endpoint_mirror_not_serving", {}).get("default/photos") == told


@pytest.mark.parametrize(
    ("deployment", "wanted", "updated"),
    [
        (make_deployment("a", replicas=4, updated=1), 4, 1),
        (make_deployment("a", replicas=4, updated=1, owner="another"), 2, 0),
        (None, 2, 0),
    ],
    ids=["rolls out", "somebody else's", "not there"],
)
def test_rollout_is_told_by_its_replicas(store, deployment, wanted, updated):
    live = make_deployed_model("a", dedicatedResources={"minReplicaCount": 2})
    put(store, {**live, "status": {"availableReplicaCount": 2}})
    if deployment:
        put(store, deployment)
    told = read(store)
    found = {which: told[f"deployed_model_replicas_{which}"] for which in ("wanted", "updated", "available")}
    assert found == {
        "wanted": {"default/photos/a": wanted},
        "updated": {"default/photos/a": updated},
        "available": {"default/photos/a": 2},
    }


@pytest.mark.parametrize(
    ("state", "failed"),
    [
        ("JOB_STATE_FAILED", True),
        ("JOB_STATE_PARTIALLY_SUCCEEDED", True),
        ("JOB_STATE_SUCCEEDED", False),
        ("JOB_STATE_CANCELLED", False),
    ],
)
def test_jobs_are_counted_by_state_and_failures_named(store, state, failed):
    put(store, make_ended(state))
    put(store, make_batch(), name="new")
    told = read(store)
    counts = told["batch_prediction_jobs"]
    assert len(counts) == 8
    assert {key: count for key, count in counts.items() if count} == {
        f"default/{state}": 1,
        "default/JOB_STATE_PENDING": 1,
    }
    times = told.get("batch_prediction_job_failed_timestamp_seconds", {})
    assert times == ({"default/nightly": 1795348800.0} if failed else {})


def test_what_is_gone_is_told_no_more(store):
    lives = [put(store, make_endpoint({"a": 100})), put(store, make_deployed_model("a"))]
    lives.append(put(store, make_ended("JOB_STATE_FAILED")))
    assert read(store)
    for live in lives:
        store.remove(live["kind"], live)
    assert read(store) == NOTHING
