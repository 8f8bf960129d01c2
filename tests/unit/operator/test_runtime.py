"""A version with runtime OpenVINO: its pods have the image without PyTorch, and no accelerator."""

from copy import deepcopy

import pytest
from pierhead_operator.batch_reconcile import BatchReconciler
from pierhead_operator.progress import ProgressPoller
from pierhead_operator.reconcile import Reconciler
from pierhead_operator.settings import OperatorSettings

from tests.unit.operator.conftest import SERVED, make_batch, make_deployed_model, make_endpoint, make_model
from tests.unit.operator.fakes import Clock, FakeCluster, FakeProber
from tests.unit.operator.test_batch_reconcile import BATCH, FakeWorkers
from tests.unit.operator.test_reconcile import DM

SMALL, LARGE = "pierhead/server-openvino:test", "pierhead/server:test"
VERSIONS = [
    {"name": "1", "artifactUri": "gs://models/photos/1", "runtime": "OpenVINO"},
    {"name": "2", "artifactUri": "gs://models/photos/2"},
]
GPU = {"machineSpec": {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}}
CLAIM = {"machineSpec": {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpu"}]}}
CLASS = {"machineSpec": {"machineType": "a2-highgpu-1g"}}


def change(settings, **server):
    data = settings.model_dump(by_alias=True)
    machines = {
        **data["machines"],
        "machineTypes": {"a2-highgpu-1g": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}},
    }
    return OperatorSettings.model_validate(data | {"server": {**data["server"], **server}, "machines": machines})


@pytest.fixture
def small(settings):
    return change(settings, openvinoImage=SMALL)


def serve(cluster, settings):
    return Reconciler(cluster, FakeProber(), settings, Clock()).reconcile(DM)


def predict(cluster, settings):
    return BatchReconciler(cluster, ProgressPoller(FakeWorkers()), settings, Clock()).reconcile(BATCH)


def find_image(cluster, kind="Deployment", name="dm-photos-1"):
    [container] = cluster.objects[kind, name]["spec"]["template"]["spec"]["containers"]
    return container["image"]


def make_cluster(*others, **resources):
    model = make_model(versions=deepcopy(VERSIONS))
    dm = make_deployed_model(**({"dedicatedResources": resources} if resources else {}))
    return FakeCluster(model, make_endpoint(), dm, *others)


async def test_pods_have_the_image_of_their_versions_runtime(small):
    cluster = make_cluster()
    await serve(cluster, small)
    assert find_image(cluster) == SMALL
    cluster.objects["DeployedModel", "photos-1"]["spec"]["modelVersion"] = "2"
    await serve(cluster, small)
    assert find_image(cluster) == LARGE


async def test_workers_have_the_image_of_their_versions_runtime(small):
    for version, image in (("1", SMALL), ("2", LARGE)):
        cluster = make_cluster(make_batch(modelVersion=version))
        await predict(cluster, small)
        assert find_image(cluster, "Job", "bpj-nightly") == image


async def test_installation_without_the_small_image_has_the_other_one(settings):
    cluster = make_cluster()
    await serve(cluster, change(settings))
    assert find_image(cluster) == LARGE


@pytest.mark.parametrize(
    "later", [{"image": "pierhead/server:new", "openvinoImage": "small:new"}, {"openvinoImage": None}]
)
async def test_pods_that_served_keep_their_image(small, later):
    cluster = make_cluster()
    await serve(cluster, small)
    cluster.objects["Deployment", "dm-photos-1"]["status"] = SERVED
    await serve(cluster, small)
    before = deepcopy(cluster.objects["Deployment", "dm-photos-1"]["spec"]["template"])
    await serve(cluster, change(small, **later))
    assert cluster.objects["Deployment", "dm-photos-1"]["spec"]["template"] == before


async def test_pods_of_before_the_small_image_was_named_keep_theirs(settings, small):
    cluster = make_cluster()
    await serve(cluster, change(settings))
    cluster.objects["Deployment", "dm-photos-1"]["status"] = SERVED
    await serve(cluster, change(settings))
    await serve(cluster, small)
    assert find_image(cluster) == LARGE


@pytest.mark.parametrize(("resources", "device"), [(GPU, "nvidia.com/gpu"), (CLAIM, "gpu"), (CLASS, "nvidia.com/gpu")])
async def test_machine_with_devices_is_refused(small, resources, device):
    cluster = make_cluster(**resources)
    await serve(cluster, small)
    assert cluster.ready(DM) == ("False", "AcceleratorNotUsed")
    assert ("Deployment", "dm-photos-1") not in cluster.objects
    ready = next(
        c for c in cluster.objects["DeployedModel", "photos-1"]["status"]["conditions"] if c["type"] == "Ready"
    )
    assert f"the machine has {device}, and version 1 has runtime OpenVINO" in ready["message"]


async def test_machine_with_devices_is_anothers_to_use(small):
    cluster = make_cluster(**GPU)
    cluster.objects["DeployedModel", "photos-1"]["spec"]["modelVersion"] = "2"
    await serve(cluster, small)
    assert find_image(cluster) == LARGE


async def test_what_runs_stays_when_a_device_is_asked_for(small):
    cluster = make_cluster()
    await serve(cluster, small)
    before = deepcopy(cluster.objects["Deployment", "dm-photos-1"]["spec"])
    cluster.objects["DeployedModel", "photos-1"]["spec"]["dedicatedResources"] = GPU
    await serve(cluster, small)
    assert cluster.ready(DM) == ("False", "AcceleratorNotUsed")
    assert cluster.objects["Deployment", "dm-photos-1"]["spec"] == before


async def test_job_with_devices_fails_at_once(small):
    cluster = make_cluster(make_batch(dedicatedResources=GPU))
    await predict(cluster, small)
    status = cluster.objects["BatchPredictionJob", "nightly"]["status"]
    assert (status["state"], status["error"]["code"]) == ("JOB_STATE_FAILED", 3)
    assert cluster.ready(BATCH) == ("False", "AcceleratorNotUsed")


async def test_version_that_comes_back_with_another_runtime_is_told(small):
    cluster = make_cluster()
    await serve(cluster, small)
    cluster.objects["Model", "photos"]["spec"]["versions"][0]["runtime"] = "PyTorch"
    await serve(cluster, small)
    assert cluster.ready(DM) == ("False", "VersionChanged")
    ready = next(
        c for c in cluster.objects["DeployedModel", "photos-1"]["status"]["conditions"] if c["type"] == "Ready"
    )
    assert "was gs://models/photos/1 with runtime OpenVINO and is gs://models/photos/1:" in ready["message"]
    assert find_image(cluster) == SMALL
