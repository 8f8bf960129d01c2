"""Which operator leads while an upgrade is under way."""

import json

import pytest

from cluster import processes, rollout
from cluster.errors import ClusterError

REVISION = "deployment.kubernetes.io/revision"


def make_deployment(revision="2", observed=5):
    annotations = {REVISION: revision}
    metadata = {"name": "pierhead-operator", "uid": "d", "generation": 5, "annotations": annotations}
    return {"metadata": metadata, "status": {"observedGeneration": observed}}


def make_replica_set(revision, owner="d"):
    return {
        "metadata": {
            "labels": {"pod-template-hash": f"hash-{revision}-{owner}"},
            "annotations": {REVISION: revision},
            "ownerReferences": [{"uid": owner}],
        }
    }


def make_pod(revision, owner="d", **metadata):
    return {"metadata": {"labels": {"pod-template-hash": f"hash-{revision}-{owner}"}, **metadata}}


REPLICA_SETS = [make_replica_set("1"), make_replica_set("2"), make_replica_set("2", owner="api")]


@pytest.mark.parametrize(
    ("deployment", "pod", "current"),
    [
        (make_deployment(), make_pod("2"), True),
        (make_deployment(), make_pod("1"), False),
        (make_deployment(revision="1"), make_pod("1"), True),  # after a rollback to what there was
        (make_deployment(observed=4), make_pod("2"), False),
        (make_deployment(revision="3"), make_pod("2"), False),  # its pods are yet to be made
        (make_deployment(), make_pod("2", owner="api"), False),
        (make_deployment(), make_pod("2", deletionTimestamp="2026-11-22T12:00:00Z"), False),
        (make_deployment(), {}, False),
    ],
    ids=["new", "old", "rolled back", "not looked at", "not made", "another Deployment's", "ending", "gone"],
)
def test_pod_is_of_what_is_asked_for_now(deployment, pod, current):
    assert rollout.is_current(deployment, REPLICA_SETS, pod) is current


class FakeKubectl:
    """Objects by kind and name. Fake because the real one needs a cluster, which tests/e2e have."""

    def __init__(self, holders):
        self.holders = iter(holders)
        self.asked = []

    def __call__(self, *arguments):
        self.asked.append(arguments)
        kind, name = arguments[3], arguments[4]
        holder = next(self.holders) if kind == "lease" else None
        found = {
            "deployment": make_deployment(),
            "replicasets": {"items": REPLICA_SETS},
            "lease": {"spec": {"holderIdentity": holder}} if holder is not None else None,
            "pod": make_pod(name.removeprefix("operator-")),
        }[kind]
        return json.dumps(found) if found else ""


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.001)


def test_old_operator_nobody_and_then_the_new_one_leads():
    kubectl = FakeKubectl([None, "operator-1_ab", "", "operator-2_cd"])
    rollout.wait_operator(kubectl, "system", "pierhead-operator")
    assert next(kubectl.holders, "all were asked for") == "all were asked for"
    assert {arguments[:3] for arguments in kubectl.asked} == {("--namespace", "system", "get")}


def test_old_operator_that_leads_on_is_told():
    kubectl = FakeKubectl(iter(lambda: "operator-1_ab", None))
    with pytest.raises(ClusterError, match="operator of the present Deployment system/pierhead-operator leads"):
        rollout.wait_operator(kubectl, "system", "pierhead-operator", timeout=0.05)
