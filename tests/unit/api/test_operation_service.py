"""Operations, on a cluster of a page."""

import pytest
from pierhead_api.errors import FailedPreconditionError, NotFoundError, UnimplementedError
from pierhead_api.listing import ListRequest
from pierhead_api.operations import read_records
from pierhead_api.services import EndpointService, ModelService, OperationService
from pierhead_operator.records import Operation

from tests.unit.api.conftest import PARENT, PLACE, make_deployed_model, make_endpoint, make_model

BODY = {"deployedModel": {"model": f"{PARENT}/models/photos", "displayName": "blue"}}


@pytest.fixture
def paused():
    return []


@pytest.fixture
def operations(session, paused):
    async def pause(seconds):
        paused.append(seconds)

    return OperationService(session, pause)


@pytest.fixture
async def deploying(session, cluster):
    """The id of a deployModel beside 11, which had everything."""
    cluster.add(make_endpoint(trafficSplit={"11": 100}))
    cluster.add(make_deployed_model("11"))
    cluster.add(make_model())
    body = BODY | {"trafficSplit": {"0": 20, "11": 80}}
    operation = await EndpointService(session).deploy_model(PLACE, "7", body)
    return operation["name"].rsplit("/", 1)[1]


async def test_cancel_restores_the_split(operations, cluster, deploying):
    assert await operations.cancel(PLACE, "endpoints/7", deploying) == {}
    assert cluster.one("Endpoint", "7")["spec"]["trafficSplit"] == {"11": 100}
    assert cluster.names("DeployedModel") == ["11"]
    answer = await operations.get(PLACE, "endpoints/7", deploying)
    assert answer["error"] == {"code": 1, "message": "the operation was cancelled"}
    assert await operations.cancel(PLACE, "endpoints/7", deploying) == {}


async def test_cancel_leaves_a_split_that_somebody_changed(operations, cluster, deploying):
    cluster.touch("Endpoint", "7", spec={"trafficSplit": {"1000000001": 10, "11": 90}})
    await operations.cancel(PLACE, "endpoints/7", deploying)
    assert cluster.one("Endpoint", "7")["spec"]["trafficSplit"] == {"1000000001": 10, "11": 90}


async def test_cancel_of_what_is_done_changes_nothing(operations, cluster, deploying):
    cluster.finish(deploying)
    assert await operations.cancel(PLACE, "endpoints/7", deploying) == {}
    assert cluster.names("DeployedModel") == ["11", "1000000001"]


async def test_cancel_of_what_is_done_meanwhile_changes_nothing(operations, cluster, deploying):
    cluster.before_patch = [lambda: cluster.finish(deploying)]
    assert await operations.cancel(PLACE, "endpoints/7", deploying) == {}
    assert cluster.names("DeployedModel") == ["11", "1000000001"]
    assert cluster.one("Endpoint", "7")["spec"]["trafficSplit"] == {"1000000001": 20, "11": 80}
    assert "response" in await operations.get(PLACE, "endpoints/7", deploying)


async def test_nothing_but_a_deployment_can_be_cancelled(operations, session, cluster, deploying):
    body = {"deployedModel": {"id": "11", "automaticResources": {"minReplicaCount": 2}}}
    mutation = await EndpointService(session).mutate_deployed_model(PLACE, "7", body, "automaticResources")
    with pytest.raises(UnimplementedError):
        await operations.cancel(PLACE, "endpoints/7", mutation["name"].rsplit("/", 1)[1])


async def test_undeploy_ends_a_deployment(operations, session, cluster, deploying):
    body = {"deployedModelId": "1000000001", "trafficSplit": {"11": 100}}
    await EndpointService(session).undeploy_model(PLACE, "7", body)
    assert "done" not in await operations.get(PLACE, "endpoints/7", deploying)
    cluster.finish(deploying, state="Failed", reason="DeployedModelNotFound")  # as the operator sees it
    assert (await operations.get(PLACE, "endpoints/7", deploying))["error"]["code"] == 5


async def test_operation_outlives_what_it_made(operations, session, cluster, deploying):
    cluster.finish(deploying)
    done = await operations.get(PLACE, "endpoints/7", deploying)
    assert done["response"]["deployedModel"] == {"id": "1000000001"}
    body = {"deployedModelId": "1000000001", "trafficSplit": {"11": 100}}
    await EndpointService(session).undeploy_model(PLACE, "7", body)
    assert await operations.get(PLACE, "endpoints/7", deploying) == done


async def test_wait(operations, cluster, deploying, paused):
    assert "done" not in await operations.wait(PLACE, "endpoints/7", deploying, 2.0)
    assert sum(paused) == pytest.approx(2.0)
    assert paused[0] < paused[1]
    cluster.finish(deploying, state="Failed", reason="ArtifactNotFound")
    assert (await operations.wait(PLACE, "endpoints/7", deploying))["done"]


async def test_delete_takes_it_off_the_record(operations, cluster, deploying):
    with pytest.raises(FailedPreconditionError):
        await operations.delete(PLACE, "endpoints/7", deploying)
    cluster.finish(deploying, state="Failed", reason="ArtifactNotFound")
    assert await operations.delete(PLACE, "endpoints/7", deploying) == {}
    with pytest.raises(NotFoundError):
        await operations.get(PLACE, "endpoints/7", deploying)
    assert await operations.list(PLACE, "endpoints/7", ListRequest()) == {}


async def test_list_of_a_location_names_each_at_its_resource(operations, session, cluster, deploying):
    await ModelService(session).upload(PLACE, {"modelId": "m", "model": {"displayName": "x", "artifactUri": "gs://x"}})
    listed = await operations.list(PLACE, "", ListRequest())
    parents = [one["name"].removeprefix(f"{PARENT}/").split("/operations/")[0] for one in listed["operations"]]
    assert sorted(parents) == ["endpoints/7", "models/m"]


async def test_operation_of_an_undeployed_model_stays_at_its_endpoint(operations, session, cluster, deploying):
    body = {"deployedModelId": "1000000001", "trafficSplit": {"11": 100}}
    await EndpointService(session).undeploy_model(PLACE, "7", body)
    listed = await operations.list(PLACE, "", ListRequest())
    assert all(one["name"].startswith(f"{PARENT}/endpoints/7/operations/") for one in listed["operations"])


async def test_delete_of_an_upload_takes_it_off_the_record(operations, session, cluster):
    upload = await ModelService(session).upload(
        PLACE, {"modelId": "m", "model": {"displayName": "x", "artifactUri": "gs://x"}}
    )
    id_ = upload["name"].rsplit("/", 1)[1]
    assert (await operations.get(PLACE, "models/m", id_))["done"]
    await operations.delete(PLACE, "models/m", id_)
    assert read_records(cluster.one("Model", "m")) == {}
    with pytest.raises(NotFoundError):
        await operations.get(PLACE, "models/m", id_)


STRAYS = {
    "another endpoint": ("endpoints/8", Operation("1" * 19, "DeployModel", "uid-11", "11")),
    "an endpoint's at a model": ("models/7", Operation("1" * 19, "CreateEndpoint", "uid-7", "7")),
    "a model's at an endpoint": ("endpoints/photos", Operation("1" * 19, "UploadModel", "uid-photos", "photos")),
    "no name": ("", Operation("1" * 19, "DeployModel", "u", "..")),
}


@pytest.mark.parametrize(("parent", "operation"), STRAYS.values(), ids=STRAYS.keys())
async def test_operation_elsewhere_is_not_found(operations, cluster, parent, operation):
    cluster.add(make_endpoint())
    cluster.add(make_endpoint("8"))
    cluster.add(make_deployed_model("11"))
    cluster.add(make_model())
    with pytest.raises(NotFoundError):
        await operations.get(PLACE, parent, operation.id)


async def test_operation_of_what_never_was_is_an_error(operations):
    with pytest.raises(NotFoundError):
        await operations.get(PLACE, "endpoints/7", "123456")
