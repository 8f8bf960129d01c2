"""Tables: an operation and what there is of its object -> Vertex AI's Operation."""

import re

import pytest
from pierhead_api.errors import NotFoundError
from pierhead_api.operations import (
    MOST_RECORDS,
    RECORD_PREFIX,
    Operation,
    Record,
    Seen,
    annotate,
    compute_operation,
    lacks_split,
    list_operations,
    make_serial,
    parse_operation,
    patch_records,
    patch_traffic,
    read_records,
)

from tests.unit.api.conftest import NOW, PARENT, PLACE, make_deployed_model, make_endpoint, make_model, merge

SERIAL = "1795348800000123456"  # NOW
SINCE = "2026-11-22T12:01:00Z"
DEPLOY = Operation(SERIAL, "DeployModel", "uid-11", "11")
METADATA = {"createTime": "2026-11-22T12:00:00Z", "updateTime": "2026-11-22T12:00:00Z"}


def _operation(type_, uid="u", name="x", detail=""):
    return Operation(SERIAL, type_, uid, name, detail)


OPERATIONS = {
    "deploy": DEPLOY,
    "version": _operation("UploadModel", "0a-1b", "my-model", "2"),
    "generation": _operation("MutateDeployedModel", detail="12"),
    "named by a manifest": _operation("UndeployModel", name="photos-1"),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_id_tells_all(operation):
    assert re.fullmatch(r"[A-Za-z0-9_-]+", operation.id)
    assert parse_operation(operation.id) == operation


@pytest.mark.parametrize(
    "wrong", ["", "123", "1_DeployModel_u_x", f"{SERIAL}_Foo_u_x", f"{SERIAL}_MutateDeployedModel_u_x_y"]
)
def test_other_ids_are_not_found(wrong):
    with pytest.raises(NotFoundError):
        parse_operation(wrong)


def test_serial_tells_the_time():
    serial = make_serial(NOW)
    assert re.fullmatch(r"[0-9]{19}", serial)
    assert Operation(serial, "DeployModel", "", "").create_time == NOW


# --- records ---------------------------------------------------------------------------------------------------------


def test_records_read_back():
    record = Record(type="DeployModel", split={"11": 100})
    manifest = merge(make_endpoint(), {"metadata": {"annotations": annotate(SERIAL, record)}})
    assert read_records(manifest) == {SERIAL: record.model_copy(update={"create_time": METADATA["createTime"]})}


@pytest.mark.parametrize("value", ["", "{}", "no JSON", '{"type": "Foo"}'])
def test_record_that_somebody_broke_is_none(value):
    manifest = merge(make_endpoint(), {"metadata": {"annotations": {f"{RECORD_PREFIX}{SERIAL}": value}}})
    assert read_records(manifest) == {}


def test_record_of_a_later_release_is_read():
    value = '{"type": "DeployModel", "more": 1}'
    manifest = merge(make_endpoint(), {"metadata": {"annotations": {f"{RECORD_PREFIX}{SERIAL}": value}}})
    assert read_records(manifest)[SERIAL].type == "DeployModel"


def test_newest_records_are_kept():
    manifest = make_endpoint()
    for number in range(MOST_RECORDS + 5):
        patch = patch_records(manifest, f"{number:019}", Record(type="CreateEndpoint"))
        manifest = merge(manifest, {"metadata": {"annotations": patch}})
    assert sorted(read_records(manifest)) == [f"{number:019}" for number in range(5, MOST_RECORDS + 5)]


def test_list_operations_has_each_once_and_the_newest_first():
    older = str(int(SERIAL) - 1)
    annotations = annotate(SERIAL, DEPLOY.refer()) | annotate(older, Record(type="CreateEndpoint"))
    endpoint = merge(make_endpoint(), {"metadata": {"annotations": annotations}})
    deployed = merge(make_deployed_model(), {"metadata": {"annotations": annotate(SERIAL, Record(type="DeployModel"))}})
    created = Operation(older, "CreateEndpoint", "uid-7", "7")
    expected = [(DEPLOY, "endpoints/7"), (created, "endpoints/7")]
    assert list_operations([endpoint, deployed]) == list_operations([endpoint]) == expected


def test_list_operations_of_a_model():
    model = merge(make_model(), {"metadata": {"annotations": annotate(SERIAL, Record(type="UploadModel", detail="2"))}})
    assert list_operations([model]) == [(_operation("UploadModel", "uid-photos", "photos", "2"), "models/photos")]


def _deployed(record):
    return merge(make_deployed_model(), {"metadata": {"annotations": annotate(SERIAL, record)}})


WANTED = Record(type="DeployModel", split={"11": 20, "10": 80}, before={"10": 100})
UNWRITTEN = {
    "not written": (WANTED, make_endpoint(trafficSplit={"10": 100}), True),
    "not written, none before": (Record(type="DeployModel", split={"11": 100}), make_endpoint(), True),
    "no split": (Record(type="DeployModel"), make_endpoint(), False),
    "somebody decided otherwise": (WANTED, make_endpoint(trafficSplit={"10": 90, "11": 10}), False),
    "written, and taken back": (
        WANTED,
        merge(make_endpoint(trafficSplit={"10": 100}), {"metadata": {"annotations": annotate(SERIAL, DEPLOY.refer())}}),
        False,
    ),
    "written, taken back and off the record": (
        WANTED,
        merge(
            make_endpoint(trafficSplit={"10": 100}),
            {
                "metadata": {
                    "annotations": {
                        key: value
                        for number in range(1, MOST_RECORDS + 1)
                        for key, value in annotate(str(int(SERIAL) + number), Record(type="UndeployModel")).items()
                    }
                }
            },
        ),
        False,
    ),
}


@pytest.mark.parametrize(("record", "endpoint", "expected"), UNWRITTEN.values(), ids=UNWRITTEN.keys())
def test_lacks_split(record, endpoint, expected):
    assert lacks_split(DEPLOY, _deployed(record), endpoint) is expected


def test_split_is_written_with_its_record():
    endpoint = make_endpoint(trafficSplit={"10": 100})
    written = merge(endpoint, patch_traffic(endpoint, {"11": 100}, SERIAL, DEPLOY.refer()))
    assert written["spec"]["trafficSplit"] == {"11": 100}
    assert not lacks_split(DEPLOY, _deployed(WANTED), written)


# --- judgement -------------------------------------------------------------------------------------------------------


def _judged(manifest, reason="Serving", *, ready=True, stalled=False, generation=1, **status):
    conditions = [
        {"type": type_, "status": str(value), "reason": reason, "message": "m", "lastTransitionTime": SINCE}
        for type_, value in {"Ready": ready, "Stalled": stalled, "TrafficApplied": ready}.items()
    ]
    judged = {"observedGeneration": generation, "conditions": conditions, **status}
    return merge(manifest, {"metadata": {"generation": 1}, "status": judged})


def _compute(operation, seen):
    return compute_operation(operation, seen, PLACE, f"{PARENT}/endpoints/7")


SERVES = _judged(make_deployed_model())
SPLIT = {"11": 20, "10": 80}


def _endpoint(effective, **judged):
    return _judged(make_endpoint(trafficSplit=SPLIT), trafficSplit=effective, **judged)


WAITING = {
    "nothing judged": (make_deployed_model(), make_endpoint(), None),
    "an earlier generation judged": (
        merge(SERVES, {"metadata": {"generation": 2}}),
        make_endpoint(),
        None,
    ),
    "starts": (_judged(make_deployed_model(), "Progressing", ready=False), make_endpoint(), None),
    "waits for its image": (_judged(make_deployed_model(), "ImagePullFailed", ready=False), make_endpoint(), 14),
    "waits for a node": (_judged(make_deployed_model(), "Unschedulable", ready=False), make_endpoint(), 8),
    "its model is gone": (_judged(make_deployed_model(), "ModelNotFound", ready=False), make_endpoint(), 5),
    "serves, without its traffic": (SERVES, _endpoint({"10": 100}), None),
    "serves, with a part of its traffic": (SERVES, _endpoint({"11": 10, "10": 90}), None),
    "serves, the gateway has not heard": (SERVES, _endpoint(SPLIT, ready=False, reason="RoutePending"), None),
    "serves, its route is refused": (SERVES, _endpoint({"10": 100}, ready=False, reason="Rejected"), 9),
    "serves, an earlier split was judged": (SERVES, _endpoint(SPLIT, generation=0), None),
}


@pytest.mark.parametrize(("deployed", "endpoint", "code"), WAITING.values(), ids=WAITING.keys())
def test_deployment_on_its_way(deployed, endpoint, code):
    answer = _compute(DEPLOY, Seen(deployed, endpoint))
    assert not answer.keys() & {"done", "response", "error"}
    failures = answer["metadata"]["genericMetadata"].get("partialFailures", [])
    assert [failure["code"] for failure in failures] == ([code] if code else [])


DONE = {
    "gets its traffic": (SERVES, _endpoint(SPLIT)),
    "gets more, as others do not serve": (SERVES, _endpoint({"11": 100})),
    "wants none": (SERVES, make_endpoint(trafficSplit={"10": 100, "11": 0})),
    "is not in the split": (SERVES, make_endpoint(trafficSplit={"10": 100})),
    "others do not serve": (SERVES, _endpoint(SPLIT, stalled=False)),
}


@pytest.mark.parametrize(("deployed", "endpoint"), DONE.values(), ids=DONE.keys())
def test_deployment_done(deployed, endpoint):
    answer = _compute(DEPLOY, Seen(deployed, endpoint))
    response = answer.pop("response")
    assert response.pop("@type") == "type.googleapis.com/google.cloud.aiplatform.v1.DeployModelResponse"
    assert response["deployedModel"]["id"] == "11"
    assert answer == {
        "name": f"{PARENT}/endpoints/7/operations/{DEPLOY.id}",
        "metadata": {
            "@type": "type.googleapis.com/google.cloud.aiplatform.v1.DeployModelOperationMetadata",
            "genericMetadata": {**METADATA, "updateTime": SINCE},
        },
        "done": True,
    }


FAILED = {
    "artifact not found": (_judged(make_deployed_model(), "ArtifactNotFound", ready=False, stalled=True), 5),
    "artifact invalid": (_judged(make_deployed_model(), "ArtifactInvalid", ready=False, stalled=True), 3),
    "settings": (_judged(make_deployed_model(), "SettingsInvalid", ready=False, stalled=True), 9),
    "out of memory": (_judged(make_deployed_model(), "OutOfMemory", ready=False, stalled=True), 8),
    "crashes": (_judged(make_deployed_model(), "CrashLooping", ready=False, stalled=True), 13),
    "gone": (None, 5),
    "a namesake": (merge(SERVES, {"metadata": {"uid": "other"}}), 5),
}


@pytest.mark.parametrize(("deployed", "code"), FAILED.values(), ids=FAILED.keys())
def test_deployment_failed(deployed, code):
    answer = _compute(DEPLOY, Seen(deployed, make_endpoint()))
    assert answer["done"] is True
    assert answer["error"]["code"] == code
    assert "response" not in answer


def test_error_tells_the_cause():
    stalled = _judged(make_deployed_model(), "ArtifactNotFound", ready=False, stalled=True)
    assert _compute(DEPLOY, Seen(stalled, make_endpoint()))["error"]["message"] == "ArtifactNotFound: m"


def test_route_that_the_gateway_refuses_is_an_error():
    refused = _endpoint({"10": 100}, ready=False, stalled=True, reason="RouteNotAccepted")
    assert _compute(DEPLOY, Seen(SERVES, refused))["error"]["code"] == 9


def test_cancelled_deployment():
    mark = annotate(SERIAL, DEPLOY.refer(cancelled=True))
    endpoint = merge(make_endpoint(), {"metadata": {"annotations": mark}})
    assert _compute(DEPLOY, Seen(None, endpoint))["error"]["code"] == 1


OTHERS = {
    "endpoint is there": (_operation("CreateEndpoint", "uid-7", "7"), make_endpoint(), "Endpoint"),
    "endpoint still there": (_operation("DeleteEndpoint", "uid-7", "7"), make_endpoint(), None),
    "endpoint gone": (_operation("DeleteEndpoint", "uid-7", "7"), None, "google.protobuf.Empty"),
    "endpoint made again": (_operation("DeleteEndpoint", "earlier", "7"), make_endpoint(), "google.protobuf.Empty"),
    "job gone": (_operation("DeleteBatchPredictionJob"), None, "google.protobuf.Empty"),
    "still deployed": (_operation("UndeployModel", "uid-11", "11"), SERVES, None),
    "undeployed": (_operation("UndeployModel", "uid-11", "11"), None, "UndeployModelResponse"),
    "model not judged": (_operation("UploadModel", "uid-photos", "photos", "2"), make_model(), None),
    "model judged": (
        _operation("UploadModel", "uid-photos", "photos", "2"),
        _judged(make_model(), "Accepted"),
        "UploadModelResponse",
    ),
    "version still there": (_operation("DeleteModelVersion", "uid-photos", "photos", "2"), make_model(), None),
    "version gone": (
        _operation("DeleteModelVersion", "uid-photos", "photos", "3"),
        make_model(),
        "google.protobuf.Empty",
    ),
    "model of the version gone": (
        _operation("DeleteModelVersion", "uid-photos", "photos", "3"),
        None,
        "google.protobuf.Empty",
    ),
    "mutated, not judged": (
        _operation("MutateDeployedModel", "uid-11", "11", "2"),
        merge(SERVES, {"metadata": {"generation": 2}}),
        None,
    ),
    "mutated": (
        _operation("MutateDeployedModel", "uid-11", "11", "2"),
        merge(SERVES, {"metadata": {"generation": 2}, "status": {"observedGeneration": 2}}),
        "MutateDeployedModelResponse",
    ),
    "mutated, without a change": (
        _operation("MutateDeployedModel", "uid-11", "11", "2"),
        SERVES,
        "MutateDeployedModelResponse",
    ),
}


@pytest.mark.parametrize(("operation", "target", "response"), OTHERS.values(), ids=OTHERS.keys())
def test_other_operations(operation, target, response):
    answer = _compute(operation, Seen(target, make_endpoint()))
    assert answer.get("done", False) is (response is not None)
    if response:
        assert answer["response"]["@type"].endswith(f"{'/' if '.' in response else '.'}{response}")
    x = "Delete" if operation.type.startswith("Delete") else operation.type
    assert answer["metadata"]["@type"].endswith(f".v1.{x}OperationMetadata")


def test_upload_tells_the_version():
    answer = _compute(_operation("UploadModel", "uid-photos", "photos", "2"), Seen(_judged(make_model(), "Accepted")))
    assert answer["response"]["model"] == f"{PARENT}/models/photos"
    assert answer["response"]["modelVersionId"] == "2"


def test_upload_that_cannot_be():
    refused = _judged(make_model(), "NotOwned", ready=False)
    assert _compute(_operation("UploadModel", "uid-photos", "photos"), Seen(refused))["error"]["code"] == 6
