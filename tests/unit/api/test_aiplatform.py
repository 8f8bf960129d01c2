"""AI Platform's models and versions, on a cluster of a page."""

import asyncio

import pytest
from pierhead_api import objects
from pierhead_api.aiplatform import UPDATABLE_VERSION, AiPlatformVersionBody, make_counts, to_ai_platform_version
from pierhead_api.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from pierhead_api.listing import ListRequest
from pierhead_api.services import AiPlatformService
from pierhead_api.wire import parse_mask

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


NAMES = [("my_model", "my--model", "v1_2", "v1--2"), ("Photos", "photos---1", "V1_", "v1-----1")]


@pytest.mark.parametrize(("model", "name", "version", "version_name"), NAMES)
async def test_clients_know_the_names_that_they_gave(platform, cluster, model, name, version, version_name):
    resource = f"projects/shop/models/{model}"
    assert (await platform.create_model("shop", {"name": model}))["name"] == resource
    assert cluster.one("Endpoint", name)["spec"]["displayName"] == model
    with pytest.raises(AlreadyExistsError, match=f"there is a model {model}"):
        await platform.create_model("shop", {"name": model})
    body = VERSION | {"name": version}
    created = await platform.create_version("shop", model, body)
    assert created["metadata"]["modelName"] == resource
    assert [one["name"] for one in cluster.one("Model", name)["spec"]["versions"]] == [version_name]
    [deployed] = cluster.names("DeployedModel")
    spec = cluster.one("DeployedModel", deployed)["spec"]
    assert (spec["endpoint"], spec["model"], spec["modelVersion"]) == (name, name, version_name)
    assert spec["displayName"] == version
    with pytest.raises(AlreadyExistsError, match=f"there is a version {version} of model {model}"):
        await platform.create_version("shop", model, body)
    other = f"{version}b"
    await platform.create_version("shop", model, VERSION | {"name": other})
    assert (await platform.set_default("shop", model, other))["name"] == f"{resource}/versions/{other}"
    told = await platform.get_model("shop", model)
    assert (told["name"], told["defaultVersion"]["name"]) == (resource, f"{resource}/versions/{other}")
    listed = await platform.list_versions("shop", model, ListRequest())
    assert [one["name"] for one in listed["versions"]] == [f"{resource}/versions/{one}" for one in (version, other)]
    assert [one["name"] for one in (await platform.list_models("shop", ListRequest()))["models"]] == [resource]
    default = {"defaultVersion": {"name": f"{resource}/versions/{version}"}}
    updated = await platform.patch_model("shop", model, default, "defaultVersion.name")
    assert updated["metadata"]["modelName"] == resource
    assert (await platform.get_version("shop", model, version))["isDefault"]
    await platform.patch_version("shop", model, other, {"description": "d"}, "description")
    assert (await platform.get_version("shop", model, other))["description"] == "d"
    await platform.delete_version("shop", model, other)
    deleted = await platform.delete_version("shop", model, version)
    assert deleted["metadata"]["modelName"] == resource
    assert (await platform.delete_model("shop", model))["metadata"]["modelName"] == resource
    assert cluster.objects == {}


async def test_model_is_missed_by_the_name_that_it_was_asked_by(platform, cluster):
    with pytest.raises(NotFoundError, match="there is no model my_model"):
        await platform.get_model("shop", "my_model")
    cluster.add(make_model("my--model", versions=[{"name": "v1--2", "artifactUri": "gs://m"}], defaultVersion="v1--2"))
    with pytest.raises(NotFoundError, match="model my_model has no version v1_3; it has v1_2"):
        await platform.get_version("shop", "my_model", "v1_3")


async def test_name_that_a_model_has_otherwise_is_taken(platform, cluster):
    """kubectl and Vertex AI know no _: what they call my--model is my_model here, and my-model is another one."""
    cluster.add(make_model("my--model"))
    cluster.add(make_endpoint("your--model"))
    for name in ("my_model", "your_model"):
        with pytest.raises(AlreadyExistsError, match=f"there is a model {name}"):
            await platform.create_model("shop", {"name": name})
    cluster.add(make_model("my-model"))
    listed = (await platform.list_models("shop", ListRequest()))["models"]  # in the order of Kubernetes' names
    assert [one["name"].rsplit("/", 1)[1] for one in listed] == ["my_model", "my-model", "your_model"]
    for name, told in (("my-model", "my-model"), ("my--model", "my_model"), ("my_model", "my_model")):
        assert (await platform.get_model("shop", name))["name"] == f"projects/shop/models/{told}"


@pytest.mark.parametrize("name", ["goldenOne", "candidate"])
async def test_alias_is_not_taken_by_a_version(platform, cluster, name):
    versions = [{"name": "1", "aliases": ["goldenOne", "candidate"], "artifactUri": "gs://models/photos/1"}]
    cluster.add(make_model(versions=versions))
    with pytest.raises(AlreadyExistsError, match=f"{name} is an alias of version 1 of model photos"):
        await platform.create_version("shop", "photos", VERSION | {"name": name})
    assert (await platform.get_version("shop", "photos", name))["name"].endswith("/versions/1")


CANNOT_BE = {
    "a-b": "name: must be up to 128 letters, digits and _, a letter first",
    "_a": "name: must be up to 128 letters",
    "1a": "name: must be up to 128 letters",
    "": "name: must be up to 128 letters",
    "a" * 129: "name: must be up to 128 letters",
    "a" * 64: f"name: is {'a' * 64} in Kubernetes, which takes 63 characters, not 64",
    "_".join("a" * 30): "name: is a--a",
}


@pytest.mark.parametrize(("name", "message"), CANNOT_BE.items())
async def test_name_that_cannot_be_is_refused(platform, photos, cluster, name, message):
    for asked in (
        platform.create_model("shop", {"name": name}),
        platform.create_version("shop", "photos", VERSION | {"name": name}),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await asked
        assert str(caught.value).startswith(message)
    assert [kind for kind, _ in cluster.objects] == ["Endpoint"]


async def test_first_version_takes_nothing_of_what_is_told_of_its_model(platform, cluster):
    await platform.create_model("shop", {"name": "photos", "description": "d", "labels": {"team": "a"}})
    await platform.create_version("shop", "photos", VERSION | {"description": "first"})
    model = await platform.get_model("shop", "photos")
    assert (model["description"], model["labels"]) == ("d", {"team": "a"})
    assert model["defaultVersion"]["description"] == "first"


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
    [
        ({"v1": 60, "v2": 40, "v3": 0}, {"v1": 60, "v2": 40}),
        ({"v1": 60, "v2": 40}, {"v1": 60, "v2": 40}),
        ({"v1": 60, "v2": 10, "v3": 30}, {"v1": 90, "v2": 10}),
    ],
)
async def test_version_that_goes_takes_no_traffic_from_others(platform, photos, cluster, before, after):
    split = await _deploy_three(platform, cluster)
    cluster.touch("Endpoint", "photos", spec={"trafficSplit": split(before)})
    await platform.delete_version("shop", "photos", "v3")
    assert cluster.one("Endpoint", "photos")["spec"]["trafficSplit"] == split(after)


async def test_split_that_changes_while_a_version_goes_is_not_overwritten(platform, photos, cluster):
    split = await _deploy_three(platform, cluster)
    cluster.touch("Endpoint", "photos", spec={"trafficSplit": split({"v1": 60, "v2": 10, "v3": 30})})
    changed = {"trafficSplit": split({"v1": 20, "v2": 50, "v3": 30})}
    cluster.before_patch.append(lambda: cluster.touch("Endpoint", "photos", spec=changed))
    await platform.delete_version("shop", "photos", "v3")
    assert cluster.one("Endpoint", "photos")["spec"]["trafficSplit"] == split({"v1": 50, "v2": 50})


async def test_version_that_may_not_be_undeployed_keeps_its_traffic(platform, photos, cluster):
    split = await _deploy_three(platform, cluster)
    before = {"trafficSplit": split({"v1": 60, "v2": 10, "v3": 30})}
    cluster.touch("Endpoint", "photos", spec=before)
    cluster.denied = {"delete"}
    with pytest.raises(PermissionDeniedError):
        await platform.delete_version("shop", "photos", "v3")
    assert cluster.one("Endpoint", "photos")["spec"]["trafficSplit"] == before["trafficSplit"]


async def _deploy_three(platform, cluster):
    """Deploys v1, v2 and v3, and gives what turns a split by versions into one by DeployedModels."""
    for version in ("v1", "v2", "v3"):
        await platform.create_version("shop", "photos", VERSION | {"name": version})
    names = cluster.names("DeployedModel")
    by_version = {cluster.one("DeployedModel", name)["spec"]["modelVersion"]: name for name in names}
    return lambda split: {by_version[version]: part for version, part in split.items()}


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


async def test_stale_etag_changes_nothing(platform, photos, cluster):
    """Of a model without a version, of one with, and of a version."""
    stale = (await platform.get_model("shop", "photos"))["etag"]
    await platform.patch_model("shop", "photos", {"description": "new", "etag": stale}, "description")
    with pytest.raises(AbortedError, match="etag"):
        await platform.patch_model("shop", "photos", {"description": "newer", "etag": stale}, "description")
    await platform.create_version("shop", "photos", VERSION)
    await platform.create_version("shop", "photos", VERSION | {"name": "v2"})
    stale = (await platform.get_model("shop", "photos"))["etag"]
    await platform.set_default("shop", "photos", "v2")
    body = {"description": "newer", "defaultVersion": {"name": "v1"}, "etag": stale}
    with pytest.raises(AbortedError, match="etag"):
        await platform.patch_model("shop", "photos", body)
    model = await platform.get_model("shop", "photos")
    assert (model["description"], model["defaultVersion"]["name"].rsplit("/", 1)[1]) == ("new", "v2")
    await platform.patch_model("shop", "photos", body | {"etag": model["etag"]})
    assert (await platform.get_version("shop", "photos", "v1"))["isDefault"]


CHANGES = [{"description": "new"}, {"manualScaling": {"nodes": 2}}]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("asked", CHANGES)
async def test_stale_etag_of_a_version_changes_nothing(platform, photos, cluster, change, asked):
    for version in ("v1", "v2"):
        await platform.create_version("shop", "photos", VERSION | {"name": version})
    stale = (await platform.get_version("shop", "photos", "v1"))["etag"]
    await platform.patch_version("shop", "photos", "v2", change)
    assert (await platform.get_version("shop", "photos", "v1"))["etag"] == stale, "another version is not this one"
    await platform.patch_version("shop", "photos", "v1", change | {"etag": stale})
    before = cluster.objects.copy()
    with pytest.raises(AbortedError, match="etag"):
        await platform.patch_version("shop", "photos", "v1", asked | {"etag": stale})
    assert cluster.objects == before
    fresh = (await platform.get_version("shop", "photos", "v1"))["etag"]
    await platform.patch_version("shop", "photos", "v1", asked | {"etag": fresh})


async def test_version_that_changes_between_the_look_and_the_write_is_not_overwritten(platform, photos, cluster):
    await platform.create_version("shop", "photos", VERSION)
    etag = (await platform.get_version("shop", "photos", "v1"))["etag"]
    cluster.before_patch.append(lambda: cluster.touch("Model", "photos", spec={"description": "meanwhile"}))
    with pytest.raises(AbortedError, match="etag"):
        await platform.patch_version("shop", "photos", "v1", {"description": "mine", "etag": etag})
    assert "description" not in await platform.get_version("shop", "photos", "v1")


HALF_DONE = {
    "counts that do not fit": {"description": "new", "autoScaling": {"minNodes": 7, "maxNodes": 5}},
    "no nodes": {"description": "new", "autoScaling": {"minNodes": -1}},
    "description that is too long": {"description": "x" * 70_000, "autoScaling": {"minNodes": 2}},
}


@pytest.mark.parametrize("body", HALF_DONE.values(), ids=HALF_DONE.keys())
async def test_version_is_updated_as_a_whole_or_not_at_all(platform, photos, cluster, body):
    await platform.create_version("shop", "photos", VERSION)
    before = cluster.objects.copy()
    with pytest.raises(InvalidArgumentError):
        await platform.patch_version("shop", "photos", "v1", body)
    assert cluster.objects == before


async def test_version_that_is_not_deployed_keeps_its_description(platform, cluster):
    cluster.add(make_model())
    before = cluster.objects.copy()
    with pytest.raises(FailedPreconditionError, match="version 1 of model photos is not deployed"):
        await platform.patch_version("shop", "photos", "1", {"description": "new", "manualScaling": {"nodes": 2}})
    assert cluster.objects == before


async def test_right_to_all_of_an_update_is_asked_for_first(platform, photos, cluster):
    await platform.create_version("shop", "photos", VERSION)
    before, may = cluster.objects.copy(), cluster.may

    async def may_not_patch_models(verb, resource, namespace, name):
        return (verb, resource) != ("patch", "models") and await may(verb, resource, namespace, name)

    cluster.may = may_not_patch_models
    with pytest.raises(PermissionDeniedError):
        await platform.patch_version("shop", "photos", "v1", {"description": "new", "manualScaling": {"nodes": 2}})
    assert cluster.objects == before


async def test_update_that_broke_off_is_ended_by_another_try(platform, photos, cluster):
    """What Kubernetes can refuse for reasons of its own, such as a quota, comes first."""
    await platform.create_version("shop", "photos", VERSION)
    [name] = cluster.names("DeployedModel")
    body = {"description": "new", "manualScaling": {"nodes": 2}}
    cluster.before_patch.append(lambda: cluster.refuses.extend(["patch"] * 3))  # those after this one
    with pytest.raises(UnavailableError):
        await platform.patch_version("shop", "photos", "v1", body)
    assert cluster.one("DeployedModel", name)["spec"]["dedicatedResources"]["minReplicaCount"] == 2
    assert "description" not in await platform.get_version("shop", "photos", "v1")
    await platform.patch_version("shop", "photos", "v1", body)
    assert (await platform.get_version("shop", "photos", "v1"))["description"] == "new"


async def test_default_version_that_there_is_not_changes_nothing(platform, photos, cluster):
    body = {"description": "new", "labels": {"team": "a"}, "defaultVersion": {"name": "v9"}}
    for message in ("model photos has no versions", "model photos has no version v9; it has v1"):
        before = cluster.objects.copy()
        with pytest.raises(NotFoundError, match=message):
            await platform.patch_model("shop", "photos", body)
        assert cluster.objects == before
        if message.endswith("versions"):
            await platform.create_version("shop", "photos", VERSION)
    with pytest.raises(InvalidArgumentError, match=r"^defaultVersion\.name: must be set"):
        await platform.patch_model("shop", "photos", {"description": "new"}, "description,defaultVersion.name")
    assert cluster.objects == before


MIN, MAX = "minReplicaCount", "maxReplicaCount"
COUNTS = {
    "both": ({"autoScaling": {"minNodes": 2, "maxNodes": 5}}, "", {MIN: 2, MAX: 5}),
    "the mask alone counts": ({"autoScaling": {"minNodes": 2, "maxNodes": 5}}, "autoScaling.maxNodes", {MAX: 5}),
    "as many as told": ({"manualScaling": {"nodes": 3}}, "manualScaling.nodes", {MIN: 3, MAX: 3}),
    "nothing about nodes": ({"description": "d", "manualScaling": {"nodes": 3}}, "description", {}),
    "all of what is told": ({"manualScaling": {"nodes": 3}}, "*", {MIN: 3, MAX: 3}),
    "all of nothing": ({"description": "d"}, "*", {}),
}


@pytest.mark.parametrize(("body", "mask", "counts"), COUNTS.values(), ids=COUNTS.keys())
def test_make_counts(body, mask, counts):
    fields = parse_mask(mask, body, UPDATABLE_VERSION)
    assert make_counts(AiPlatformVersionBody.model_validate(body), fields) == counts


def test_number_that_is_to_be_updated_must_be_told():
    with pytest.raises(InvalidArgumentError, match=r"^autoScaling\.minNodes: must be at least 1"):
        make_counts(AiPlatformVersionBody(), {"auto_scaling.min_nodes"})


async def test_version_on_machines_of_the_installations_choice_is_scaled(platform, cluster):
    cluster.add(make_model())
    cluster.add(make_endpoint("photos"))
    cluster.add(make_deployed_model("11", endpoint="photos"))
    await platform.patch_version("shop", "photos", "1", {"autoScaling": {"minNodes": 2}})
    assert cluster.one("DeployedModel", "11")["spec"]["automaticResources"] == {"minReplicaCount": 2}


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
    assert answer.pop("etag") != facts.pop("etag")
    assert answer == {**facts, **told}
