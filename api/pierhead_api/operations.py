"""Long-running operations, read off the resources that they are about. Pure: there is no second store.

That an operation began is on record: an annotation of its object, of which the newest are kept. What became of a
deployment the operator writes into its Endpoint's status, once; all others are done when they are on record, or when
their object is gone. What is not on record is no operation.
"""

import contextlib
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from pierhead_operator.operations import ABORTED, ON_ITS_WAY
from pierhead_operator.records import (
    MOST_RECORDS,
    RANDOM_DIGITS,
    RECORD_PREFIX,
    SERIAL,
    Operation,
    OperationType,
    Record,
    parse_records,
)
from pierhead_operator.resources import Manifest
from pierhead_operator.routing import Split
from pierhead_operator.schema import Condition, Resource, Status
from pierhead_operator.status import (
    READY,
    REASON_ACCESS_NOT_OFFERED,
    REASON_ARTIFACT_INVALID,
    REASON_ARTIFACT_NOT_FOUND,
    REASON_ARTIFACT_UNREACHABLE,
    REASON_CONTAINER_CREATION_FAILED,
    REASON_DEADLINE_EXCEEDED,
    REASON_DEPLOYED_MODEL_NOT_FOUND,
    REASON_ENDPOINT_NOT_FOUND,
    REASON_IMAGE_PULL_FAILED,
    REASON_MACHINE_UNKNOWN,
    REASON_MODEL_NOT_FOUND,
    REASON_MODEL_VERSION_NOT_FOUND,
    REASON_NOT_OWNED,
    REASON_NOT_READY,
    REASON_OUT_OF_MEMORY,
    REASON_OVERRIDE_NOT_ALLOWED,
    REASON_POD_CREATION_FAILED,
    REASON_PROBE_FAILED,
    REASON_REJECTED,
    REASON_ROUTE_NOT_ACCEPTED,
    REASON_SETTINGS_INVALID,
    REASON_UNSCHEDULABLE,
    REASON_VERSION_CHANGED,
    TRAFFIC_APPLIED,
)
from pierhead_operator.types import BatchPredictionJob, DeployedModel, Endpoint, FinishedOperation, Model
from pydantic import ValidationError

from pierhead_api import objects
from pierhead_api.endpoints import patch_split
from pierhead_api.errors import NotFoundError
from pierhead_api.names import Place
from pierhead_api.wire import EMPTY, TYPE, Body, drop_empty, format_time

# What each type is about.
TARGETS: Mapping[str, type[Resource]] = {
    "CreateEndpoint": Endpoint,
    "DeleteEndpoint": Endpoint,
    "DeployModel": DeployedModel,
    "UndeployModel": DeployedModel,
    "MutateDeployedModel": DeployedModel,
    "UploadModel": Model,
    "DeleteModel": Model,
    "DeleteModelVersion": Model,
    "DeleteBatchPredictionJob": BatchPredictionJob,
    "UpdateEndpoint": Endpoint,
    "UpdateModel": Model,
}
_UPDATES = ("UpdateEndpoint", "UpdateModel")
_DELETES = ("DeleteEndpoint", "DeleteModel", "DeleteModelVersion", "DeleteBatchPredictionJob")

CANCELLED = 1
NOT_FOUND = 5
UNIMPLEMENTED = 12
_UNKNOWN_CODE = 13
# Those of google.rpc.Code.
_CODES = {
    REASON_ARTIFACT_INVALID: 3,
    REASON_MACHINE_UNKNOWN: 3,
    REASON_OVERRIDE_NOT_ALLOWED: 3,
    REASON_DEADLINE_EXCEEDED: 4,
    REASON_ARTIFACT_NOT_FOUND: NOT_FOUND,
    REASON_DEPLOYED_MODEL_NOT_FOUND: NOT_FOUND,
    REASON_ENDPOINT_NOT_FOUND: NOT_FOUND,
    REASON_MODEL_NOT_FOUND: NOT_FOUND,
    REASON_MODEL_VERSION_NOT_FOUND: NOT_FOUND,
    REASON_NOT_OWNED: 6,
    REASON_OUT_OF_MEMORY: 8,
    REASON_POD_CREATION_FAILED: 8,
    REASON_UNSCHEDULABLE: 8,
    REASON_ACCESS_NOT_OFFERED: 9,
    REASON_REJECTED: 9,
    REASON_ROUTE_NOT_ACCEPTED: 9,
    REASON_SETTINGS_INVALID: 9,
    REASON_VERSION_CHANGED: 9,
    ABORTED: 10,
    REASON_ARTIFACT_UNREACHABLE: 14,
    REASON_CONTAINER_CREATION_FAILED: 14,
    REASON_IMAGE_PULL_FAILED: 14,
    REASON_NOT_READY: 14,
    REASON_PROBE_FAILED: 14,
}
_VERSION = re.compile(r"[-a-z0-9]{1,63}")
_DETAILS = {"MutateDeployedModel": re.compile(r"[0-9]{1,18}"), "UploadModel": _VERSION, "DeleteModelVersion": _VERSION}
_NO_DETAIL = re.compile(r"(?!)")


def parse_operation(operation_id: str) -> Operation:
    """The operation of an id; raises NotFoundError where it is none of ours."""
    parts = operation_id.split("_")
    if not 4 <= len(parts) <= 5 or not SERIAL.fullmatch(parts[0]) or parts[1] not in get_args(OperationType):
        raise NotFoundError(f"there is no operation {operation_id}")
    serial, type_, uid, name, *detail = parts
    if detail and not _DETAILS.get(type_, _NO_DETAIL).fullmatch(detail[0]):
        raise NotFoundError(f"there is no operation {operation_id}")
    return Operation(serial, type_, uid, name, *detail)  # type: ignore[arg-type]  # it is one of them


def make_serial(now: datetime) -> str:
    """The serial of an operation that begins now."""
    return f"{int(now.timestamp() * 1000):013d}{secrets.randbelow(10**RANDOM_DIGITS):0{RANDOM_DIGITS}d}"


# --- records ---------------------------------------------------------------------------------------------------------


def annotate(serial: str, record: Record) -> dict[str, str]:
    """The annotation of an operation."""
    stamped = record.model_copy(update={"create_time": format_time(Operation(serial, record.type, "", "").create_time)})
    return {f"{RECORD_PREFIX}{serial}": stamped.encode()}


def patch_records(manifest: Manifest, serial: str, record: Record) -> dict[str, str | None]:
    """The merge patch of an object's annotations that adds a record, and drops the oldest beyond the most."""
    surplus = sorted(read_records(manifest))[: -(MOST_RECORDS - 1)]
    return {**dict.fromkeys(f"{RECORD_PREFIX}{old}" for old in surplus if old != serial), **annotate(serial, record)}


def read_records(manifest: Manifest) -> dict[str, Record]:
    """An object's records by serial."""
    return parse_records(manifest["metadata"].get("annotations") or {})


def drop_leaving(deployed: Sequence[Manifest], endpoint: Manifest) -> list[Manifest]:
    """Without the DeployedModels that an Endpoint, which may have been read later, was told are being undeployed."""
    leaving = {record.uid for record in read_records(endpoint).values() if record.type == "UndeployModel"}
    return [manifest for manifest in deployed if manifest["metadata"]["uid"] not in leaving]


def list_operations(manifests: Collection[Manifest]) -> list[tuple[Operation, str]]:
    """The operations of these objects, each once, the newest first; and whose, as `endpoints/E`."""
    found, deleted = {}, set()
    for manifest in manifests:
        parent, metadata = _find_parent(manifest), manifest["metadata"]
        if manifest["kind"] == Endpoint.KIND:
            for one in _read_finished(manifest):
                with contextlib.suppress(NotFoundError):  # of a later release
                    operation = parse_operation(one.id)
                    found[operation.serial] = operation, parent
        for serial, record in read_records(manifest).items():
            found[serial] = record.identify(serial, metadata["uid"], metadata["name"]), parent
            deleted |= {serial} if record.deleted else set()
    return [found[serial] for serial in sorted(found.keys() - deleted, reverse=True)]


def _find_parent(manifest: Manifest) -> str:
    name = manifest["metadata"]["name"]
    if manifest["kind"] == Model.KIND:
        return f"models/{name}"
    return f"endpoints/{manifest['spec']['endpoint'] if manifest['kind'] == DeployedModel.KIND else name}"


def patch_traffic(manifest: Manifest, split: Split | None, serial: str, record: Record) -> Manifest:
    """The merge patch of an Endpoint that writes its split, and in the same write that an operation has done so."""
    mark = record.model_copy(update={"split": split})
    return {
        "metadata": {"annotations": patch_records(manifest, serial, mark)},
        "spec": patch_split(manifest, split),
    }


def patch_decided_traffic(manifest: Manifest, split: Split, now: datetime) -> Manifest:
    """The merge patch of an Endpoint that writes a split of no operation's.

    It is marked, also where it is the split that is there: no deployment that fails takes back what was decided since.
    """
    return patch_traffic(manifest, split, make_serial(now), Record(type="UpdateEndpoint", deleted=True))


# --- judgement -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What there is of an operation's object, which may be a namesake of it, and of its endpoint; None: nothing."""

    target: Manifest | None
    endpoint: Manifest | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of an operation: still on its way, or done with a response or an error."""

    done: bool = False
    response: Body | None = None
    error: Body | None = None
    trouble: Body | None = None  # why it is not done yet, where that is no matter of course
    update_time: datetime | None = None


_ON_ITS_WAY = Outcome()


def compute_operation(operation: Operation, seen: Seen, place: Place, parent: str) -> Body:
    """Vertex AI's Operation, as `parent`'s: a location, an endpoint or a model.

    Raises NotFoundError where it is none.
    """
    outcome = _judge(operation, seen, place)
    created = operation.create_time
    generic = {
        "createTime": format_time(created),
        "updateTime": format_time(max(created, outcome.update_time or created)),
        "partialFailures": [*filter(None, (outcome.trouble,)), *_tell_unused(operation, seen.target)],
    }
    kind = "Delete" if operation.type in _DELETES else operation.type
    return drop_empty(
        {
            "name": f"{parent}/operations/{operation.id}",
            "metadata": {"@type": f"{TYPE}{kind}OperationMetadata", "genericMetadata": drop_empty(generic)},
            "done": outcome.done or None,
            "error": outcome.error,
            "response": outcome.response,
        }
    )


def _tell_unused(operation: Operation, target: Manifest | None) -> list[Body]:
    """What was sent, is kept, and changes nothing: a caller would take it for done otherwise."""
    if target is None or not is_there(operation, target):
        return []
    kept: Any = objects.read_kept(target)
    if operation.type == "UploadModel":
        versions = kept.get("versions")
        kept = versions.get(operation.detail) if isinstance(versions, dict) else None
    elif operation.type != "DeployModel":
        return []
    if not isinstance(kept, dict) or not kept.get("explanationSpec"):
        return []
    return [{"code": UNIMPLEMENTED, "message": "explanationSpec is kept and not used: there are no explanations yet"}]


def is_there(operation: Operation, target: Manifest | None) -> bool:
    """Whether the very object of an operation exists."""
    return target is not None and target["metadata"]["uid"] == operation.uid


def _judge(operation: Operation, seen: Seen, place: Place) -> Outcome:
    target = seen.target if is_there(operation, seen.target) else None
    if operation.type in ("DeployModel", "MutateDeployedModel"):
        return _judge_deployment(operation, target, seen.endpoint)
    if operation.type == "UndeployModel":
        _check_record(operation, seen.endpoint)
        return _ON_ITS_WAY if target else _succeed({"@type": f"{TYPE}UndeployModelResponse"})
    if operation.type in ("DeleteEndpoint", "DeleteModel", "DeleteBatchPredictionJob"):
        return _judge_deletion(operation, target)
    if target is None:
        raise _miss(operation)
    if operation.type in _UPDATES:
        return _succeed({"@type": EMPTY})
    _check_record(operation, target)
    return _succeed(_answer(operation, place))


def _miss(operation: Operation) -> NotFoundError:
    return NotFoundError(f"there is no operation {operation.id}: it never was, or it is off the record")


def _check_record(operation: Operation, manifest: Manifest | None) -> None:
    """Raises NotFoundError where an object has no record of that very operation."""
    record = read_records(manifest).get(operation.serial) if manifest else None
    if manifest is None or record is None or record.deleted:
        raise _miss(operation)
    if record.identify(operation.serial, manifest["metadata"]["uid"], manifest["metadata"]["name"]) != operation:
        raise _miss(operation)


def _answer(operation: Operation, place: Place) -> Body:
    """The response of what is done once it is on record."""
    if operation.type == "CreateEndpoint":
        return {"@type": f"{TYPE}Endpoint", "name": place.endpoint(operation.name)}
    if operation.type == "UploadModel":
        version = {"model": place.model(operation.name), "modelVersionId": operation.detail}
        return {"@type": f"{TYPE}UploadModelResponse", **version}
    return {"@type": EMPTY}


def _judge_deletion(operation: Operation, target: Manifest | None) -> Outcome:
    """Of what is gone nothing tells who deleted it: who says so is right."""
    if target is None:
        return _succeed({"@type": EMPTY})
    if not target["metadata"].get("deletionTimestamp"):
        raise _miss(operation)
    return _ON_ITS_WAY  # a finalizer of somebody's holds it


def _judge_deployment(operation: Operation, target: Manifest | None, endpoint: Manifest | None) -> Outcome:
    """As the operator judged, once it has."""
    mark = read_records(endpoint).get(operation.serial) if endpoint else None
    if mark and mark.deleted:
        raise _miss(operation)
    if mark and (mark.uid, mark.name) != (operation.uid, operation.name):
        mark = None
    if mark and mark.cancelled:
        return _fail(CANCELLED, "the operation was cancelled")
    finished = find_finished(endpoint, operation) if endpoint else None
    if finished is None:
        if target is None and mark and mark.timeout is not None:
            return _ON_ITS_WAY  # it was deleted, of which the operator makes an end
        _check_record(operation, target)
        return _tell_trouble(target, endpoint)
    if finished.state == "Failed":
        return _fail(**_explain(finished.reason, finished.message), since=finished.time)
    # No more than never changes, nor goes when it is undeployed.
    response = {"@type": f"{TYPE}{operation.type}Response", "deployedModel": {"id": operation.name}}
    return _succeed(response, finished.time)


def find_finished(endpoint: Manifest, operation: Operation) -> FinishedOperation | None:
    """What became of a deployment, as its Endpoint's status has it."""
    return next((one for one in _read_finished(endpoint) if one.id == operation.id), None)


def _read_finished(endpoint: Manifest) -> list[FinishedOperation]:
    found = []
    for one in endpoint.get("status", {}).get("operations") or ():
        with contextlib.suppress(ValidationError):  # of a later release
            found.append(FinishedOperation.model_validate(one))
    return found


def _succeed(response: Body, since: datetime | None = None) -> Outcome:
    return Outcome(done=True, response=response, update_time=since)


def _fail(code: int, message: str, since: datetime | None = None) -> Outcome:
    return Outcome(done=True, error={"code": code, "message": message}, update_time=since)


def _tell_trouble(target: Manifest | None, endpoint: Manifest | None) -> Outcome:
    """What keeps a deployment waiting, where that is no matter of course: the DeployedModel, then the traffic."""
    for kind, manifest, type_ in ((DeployedModel, target, READY), (Endpoint, endpoint, TRAFFIC_APPLIED)):
        condition = _find_condition(kind, manifest, type_) if manifest else None
        if condition is None or condition.status == "True":
            continue
        trouble = None if condition.reason in ON_ITS_WAY else _explain(condition.reason, condition.message)
        return Outcome(trouble=trouble, update_time=condition.last_transition_time)
    return _ON_ITS_WAY


def _find_condition(kind: type[Resource], manifest: Manifest, type_: str) -> Condition | None:
    """A condition, where the operator has judged the present generation."""
    resource = kind.model_validate(manifest)
    status: Status = resource.status  # type: ignore[attr-defined]  # every kind has one
    return status.condition(type_) if status.observed_generation >= resource.metadata.generation else None


def _explain(reason: str, message: str) -> dict[str, Any]:
    return {"code": _CODES.get(reason, _UNKNOWN_CODE), "message": f"{reason}: {message}"}
