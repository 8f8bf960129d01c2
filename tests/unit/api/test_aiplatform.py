"""AI Platform's models and versions, on a cluster of a page."""

import asyncio

import pytest
from pierhead_api import objects
from pierhead_api.aiplatform import to_ai_platform_version
from pierhead_api.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from pierhead_api.listing import ListRequest
from pierhead_api.services import AiPlatformService

from tests.unit.api.conftest import PLACE, make_deployed_model, make_endpoint, make_job, make_model

VERSION = {"name": "v1", "deploymentUri": "gs://models/photos/1", "framework": "TENSORFLOW", "runtimeVersion": "2.11"}


@pytest.fixture
def platform(session):
    return AiPlatformService(session)


@pytest.fixture
async def photos(platform):
    await platform.create_model("shop", {"name": "photos", "description": "d", "regions": ["us-central1"]})


async def test_model_without_versions(platform, photos, cluster):
    model = await platform.get_model("shop", "photos")
    assert (model["name"], model["description"]) == ("projects/shop/models/photos", "d")
    assert "defaultVersion" not in model
    assert await platform.list_versions("shop", "photos", ListRequest()) == {}
    with pytest.raises(NotFoundError):
        await platform.get_version("shop", "photos", "v1")
    with pytest.raises(AlreadyExistsError):
        await platform.create_model("shop", {"name": "photos"})
    operation = await platform.delete_model("shop", "photos")
    assert operation["metadata"]["operationType"] == "DELETE_MODEL"
    assert operation["response"] == {"@type": "type.googleapis.com/google.protobuf.Empty"}
    assert cluster.objects == {}


async def test_life_of_a_version(platform, photos, cluster):
    operation = await platform.create_version("shop", "photos", VERSION | {"machineType": "n1-standard-2"})
    assert operation["name"].startswith("projects/shop/operations/")
    assert operation["metadata"]["operationType"] == "CREATE_VERSION"
    [name] = cluster.names("DeployedModel")
    spec = cluster.one("DeployedModel", name)["spec"]
    assert (spec["endpoint"], spec["model"], spec["modelVersion"]) == ("photos", "photos", "v1")
    assert spec["dedicatedResources"] == {"machineSpec": {"machineType": "n1-standard-2"}}
    version = await platform.get_version("shop", "photos", "v1")
    named = {"name": "projects/shop/models/photos/versions/v1", "isDefault": True, "state": "CREATING"}
    assert version.items() >= {**VERSION, **named}.items()
    cluster.judge("DeployedModel", name)
    cluster.finish(operation["name"], "photos")
    id_ = operation["name"].rsplit("/", 1)[1]
    assert (await platform.get_operation("shop", id_))["done"]
    assert (await platform.get_model("shop", "photos"))["defaultVersion"]["state"] == "READY"
    with pytest.raises(FailedPreconditionError, match="has versions"):
        await platform.delete_model("shop", "photos")
    deleted = await platform.delete_version("shop", "photos", "v1")
    assert deleted["metadata"]["operationType"] == "DELETE_VERSION"
    assert deleted["done"]
    assert [kind for kind, _ in cluster.objects] == ["Endpoint"]


async def test_further_versions(platform, photos, cluster):
    await platform.create_version("shop", "photos", VERSION)
    await platform.create_version("shop", "photos", VERSION | {"name": "v2"})
    listed = await platform.list_versions("shop", "photos", ListRequest())
    assert [one["name"].rsplit("/", 1)[1] for one in listed["versions"]] == ["v1", "v2"]
    with pytest.raises(AlreadyExistsError):
        await platform.create_version("shop", "photos", VERSION)
    with pytest.raises(FailedPreconditionError, match="v1 is the default version"):
        await platform.delete_version("shop", "photos", "v1")
    assert (await platform.set_default("shop", "photos", "v2"))["isDefault"]
    await platform.delete_version("shop", "photos", "v1")
    [left] = cluster.names("DeployedModel")
    assert cluster.one("DeployedModel", left)["spec"]["modelVersion"] == "v2"
    assert cluster.one("Endpoint", "photos")["spec"]["trafficSplit"] == {left: 100}


async def test_version_that_cannot_go_stays_deployed(platform, photos, cluster):
    for version in ("v1", "v2"):
        await platform.create_version("shop", "photos", VERSION | {"name": version})
    cluster.add(make_job(model="photos", modelVersion="v2"))
    with pytest.raises(FailedPreconditionError, match="batch prediction job 21"):
        await platform.delete_version("shop", "photos", "v2")
    del cluster.objects["BatchPredictionJob", "21"]
    cluster.denied = {"patch"}
    with pytest.raises(PermissionDeniedError):
        await platform.delete_version("shop", "photos", "v2")
    assert len(cluster.names("DeployedModel")) == 2


async def test_version_is_made_again_of_the_same_artifact_alone(platform, photos, cluster):
    await platform.create_version("shop", "photos", VERSION)
    [name] = cluster.names("DeployedModel")
    del cluster.objects["DeployedModel", name]  # as after a crash, or by Vertex AI's undeployModel
    with pytest.raises(AlreadyExistsError, match="another deploymentUri"):
        await platform.create_version("shop", "photos", VERSION | {"deploymentUri": "gs://models/photos/other"})
    assert cluster.names("DeployedModel") == []
    await platform.create_version("shop", "photos", VERSION)
    assert len(cluster.names("DeployedModel")) == 1


async def test_first_versions_at_once_are_both_made(platform, photos, cluster):
    cluster.yields = True
    await asyncio.gather(
        *(platform.create_version("shop", "photos", VERSION | {"name": version}) for version in ("v1", "v2"))
    )
    assert sorted(one["name"] for one in cluster.one("Model", "photos")["spec"]["versions"]) == ["v1", "v2"]


@pytest.mark.parametrize(
    ("before", "after"),
    [({"v1": 60, "v2": 40, "v3": 0}, {"v1": 60, "v2": 40}), ({"v1": 60, "v2": 10, "v3": 30}, {"v1": 90, "v2": 10})],
)
async def test_version_that_goes_takes_no_traffic_from_others(platform, photos, cluster, before, after):
    for version in before:
        await platform.create_version("shop", "photos", VERSION | {"name": version})
    by_version = {
        cluster.one("DeployedModel", name)["spec"]["modelVersion"]: name for name in cluster.names("DeployedModel")
    }
    cluster.touch(
        "Endpoint", "photos", spec={"trafficSplit": {by_version[name]: part for name, part in before.items()}}
    )
    await platform.delete_version("shop", "photos", "v3")
    split = cluster.one("Endpoint", "photos")["spec"]["trafficSplit"]
    assert split == {by_version[name]: part for name, part in after.items()}


async def test_models_are_listed_in_pages_with_those_that_have_no_version(platform, photos, cluster):
    cluster.add(make_model("cats"))
    cluster.add(make_endpoint("7"))  # not of AI Platform
    cluster.add(make_endpoint("birds"))
    cluster.add(make_deployed_model("11", endpoint="birds", model="cats"))
    first = await platform.list_models("shop", ListRequest(page_size=1))
    rest = await platform.list_models("shop", ListRequest(page_token=first["nextPageToken"]))
    named = [one["name"] for one in (*first["models"], *rest["models"])]
    assert named == ["projects/shop/models/cats", "projects/shop/models/photos"]


async def test_model_is_updated_with_and_without_versions(platform, photos, cluster):
    operation = await platform.patch_model("shop", "photos", {"description": "new"}, "description")
    assert (operation["done"], operation["metadata"]["operationType"]) == (True, "UPDATE_MODEL")
    assert (await platform.get_model("shop", "photos"))["description"] == "new"
    for version in ("v1", "v2"):
        await platform.create_version("shop", "photos", VERSION | {"name": version})
    body = {"description": "newer", "labels": {"team": "a"}, "defaultVersion": {"name": "v2"}}
    operation = await platform.patch_model("shop", "photos", body, "description,labels,defaultVersion.name")
    model = await platform.get_model("shop", "photos")
    assert (model["description"], model["labels"]) == ("newer", {"team": "a"})
    assert model["defaultVersion"]["name"].endswith("/v2")
    assert await platform.get_operation("shop", operation["name"].rsplit("/", 1)[1])
    with pytest.raises(InvalidArgumentError, match=r"^updateMask: regions cannot be updated"):
        await platform.patch_model("shop", "photos", body, "regions")


async def test_version_is_updated(platform, photos, cluster):
    await platform.create_version("shop", "photos", VERSION)
    await platform.patch_version("shop", "photos", "v1", {"description": "first"}, "description")
    assert (await platform.get_version("shop", "photos", "v1"))["description"] == "first"
    body = {"autoScaling": {"minNodes": 2, "maxNodes": 5}}
    operation = await platform.patch_version("shop", "photos", "v1", body, "autoScaling.minNodes,autoScaling.maxNodes")
    assert operation["metadata"]["operationType"] == "UPDATE_VERSION"
    assert "done" not in operation
    [name] = cluster.names("DeployedModel")
    resources = cluster.one("DeployedModel", name)["spec"]["dedicatedResources"]
    assert (resources["minReplicaCount"], resources["maxReplicaCount"]) == (2, 5)
    await platform.patch_version("shop", "photos", "v1", {"manualScaling": {"nodes": 3}}, "manualScaling.nodes")
    assert cluster.one("DeployedModel", name)["spec"]["dedicatedResources"]["minReplicaCount"] == 3


async def test_version_of_a_model_that_was_uploaded_otherwise(platform, cluster):
    cluster.add(make_model())
    await platform.create_version("shop", "photos", VERSION)
    assert cluster.names("Endpoint") == ["photos"]
    assert [one["name"] for one in cluster.one("Model", "photos")["spec"]["versions"]] == ["1", "2", "v1"]


async def test_failed_version_tells_why(platform, photos, cluster):
    await platform.create_version("shop", "photos", VERSION)
    [name] = cluster.names("DeployedModel")
    cluster.judge("DeployedModel", name, reason="ArtifactNotFound", stalled=True)
    version = await platform.get_version("shop", "photos", "v1")
    assert (version["state"], version["errorMessage"]) == ("FAILED", "ArtifactNotFound: m")


async def test_version_that_is_deployed_elsewhere_is_not_deleted(platform, photos, cluster):
    await platform.create_version("shop", "photos", VERSION)
    cluster.add(make_deployed_model("11", endpoint="7", modelVersion="v1"))
    with pytest.raises(FailedPreconditionError, match="deployed model 11"):
        await platform.delete_version("shop", "photos", "v1")
    assert len(cluster.names("DeployedModel")) == 2


REFUSED = {
    "no folder": ({"name": "v1"}, "deploymentUri: must be set"),
    "own code": (VERSION | {"predictionClass": "a.B"}, "predictionClass: is not supported"),
    "container": (VERSION | {"container": {"image": "x"}}, "container: is not supported"),
    "name": (VERSION | {"name": "v_1"}, "name: must be up to 63 of"),
}


@pytest.mark.parametrize(("body", "message"), REFUSED.values(), ids=REFUSED.keys())
async def test_version_that_cannot_be_changes_nothing(platform, photos, cluster, body, message):
    with pytest.raises(InvalidArgumentError) as caught:
        await platform.create_version("shop", "photos", body)
    assert str(caught.value).startswith(message)
    assert [kind for kind, _ in cluster.objects] == ["Endpoint"]


LIES = {"deploymentUri": "gs://m", "errorMessage": "e", "pythonVersion": 3, "framework": "X"}


@pytest.mark.parametrize(("metadata", "told"), [(LIES, {"framework": "X"}), (["framework"], {})])
def test_metadata_of_an_upload_speaks_for_no_fact_of_a_version(metadata, told):
    plain = make_model()
    facts = to_ai_platform_version(plain, "2", [], PLACE)
    kept = objects.annotate_kept({"versions": {"2": {"metadata": metadata}}})
    answer = to_ai_platform_version(objects.annotate(plain, kept), "2", [], PLACE)
    assert answer == {**facts, **told}
