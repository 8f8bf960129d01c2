"""Tables: what is left of a DeployedModel that is gone -> what comes next."""

import pytest
from pierhead_operator.removal import (
    DRAIN_SECONDS,
    Leaving,
    Step,
    decide_removal,
    find_endpoints,
    is_forwarded,
    is_left,
    share,
)
from pierhead_operator.types import Endpoint

from tests.unit.operator.conftest import make_endpoint

LEAVING = {
    "still routed": (Leaving(True, 0.0, 2), Step.WAIT),
    "routed for long": (Leaving(True, 1000.0, 2), Step.WAIT),
    "not routed, the gateway may not know yet": (Leaving(False, DRAIN_SECONDS - 0.1, 2), Step.WAIT),
    "nobody comes any more": (Leaving(False, DRAIN_SECONDS, 2), Step.END_PODS),
    "the pods are gone": (Leaving(False, DRAIN_SECONDS, 0), Step.END_ADDRESS),
}


@pytest.mark.parametrize(("leaving", "expected"), LEAVING.values(), ids=LEAVING.keys())
def test_decide_removal(leaving, expected):
    assert decide_removal(leaving) is expected


def _child(kind="Deployment", owners=(), **labels):
    labels = {"app.kubernetes.io/managed-by": "pierhead", "pierhead.dev/deployed-model": "photos-1"} | labels
    return {"kind": kind, "metadata": {"name": "dm-photos-1", "labels": labels, "ownerReferences": list(owners)}}


DM_OWNS = {"kind": "DeployedModel", "name": "photos-1", "uid": "1", "controller": True}
ENDPOINT_OWNS = {"kind": "Endpoint", "name": "photos", "uid": "2"}
LEFT = {
    "its DeployedModel is there": (_child(owners=[DM_OWNS, ENDPOINT_OWNS]), False),
    "only the Endpoint is there": (_child(owners=[ENDPOINT_OWNS]), True),
    "nobody is there": (_child(), True),
    "another's": (_child(owners=[ENDPOINT_OWNS], **{"pierhead.dev/deployed-model": "photos-2"}), False),
    "a stranger's": (_child(**{"app.kubernetes.io/managed-by": "Helm"}), False),
    "without labels": ({"kind": "Service", "metadata": {"name": "dm-photos-1"}}, False),
}


@pytest.mark.parametrize(("live", "expected"), LEFT.values(), ids=LEFT.keys())
def test_is_left(live, expected):
    assert is_left(live, "photos-1") is expected


def _leaving(endpoint):
    return {**endpoint, "metadata": {**endpoint["metadata"], "deletionTimestamp": "2026-11-22T12:00:00Z"}}


ENDPOINTS = {
    "has weight": (make_endpoint(trafficSplit={"photos-1": 20, "photos-2": 80}), True),
    "is in the split without weight": (make_endpoint(trafficSplit={"photos-1": 0, "photos-2": 100}), False),
    "is not in the split": (make_endpoint(trafficSplit={"photos-2": 100}), False),
    "is wanted, but not carried": (make_endpoint({"photos-1": 100}), False),
    "the Endpoint leaves": (_leaving(make_endpoint(trafficSplit={"photos-1": 100})), False),
    "the Endpoint is gone": (None, False),
    "the Endpoint was never looked at": ({**make_endpoint(), "status": {"conditions": None}}, False),
    "the Endpoint cannot be read": ({**make_endpoint(trafficSplit={"photos-1": 100}), "spec": {"access": "Lunar"}}, True),
}  # fmt: skip


@pytest.mark.parametrize(("endpoint", "expected"), ENDPOINTS.values(), ids=ENDPOINTS.keys())
def test_is_forwarded(endpoint, expected):
    assert is_forwarded(endpoint, "photos-1") is expected


def test_endpoint_is_found_by_what_is_left():
    left = [_child(owners=[ENDPOINT_OWNS]), _child("Service", owners=[ENDPOINT_OWNS]), _child("NetworkPolicy")]
    assert find_endpoints(left) == {"photos"}
    assert find_endpoints([_child()]) == set()


@pytest.mark.parametrize("kind", ["Deployment", "Service", "NetworkPolicy"])
def test_what_pods_need_to_the_end_is_the_endpoints_too(kind):
    endpoint = Endpoint.model_validate(make_endpoint())
    owners = share(_child(kind, [DM_OWNS]), endpoint)["metadata"]["ownerReferences"]
    assert [(owner["kind"], owner["uid"], owner.get("controller")) for owner in owners] == [
        ("DeployedModel", "1", True),
        ("Endpoint", "uid-photos", None),
    ]


@pytest.mark.parametrize("kind", ["HorizontalPodAutoscaler", "PodDisruptionBudget"])
def test_other_objects_go_with_their_deployed_model(kind):
    child = _child(kind, [DM_OWNS])
    assert share(child, Endpoint.model_validate(make_endpoint())) == child


def test_without_an_endpoint_nothing_is_shared():
    child = _child(owners=[DM_OWNS])
    assert share(child, None) == child
