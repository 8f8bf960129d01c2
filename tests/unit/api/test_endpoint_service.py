"""Endpoints and deployments, on a cluster of a page."""

import asyncio

import pytest
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
from pierhead_api.operations import read_records
from pierhead_api.services import EndpointService, ModelService, OperationService

from tests.unit.api.conftest import BETA, PARENT, PLACE, make_deployed_model, make_endpoint, make_model

MODEL = f"{PARENT}/models/photos"


@pytest.fixture
def endpoints(session):
    return EndpointService(session)


@pytest.fixture
def operations(session):
    return OperationService(session)


def _deploy(**body):
    return {"deployedModel": {"model": MODEL, "displayName": "blue"}, **body}


async def test_create_get_and_delete(endpoints, cluster):
    operation = await endpoints.create(PLACE, {"display_name": "ENDPOINT_NAME"})
    assert operation["done"]
    assert operation["response"]["name"] == f"{PARENT}/endpoints/1000000001"
    assert operation["name"].startswith(f"{PARENT}/endpoints/1000000001/operations/")
    assert (await endpoints.get(PLACE, "1000000001"))["displayName"] == "ENDPOINT_NAME"
    deleted = await endpoints.delete(PLACE, "1000000001")
    assert deleted["done"]
    assert deleted["name"].startswith(f"{PARENT}/operations/")
    with pytest.raises(NotFoundError):
        await endpoints.get(PLACE, "1000000001")


async def test_create_by_id(endpoints, cluster):
    await endpoints.create(PLACE, {"displayName": "x"}, "photos")
    with pytest.raises(AlreadyExistsError):
        await endpoints.create(PLACE, {"displayName": "x"}, "photos")
    with pytest.raises(InvalidArgumentError, match=r"^endpointId: "):
        await endpoints.create(PLACE, {"displayName": "x"}, "Photos")


async def test_own_address_is_offered_only_where_there_is_one(session, endpoints):
    body = {"displayName": "x", "dedicatedEndpointEnabled": True}
    with pytest.raises(InvalidArgumentError, match=r"^dedicatedEndpointEnabled: "):
        await endpoints.create(PLACE, body)
    offering = EndpointService(session, "localhost:8080")
    await offering.create(PLACE, body, "photos")
    assert (await offering.get(PLACE, "photos"))["dedicatedEndpointDns"] == "localhost:8080"


async def test_get_reads_its_own_deployed_models_alone(endpoints, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_deployed_model("11"))
    cluster.add(make_deployed_model("12", endpoint="8"))
    assert [one["id"] for one in (await endpoints.get(PLACE, "7"))["deployedModels"]] == ["11"]


async def test_list(endpoints, cluster):
    for number in ("7", "8", "9"):
        cluster.add(make_endpoint(number, displayName=f"n{number}"))
    cluster.add(make_deployed_model("11", endpoint="8"))
    page = await endpoints.list(PLACE, ListRequest(page_size=2))
    assert [one["displayName"] for one in page["endpoints"]] == ["n7", "n8"]
    assert [len(one.get("deployedModels", [])) for one in page["endpoints"]] == [0, 1]
    rest = await endpoints.list(PLACE, ListRequest(page_size=2, page_token=page["nextPageToken"]))
    assert [one["displayName"] for one in rest["endpoints"]] == ["n9"]
    named = await endpoints.list(PLACE, ListRequest(filter="display_name=n8"))
    assert [one["name"] for one in named["endpoints"]] == [f"{PARENT}/endpoints/8"]


# --- patch -----------------------------------------------------------------------------------------------------------


async def test_patch_writes_the_mask_alone(endpoints, cluster):
    cluster.add(make_endpoint())
    answer = await endpoints.patch(PLACE, "7", {"displayName": "B", "description": "d"}, "displayName")
    assert answer["displayName"] == "B"
    assert "description" not in answer


async def test_patch_split(endpoints, cluster):
    cluster.add(make_endpoint(trafficSplit={"11": 100}))
    cluster.add(make_deployed_model("11"))
    cluster.add(make_deployed_model("12"))
    answer = await endpoints.patch(PLACE, "7", {"trafficSplit": {"12": 100}}, "traffic_split")
    assert answer["trafficSplit"] == {"11": 0, "12": 100}
    for split in ({"13": 100}, {"11": 50}, {}):
        with pytest.raises(InvalidArgumentError, match=r"^trafficSplit: "):
            await endpoints.patch(PLACE, "7", {"trafficSplit": split}, "trafficSplit")


async def test_patch_by_an_etag_that_is_out_of_date_is_409(endpoints, cluster):
    cluster.add(make_endpoint())
    etag = (await endpoints.get(PLACE, "7"))["etag"]
    changed = await endpoints.patch(PLACE, "7", {"displayName": "B", "etag": etag}, "displayName")
    with pytest.raises(AbortedError):
        await endpoints.patch(PLACE, "7", {"displayName": "C", "etag": etag}, "displayName")
    await endpoints.patch(PLACE, "7", {"displayName": "C", "etag": changed["etag"]}, "displayName")


async def test_patch_is_tried_again_where_others_write(endpoints, cluster):
    cluster.add(make_endpoint())
    etag = (await endpoints.get(PLACE, "7"))["etag"]
    cluster.before_patch = [lambda: cluster.touch("Endpoint", "7", status={"x": 1})] * 2
    await endpoints.patch(PLACE, "7", {"displayName": "B", "etag": etag}, "displayName")
    assert cluster.one("Endpoint", "7")["spec"]["displayName"] == "B"
    cluster.before_patch = [lambda: cluster.touch("Endpoint", "7", spec={"description": "mine"})]
    etag = (await endpoints.get(PLACE, "7"))["etag"]
    with pytest.raises(AbortedError):
        await endpoints.patch(PLACE, "7", {"displayName": "C", "etag": etag}, "displayName")


async def test_patch_gives_up_after_some_tries(endpoints, cluster):
    cluster.add(make_endpoint())
    cluster.before_patch = [lambda: cluster.touch("Endpoint", "7", status={"x": 1})] * 10
    with pytest.raises(AbortedError, match="try again"):
        await endpoints.patch(PLACE, "7", {"displayName": "B"}, "displayName")


# --- deploy ----------------------------------------------------------------------------------------------------------


async def test_deploy_on_an_empty_endpoint(endpoints, operations, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    operation = await endpoints.deploy_model(PLACE, "7", _deploy())
    assert "done" not in operation
    id_ = operation["name"].rsplit("/", 1)[1]
    assert cluster.one("DeployedModel", "1000000001")["spec"] == {
        "endpoint": "7",
        "model": "photos",
        "modelVersion": "1",
        "displayName": "blue",
    }
    assert cluster.one("Endpoint", "7")["spec"]["trafficSplit"] == {"1000000001": 100}
    assert await operations.get(PLACE, "endpoints/7", id_) == operation
    cluster.finish(id_)
    done = await operations.get(PLACE, "endpoints/7", id_)
    assert done["response"]["deployedModel"]["id"] == "1000000001"


async def test_explanation_that_is_not_offered_is_told(endpoints, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    body = _deploy()
    body["deployedModel"]["explanationSpec"] = {"parameters": {"sampledShapleyAttribution": {"pathCount": 5}}}
    operation = await endpoints.deploy_model(PLACE, "7", body)
    [told] = operation["metadata"]["genericMetadata"]["partialFailures"]
    assert told["code"] == 12
    assert told["message"].startswith("explanationSpec is kept and not used")


async def test_deploy_a_canary(endpoints, cluster):
    cluster.add(make_endpoint(trafficSplit={"11": 100}))
    cluster.add(make_deployed_model("11"))
    cluster.add(make_model())
    await endpoints.deploy_model(PLACE, "7", _deploy(traffic_split={"0": 20, "11": 80}))
    assert (await endpoints.get(PLACE, "7"))["trafficSplit"] == {"1000000001": 20, "11": 80}


async def test_deploy_of_a_version_and_without_a_name(endpoints, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    await endpoints.deploy_model(PLACE, "7", {"deployedModel": {"model": f"{MODEL}@candidate", "id": "5"}})
    spec = cluster.one("DeployedModel", "5")["spec"]
    assert (spec["modelVersion"], spec["displayName"]) == ("2", "Photos")


WRONG = {
    "no model": ({"deployedModel": {}}, InvalidArgumentError),
    "a model that is not there": ({"deployedModel": {"model": f"{PARENT}/models/other"}}, NotFoundError),
    "a version that is not there": ({"deployedModel": {"model": f"{MODEL}@9"}}, NotFoundError),
    "a split of nobody": (_deploy(trafficSplit={"0": 50, "12": 50}), InvalidArgumentError),
    "an id that is none": ({"deployedModel": {"model": MODEL, "id": "0"}}, InvalidArgumentError),
    "an id that is there": ({"deployedModel": {"model": MODEL, "id": "11"}}, AlreadyExistsError),
    "no body": (None, InvalidArgumentError),
}


@pytest.mark.parametrize(("body", "error"), WRONG.values(), ids=WRONG.keys())
async def test_deploy_that_is_refused_changes_nothing(endpoints, cluster, body, error):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    cluster.add(make_deployed_model("11"))
    before = dict(cluster.objects)
    with pytest.raises(error):
        await endpoints.deploy_model(PLACE, "7", body)
    assert cluster.objects == before


async def test_deploy_without_the_right_to_the_split_makes_nothing(endpoints, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    cluster.denied = {"patch"}
    with pytest.raises(PermissionDeniedError):
        await endpoints.deploy_model(PLACE, "7", _deploy())
    assert cluster.names("DeployedModel") == []


async def test_split_that_was_not_written_is_on_record(endpoints, operations, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    cluster.before_patch = [_crash]
    with pytest.raises(ConnectionError):
        await endpoints.deploy_model(PLACE, "7", _deploy())
    [record] = read_records(cluster.one("DeployedModel", "1000000001")).values()
    assert (record.split, record.before, record.timeout) == ({"1000000001": 100}, None, 1800)
    [operation] = (await operations.list(PLACE, "endpoints/7", ListRequest()))["operations"]
    before = dict(cluster.objects)
    assert await operations.get(PLACE, "endpoints/7", operation["name"].rsplit("/", 1)[1]) == operation
    assert "done" not in operation
    assert cluster.objects == before  # to read writes nothing


def _fail(cluster, operation, name):
    cluster.finish(operation["name"], state="Failed", reason="ImagePullFailed")
    del cluster.objects["DeployedModel", name]  # the operator leaves nothing of it


async def test_deployment_that_failed_changed_no_split(endpoints, cluster):
    cluster.add(make_endpoint(trafficSplit={"11": 100}))
    cluster.add(make_deployed_model("11"))
    cluster.add(make_model())
    operation = await endpoints.deploy_model(PLACE, "7", _deploy(trafficSplit={"0": 50, "11": 50}))
    _fail(cluster, operation, "1000000001")
    assert (await endpoints.get(PLACE, "7"))["trafficSplit"] == {"11": 100}
    # The next one finds what is in force, and writes it.
    await endpoints.deploy_model(PLACE, "7", _deploy())
    assert cluster.one("Endpoint", "7")["spec"]["trafficSplit"] == {"11": 100}
    assert (await endpoints.get(PLACE, "7"))["trafficSplit"] == {"11": 100, "1000000002": 0}


async def test_deployment_again_by_the_same_id_takes_no_traffic_unasked(endpoints, cluster):
    cluster.add(make_endpoint(trafficSplit={"11": 100}))
    cluster.add(make_deployed_model("11"))
    cluster.add(make_model())
    body = _deploy(trafficSplit={"0": 100})
    body["deployedModel"] = {**body["deployedModel"], "id": "5"}
    _fail(cluster, await endpoints.deploy_model(PLACE, "7", body), "5")
    await endpoints.deploy_model(PLACE, "7", {"deployedModel": body["deployedModel"]})
    assert cluster.one("Endpoint", "7")["spec"]["trafficSplit"] == {"11": 100}
    assert (await endpoints.get(PLACE, "7"))["trafficSplit"] == {"11": 100, "5": 0}


async def test_first_deployment_that_failed_leaves_the_next_one_all_traffic(endpoints, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    _fail(cluster, await endpoints.deploy_model(PLACE, "7", _deploy()), "1000000001")
    assert "trafficSplit" not in await endpoints.get(PLACE, "7")
    second = await endpoints.deploy_model(PLACE, "7", _deploy())
    assert cluster.one("Endpoint", "7")["spec"]["trafficSplit"] == {"1000000002": 100}
    _fail(cluster, second, "1000000002")
    assert "trafficSplit" not in await endpoints.get(PLACE, "7")


async def test_deployment_may_take_as_long_as_its_version_says(endpoints, cluster, session):
    cluster.add(make_endpoint())
    container = {
        "imageUri": "us-docker.pkg.dev/vertex-ai/prediction/pytorch-cpu.2-4:latest",
        "deploymentTimeout": "90s",
    }
    model = {"displayName": "x", "artifactUri": "gs://x", "containerSpec": container}
    await ModelService(session).upload(PLACE, {"modelId": "m", "model": model})
    await endpoints.deploy_model(PLACE, "7", {"deployedModel": {"model": f"{PARENT}/models/m", "id": "5"}})
    [record] = read_records(cluster.one("DeployedModel", "5")).values()
    assert record.timeout == 90


async def test_deploy_whose_answers_are_lost_is_done_once(endpoints, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    cluster.lost_answers = ["create", "patch"]
    operation = await endpoints.deploy_model(PLACE, "7", _deploy())
    assert "1000000001" in operation["name"]
    assert cluster.names("DeployedModel") == ["1000000001"]
    assert cluster.one("Endpoint", "7")["spec"]["trafficSplit"] == {"1000000001": 100}
    assert len(read_records(cluster.one("Endpoint", "7"))) == 1


@pytest.mark.parametrize("lost", [["create"] * 9, ["patch"] * 9])
async def test_deploy_that_fails_in_the_middle_leaves_nothing(endpoints, cluster, lost):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    cluster.refuses = lost
    with pytest.raises(UnavailableError):
        await endpoints.deploy_model(PLACE, "7", _deploy())
    assert cluster.names("DeployedModel") == []
    assert "trafficSplit" not in cluster.one("Endpoint", "7")["spec"]


async def test_deploys_at_once_all_end_well(endpoints, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    cluster.yields = True
    answers = await asyncio.gather(*(endpoints.deploy_model(PLACE, "7", _deploy()) for _ in range(5)))
    assert len({answer["name"] for answer in answers}) == 5
    split = cluster.one("Endpoint", "7")["spec"]["trafficSplit"]
    assert sum(split.values()) == 100
    assert len(split) == 1  # the first one to come: further ones get none without a word
    assert set(split) < set(cluster.names("DeployedModel"))


async def test_undeploy_whose_answers_are_lost_is_done_once(endpoints, cluster):
    cluster.add(make_endpoint(trafficSplit={"11": 100}))
    cluster.add(make_deployed_model("11"))
    cluster.lost_answers = ["patch", "delete"]
    assert (await endpoints.undeploy_model(PLACE, "7", {"deployedModelId": "11"}))["done"]
    assert cluster.names("DeployedModel") == []


async def test_undeploy_of_the_only_one_leaves_what_others_deployed_meanwhile_its_traffic(endpoints, cluster):
    cluster.add(make_endpoint(trafficSplit={"11": 100}))
    cluster.add(make_deployed_model("11"))

    def deploy():
        for name in ("12", "13"):
            cluster.add(make_deployed_model(name))
        cluster.touch("Endpoint", "7", spec={"trafficSplit": {"11": None, "12": 50, "13": 50}})

    cluster.before_patch = [deploy]
    await endpoints.undeploy_model(PLACE, "7", {"deployedModelId": "11"})
    assert cluster.one("Endpoint", "7")["spec"]["trafficSplit"] == {"12": 50, "13": 50}


async def test_undeploys_at_once_leave_traffic_to_nobody_who_leaves(endpoints, cluster):
    cluster.add(make_endpoint(trafficSplit={"11": 50, "12": 50}))
    for name in ("11", "12", "13"):
        cluster.add(make_deployed_model(name))
    cluster.yields = True
    calls = [
        endpoints.undeploy_model(PLACE, "7", {"deployedModelId": "11", "trafficSplit": {"12": 100}}),
        endpoints.undeploy_model(PLACE, "7", {"deployedModelId": "12", "trafficSplit": {"11": 100}}),
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers].count(InvalidArgumentError) == 1
    left, idle = cluster.names("DeployedModel")
    assert cluster.one("Endpoint", "7")["spec"]["trafficSplit"] == {left: 100}
    assert idle == "13"


def _crash():
    raise ConnectionError


# --- undeploy --------------------------------------------------------------------------------------------------------


async def test_undeploy_the_last_one(endpoints, operations, cluster):
    cluster.add(make_endpoint(trafficSplit={"11": 100}))
    cluster.add(make_deployed_model("11"))
    operation = await endpoints.undeploy_model(PLACE, "7", {"deployedModelId": "11"})
    assert operation["done"]
    assert cluster.names("DeployedModel") == []
    assert "trafficSplit" not in cluster.one("Endpoint", "7")["spec"]
    assert await operations.get(PLACE, "endpoints/7", operation["name"].rsplit("/", 1)[1]) == operation


async def test_undeploy_hands_the_traffic_over_first(endpoints, cluster):
    cluster.add(make_endpoint(trafficSplit={"11": 80, "12": 20}))
    cluster.add(make_deployed_model("11"))
    cluster.add(make_deployed_model("12"))
    body = {"deployed_model_id": "11", "traffic_split": {"12": 100}}
    await endpoints.undeploy_model(PLACE, "7", body)
    assert cluster.one("Endpoint", "7")["spec"]["trafficSplit"] == {"12": 100}
    writes = [call for call in cluster.calls if call[0] in ("patch", "delete")]
    assert writes == [("patch", "Endpoint", "7"), ("delete", "DeployedModel", "11")]


async def test_undeploy_of_what_has_traffic_is_refused(endpoints, cluster):
    cluster.add(make_endpoint(trafficSplit={"11": 80, "12": 20}))
    cluster.add(make_deployed_model("11"))
    cluster.add(make_deployed_model("12"))
    with pytest.raises(FailedPreconditionError, match="give the split of the rest"):
        await endpoints.undeploy_model(PLACE, "7", {"deployedModelId": "11"})
    with pytest.raises(NotFoundError, match="13 is not deployed on this endpoint; 11, 12 is"):
        await endpoints.undeploy_model(PLACE, "7", {"deployedModelId": "13"})
    cluster.denied = {"delete"}
    with pytest.raises(PermissionDeniedError):
        await endpoints.undeploy_model(PLACE, "7", {"deployedModelId": "11", "trafficSplit": {"12": 100}})
    assert cluster.one("Endpoint", "7")["spec"]["trafficSplit"] == {"11": 80, "12": 20}


async def test_endpoint_with_models_is_not_deleted(endpoints, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_deployed_model("11"))
    with pytest.raises(FailedPreconditionError, match="undeploy 11 first"):
        await endpoints.delete(PLACE, "7")
    assert cluster.names("Endpoint") == ["7"]


# --- v1beta1 ---------------------------------------------------------------------------------------------------------


async def test_rollout_options_are_v1beta1_s(endpoints, operations, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    options = {"maxSurgeReplicas": 2}
    body = {"deployedModel": {"model": MODEL, "rolloutOptions": options}}
    with pytest.raises(InvalidArgumentError, match=r"^deployedModel\.rolloutOptions: Unknown name"):
        await endpoints.deploy_model(PLACE, "7", body)
    assert cluster.names("DeployedModel") == []
    begun = await endpoints.deploy_model(BETA, "7", body)
    [name] = cluster.names("DeployedModel")
    assert cluster.one("DeployedModel", name)["spec"]["rolloutOptions"] == options
    id_ = begun["name"].rpartition("/")[2]
    cluster.finish(id_)
    done = {place: await operations.get(place, "endpoints/7", id_) for place in (PLACE, BETA)}
    deployed = {place: (await endpoints.get(place, "7"))["deployedModels"][0] for place in (PLACE, BETA)}
    listed = {place: (await endpoints.list(place, ListRequest()))["endpoints"] for place in (PLACE, BETA)}
    for place, told in ((PLACE, None), (BETA, options)):
        assert done[place]["response"]["deployedModel"] == {"id": name}
        assert deployed[place].get("rolloutOptions") == told
        assert listed[place][0]["deployedModels"][0].get("rolloutOptions") == told


async def test_scaling_to_zero_is_refused_by_its_name(endpoints, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    resources = {"maxReplicaCount": 1, "scaleToZeroSpec": {"idleScaledownPeriod": "300s"}}
    body = {"deployedModel": {"model": MODEL, "dedicatedResources": resources}}
    with pytest.raises(InvalidArgumentError, match=r"^scaleToZeroSpec: is not supported"):
        await endpoints.deploy_model(BETA, "7", body)
    with pytest.raises(
        InvalidArgumentError, match=r"^deployedModel\.dedicatedResources\.scaleToZeroSpec: Unknown name"
    ):
        await endpoints.deploy_model(PLACE, "7", body)
    assert cluster.names("DeployedModel") == []


async def test_config_of_an_endpoint_is_v1beta1_s(endpoints, cluster):
    body = {"displayName": "x", "predictRequestResponseLoggingConfig": {"enableOtelLogging": False}}
    with pytest.raises(InvalidArgumentError, match=r"enableOtelLogging: Unknown name"):
        await endpoints.create(PLACE, body)
    await endpoints.create(BETA, body, "photos")
    with pytest.raises(InvalidArgumentError, match=r"enableOtelLogging: Unknown name"):
        await endpoints.patch(PLACE, "photos", body, "displayName")
    assert (await endpoints.patch(BETA, "photos", body, "displayName"))["displayName"] == "x"


# --- mutate ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "sent", "field"),
    [(PLACE, {"disableContainerLogging": True}, "disableContainerLogging"), (BETA, {}, "enableContainerLogging")],
)
async def test_mutate_what_is_logged(endpoints, cluster, place, sent, field):
    cluster.add(make_endpoint())
    cluster.add(make_deployed_model("11"))
    await endpoints.mutate_deployed_model(place, "7", {"deployedModel": {"id": "11", **sent}}, field)
    assert cluster.one("DeployedModel", "11")["spec"]["disableContainerLogging"] is True
    assert (await endpoints.get(PLACE, "7"))["deployedModels"][0]["disableContainerLogging"] is True
    if place is BETA:
        with pytest.raises(InvalidArgumentError, match=f"{field} cannot be updated"):
            await endpoints.mutate_deployed_model(PLACE, "7", {"deployedModel": {"id": "11"}}, field)


async def test_mutate(endpoints, operations, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_deployed_model("11", automaticResources={"minReplicaCount": 1}))
    cluster.judge("DeployedModel", "11")
    body = {"deployedModel": {"id": "11", "automaticResources": {"minReplicaCount": 2}}}
    operation = await endpoints.mutate_deployed_model(PLACE, "7", body, "automaticResources.minReplicaCount")
    assert "done" not in operation
    assert cluster.one("DeployedModel", "11")["spec"]["automaticResources"] == {"minReplicaCount": 2}
    assert "done" not in operation
    id_ = operation["name"].rsplit("/", 1)[1]
    cluster.finish(id_)
    done = await operations.get(PLACE, "endpoints/7", id_)
    assert done["response"]["deployedModel"] == {"id": "11"}
    listed = await operations.list(PLACE, "endpoints/7", ListRequest(filter="done=true"))
    assert listed["operations"] == [done]


async def test_deploying_often_leaves_few_records(endpoints, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    for _ in range(15):
        operation = await endpoints.deploy_model(PLACE, "7", _deploy())
        id_ = operation["name"].rsplit("_", 1)[1]
        await endpoints.undeploy_model(PLACE, "7", {"deployedModelId": id_})
    assert len(read_records(cluster.one("Endpoint", "7"))) == 20
