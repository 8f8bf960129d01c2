"""Reconcile against a fake cluster that records what it was told, with failures where a cluster has them."""

from copy import deepcopy

import pytest
from pierhead_operator.cluster import ClusterError, Key, Rejected
from pierhead_operator.reconcile import Reconciler

from tests.unit.operator.conftest import NOW, make_deployed_model, make_endpoint, make_model

DM = Key("DeployedModel", "default", "photos-1")
ENDPOINT = Key("Endpoint", "default", "photos")
MODEL = Key("Model", "default", "photos")


class FakeCluster:
    """Objects in a dictionary; `calls` has every write. Fake because the real one is what tests/apiserver use."""

    def __init__(self, *objects):
        self.objects = {(o["kind"], o["metadata"]["name"]): deepcopy(o) for o in objects}
        self.calls = []
        self.rejects = set()

    async def get(self, kind, namespace, name):
        return self.objects.get((kind, name))

    async def list_objects(self, kind, namespace, labels=None):
        return [o for (k, _), o in self.objects.items() if k == kind]

    async def get_resource(self, kind, namespace, name):
        found = self.objects.get((kind.KIND, name))
        return kind.model_validate(found) if found else None

    async def list_resources(self, kind, namespace):
        return [kind.model_validate(o) for o in await self.list_objects(kind.KIND, namespace)]

    async def apply(self, manifest, live=None):
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind in self.rejects:
            raise Rejected("exceeded quota")
        self.calls.append(("apply", kind, name))
        before = self.objects.get((kind, name), {})
        self.objects[kind, name] = {**before, **deepcopy(manifest)}
        self.objects[kind, name]["metadata"] |= {"uid": f"uid-{name}", "generation": 1}

    async def apply_status(self, resource, status):
        self.calls.append(("status", resource.KIND, resource.name))
        self.objects[resource.KIND, resource.name]["status"] = status.dump()

    async def delete(self, live):
        self.calls.append(("delete", live["kind"], live["metadata"]["name"]))
        del self.objects[live["kind"], live["metadata"]["name"]]

    async def create_event(self, resource, event):
        self.calls.append(("event", resource.KIND, event.reason))

    def ready(self, key):
        conditions = self.objects[key.kind, key.name]["status"]["conditions"]
        return next((c["status"], c["reason"]) for c in conditions if c["type"] == "Ready")


@pytest.fixture
def make_reconciler(settings):
    def make(*objects):
        cluster = FakeCluster(*objects)
        return cluster, Reconciler(cluster, settings, lambda: NOW)

    return make


async def test_deployed_model_gets_its_objects_and_a_status(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    assert cluster.calls == [
        ("apply", "Service", "dm-photos-1"),
        ("apply", "Deployment", "dm-photos-1"),
        ("status", "DeployedModel", "photos-1"),
        ("event", "DeployedModel", "Progressing"),
    ]
    assert cluster.ready(DM) == ("False", "Progressing")
    assert cluster.objects["DeployedModel", "photos-1"]["status"]["modelVersion"] == "1"


@pytest.mark.parametrize("key", [DM, ENDPOINT, MODEL], ids=lambda key: key.kind)
async def test_stable_no_writes(make_reconciler, key):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(available=True))
    await reconciler.reconcile(key)
    cluster.calls.clear()
    await reconciler.reconcile(key)
    assert cluster.calls == []


@pytest.mark.parametrize("kind", ["Service", "Deployment"])
async def test_deleted_or_changed_child_is_repaired(make_reconciler, kind):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    wanted = deepcopy(cluster.objects[kind, "dm-photos-1"])
    del cluster.objects[kind, "dm-photos-1"]
    await reconciler.reconcile(DM)
    assert cluster.objects[kind, "dm-photos-1"] == wanted
    cluster.objects[kind, "dm-photos-1"]["spec"]["selector"] = {"other": "thing"}
    await reconciler.reconcile(DM)
    assert cluster.objects[kind, "dm-photos-1"] == wanted


async def test_pinned_version_stays_when_the_default_moves(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    cluster.objects["Model", "photos"]["spec"]["defaultVersion"] = "2"
    await reconciler.reconcile(DM)
    env = cluster.objects["Deployment", "dm-photos-1"]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "PIERHEAD_ARTIFACT_URI", "value": "gs://models/photos/1"} in env


async def test_autoscaler_comes_and_goes(make_reconciler):
    spec = {"automaticResources": {"minReplicaCount": 1, "maxReplicaCount": 2}}
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(**spec))
    await reconciler.reconcile(DM)
    assert "replicas" not in cluster.objects["Deployment", "dm-photos-1"]["spec"]
    assert ("HorizontalPodAutoscaler", "dm-photos-1") in cluster.objects
    cluster.objects["DeployedModel", "photos-1"]["spec"] = make_deployed_model()["spec"]
    await reconciler.reconcile(DM)
    assert cluster.objects["Deployment", "dm-photos-1"]["spec"]["replicas"] == 1
    assert ("HorizontalPodAutoscaler", "dm-photos-1") not in cluster.objects


FOREIGN = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "dm-photos-1", "uid": "x"},
    "spec": {"ports": []},
}


async def test_foreign_object_is_reported_and_left_alone(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(), FOREIGN)
    await reconciler.reconcile(DM)
    assert cluster.objects["Service", "dm-photos-1"] == FOREIGN
    assert cluster.ready(DM) == ("False", "NotOwned")


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("Model", "ModelNotFound"), ("Endpoint", "EndpointNotFound")],
)
async def test_missing_reference_is_told(make_reconciler, missing, reason):
    there = [o for o in (make_model(), make_endpoint(), make_deployed_model()) if o["kind"] != missing]
    cluster, reconciler = make_reconciler(*there)
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", reason)


async def test_missing_version_is_told(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(modelVersion="9"))
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "ModelVersionNotFound")
    assert ("Deployment", "dm-photos-1") not in cluster.objects


async def test_missing_version_is_not_pinned(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(modelVersion="2"))
    await reconciler.reconcile(DM)
    for version in ("9", None):
        cluster.objects["DeployedModel", "photos-1"]["spec"]["modelVersion"] = version
        await reconciler.reconcile(DM)
        assert cluster.objects["DeployedModel", "photos-1"]["status"]["modelVersion"] == "2"
    assert cluster.ready(DM) == ("False", "Progressing")


async def test_model_deleted_meanwhile_leaves_pods_alone(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    del cluster.objects["Model", "photos"]
    await reconciler.reconcile(DM)
    assert ("Deployment", "dm-photos-1") in cluster.objects
    assert cluster.ready(DM) == ("False", "ModelNotFound")


async def test_rejected_object_is_told_and_tried_again(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    cluster.rejects.add("Deployment")
    with pytest.raises(ClusterError, match="exceeded quota"):
        await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "Rejected")
    cluster.rejects.clear()
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "Progressing")


async def test_endpoint_waits_for_what_does_not_serve(make_reconciler):
    there = [make_deployed_model("photos-1", available=True), make_deployed_model("photos-2", available=False)]
    cluster, reconciler = make_reconciler(make_endpoint({"photos-1": 80, "photos-2": 20}), *there)
    await reconciler.reconcile(ENDPOINT)
    assert cluster.ready(ENDPOINT) == ("False", "WaitingForDeployedModels")
    assert _weights(cluster) == {"dm-photos-1": 100}
    cluster.objects["DeployedModel", "photos-2"] = make_deployed_model("photos-2", available=True)
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 80, "dm-photos-2": 20}
    assert cluster.ready(ENDPOINT) == ("False", "RoutePending")


@pytest.mark.parametrize("there", [[], [make_deployed_model(available=False)]], ids=["nothing", "starting"])
async def test_route_leads_to_nobody_while_nobody_serves(make_reconciler, there):
    cluster, reconciler = make_reconciler(make_endpoint(), *there)
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"ep-photos": 1}
    assert "selector" not in cluster.objects["Service", "ep-photos"]["spec"]
    cluster.objects["DeployedModel", "photos-1"] = make_deployed_model(available=True)
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 100}
    del cluster.objects["DeployedModel", "photos-1"]
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"ep-photos": 1}
    assert cluster.ready(ENDPOINT) == ("False", "NoDeployedModel")


async def test_what_is_gone_or_going_is_left_to_kubernetes(make_reconciler):
    going = make_deployed_model()
    going["metadata"]["deletionTimestamp"] = "2026-11-22T00:00:00Z"
    cluster, reconciler = make_reconciler(make_model(), going)
    for key in (DM, ENDPOINT):
        await reconciler.reconcile(key)
    assert cluster.calls == []


def _weights(cluster):
    [rule] = cluster.objects["HTTPRoute", "ep-photos"]["spec"]["rules"]
    return {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}
