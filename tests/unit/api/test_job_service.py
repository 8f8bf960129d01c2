"""Batch prediction jobs, on a cluster of a page."""

import pytest
from pierhead_api.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from pierhead_api.listing import ListRequest
from pierhead_api.services import JobService, OperationService

from tests.unit.api.conftest import BETA, PARENT, PLACE, make_job, make_model

BODY = {
    "displayName": "nightly",
    "model": f"{PARENT}/models/photos",
    "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://in/a.jsonl"]}},
    "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://out"}},
}


@pytest.fixture
def jobs(session):
    return JobService(session)


async def test_create_pins_the_version(jobs, cluster):
    cluster.add(make_model())
    answer = await jobs.create(PLACE, BODY | {"model": f"{PARENT}/models/photos@candidate"})
    assert answer["name"] == f"{PARENT}/batchPredictionJobs/1000000001"
    assert (answer["state"], answer["modelDisplayName"]) == ("JOB_STATE_PENDING", "Photos")
    assert cluster.one("BatchPredictionJob", "1000000001")["spec"]["modelVersion"] == "2"
    assert await jobs.get(PLACE, "1000000001") == answer


async def test_job_whose_answer_is_lost_is_made_once(jobs, cluster):
    cluster.add(make_model())
    cluster.lost_answers = ["create"]
    answer = await jobs.create(PLACE, BODY)
    assert cluster.names("BatchPredictionJob") == [answer["name"].rsplit("/", 1)[1]]


async def test_deletion_whose_answer_is_lost_is_done_once(jobs, cluster):
    cluster.add({**make_job("21"), "status": {"state": "JOB_STATE_SUCCEEDED"}})
    cluster.lost_answers = ["delete"]
    await jobs.delete(PLACE, "21")
    assert cluster.names("BatchPredictionJob") == []


async def test_create_names_what_is_missing(jobs, cluster):
    with pytest.raises(NotFoundError):
        await jobs.create(PLACE, BODY)
    with pytest.raises(InvalidArgumentError, match=r"^model: "):
        await jobs.create(PLACE, {**BODY, "model": ""})
    with pytest.raises(InvalidArgumentError, match=r"^inputConfig: "):
        await jobs.create(PLACE, {"displayName": "x"})


async def test_job_outlives_its_model(jobs, cluster):
    cluster.add(make_job("21"))
    assert "modelDisplayName" not in await jobs.get(PLACE, "21")


FILTERS = {
    'state="JOB_STATE_RUNNING"': ["21"],
    "display_name=nightly": ["22"],
    'model_display_name="Photos" AND state!="JOB_STATE_RUNNING"': ["22"],
    "model_display_name=Other": [],
}


@pytest.mark.parametrize(("text", "expected"), FILTERS.items())
async def test_list(jobs, cluster, text, expected):
    cluster.add(make_model())
    cluster.add({**make_job("21"), "status": {"state": "JOB_STATE_RUNNING"}})
    cluster.add(make_job("22", displayName="nightly"))
    listed = await jobs.list(PLACE, ListRequest(filter=text))
    names = [one["name"].rsplit("/", 1)[1] for one in listed.get("batchPredictionJobs", [])]
    assert names == expected


async def test_cancel(jobs, cluster):
    cluster.add(make_job("21"))
    assert await jobs.cancel(PLACE, "21") == {}
    assert cluster.one("BatchPredictionJob", "21")["spec"]["cancel"] is True


async def test_cancel_of_one_that_ended_changes_nothing(jobs, cluster):
    cluster.add({**make_job("21"), "status": {"state": "JOB_STATE_SUCCEEDED"}})
    assert await jobs.cancel(PLACE, "21") == {}
    assert "cancel" not in cluster.one("BatchPredictionJob", "21")["spec"]


async def test_delete(jobs, session, cluster):
    cluster.add(make_job("21"))
    with pytest.raises(FailedPreconditionError, match="has not ended: cancel it first"):
        await jobs.delete(PLACE, "21")
    cluster.one("BatchPredictionJob", "21")["status"] = {"state": "JOB_STATE_CANCELLED"}
    operation = await jobs.delete(PLACE, "21")
    assert operation["done"]
    assert operation["name"].startswith(f"{PARENT}/operations/")
    again = await OperationService(session).get(PLACE, "", operation["name"].rsplit("/", 1)[1])
    assert again == operation


@pytest.mark.parametrize(("place", "message"), [(PLACE, r"\.spot: Unknown name"), (BETA, "^spot: is not supported")])
async def test_field_of_v1beta1_is_known_there_alone(jobs, cluster, place, message):
    cluster.add(make_model())
    with pytest.raises(InvalidArgumentError, match=message):
        await jobs.create(place, BODY | {"dedicatedResources": {"spot": True}})
