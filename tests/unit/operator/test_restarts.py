"""What restarts pods, field by field: a field that is added is looked at before anybody's pods restart of it.

Each is changed after an upgrade of the installation: what only loses the pin would restart pods as well.
"""

import json
import re
from copy import deepcopy
from types import UnionType
from typing import get_args, get_origin

import pytest
from pierhead_operator import names
from pierhead_operator.batch_reconcile import BatchReconciler
from pierhead_operator.cluster import ClusterError
from pierhead_operator.progress import ProgressPoller
from pierhead_operator.reconcile import Reconciler
from pierhead_operator.settings import MachineSettings, OperatorSettings, ServerSettings
from pierhead_operator.types import KINDS
from pydantic import BaseModel

from tests.releases import REPOSITORY
from tests.unit.operator.conftest import (
    NETWORK_POLICY,
    SERVED,
    STARTING,
    make_batch,
    make_deployed_model,
    make_endpoint,
    make_model,
    manifest,
)
from tests.unit.operator.fakes import Clock, FakeCluster, FakeProber
from tests.unit.operator.test_batch_reconcile import BATCH, FakeWorkers
from tests.unit.operator.test_reconcile import DM


def _find_fields(kind, path):
    """The fields of a kind that have no fields of their own, by their path."""
    for field in kind.model_fields.values():
        yield from _find_leaves(field.annotation, f"{path}.{field.alias}")


def _find_leaves(annotation, path):
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) is list:
        path, annotation = f"{path}[]", parts[0]
    elif isinstance(annotation, UnionType):
        annotation = parts[0]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _find_fields(annotation, path)
    else:
        yield path.removesuffix("[]")


def _put(value, path, new):
    """Sets a field of a resource; of a list that of its first item."""
    [first, *rest] = path.split(".")
    item = value.setdefault(first.removesuffix("[]"), {})
    if not rest:
        value[first] = new
    else:
        _put(item[0] if first.endswith("[]") else item, ".".join(rest), new)


# By field of a spec: another value, and whether pods restart of it.
FIELDS = {
    "Model.displayName": ("Photographs", False),
    "Model.description": ("Of cats", False),
    "Model.defaultVersion": ("2", False),
    "Model.versions[].name": ("3", False),  # what runs is no longer there: it is left as it is
    "Model.versions[].aliases": (["stable"], False),
    # Another version under the same name, which nobody takes.
    "Model.versions[].artifactUri": ("gs://models/photos/other", False),
    "Model.versions[].digest": ("sha256:" + "1" * 64, False),
    "Model.versions[].allowCode": (True, False),
    "Model.versions[].runtime": ("OpenVINO", False),
    "Endpoint.displayName": ("Photographs", False),
    "Endpoint.description": ("Of cats", False),
    "Endpoint.trafficSplit": ({"photos-1": 50, "photos-2": 50}, False),
    "Endpoint.access": ("Private", False),
    "Endpoint.mirror.deployedModel": ("other", False),
    "Endpoint.mirror.percent": (50, False),
    "Endpoint.clientConnectionConfig.inferenceTimeout": ("120s", True),
    "Endpoint.maxRequestBytes": (2048, True),
    "DeployedModel.displayName": ("Photographs", False),
    "DeployedModel.endpoint": ("other", True),
    "DeployedModel.model": ("other", True),
    "DeployedModel.modelVersion": ("2", True),
    "DeployedModel.dedicatedResources.machineSpec.machineType": ("large", True),
    "DeployedModel.dedicatedResources.machineSpec.acceleratorType": ("NVIDIA_TESLA_T4", True),
    "DeployedModel.dedicatedResources.machineSpec.acceleratorCount": (2, True),
    "DeployedModel.dedicatedResources.machineSpec.resourceClaims": ([{"name": "gpu"}], True),
    "DeployedModel.dedicatedResources.minReplicaCount": (3, False),
    "DeployedModel.dedicatedResources.maxReplicaCount": (9, False),
    "DeployedModel.dedicatedResources.autoscalingMetricSpecs[].metricName": ("requests/inFlight", False),
    "DeployedModel.dedicatedResources.autoscalingMetricSpecs[].target": (80, False),
    "DeployedModel.automaticResources.minReplicaCount": (3, False),
    "DeployedModel.automaticResources.maxReplicaCount": (9, False),
    "DeployedModel.rolloutOptions.maxSurgeReplicas": (3, False),
    "DeployedModel.rolloutOptions.maxSurgePercentage": (50, False),
    "DeployedModel.rolloutOptions.maxUnavailableReplicas": (1, False),
    "DeployedModel.rolloutOptions.maxUnavailablePercentage": (50, False),
    "DeployedModel.enableAccessLogging": (True, True),
    "DeployedModel.disableContainerLogging": (True, True),
    "DeployedModel.serviceAccount": ("reader", True),
    "DeployedModel.podOverrides.labels": ({"team": "vision"}, True),
    "DeployedModel.podOverrides.annotations": ({"team": "vision"}, True),
    "DeployedModel.podOverrides.env": ([{"name": "PIERHEAD_LOG_LEVEL", "value": "debug"}], True),
    "DeployedModel.podOverrides.nodeSelector": ({"pool": "vision"}, True),
    "DeployedModel.podOverrides.tolerations": ([{"key": "vision", "operator": "Exists"}], True),
    "DeployedModel.podOverrides.affinity": ({"nodeAffinity": {}}, True),
    "DeployedModel.podOverrides.priorityClassName": ("online", True),
    "DeployedModel.podOverrides.imagePullSecrets": (["registry"], True),
}
# Of a BatchPredictionJob: another value, and whether its workers go.
BATCH_FIELDS = {
    "BatchPredictionJob.displayName": ("Photographs", False),
    "BatchPredictionJob.model": ("other", False),
    "BatchPredictionJob.modelVersion": ("2", False),
    "BatchPredictionJob.modelParameters": ({"maxPredictions": 1}, False),
    "BatchPredictionJob.unmanagedContainerModel": ({"predictSchemata": {}}, False),
    "BatchPredictionJob.inputConfig.instancesFormat": ("csv", False),
    "BatchPredictionJob.inputConfig.gcsSource.uris": (["gs://in/other.jsonl"], False),
    "BatchPredictionJob.instanceConfig.instanceType": ("object", False),
    "BatchPredictionJob.instanceConfig.keyField": ("id", False),
    "BatchPredictionJob.instanceConfig.includedFields": (["a"], False),
    "BatchPredictionJob.instanceConfig.excludedFields": (["a"], False),
    "BatchPredictionJob.outputConfig.predictionsFormat": ("csv", False),
    "BatchPredictionJob.outputConfig.gcsDestination.outputUriPrefix": ("gs://out/other", False),
    "BatchPredictionJob.dedicatedResources.machineSpec.machineType": ("large", False),
    "BatchPredictionJob.dedicatedResources.machineSpec.acceleratorType": ("NVIDIA_L4", False),
    "BatchPredictionJob.dedicatedResources.machineSpec.acceleratorCount": (2, False),
    "BatchPredictionJob.dedicatedResources.machineSpec.resourceClaims": ([{"name": "gpu"}], False),
    "BatchPredictionJob.dedicatedResources.startingReplicaCount": (2, False),
    "BatchPredictionJob.dedicatedResources.maxReplicaCount": (2, False),
    "BatchPredictionJob.manualBatchTuningParameters.batchSize": (2, False),
    "BatchPredictionJob.disableContainerLogging": (True, False),
    "BatchPredictionJob.serviceAccount": ("reader", False),
    "BatchPredictionJob.podOverrides.labels": ({"team": "vision"}, False),
    "BatchPredictionJob.podOverrides.annotations": ({"team": "vision"}, False),
    "BatchPredictionJob.podOverrides.env": ([{"name": "PIERHEAD_LOG_LEVEL", "value": "debug"}], False),
    "BatchPredictionJob.podOverrides.nodeSelector": ({"pool": "vision"}, False),
    "BatchPredictionJob.podOverrides.tolerations": ([{"key": "vision", "operator": "Exists"}], False),
    "BatchPredictionJob.podOverrides.affinity": ({"nodeAffinity": {}}, False),
    "BatchPredictionJob.podOverrides.priorityClassName": ("online", False),
    "BatchPredictionJob.podOverrides.imagePullSecrets": (["registry"], False),
    "BatchPredictionJob.cancel": (True, True),
    "BatchPredictionJob.suspend": (True, True),
    "BatchPredictionJob.activeDeadlineSeconds": (60, False),
    "BatchPredictionJob.ttlSecondsAfterFinished": (60, False),
}


def test_every_field_of_the_api_is_looked_at():
    fields = {path for kind in KINDS for path in _find_fields(kind.model_fields["spec"].annotation, kind.KIND)}
    assert FIELDS.keys() | BATCH_FIELDS.keys() == fields


# What nobody can change: the API server refuses it.
IMMUTABLE = re.compile(r"Model\.versions\[\]\..*|DeployedModel\.(endpoint|model)")


def test_every_field_that_restarts_pods_is_documented():
    page = (
        (REPOSITORY / "docs" / "operator.md")
        .read_text()
        .partition("\n## What restarts pods\n")[2]
        .partition("\n## ")[0]
    )
    rows = re.findall(r"^\| (\w+) \| (`.*) \|$", page, re.MULTILINE)
    documented = tuple(f"{kind}.{field}" for kind, fields in rows for field in re.findall("`([^`]+)`", fields))
    for path, (_, restarts) in FIELDS.items():
        if not IMMUTABLE.fullmatch(path):
            assert path.startswith(documented) is restarts, path


RESOURCES = {
    "machineSpec": {"machineType": "small", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 1},
    "maxReplicaCount": 2,
    "autoscalingMetricSpecs": [{"metricName": "cpu/utilization", "target": 60}],
}
MACHINES = {
    "machineTypes": {"small": {"nodeSelector": {"size": "small"}}, "large": {"nodeSelector": {"size": "large"}}},
    "acceleratorTypes": {"NVIDIA_L4": {}, "NVIDIA_TESLA_T4": {"resource": "nvidia.com/t4"}},
}


def _change(settings, **sections):
    return OperatorSettings.model_validate(settings.model_dump(by_alias=True) | sections)


@pytest.fixture
def old(settings):
    """The installation's settings before it was upgraded."""
    return _change(settings, machines=MACHINES)


@pytest.fixture
def new(old):
    server = old.server.model_dump(by_alias=True) | {"image": "pierhead/server:new", "env": []}
    machines = {**MACHINES, "machineTypes": {name: {} for name in MACHINES["machineTypes"]}}
    return _change(old, location="new", server=server, machines=machines)


def _reconciler(cluster, settings):
    return Reconciler(cluster, FakeProber(), settings, Clock())


def _template(cluster):
    return deepcopy(cluster.objects["Deployment", "dm-photos-1"]["spec"]["template"])


async def _serve(settings, *objects):
    """A cluster in which these objects' one DeployedModel serves; what is not given of its Model and Endpoint is."""
    cluster = FakeCluster(*objects)
    await _reconciler(cluster, settings).reconcile(DM)
    cluster.objects["Deployment", "dm-photos-1"]["status"] = SERVED
    await _reconciler(cluster, settings).reconcile(DM)
    assert cluster.ready(DM)[1] in ("Serving", "EndpointNotFound")
    return cluster


def _make_objects():
    others = [make_model(), make_endpoint()]
    for other in others:
        other["metadata"]["name"] = "other"
    endpoint = manifest("Endpoint", "photos", {"mirror": {"deployedModel": "photos-1"}})
    return [make_model(), endpoint, make_deployed_model(dedicatedResources=RESOURCES), *others]


async def _is_restarted(cluster, settings):
    before = _template(cluster)
    await _reconciler(cluster, settings).reconcile(DM)
    return _template(cluster) != before


def _find(cluster, kind):
    return next(live for (found, _), live in cluster.objects.items() if found == kind)


@pytest.mark.parametrize(("path", "value", "restarts"), [(path, *row) for path, row in FIELDS.items()], ids=FIELDS)
async def test_field_restarts_pods(old, new, path, value, restarts):
    cluster = await _serve(old, *_make_objects())
    kind, _, field = path.partition(".")
    _put(_find(cluster, kind)["spec"], field, value)
    assert await _is_restarted(cluster, new) is restarts


@pytest.mark.parametrize(
    ("path", "value", "ends"), [(path, *row) for path, row in BATCH_FIELDS.items()], ids=BATCH_FIELDS
)
async def test_field_ends_workers(old, new, path, value, ends):
    cluster = FakeCluster(make_model(), make_batch())
    await BatchReconciler(cluster, ProgressPoller(FakeWorkers()), old, Clock()).reconcile(BATCH)
    before = deepcopy(cluster.objects["Job", "bpj-nightly"]["spec"])
    _put(cluster.objects["BatchPredictionJob", "nightly"]["spec"], path.partition(".")[2], value)
    await BatchReconciler(cluster, ProgressPoller(FakeWorkers()), new, Clock()).reconcile(BATCH)
    job = cluster.objects.get(("Job", "bpj-nightly"))
    assert (job is None or job["spec"]["suspend"]) is ends
    assert job is None or job["spec"]["template"] == before["template"]


@pytest.mark.parametrize("field", ["labels", "annotations"])
@pytest.mark.parametrize("kind", ["Model", "Endpoint", "DeployedModel"])
async def test_metadata_restarts_no_pod(old, new, kind, field):
    cluster = await _serve(old, *_make_objects())
    _find(cluster, kind)["metadata"][field] = {"team": "vision"}
    assert not await _is_restarted(cluster, new)


async def test_renewal_restarts_pods(old, new):
    cluster = await _serve(old, *_make_objects())
    _find(cluster, "DeployedModel")["metadata"]["annotations"] = {names.ANNOTATION_RENEW: "now"}
    assert await _is_restarted(cluster, new)


# An operator that ends at any of its writes, and an upgrade meanwhile


class Ending(FakeCluster):
    """Of which nobody writes any more after so many writes."""

    def __init__(self, objects, writes):
        super().__init__()
        self.objects, self.left = objects, writes

    def _count(self):
        if self.left == 0:
            raise ClusterError("this process is not the leader")
        self.left -= 1

    async def apply(self, manifest, live=None):
        self._count()
        return await super().apply(manifest, live)

    async def apply_status(self, resource, status):
        self._count()
        await super().apply_status(resource, status)


async def _end_after(cluster, settings, writes):
    try:
        await _reconciler(Ending(cluster.objects, writes), settings).reconcile(DM)
    except ClusterError:
        return True
    return False


async def _count_writes(cluster, settings):
    """Of its next reconcile, one by one: the cluster as each of them leaves it."""
    for writes in range(20):
        left = FakeCluster(*cluster.objects.values())
        ends = await _end_after(left, settings, writes)
        yield left
        if not ends:
            return


async def test_what_was_made_by_an_operator_that_ended_restarts_no_pod_once_it_serves(old, new):
    """Deployments of which it could tell nothing any more serve by the time that the upgrade is there."""
    seen = 0
    async for cluster in _count_writes(FakeCluster(*_make_objects()), old):
        if deployment := cluster.objects.get(("Deployment", "dm-photos-1")):
            deployment["status"] = SERVED
            assert not await _is_restarted(cluster, new)
            seen += 1
    assert seen > 2


async def test_change_by_an_operator_that_ended_is_made_once(old, new):
    """Of a DeployedModel that was upgraded before: its pods have the settings of then until it is changed."""
    cluster = await _serve(old, *_make_objects())
    assert not await _is_restarted(cluster, new)
    cluster.objects["DeployedModel", "photos-1"]["spec"]["serviceAccount"] = "reader"
    before, seen = _template(cluster), 0
    latest = _change(new, server={**new.server.model_dump(by_alias=True), "image": "pierhead/server:latest"})
    async for left in _count_writes(cluster, new):
        if _template(left) != before:
            left.objects["Deployment", "dm-photos-1"]["status"] = SERVED
            assert not await _is_restarted(left, latest)
            seen += 1
    assert seen > 1


async def test_change_that_is_taken_back_before_it_was_made_restarts_no_pod(old, new):
    """Such as one that a quota refuses."""
    cluster = await _serve(old, *_make_objects())
    assert not await _is_restarted(cluster, new)
    dm = cluster.objects["DeployedModel", "photos-1"]
    dm["spec"]["serviceAccount"] = "reader"
    cluster.refuse("Deployment")
    for _ in range(2):
        with pytest.raises(ClusterError):
            await _reconciler(cluster, new).reconcile(DM)
    cluster.rejects.clear()
    del dm["spec"]["serviceAccount"]
    assert not await _is_restarted(cluster, new)


async def test_pods_are_made_of_nothing_that_a_tenant_writes_into_their_deployment(old):
    cluster = await _serve(old, *_make_objects())
    before = _template(cluster)
    annotations = cluster.objects["Deployment", "dm-photos-1"]["metadata"]["annotations"]
    value = json.loads(annotations[names.ANNOTATION_PINNED])
    value["server"] |= {"image": "evil.example/any:1", "artifact_cache": {"hostPath": {"path": "/"}}}
    annotations[names.ANNOTATION_PINNED] = json.dumps(value)
    for _ in range(2):
        assert not await _is_restarted(cluster, old)
    assert _template(cluster) == before
    assert "evil" not in str(cluster.objects)


async def test_what_0_1_made_is_followed_once_and_told_from_then_on(old, new):
    cluster = await _serve(old, *_make_objects())
    status = cluster.objects["DeployedModel", "photos-1"]["status"]
    for field in ("pins", "versions"):
        del status[field]
    assert not await _is_restarted(cluster, new)
    assert len(cluster.objects["DeployedModel", "photos-1"]["status"]["pins"]) == 1
    cluster.calls.clear()
    assert not await _is_restarted(cluster, new)
    assert cluster.calls == [], "stable: no writes"


async def test_what_0_1_made_is_told_though_it_can_be_made_no_more(old, new):
    cluster = await _serve(old, *_make_objects())
    del cluster.objects["DeployedModel", "photos-1"]["status"]["pins"]
    model = cluster.objects.pop(("Model", "photos"))
    assert not await _is_restarted(cluster, new)
    assert len(cluster.objects["DeployedModel", "photos-1"]["status"]["pins"]) == 1
    cluster.objects["Model", "photos"] = model
    assert not await _is_restarted(cluster, new)


# What says the same in other words


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"automaticResources": {"minReplicaCount": 1}}),
        ({"automaticResources": {"maxReplicaCount": 2}}, {"dedicatedResources": {"maxReplicaCount": 2}}),
        ({"dedicatedResources": {"machineSpec": {}}}, {"automaticResources": {}}),
        ({}, {"modelVersion": "1"}),
        ({"modelVersion": "1"}, {}),
        ({}, {"podOverrides": {"labels": {}, "env": []}}),
        ({}, {"displayName": ""}),
    ],
)
async def test_same_in_other_words_restarts_no_pod(old, new, before, after):
    cluster = await _serve(old, make_model(), make_endpoint(), make_deployed_model(**before))
    cluster.objects["DeployedModel", "photos-1"]["spec"] = make_deployed_model(**after)["spec"]
    assert not await _is_restarted(cluster, new)


# The Endpoint and its limits


LIMITS = {"clientConnectionConfig": {"inferenceTimeout": "120s"}, "maxRequestBytes": 2048}


def _make_limited(**limits):
    return manifest("Endpoint", "photos", {**LIMITS, **limits})


def _limits(cluster):
    pod = _template(cluster)["spec"]
    env = {variable["name"]: variable.get("value") for variable in pod["containers"][0]["env"]}
    found = [env.get(f"PIERHEAD_{name}") for name in ("PREDICT_TIMEOUT_SECONDS", "MAX_REQUEST_BYTES")]
    return *found, pod["terminationGracePeriodSeconds"]


async def test_endpoint_that_comes_restarts_no_pod_and_its_limits_come_with_the_next_change(old, new):
    cluster = await _serve(old, make_model(), make_deployed_model())
    cluster.objects["Endpoint", "photos"] = _make_limited()
    assert not await _is_restarted(cluster, new)
    ready = next(
        c for c in cluster.objects["DeployedModel", "photos-1"]["status"]["conditions"] if c["type"] == "Ready"
    )
    assert ready["status"] == "True"
    assert "before Endpoint photos" in ready["message"]
    cluster.objects["Endpoint", "photos"] = _make_limited(maxRequestBytes=4096)
    assert not await _is_restarted(cluster, new)
    cluster.objects["DeployedModel", "photos-1"]["metadata"]["annotations"] = {names.ANNOTATION_RENEW: "now"}
    assert await _is_restarted(cluster, new)
    assert _limits(cluster) == ("120", "4096", 125)


async def test_endpoint_that_comes_before_a_pod_answers_brings_its_limits(old):
    cluster = FakeCluster(make_model(), make_deployed_model())
    await _reconciler(cluster, old).reconcile(DM)
    cluster.objects["Deployment", "dm-photos-1"]["status"] = STARTING
    cluster.objects["Endpoint", "photos"] = _make_limited()
    await _reconciler(cluster, old).reconcile(DM)
    assert _limits(cluster) == ("120", "2048", 125)


async def test_endpoint_that_goes_and_comes_restarts_no_pod(old, new):
    cluster = await _serve(old, make_model(), make_deployed_model(), _make_limited())
    del cluster.objects["Endpoint", "photos"]
    assert not await _is_restarted(cluster, new)
    cluster.objects["Endpoint", "photos"] = _make_limited()
    assert not await _is_restarted(cluster, new)
    assert _limits(cluster) == ("120", "2048", 125)


async def test_other_limits_change_nothing_else(old, new):
    cluster = await _serve(old, *_make_objects())
    _find(cluster, "Endpoint")["spec"]["maxRequestBytes"] = 2048
    before = _template(cluster)
    assert await _is_restarted(cluster, new)
    [container], [after] = (template["spec"]["containers"] for template in (before, _template(cluster)))
    container["env"].append({"name": "PIERHEAD_MAX_REQUEST_BYTES", "value": "2048"})
    assert sorted(container.pop("env"), key=str) == sorted(after.pop("env"), key=str)
    assert container == after


# The installation's settings


SECTIONS = {
    "location": "other",
    "otherLocations": ["us-central1"],
    "watchNamespaces": ["default"],
    "batch": {"allowedUris": ["gs://photos"]},
    "rollout": {"capacityWaitSeconds": 1},
    "autoscaling": {"gpuDutyCycleMetric": "gpu_busy"},
    "routing": {"provider": "none"},
    "networkPolicy": NETWORK_POLICY,
}
# What pods are made of.
SERVER = {
    "image": "pierhead/server:new",
    "imagePullPolicy": "Always",
    "env": [{"name": "PIERHEAD_LOG_LEVEL", "value": "debug"}],
    "envFrom": [{"secretRef": {"name": "storage"}}],
    "compiledCache": {"emptyDir": {}},
    "artifactCache": {"hostPath": {"path": "/var/lib/pierhead"}},
    "artifactCacheBytes": 1000,
    "arbitraryUser": True,
    "resources": {"requests": {"cpu": "2"}},
}
# What their authors may ask for; and the image of pods of another runtime.
ALLOWED = {"allowedEnv": ["MYAPP_*"], "openvinoImage": "pierhead/server-openvino:new"}
CLASSES = {
    "machineTypes": {"small": {"nodeSelector": {"size": "tiny"}}},
    "acceleratorTypes": {"NVIDIA_L4": {"resource": "nvidia.com/l4"}},
}


def test_every_setting_is_looked_at():
    sections = {field.alias for field in OperatorSettings.model_fields.values()}
    assert SECTIONS.keys() | {"server", "machines"} == sections
    assert SERVER.keys() | ALLOWED.keys() == {field.alias for field in ServerSettings.model_fields.values()}
    assert CLASSES.keys() == {field.alias for field in MachineSettings.model_fields.values()}


def _change_setting(settings, section, field, value):
    # Only what is shared brings its bytes.
    shared = SERVER["artifactCache"] if field == "artifactCacheBytes" else {}
    server = {**settings.server.model_dump(by_alias=True), "artifactCache": shared}
    before = _change(settings, server=server)
    values = {**before.model_dump(by_alias=True)[section], field: value} if field else value
    return before, _change(before, **{section: values})


OF_PODS = [
    *(("server", field, value) for field, value in SERVER.items()),
    *(("machines", field, {**MACHINES[field], **value}) for field, value in CLASSES.items()),
]


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        *((section, None, value) for section, value in SECTIONS.items()),
        *(("server", field, value) for field, value in ALLOWED.items()),
        *OF_PODS,
    ],
)
async def test_setting_restarts_no_pod_that_served(old, section, field, value):
    before, after = _change_setting(old, section, field, value)
    cluster = await _serve(before, *_make_objects())
    assert not await _is_restarted(cluster, after)


@pytest.mark.parametrize(("section", "field", "value"), OF_PODS)
async def test_setting_is_taken_by_what_never_served(old, section, field, value):
    """Such as what the operator of before made while the upgrade was under way, or what a setting kept from starting."""
    if field == "resources":
        machines = {**MACHINES, "machineTypes": {"small": {}}}
        old = _change(old, machines=machines)
    before, after = _change_setting(old, section, field, value)
    cluster = FakeCluster(*_make_objects())
    await _reconciler(cluster, before).reconcile(DM)
    cluster.objects["Deployment", "dm-photos-1"]["status"] = STARTING
    assert await _is_restarted(cluster, after)
    cluster.calls.clear()
    await _reconciler(cluster, after).reconcile(DM)
    assert not [call for call in cluster.calls if call[0] == "apply"], "once"


@pytest.mark.parametrize("kind", ["Model", "Endpoint"])
async def test_what_never_served_keeps_starting_when_names_change(old, kind):
    cluster = FakeCluster(*_make_objects())
    await _reconciler(cluster, old).reconcile(DM)
    cluster.objects["Deployment", "dm-photos-1"]["status"] = STARTING
    _find(cluster, kind)["spec"]["displayName"] = "Photographs"
    assert not await _is_restarted(cluster, _change(old, location="new"))
