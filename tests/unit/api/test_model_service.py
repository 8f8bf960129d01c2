"""Models and their versions, on a cluster of a page."""

import asyncio

import pytest
from pierhead_api.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from pierhead_api.listing import ListRequest
from pierhead_api.services import ModelService, OperationService

from tests.unit.api.conftest import PARENT, PLACE, make_deployed_model, make_job, make_model

BODY = {"model": {"displayName": "Photos", "artifactUri": "gs://models/photos/1"}}


@pytest.fixture
def models(session):
    return ModelService(session)


@pytest.fixture
def operations(session):
    return OperationService(session)


async def test_upload(models, operations, cluster):
    operation = await models.upload(PLACE, BODY)
    assert operation["done"]
    assert operation["name"].startswith(f"{PARENT}/models/1000000001/operations/")
    cluster.judge("Model", "1000000001", reason="Rejected")  # what becomes of its routes is another matter
    done = await operations.get(PLACE, "models/1000000001", operation["name"].rsplit("/", 1)[1])
    assert done == operation
    assert done["response"]["model"] == f"{PARENT}/models/1000000001"
    assert done["response"]["modelVersionId"] == "1"


async def test_upload_by_id(models):
    await models.upload(PLACE, BODY | {"modelId": "photos"})
    with pytest.raises(AlreadyExistsError):
        await models.upload(PLACE, BODY | {"modelId": "photos"})
    with pytest.raises(InvalidArgumentError, match=r"^modelId: "):
        await models.upload(PLACE, BODY | {"modelId": "my_model"})


async def test_upload_of_further_versions(models, operations, cluster):
    await models.upload(PLACE, BODY | {"modelId": "photos"})
    parent = {"parentModel": f"{PARENT}/models/photos"}
    second = await models.upload(PLACE, BODY | parent)
    assert second["name"].endswith("_photos_2")
    await models.upload(PLACE, BODY | parent | {"isDefaultVersion": True})
    assert (await models.get(PLACE, "photos"))["versionId"] == "3"
    done = await operations.get(PLACE, "models/photos", second["name"].rsplit("/", 1)[1])
    assert done["response"]["modelVersionId"] == "2"
    listed = await operations.list(PLACE, "models/photos", ListRequest())
    assert sorted(one["response"]["modelVersionId"] for one in listed["operations"]) == ["1", "2", "3"]
    with pytest.raises(NotFoundError):
        await models.upload(PLACE, BODY | {"parentModel": f"{PARENT}/models/other"})


async def test_uploads_at_once_get_a_version_each(models, cluster):
    await models.upload(PLACE, BODY | {"modelId": "photos"})
    cluster.yields, cluster.lost_answers = True, ["patch"]
    more = BODY | {"parentModel": f"{PARENT}/models/photos"}
    answers = await asyncio.gather(*(models.upload(PLACE, more) for _ in range(5)))
    assert sorted(answer["name"].rpartition("_")[2] for answer in answers) == ["2", "3", "4", "5", "6"]
    versions = cluster.one("Model", "photos")["spec"]["versions"]
    assert [one["name"] for one in versions] == ["1", "2", "3", "4", "5", "6"]


async def test_alias_may_be_what_names_the_version_that_loses_it(models, cluster):
    cluster.add(make_model())
    answer = await models.merge_version_aliases(PLACE, "photos@candidate", {"versionAliases": ["-candidate"]})
    assert (answer["versionId"], answer.get("versionAliases")) == ("2", None)


async def test_explanation_that_is_not_offered_is_told(models, operations, cluster):
    spec = {"parameters": {"topK": 1}}
    operation = await models.upload(PLACE, {"model": BODY["model"] | {"explanationSpec": spec}})
    [told] = operation["metadata"]["genericMetadata"]["partialFailures"]
    assert (told["code"], told["message"].partition(" ")[0]) == (12, "explanationSpec")


async def test_two_uploads_at_once_get_two_versions(models, cluster):
    cluster.add(make_model())
    parent = {"parentModel": f"{PARENT}/models/photos"}
    versions = [*cluster.one("Model", "photos")["spec"]["versions"], {"name": "3", "artifactUri": "gs://models/3"}]
    cluster.before_patch = [lambda: cluster.touch("Model", "photos", spec={"versions": versions})]
    operation = await models.upload(PLACE, BODY | parent)
    assert operation["name"].endswith("_photos_4")
    assert [one["name"] for one in cluster.one("Model", "photos")["spec"]["versions"]] == ["1", "2", "3", "4"]


async def test_get_and_list(models, cluster):
    cluster.add(make_model())
    cluster.add(make_deployed_model("11", modelVersion="2"))
    assert (await models.get(PLACE, "photos"))["versionAliases"] == ["default"]
    assert (await models.get(PLACE, "photos@2"))["deployedModels"][0]["deployedModelId"] == "11"
    assert (await models.get(PLACE, "photos@candidate"))["versionId"] == "2"
    with pytest.raises(NotFoundError):
        await models.get(PLACE, "photos@3")
    cluster.add(make_model("other"))
    listed = await models.list(PLACE, ListRequest(filter='display_name="Photos" AND model=photos'))
    assert [one["name"] for one in listed["models"]] == [f"{PARENT}/models/photos"]
    versions = await models.list_versions(PLACE, "photos", ListRequest())
    assert [one["versionId"] for one in versions["models"]] == ["1", "2"]


async def test_patch(models, cluster):
    cluster.add(make_model())
    answer = await models.patch(PLACE, "photos", {"displayName": "B", "labels": {"a": "b"}}, "display_name,labels")
    assert (answer["displayName"], answer["labels"]) == ("B", {"a": "b"})
    with pytest.raises(AbortedError):
        await models.patch(PLACE, "photos", {"displayName": "C", "etag": "old"}, "displayName")
    with pytest.raises(InvalidArgumentError, match="artifactUri cannot be updated"):
        await models.patch(PLACE, "photos", {}, "artifactUri")


async def test_merge_version_aliases(models, cluster):
    cluster.add(make_model())
    answer = await models.merge_version_aliases(PLACE, "photos@2", {"version_aliases": ["default", "-candidate"]})
    assert (answer["versionId"], answer["versionAliases"]) == ("2", ["default"])


async def test_delete_version(models, operations, cluster):
    cluster.add(make_model())
    operation = await models.delete_version(PLACE, "photos@candidate")
    assert operation["done"]
    assert [one["name"] for one in cluster.one("Model", "photos")["spec"]["versions"]] == ["1"]
    assert await operations.get(PLACE, "models/photos", operation["name"].rsplit("/", 1)[1]) == operation
    with pytest.raises(InvalidArgumentError, match="must name a version"):
        await models.delete_version(PLACE, "photos")


USERS = {
    "deployed": (make_deployed_model("11"), "deployed model 11"),
    "predicts": (make_job("21"), "batch prediction job 21"),
}


@pytest.mark.parametrize(("user", "message"), USERS.values(), ids=USERS.keys())
async def test_what_is_in_use_is_not_deleted(models, cluster, user, message):
    cluster.add(make_model(defaultVersion="2"))
    cluster.add(user)
    for delete in (models.delete(PLACE, "photos"), models.delete_version(PLACE, "photos@1")):
        with pytest.raises(FailedPreconditionError, match=f"is in use by {message}"):
            await delete
    assert cluster.names("Model") == ["photos"]


async def test_job_that_ended_does_not_hold_a_model(models, cluster):
    cluster.add(make_model())
    cluster.add({**make_job("21"), "status": {"state": "JOB_STATE_SUCCEEDED"}})
    assert (await models.delete(PLACE, "photos"))["done"]
    assert cluster.names("Model") == []


async def test_model_is_not_deleted_by_a_versions_name(models, cluster):
    cluster.add(make_model())
    with pytest.raises(InvalidArgumentError, match="deleteVersion"):
        await models.delete(PLACE, "photos@2")
