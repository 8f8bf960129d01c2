"""Tables: an operation and what there is of its object -> Vertex AI's Operation."""

import re

import pytest
from pierhead_api.errors import NotFoundError
from pierhead_api.operations import (
    Seen,
    annotate,
    compute_operation,
    list_operations,
    make_serial,
    parse_operation,
    patch_records,
    patch_traffic,
    read_records,
)
from pierhead_operator.records import MOST_RECORDS, RECORD_PREFIX, Operation, Record

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


def test_list_operations_has_those_whose_deployed_model_is_gone():
    assert list_operations([_finished(DEPLOY)]) == [(DEPLOY, "endpoints/7")]


def test_list_operations_of_a_model():
    model = merge(make_model(), {"metadata": {"annotations": annotate(SERIAL, Record(type="UploadModel", detail="2"))}})
    assert list_operations([model]) == [(_operation("UploadModel", "uid-photos", "photos", "2"), "models/photos")]


def test_split_is_written_with_its_record():
    endpoint = make_endpoint(trafficSplit={"10": 100})
    written = merge(endpoint, patch_traffic(endpoint, {"11": 100}, SERIAL, DEPLOY.refer()))
    assert written["spec"]["trafficSplit"] == {"11": 100}
    assert SERIAL in read_records(written)


# --- judgement -------------------------------------------------------------------------------------------------------


def _judged(manifest, reason="Serving", *, ready=True, generation=1):
    conditions = [
        {"type": type_, "status": str(ready), "reason": reason, "message": "m", "lastTransitionTime": SINCE}
        for type_ in ("Ready", "TrafficApplied")
    ]
    judged = {"observedGeneration": generation, "conditions": conditions}
    return merge(manifest, {"metadata": {"generation": 1}, "status": judged})


def _on_record(manifest, record, serial=SERIAL):
    return merge(manifest, {"metadata": {"annotations": annotate(serial, record)}})


def _finished(operation, manifest=None, **finished):
    one = {"id": operation.id, "state": "Succeeded", "time": SINCE, **finished}
    return merge(manifest or make_endpoint(), {"status": {"operations": [one]}})


def _compute(operation, seen):
    return compute_operation(operation, seen, PLACE, f"{PARENT}/endpoints/7")


DEPLOYED = _on_record(make_deployed_model(), Record(type="DeployModel"))
WAITING = {
    "nothing judged": (DEPLOYED, make_endpoint(), None),
    "an earlier generation judged": (
        merge(_judged(DEPLOYED, "ImagePullFailed", ready=False), {"metadata": {"generation": 2}}),
        make_endpoint(),
        None,
    ),
    "starts": (_judged(DEPLOYED, "Progressing", ready=False), make_endpoint(), None),
    "waits for its image": (_judged(DEPLOYED, "ImagePullFailed", ready=False), make_endpoint(), 14),
    "waits for a node": (_judged(DEPLOYED, "Unschedulable", ready=False), make_endpoint(), 8),
    "its model is gone": (_judged(DEPLOYED, "ModelNotFound", ready=False), make_endpoint(), 5),
    "serves, the gateway has not heard": (
        _judged(DEPLOYED),
        _judged(make_endpoint(), "RoutePending", ready=False),
        None,
    ),
    "serves, its route is refused": (_judged(DEPLOYED), _judged(make_endpoint(), "Rejected", ready=False), 9),
    "serves, and nobody has remembered it yet": (_judged(DEPLOYED), _judged(make_endpoint(), "TrafficApplied"), None),
}


@pytest.mark.parametrize(("deployed", "endpoint", "code"), WAITING.values(), ids=WAITING.keys())
def test_deployment_on_its_way(deployed, endpoint, code):
    answer = _compute(DEPLOY, Seen(deployed, endpoint))
    assert not answer.keys() & {"done", "response", "error"}
    failures = answer["metadata"]["genericMetadata"].get("partialFailures", [])
    assert [failure["code"] for failure in failures] == ([code] if code else [])


AFTERWARDS = {
    "serves": _judged(DEPLOYED),
    "broke down": _judged(DEPLOYED, "CrashLooping", ready=False),
    "was undeployed": None,
    "was deployed again": merge(DEPLOYED, {"metadata": {"uid": "another"}}),
}


@pytest.mark.parametrize("target", AFTERWARDS.values(), ids=AFTERWARDS.keys())
def test_what_is_done_stays_done(target):
    assert _compute(DEPLOY, Seen(target, _finished(DEPLOY))) == {
        "name": f"{PARENT}/endpoints/7/operations/{DEPLOY.id}",
        "metadata": {
            "@type": "type.googleapis.com/google.cloud.aiplatform.v1.DeployModelOperationMetadata",
            "genericMetadata": {**METADATA, "updateTime": SINCE},
        },
        "done": True,
        "response": {
            "@type": "type.googleapis.com/google.cloud.aiplatform.v1.DeployModelResponse",
            "deployedModel": {"id": "11"},
        },
    }


@pytest.mark.parametrize("target", AFTERWARDS.values(), ids=AFTERWARDS.keys())
@pytest.mark.parametrize(
    ("reason", "code"),
    [("ArtifactNotFound", 5), ("DeadlineExceeded", 4), ("Aborted", 10), ("OutOfMemory", 8), ("CrashLooping", 13)],
)
def test_what_failed_stays_so(target, reason, code):
    answer = _compute(DEPLOY, Seen(target, _finished(DEPLOY, state="Failed", reason=reason, message="m")))
    assert answer["done"] is True
    assert answer["error"] == {"code": code, "message": f"{reason}: m"}
    assert "response" not in answer


def test_what_became_of_another_operation_is_none_of_this_one():
    other = Operation(str(int(SERIAL) + 1), "DeployModel", "uid-11", "11")
    assert "done" not in _compute(DEPLOY, Seen(DEPLOYED, _finished(other)))


def test_status_of_a_later_release_is_read_as_far_as_it_can_be():
    endpoint = _finished(DEPLOY)
    endpoint["status"]["operations"].insert(0, {"id": "x", "state": "Paused"})
    assert _compute(DEPLOY, Seen(None, endpoint))["done"]


def test_cancelled_deployment():
    endpoint = _on_record(make_endpoint(), DEPLOY.refer(cancelled=True))
    assert _compute(DEPLOY, Seen(None, endpoint))["error"]["code"] == 1


def test_operation_that_was_deleted_is_none():
    endpoint = _on_record(_finished(DEPLOY), DEPLOY.refer(deleted=True))
    with pytest.raises(NotFoundError):
        _compute(DEPLOY, Seen(None, endpoint))
    assert list_operations([endpoint, DEPLOYED]) == []


UPLOAD = _operation("UploadModel", "uid-photos", "photos", "2")
UNVERSION = _operation("DeleteModelVersion", "uid-photos", "photos", "3")
CREATE = _operation("CreateEndpoint", "uid-7", "7")
UNDEPLOY = _operation("UndeployModel", "uid-11", "11")
MUTATE = _operation("MutateDeployedModel", "uid-11", "11", "2")
ENDING = make_endpoint() | {"metadata": make_endpoint()["metadata"] | {"deletionTimestamp": SINCE}}
UNDEPLOYING = _on_record(make_endpoint(), UNDEPLOY.refer())
OTHERS = {
    "endpoint is there": (CREATE, _on_record(make_endpoint(), Record(type="CreateEndpoint")), None, "Endpoint"),
    "endpoint still there": (_operation("DeleteEndpoint", "uid-7", "7"), ENDING, None, None),
    "endpoint gone": (_operation("DeleteEndpoint", "uid-7", "7"), None, None, "google.protobuf.Empty"),
    "endpoint made again": (_operation("DeleteEndpoint", "old", "7"), make_endpoint(), None, "google.protobuf.Empty"),
    "job gone": (_operation("DeleteBatchPredictionJob"), None, None, "google.protobuf.Empty"),
    "still deployed": (UNDEPLOY, DEPLOYED, UNDEPLOYING, None),
    "undeployed": (UNDEPLOY, None, UNDEPLOYING, "UndeployModelResponse"),
    "uploaded": (
        UPLOAD,
        _on_record(make_model(), Record(type="UploadModel", detail="2")),
        None,
        "UploadModelResponse",
    ),
    "version gone": (
        UNVERSION,
        _on_record(make_model(), Record(type="DeleteModelVersion", detail="3")),
        None,
        "google.protobuf.Empty",
    ),
    "mutated, not judged": (
        MUTATE,
        _on_record(make_deployed_model(), Record(type="MutateDeployedModel", detail="2")),
        make_endpoint(),
        None,
    ),
    "mutated": (MUTATE, make_deployed_model(), _finished(MUTATE), "MutateDeployedModelResponse"),
}


@pytest.mark.parametrize(("operation", "target", "endpoint", "response"), OTHERS.values(), ids=OTHERS.keys())
def test_other_operations(operation, target, endpoint, response):
    answer = _compute(operation, Seen(target, endpoint))
    assert answer.get("done", False) is (response is not None)
    if response:
        assert answer["response"]["@type"].endswith(f"{'/' if '.' in response else '.'}{response}")
    x = "Delete" if operation.type.startswith("Delete") else operation.type
    assert answer["metadata"]["@type"].endswith(f".v1.{x}OperationMetadata")


FORGED = {
    "deployment": (DEPLOY, make_deployed_model(), make_endpoint()),
    "deployment of nobody": (DEPLOY, None, make_endpoint()),
    "deployment on no endpoint": (DEPLOY, None, None),
    "deployment of another": (_operation("DeployModel", "uid-12", "12"), DEPLOYED, make_endpoint()),
    "deployment at another time": (Operation("1" * 19, "DeployModel", "uid-11", "11"), DEPLOYED, make_endpoint()),
    "mutation of another generation": (
        _operation("MutateDeployedModel", "uid-11", "11", "3"),
        _on_record(make_deployed_model(), Record(type="MutateDeployedModel", detail="2")),
        make_endpoint(),
    ),
    "undeployment": (UNDEPLOY, None, make_endpoint()),
    "undeployment of another": (_operation("UndeployModel", "uid-12", "12"), None, UNDEPLOYING),
    "creation": (CREATE, make_endpoint(), None),
    "creation of what is gone": (CREATE, None, None),
    "upload": (UPLOAD, make_model(), None),
    "upload of another version": (
        UPLOAD,
        _on_record(make_model(), Record(type="UploadModel", detail="1")),
        None,
    ),
    "deletion of a version": (UNVERSION, make_model(), None),
    "deletion of what is there": (_operation("DeleteEndpoint", "uid-7", "7"), make_endpoint(), None),
    "update of nobody": (_operation("UpdateModel", "uid-photos", "photos"), None, None),
}


@pytest.mark.parametrize(("operation", "target", "endpoint"), FORGED.values(), ids=FORGED.keys())
def test_id_that_nobody_gave_is_not_found(operation, target, endpoint):
    with pytest.raises(NotFoundError, match=f"there is no operation {operation.id}"):
        _compute(operation, Seen(target, endpoint))


def test_upload_tells_the_version():
    answer = _compute(UPLOAD, Seen(_on_record(make_model(), Record(type="UploadModel", detail="2"))))
    assert answer["response"]["model"] == f"{PARENT}/models/photos"
    assert answer["response"]["modelVersionId"] == "2"
