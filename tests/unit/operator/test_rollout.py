"""When an old pod makes room for the new one, in a table."""

from datetime import timedelta

import pytest
from pierhead_operator.resources import decide_in_place, has_served
from pierhead_operator.resources.rollout import make_rolling_update
from pierhead_operator.types import DeployedModel

from tests.unit.operator.conftest import NOW, SERVED, STARTING, make_deployed_model

WAIT = 120
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available: 1 No victims."
NO_CLAIM = "0/1 nodes are available: 1 cannot allocate all claims. still not schedulable, preemption: ..."
NO_NODE = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
SURGE, IN_PLACE = {"maxSurge": 1, "maxUnavailable": 0}, {"maxSurge": 0, "maxUnavailable": 1}


def make_deployment(replicas=2, updated=1, wanted=1, step=SURGE, conditions=()):
    """One that is wanted to have one replica, and has an old and a new one."""
    strategy = {"type": "RollingUpdate", "rollingUpdate": step}
    status = {"replicas": replicas, "updatedReplicas": updated, "conditions": list(conditions)}
    return {"spec": {"replicas": wanted, "strategy": strategy}, "status": status}


def make_refused(requested, used, limited, seconds=WAIT + 1, replicas=1, updated=0):
    """One whose new pod a quota refuses since `seconds`."""
    quota = f"exceeded quota: gpus, requested: {requested}, used: {used}, limited: {limited}"
    return make_failed(f'pods "dm-photos-1-x" is forbidden: {quota}', seconds, replicas, updated)


def make_failed(message, seconds=WAIT + 1, replicas=1, updated=0):
    since = (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    failure = {"type": "ReplicaFailure", "status": "True", "message": message, "lastTransitionTime": since}
    return make_deployment(replicas, updated, replicas, conditions=[failure])


def make_pod(template, waiting=None, message=NO_GPU, deleting=False, ready=False, **spec):
    """A pod that starts or answers, or that waits for a node since `waiting` seconds."""
    requests = spec.pop("requests", {"cpu": "1", "nvidia.com/gpu": "1"})
    condition = {"type": "PodScheduled", "status": "True"}
    if waiting is not None:
        since = (NOW - timedelta(seconds=waiting)).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition |= {"status": "False", "reason": "Unschedulable", "message": message, "lastTransitionTime": since}
    metadata = {"labels": {"pod-template-hash": template}}
    return {
        "metadata": metadata | ({"deletionTimestamp": "2026-11-22T12:00:00Z"} if deleting else {}),
        "spec": {"containers": [{"name": "server", "resources": {"requests": requests}}], **spec},
        "status": {"conditions": [condition, {"type": "Ready", "status": str(ready)}]},
    }


OLD = make_pod("old")
LONG = WAIT + 1
NEW = make_pod("new", LONG)
CLAIM = [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]
TAINT = {"key": "gpu", "operator": "Exists"}

ROWS = {
    "nothing is there yet": (None, [], False),
    "stable": (make_deployment(replicas=1), [OLD], False),
    "waits for the GPU that the old pod holds": (make_deployment(), [OLD, NEW], True),
    "has just begun to wait": (make_deployment(), [OLD, make_pod("new", WAIT - 1)], False),
    "has a node and starts": (make_deployment(), [OLD, make_pod("new")], False),
    "the old pod is leaving already": (make_deployment(), [make_pod("old", deleting=True), NEW], False),
    "the new pod is leaving": (make_deployment(), [OLD, make_pod("new", LONG, deleting=True)], False),
    "the first one waits": (make_deployment(replicas=1), [NEW], False),
    "the old one waits too": (make_deployment(), [make_pod("old", LONG), NEW], False),
    "a replica too many waits, all of one template": (make_deployment(updated=2), [make_pod("new"), NEW], False),
    "no node is like that": (
        make_deployment(), [OLD, make_pod("new", LONG, NO_NODE, nodeSelector={"accelerator": "l4"})], False,
    ),
    "wants other nodes, which are full": (
        make_deployment(), [OLD, make_pod("new", LONG, nodeSelector={"accelerator": "l4"})], False,
    ),
    "has other affinities": (make_deployment(), [OLD, make_pod("new", LONG, affinity={"nodeAffinity": {}})], False),
    "does not tolerate the old one's node": (
        make_deployment(), [make_pod("old", tolerations=[TAINT]), NEW], False,
    ),
    "tolerates more": (make_deployment(), [OLD, make_pod("new", LONG, tolerations=[TAINT])], True),
    "asks for more GPUs than the old one holds": (
        make_deployment(), [OLD, make_pod("new", LONG, requests={"nvidia.com/gpu": "2"})], False,
    ),
    "asks for fewer": (
        make_deployment(), [make_pod("old", requests={"nvidia.com/gpu": "2"}), NEW], True,
    ),
    "asks for more memory, which there is": (
        make_deployment(), [OLD, make_pod("new", LONG, requests={"memory": "64Gi", "nvidia.com/gpu": "1"})], True,
    ),
    "asks for as much memory in other words": (
        make_deployment(),
        [make_pod("old", requests={"memory": "2Gi"}), make_pod("new", LONG, "1 Insufficient memory.", requests={"memory": "2048Mi"})],
        True,
    ),
    "asks for more CPU than the old one holds": (
        make_deployment(),
        [make_pod("old", requests={"cpu": "500m"}), make_pod("new", LONG, "1 Insufficient cpu.", requests={"cpu": "1"})],
        False,
    ),
    "lacks two resources, and the old one holds enough of one": (
        make_deployment(),
        [OLD, make_pod("new", LONG, "1 Insufficient cpu, 2 Insufficient nvidia.com/gpu.", requests={"cpu": "2", "nvidia.com/gpu": "1"})],
        False,
    ),
    "waits for the device that the old one's claim holds": (
        make_deployment(),
        [make_pod("old", resourceClaims=CLAIM), make_pod("new", LONG, NO_CLAIM, resourceClaims=CLAIM)],
        True,
    ),
    "claims another device": (
        make_deployment(), [OLD, make_pod("new", LONG, NO_CLAIM, resourceClaims=CLAIM)], False,
    ),
    "a quota has no second GPU": (make_refused("requests.nvidia.com/gpu=1", *["requests.nvidia.com/gpu=1"] * 2), [OLD], True),
    "a quota has no room for a second pod": (make_refused("pods=1", "pods=3", "pods=3"), [OLD], True),
    "a quota has no CPU": (make_refused("cpu=1500m,pods=1", "cpu=9,pods=2", "cpu=9500m,pods=9"), [OLD], True),
    "a quota has refused for a moment": (make_refused("pods=1", "pods=3", "pods=3", WAIT - 1), [OLD], False),
    "a quota would refuse it without the old one, too": (make_refused("cpu=3", "cpu=9", "cpu=9"), [OLD], False),
    "others hold more than the quota has by now": (make_refused("pods=1", "pods=5", "pods=3"), [OLD], False),
    "a quota counts what the old one does not hold": (
        make_refused("limits.memory=1Gi", "limits.memory=4Gi", "limits.memory=4Gi"), [OLD], False,
    ),
    "a quota refuses, and the old one is leaving": (
        make_refused("pods=1", "pods=3", "pods=3"), [make_pod("old", deleting=True)], False,
    ),
    "a quota refuses the second new pod": (
        make_refused("pods=1", "pods=3", "pods=3", replicas=3, updated=1), [OLD, OLD, make_pod("new")], False,
    ),
    "a webhook refuses": (make_failed("admission webhook says no"), [OLD], False),
    "the old pod has not gone yet": (make_deployment(step=IN_PLACE), [OLD, NEW], True),
    "one of three is replaced": (
        make_deployment(replicas=3, wanted=3, step=IN_PLACE), [OLD, OLD, make_pod("new")], True,
    ),
    "between the old one's end and the new one's start": (
        make_deployment(replicas=2, updated=1, wanted=3, step=IN_PLACE), [OLD, make_pod("new")], True,
    ),
    "the last old pod is replaced": (make_deployment(replicas=1, step=IN_PLACE), [make_pod("new")], False),
    # Several at a time.
    "all that come wait": (make_deployment(replicas=10, updated=2, wanted=8), [*[OLD] * 8, NEW, NEW], True),
    "one that came has room and starts, one waits": (
        make_deployment(replicas=10, updated=2, wanted=8), [*[OLD] * 8, make_pod("new"), NEW], False,
    ),
    "one that came answers, and nothing else moves": (
        make_deployment(replicas=9, updated=2, wanted=8), [*[OLD] * 7, make_pod("new", ready=True), NEW], True,
    ),
    "one waits for a node, another for a quota": (
        make_refused("pods=1", "pods=9", "pods=9", replicas=9, updated=1), [*[OLD] * 8, NEW], True,
    ),
    "one of many is replaced in place, the next waits": (
        make_deployment(replicas=9, updated=2, wanted=8, step=IN_PLACE), [*[OLD] * 7, make_pod("new"), NEW], True,
    ),
    "as many came as are wanted, and one that is old is left": (
        make_deployment(replicas=3, updated=2, wanted=2, step=IN_PLACE), [OLD, make_pod("new"), NEW], True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_decide_in_place(row):
    deployment, pods, expected = row
    assert decide_in_place(deployment, pods, NOW, WAIT) is expected
    assert decide_in_place(deployment, pods[::-1], NOW, WAIT) is expected


def test_decide_in_place_at_once_where_nobody_is_to_wait():
    assert decide_in_place(make_deployment(), [OLD, make_pod("new", 0)], NOW, 0)


COMPLETE, UPDATING = (
    [{"type": "Progressing", "reason": reason}] for reason in ("NewReplicaSetAvailable", "ReplicaSetUpdated")
)
HAS_SERVED = {
    "serves": (SERVED, True),
    "starts for the first time": (STARTING, False),
    "nobody has looked": ({}, True),
    "the last change was not looked at": ({**STARTING, "observedGeneration": 0}, True),
    "served, and crashes now": ({**SERVED, "availableReplicas": 0}, True),
    "a pod of three answers": ({**STARTING, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 1}, True),
    "the new pod starts beside the old one": ({**STARTING, "replicas": 2, "availableReplicas": 1}, False),
    "a new pod answers beside an old one": ({**STARTING, "replicas": 2, "availableReplicas": 2}, True),
    "only old pods are there, of what was complete": (
        {**SERVED, "updatedReplicas": 0, "conditions": COMPLETE}, False,
    ),
    "no pod could be made": ({"observedGeneration": 1, "conditions": UPDATING}, False),
}  # fmt: skip


@pytest.mark.parametrize(("status", "expected"), HAS_SERVED.values(), ids=HAS_SERVED.keys())
def test_has_served(status, expected):
    assert has_served({"metadata": {"generation": 1}, "status": status}) is expected


# replicas, rolloutOptions -> maxSurge and maxUnavailable, and maxUnavailable in place
STEPS = {
    "one": ({}, {}, (1, 0), 1),
    "four": ({"minReplicaCount": 4}, {}, (1, 0), 1),
    "fifty": ({"minReplicaCount": 50}, {}, ("25%", 0), 1),
    "one that may become many": ({"maxReplicaCount": 20}, {}, ("25%", 0), 1),
    "numbers": ({}, {"maxSurgeReplicas": 3, "maxUnavailableReplicas": 2}, (3, 2), 2),
    "percentages": ({}, {"maxSurgePercentage": 100, "maxUnavailablePercentage": 10}, ("100%", "10%"), "10%"),
    "none beside the old ones": ({}, {"maxSurgeReplicas": 0, "maxUnavailableReplicas": 1}, (0, 1), 1),
    "no percent of them": ({}, {"maxSurgePercentage": 0, "maxUnavailablePercentage": 50}, (0, "50%"), "50%"),
    "none missing": ({}, {"maxUnavailablePercentage": 0}, (1, 0), 1),
}


@pytest.mark.parametrize(("replicas", "options", "step", "in_place"), STEPS.values(), ids=STEPS.keys())
def test_rolling_update(replicas, options, step, in_place):
    dm = DeployedModel.model_validate(make_deployed_model(automaticResources=replicas, rolloutOptions=options))
    assert make_rolling_update(dm, False) == dict(zip(("maxSurge", "maxUnavailable"), step, strict=True))
    assert make_rolling_update(dm, True) == {"maxSurge": 0, "maxUnavailable": in_place}
