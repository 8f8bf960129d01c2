"""What is deleted by hand comes back, and what is deleted for good leaves nothing behind."""

import json

import pytest
from pierhead_operator import names

from tests.e2e.conftest import ECHO_BODY, make_deployed_model, make_echo_model, make_endpoint
from tests.kube import (
    OPERATOR,
    SYSTEM,
    predict_many,
    predict_url,
    scale_operator,
    scratch_namespace,
    wait_answered,
    wait_operator,
    wait_until,
)

CHILDREN = "deployments,replicasets,pods,services,endpointslices,horizontalpodautoscalers,httproutes"
# Short names: `endpoints` alone means Kubernetes' own.
KINDS = "mdl,pep,dm"


def _deploy(kubectl):
    kubectl.apply(
        make_echo_model(),
        make_endpoint(),
        make_deployed_model("photos", automaticResources={"minReplicaCount": 1, "maxReplicaCount": 2}),
    )
    kubectl.wait_ready("endpoint", "photos")


@pytest.mark.parametrize("kind", ["service", "deployment", "horizontalpodautoscaler", "httproute"])
def test_child_deleted_by_hand_is_back(kubectl, kind):
    _deploy(kubectl)
    name = "ep-photos" if kind == "httproute" else "dm-photos"
    before = kubectl.get(kind, name)["metadata"]["uid"]
    kubectl("delete", kind, name, "--wait=false")
    wait_until(
        f"the {kind} is back", lambda: (o := kubectl.get(kind, name)) and o["metadata"]["uid"] != before, seconds=30
    )
    kubectl.wait_ready("endpoint", "photos")
    wait_answered(predict_url(kubectl.namespace, "photos"), ECHO_BODY, "photos")


def test_child_changed_by_hand_is_repaired(kubectl):
    _deploy(kubectl)
    kubectl.patch("service", "dm-photos", {"spec": {"selector": {"pierhead.dev/deployed-model": "other"}}})
    wait_until(
        "the selector is ours again",
        lambda: kubectl.get("service", "dm-photos")["spec"]["selector"]["pierhead.dev/deployed-model"] == "photos",
        seconds=30,
    )


def test_pin_written_by_hand_is_followed_by_nobody(kubectl):
    """Who may edit Deployments would have the operator run an image for them, and mount a node's folder."""
    _deploy(kubectl)
    live = kubectl.get("deployment", "dm-photos")
    pin = json.loads(live["metadata"]["annotations"][names.ANNOTATION_PINNED])
    forged = {
        **pin,
        "server": {**pin["server"], "image": "evil.invalid/any", "artifact_cache": {"hostPath": {"path": "/"}}},
    }
    annotations = {names.ANNOTATION_PINNED: json.dumps(forged)}
    kubectl.patch("deployment", "dm-photos", {"metadata": {"annotations": annotations}})

    def repaired():
        value = kubectl.get("deployment", "dm-photos")["metadata"]["annotations"][names.ANNOTATION_PINNED]
        return json.loads(value) == pin

    wait_until("the annotation is the operator's again", repaired, seconds=30)
    assert kubectl.get("deployment", "dm-photos")["spec"] == live["spec"]


def test_other_names_and_words_for_the_same_restart_no_pod(kubectl):
    kubectl.apply(make_echo_model(), make_endpoint(), make_deployed_model("photos"))
    kubectl.wait_ready("deployedmodel", "photos")
    before = kubectl.get("deployment", "dm-photos")["spec"]
    [pod] = kubectl.pods("photos")
    kubectl.patch("model", "photos", {"spec": {"displayName": "Cats"}})
    kubectl.patch("deployedmodel", "photos", {"spec": {"displayName": "Cats", "dedicatedResources": {}}})
    kubectl.wait_ready("deployedmodel", "photos")
    kubectl("delete", "endpoint.pierhead.dev", "photos")
    wait_until(
        "the operator has seen that the endpoint is gone",
        lambda: kubectl.condition("deployedmodel", "photos").get("reason") == "EndpointNotFound",
    )
    kubectl.apply(make_endpoint())
    kubectl.wait_ready("deployedmodel", "photos")
    assert kubectl.get("deployment", "dm-photos")["spec"] == before
    assert [live["metadata"]["uid"] for live in kubectl.pods("photos")] == [pod["metadata"]["uid"]]


def _delete_all(kubectl):
    kubectl("delete", KINDS, "--all", "--timeout=30s")


class Left(list):
    """What is left; true when that is nothing, so that a failure shows it."""

    def __bool__(self):
        return not len(self)


def _wait_nothing_left(kubectl):
    wait_until(
        "nothing is left",
        lambda: Left(f"{o['kind']} {o['metadata']['name']}" for o in kubectl.items(f"{CHILDREN},{KINDS}")),
        seconds=120,
    )


def test_deletion_leaves_nothing_behind(kubectl):
    _deploy(kubectl)
    _delete_all(kubectl)
    _wait_nothing_left(kubectl)


@pytest.fixture
def operator_switch():
    """Stops and starts the operator; it runs again at the end, whatever happened."""
    yield scale_operator
    scale_operator(1)


@pytest.mark.exclusive
def test_deletion_while_the_operator_is_down_leaves_nothing_behind(kubectl, operator_switch):
    _deploy(kubectl)
    wait_answered(predict_url(kubectl.namespace, "photos"), ECHO_BODY, "photos")
    operator_switch(0)
    answers = predict_many(predict_url(kubectl.namespace, "photos"), ECHO_BODY, 5)
    assert answers == {"photos": 5}, "an operator that is down stops changes, not predictions"
    _delete_all(kubectl)
    _wait_nothing_left(kubectl)
    operator_switch(1)
    # The operator has looked around once it brought up something new.
    kubectl.apply(make_echo_model())
    kubectl.wait_ready("model", "photos")
    assert not kubectl.items(CHILDREN)


@pytest.mark.exclusive
def test_change_while_the_operator_is_down_is_caught_up_with(kubectl, operator_switch):
    _deploy(kubectl)
    operator_switch(0)
    kubectl("delete", "service", "dm-photos")
    kubectl.patch("deployedmodel", "photos", {"spec": {"automaticResources": {"maxReplicaCount": 1}}})
    operator_switch(1)
    wait_until("the Service is back", lambda: kubectl.get("service", "dm-photos"))
    wait_until("the autoscaler is gone", lambda: not kubectl.get("horizontalpodautoscaler", "dm-photos"))
    kubectl.wait_ready("endpoint", "photos")


@pytest.fixture
def canary(cluster):
    """A namespace in which all is as wanted, and stays so: two that serve, and a split."""
    with scratch_namespace("quiet") as kubectl:
        deployed_models = (make_deployed_model("stable"), make_deployed_model("candidate"))
        kubectl.apply(make_echo_model(), make_endpoint({"stable": 80, "candidate": 20}), *deployed_models)
        kubectl.wait_ready("deployedmodel", "stable", "candidate")
        kubectl.wait_ready("endpoint", "photos")
        wait_answered(predict_url(kubectl.namespace, "photos"), ECHO_BODY, "stable", "candidate")
        yield kubectl


# Here the operator is watched for being quiet, while it is replaced.
@pytest.mark.exclusive
def test_quiet_cluster_sees_no_write(canary):
    """Neither events nor resyncs nor a restart of the operator write anything once all is as wanted."""
    kinds = f"{KINDS},deployments,services,httproutes"

    def versions():
        return {
            (o["kind"], o["metadata"]["name"]): (o["metadata"]["resourceVersion"], o["metadata"]["generation"])
            for o in canary.items(kinds)
            if "generation" in o["metadata"]
        }

    before = versions()
    assert len(before) >= 7
    SYSTEM("rollout", "restart", f"deployment/{OPERATOR}")
    wait_operator()
    # A sign that the new operator is through its first round: it has looked after something that came after it.
    canary.apply({**make_echo_model(), "metadata": {"name": "sign"}})
    canary.wait_ready("model", "sign")
    after = versions()
    after.pop(("Model", "sign"))
    assert after == before
