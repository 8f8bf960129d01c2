"""An object that bears a name that Pierhead needs and is somebody else's: told, never touched, ours once it is gone."""

import json

import pytest

from tests.e2e.conftest import make_deployed_model, make_echo_model, make_endpoint
from tests.kube import KubectlError, scratch_namespace, wait_until

# The node has no GPU: nothing runs, and nothing changes by itself.
IDLE = {"dedicatedResources": {"machineSpec": {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}}}
POD = {
    "metadata": {"labels": {"app": "theirs"}},
    "spec": {"containers": [{"name": "theirs", "image": "registry.example.com/theirs:1"}]},
}
# Theirs -> what is theirs, whose name it takes, and the label by which it could be taken for ours.
THEIRS = {
    "deployment": (
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "dm-photos"},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "theirs"}}, "template": POD},
        },
        "deployedmodel",
        "pierhead.dev/deployed-model",
    ),
    "service": (
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "dm-photos"},
            "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 80}]},
        },
        "deployedmodel",
        "pierhead.dev/deployed-model",
    ),
    "httproute": (
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "ep-photos"},
            "spec": {"rules": [{"backendRefs": [{"name": "theirs", "port": 80}]}]},
        },
        "endpoint",
        "pierhead.dev/endpoint",
    ),
}
CHILDREN = ("deployment/dm-photos", "service/dm-photos", "httproute/ep-photos")
ALL = "mdl,pep,dm,deployments,services,httproutes"


def _deploy(kubectl, **spec):
    kubectl.apply(make_echo_model(), make_endpoint(), make_deployed_model("photos", **spec))


def _deploy_for(kubectl, kind):
    """What needs the object whose name is taken: a route, once somebody serves."""
    if kind != "httproute":
        _deploy(kubectl, **IDLE)
        return
    _deploy(kubectl)
    kubectl.wait_ready("deployedmodel", "photos")


def _add_theirs(kubectl, kind, owned):
    """Theirs, as it is once nobody has anything to do about it; with an owner and with our labels if `owned`."""
    manifest, _, label = THEIRS[kind]
    if owned:
        kubectl("create", "configmap", "theirs")
        uid = kubectl.get("configmap", "theirs")["metadata"]["uid"]
        owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "theirs", "uid": uid, "controller": True}
        labels = {"app.kubernetes.io/managed-by": "pierhead", label: "photos"}
        manifest = {**manifest, "metadata": {**manifest["metadata"], "labels": labels, "ownerReferences": [owner]}}
    kubectl.apply(manifest)
    if kind == "deployment":
        name = manifest["metadata"]["name"]
        kubectl("wait", f"deployment/{name}", "--for=jsonpath={.status.observedGeneration}=1", "--timeout=30s")
    return _read_whole(kubectl, kind)


def _read_whole(kubectl, kind):
    name = THEIRS[kind][0]["metadata"]["name"]
    return json.loads(kubectl("get", kind, name, "--show-managed-fields", "--output", "json"))


def _wait_told(kubectl, kind):
    """Until the resource, as it is now, says whose name is taken."""
    manifest, resource, _ = THEIRS[kind]

    def told():
        generation = kubectl.get(resource, "photos")["metadata"]["generation"]
        condition = kubectl.condition(resource, "photos")
        return condition.get("observedGeneration") == generation and condition["reason"] == "NotOwned" and condition

    condition = wait_until("it is told", told, seconds=30)
    assert condition["status"] == "False"
    assert f"{manifest['kind']} {manifest['metadata']['name']}" in condition["message"]
    assert "delete it" in condition["message"]
    assert kubectl.condition(resource, "photos", "Stalled")["status"] == "True"


@pytest.mark.parametrize("owned", [False, True], ids=["plain", "with-an-owner-and-our-labels"])
@pytest.mark.parametrize("kind", THEIRS)
def test_object_of_somebody_else_is_told_and_left_alone(kubectl, kind, owned):
    resource = THEIRS[kind][1]
    before = _add_theirs(kubectl, kind, owned)
    _deploy_for(kubectl, kind)
    _wait_told(kubectl, kind)
    kubectl.patch(resource, "photos", {"spec": {"displayName": "Photographs"}})
    _wait_told(kubectl, kind)
    assert _read_whole(kubectl, kind) == before
    kubectl("delete", kind, before["metadata"]["name"])
    # Of what is not ours no event comes: the resync would find it, a change of the resource finds it sooner.
    kubectl.patch(resource, "photos", {"spec": {"displayName": "Pictures"}})
    uid = kubectl.get(resource, "photos")["metadata"]["uid"]
    wait_until(
        "ours is there",
        lambda: (
            (ours := kubectl.get(kind, before["metadata"]["name"]))
            and uid in [owner["uid"] for owner in ours["metadata"]["ownerReferences"]]
        ),
        seconds=30,
    )
    wait_until(
        "the condition is over", lambda: kubectl.condition(resource, "photos")["reason"] != "NotOwned", seconds=30
    )


def test_object_of_somebody_else_outlives_the_resource_of_its_name(kubectl):
    before = _add_theirs(kubectl, "deployment", owned=False)
    _deploy(kubectl, **IDLE)
    _wait_told(kubectl, "deployment")
    kubectl("delete", "deployedmodel", "photos")
    # Our Service is taken away last, so that all is done that will be.
    wait_until("what is ours is gone", lambda: not kubectl.get("service", "dm-photos"), seconds=60)
    assert _read_whole(kubectl, "deployment") == before


def test_namespaces_with_the_same_names_keep_to_themselves(cluster):
    with scratch_namespace("one") as one, scratch_namespace("two") as two:
        for kubectl in (one, two):
            _deploy(kubectl)
        for kubectl in (one, two):
            kubectl.wait_ready("endpoint", "photos")
            wait_until("its objects are there", lambda kubectl=kubectl: _find_children(kubectl), seconds=60)
            uids = {kubectl.get(kind, "photos")["metadata"]["uid"] for kind in ("deployedmodel", "endpoint")}
            for child in _find_children(kubectl).values():
                assert {owner["uid"] for owner in child["metadata"]["ownerReferences"]} <= uids
        before = _find_children(two)
        one("delete", "mdl,pep,dm", "--all")
        wait_until("nothing is left of the first", lambda: not one.items(ALL), seconds=60)
        after = _find_children(two)
        assert {path: _tell(child) for path, child in after.items()} == {
            path: _tell(child) for path, child in before.items()
        }


def _find_children(kubectl):
    """All that is made, by its kind and name; None while some is missing."""
    try:
        found = {path: json.loads(kubectl("get", path, "--output", "json")) for path in CHILDREN}
    except KubectlError:
        return None
    return found


def _tell(live):
    metadata = live["metadata"]
    return metadata["uid"], metadata["generation"] if "generation" in metadata else metadata["resourceVersion"]
