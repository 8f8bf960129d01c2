"""Long-running operations, read off the resources that they are about. Pure: there is no second store.

An operation's id tells its type and its object, so that it can be judged when the object is gone. What else an
operation needs is a record: an annotation of the object, of which the newest are kept.
"""

import json
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from pierhead_operator import names as operator_names
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
    REASON_PROGRESSING,
    REASON_REJECTED,
    REASON_ROUTE_NOT_ACCEPTED,
    REASON_ROUTE_PENDING,
    REASON_SETTINGS_INVALID,
    REASON_UNSCHEDULABLE,
    REASON_VERSION_CHANGED,
    REASON_WAITING_FOR_CAPACITY,
    REASON_WAITING_FOR_MODELS,
    STALLED,
    TRAFFIC_APPLIED,
)
from pierhead_operator.types import BatchPredictionJob, DeployedModel, Endpoint, Model
from pydantic import ConfigDict, ValidationError

from pierhead_api import objects
from pierhead_api.endpoints import patch_split, to_deployed_model
from pierhead_api.errors import NotFoundError
from pierhead_api.names import Place
from pierhead_api.wire import EMPTY, TYPE, Body, Message, Percents, drop_empty, format_time

RECORD_PREFIX = f"operations.vertex.{operator_names.GROUP}/"
MOST_RECORDS = 20  # of one object
SPLIT_SECONDS = 600.0  # longer than deployModel tries to write a split

OperationType = Literal[
    "CreateEndpoint",
    "DeleteEndpoint",
    "DeployModel",
    "UndeployModel",
    "MutateDeployedModel",
    "UploadModel",
    "DeleteModel",
    "DeleteModelVersion",
    "DeleteBatchPredictionJob",
    "UpdateEndpoint",  # of AI Platform, as is the next: done when it is answered
    "UpdateModel",
]
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
ABORTED = 10
UNIMPLEMENTED = 12
_UNKNOWN_CODE = 13
# Those of google.rpc.Code.
_CODES = {
    REASON_ARTIFACT_INVALID: 3,
    REASON_MACHINE_UNKNOWN: 3,
    REASON_OVERRIDE_NOT_ALLOWED: 3,
    REASON_ARTIFACT_NOT_FOUND: NOT_FOUND,
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
    REASON_ARTIFACT_UNREACHABLE: 14,
    REASON_CONTAINER_CREATION_FAILED: 14,
    REASON_IMAGE_PULL_FAILED: 14,
    REASON_NOT_READY: 14,
    REASON_PROBE_FAILED: 14,
}
# On its way, and nothing is wrong.
_WELL = (
    REASON_PROGRESSING,
    REASON_ROUTE_PENDING,
    REASON_WAITING_FOR_CAPACITY,
    REASON_WAITING_FOR_MODELS,
)
_SERIAL = re.compile(r"[0-9]{19}")
_RANDOM_DIGITS = 6
_VERSION = re.compile(r"[-a-z0-9]{1,63}")
_DETAILS = {"MutateDeployedModel": re.compile(r"[0-9]{1,18}"), "UploadModel": _VERSION, "DeleteModelVersion": _VERSION}
_NO_DETAIL = re.compile(r"(?!)")


@dataclass(frozen=True)
class Operation:
    """An operation: when it began, and what it is about."""

    serial: str  # 13 digits, the milliseconds of its begin, and 6 of chance: they sort by time
    type: OperationType
    uid: str
    name: str
    detail: str = ""  # UploadModel, DeleteModelVersion: the version; MutateDeployedModel: the generation

    @property
    def id(self) -> str:
        """Its id: none of its parts has a _."""
        return "_".join((self.serial, self.type, self.uid, self.name, self.detail)).rstrip("_")

    @property
    def create_time(self) -> datetime:
        return datetime.fromtimestamp(int(self.serial[:-_RANDOM_DIGITS]) / 1000, UTC)

    def refer(self, **more: Any) -> "Record":
        """Its record on another object than its own."""
        return Record(type=self.type, name=self.name, uid=self.uid, **more)


def parse_operation(operation_id: str) -> Operation:
    """The operation of an id; raises NotFoundError where it is none of ours."""
    parts = operation_id.split("_")
    if not 4 <= len(parts) <= 5 or not _SERIAL.fullmatch(parts[0]) or parts[1] not in get_args(OperationType):
        raise NotFoundError(f"there is no operation {operation_id}")
    serial, type_, uid, name, *detail = parts
    if detail and not _DETAILS.get(type_, _NO_DETAIL).fullmatch(detail[0]):
        raise NotFoundError(f"there is no operation {operation_id}")
    return Operation(serial, type_, uid, name, *detail)  # type: ignore[arg-type]  # it is one of them


def make_serial(now: datetime) -> str:
    """The serial of an operation that begins now."""
    return f"{int(now.timestamp() * 1000):013d}{secrets.randbelow(10**_RANDOM_DIGITS):0{_RANDOM_DIGITS}d}"


# --- records ---------------------------------------------------------------------------------------------------------


class Record(Message):
    """What an annotation tells of an operation; name and uid where it is about another object than its own."""

    model_config = ConfigDict(extra="ignore")  # of a later release

    type: OperationType
    create_time: str = ""
    name: str = ""
    uid: str = ""
    detail: str = ""
    split: Percents | None = None  # DeployModel, on the DeployedModel: the endpoint's wanted split becomes this
    before: Percents | None = None  # and was this
    cancelled: bool = False

    def dump(self) -> str:
        """The annotation's value."""
        return json.dumps(self.model_dump(by_alias=True, exclude_defaults=True), sort_keys=True)


def annotate(serial: str, record: Record) -> dict[str, str]:
    """The annotation of an operation."""
    stamped = record.model_copy(update={"create_time": format_time(Operation(serial, record.type, "", "").create_time)})
    return {f"{RECORD_PREFIX}{serial}": stamped.dump()}


def patch_records(manifest: Manifest, serial: str, record: Record) -> dict[str, str | None]:
    """The merge patch of an object's annotations that adds a record, and drops the oldest beyond the most."""
    surplus = sorted(read_records(manifest))[: -(MOST_RECORDS - 1)]
    return {**dict.fromkeys(f"{RECORD_PREFIX}{old}" for old in surplus if old != serial), **annotate(serial, record)}


def read_records(manifest: Manifest) -> dict[str, Record]:
    """An object's records by serial; what somebody else wrote there is not read."""
    found = {}
    for key, value in (manifest["metadata"].get("annotations") or {}).items():
        serial = key.removeprefix(RECORD_PREFIX)
        if key.startswith(RECORD_PREFIX) and _SERIAL.fullmatch(serial) and (record := _parse_record(value)):
            found[serial] = record
    return found


def _parse_record(value: str) -> Record | None:
    try:
        return Record.model_validate_json(value)
    except ValidationError:
        return None


def find_leaving(endpoint: Manifest) -> set[str]:
    """The uids of DeployedModels that an Endpoint was told are being undeployed: they are there a moment longer."""
    return {record.uid for record in read_records(endpoint).values() if record.type == "UndeployModel"}


def list_operations(manifests: Collection[Manifest]) -> list[tuple[Operation, str]]:
    """The operations on record of these objects, each once, the newest first; and whose, as `endpoints/E`."""
    found = {}
    for manifest in manifests:
        metadata = manifest["metadata"]
        for serial, record in read_records(manifest).items():
            name, uid = record.name or metadata["name"], record.uid or metadata["uid"]
            found[serial] = Operation(serial, record.type, uid, name, record.detail), _find_parent(manifest)
    return [found[serial] for serial in sorted(found, reverse=True)]


def _find_parent(manifest: Manifest) -> str:
    name = manifest["metadata"]["name"]
    if manifest["kind"] == Model.KIND:
        return f"models/{name}"
    return f"endpoints/{manifest['spec']['endpoint'] if manifest['kind'] == DeployedModel.KIND else name}"


def patch_traffic(manifest: Manifest, split: Split | None, serial: str, record: Record) -> Manifest:
    """The merge patch of an Endpoint that writes its split, and in the same write that an operation has done so."""
    return {
        "metadata": {"annotations": patch_records(manifest, serial, record)},
        "spec": patch_split(manifest, split),
    }


def lacks_split(operation: Operation, deployed_model: Manifest, endpoint: Manifest) -> bool:
    """Whether the split of a deployModel was not written, as after a crash.

    The endpoint records, in the same write as the split, that it has it. Whoever changed the split since has decided.
    """
    record = read_records(deployed_model).get(operation.serial)
    if record is None or record.split is None:
        return False
    on_endpoint = read_records(endpoint)
    dropped = bool(on_endpoint) and operation.serial < min(on_endpoint)
    untouched = endpoint["spec"].get("trafficSplit") == record.before
    return untouched and not dropped and operation.serial not in on_endpoint


# --- judgement -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What there is of an operation's object, which may be a namesake of it, and of its endpoint; None: nothing.

    Without `now` the call itself goes on.
    """

    target: Manifest | None
    endpoint: Manifest | None = None
    now: datetime | None = None


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
    """Vertex AI's Operation, as `parent`'s: a location, an endpoint or a model."""
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
    if operation.type == "DeleteModelVersion":
        return _judge_delete_version(operation, target)
    if operation.type in _DELETES:
        return _ON_ITS_WAY if target else _succeed({"@type": EMPTY})
    if operation.type == "UndeployModel":
        return _ON_ITS_WAY if target else _succeed({"@type": f"{TYPE}UndeployModelResponse"})
    if operation.type in _UPDATES:
        return _succeed({"@type": EMPTY})
    if target is None:
        return _judge_gone(operation, seen.endpoint)
    if operation.type == "CreateEndpoint":
        return _succeed({"@type": f"{TYPE}Endpoint", "name": place.endpoint(operation.name)})
    if operation.type == "UploadModel":
        return _judge_upload(operation, target, place)
    if operation.type == "DeployModel" and (unwritten := _judge_split(operation, target, seen)):
        return unwritten
    return _judge_deployment(operation, target, seen.endpoint, place)


def _succeed(response: Body, since: datetime | None = None) -> Outcome:
    return Outcome(done=True, response=response, update_time=since)


def _fail(code: int, message: str, since: datetime | None = None) -> Outcome:
    return Outcome(done=True, error={"code": code, "message": message}, update_time=since)


def _judge_gone(operation: Operation, endpoint: Manifest | None) -> Outcome:
    record = read_records(endpoint).get(operation.serial) if endpoint else None
    if record and record.cancelled:
        return _fail(CANCELLED, "the operation was cancelled")
    return _fail(NOT_FOUND, f"{TARGETS[operation.type].KIND} {operation.name} was deleted")


def _judge_delete_version(operation: Operation, model: Manifest | None) -> Outcome:
    versions = model["spec"]["versions"] if model else []
    there = any(version["name"] == operation.detail for version in versions)
    return _ON_ITS_WAY if there else _succeed({"@type": EMPTY})


def _judge_upload(operation: Operation, manifest: Manifest, place: Place) -> Outcome:
    model = Model.model_validate(manifest)
    ready = _current(model, model.metadata.generation, READY)
    if ready is None:
        return _ON_ITS_WAY
    since = ready.last_transition_time
    if ready.status == "True":
        version = operation.detail or model.spec.default_version
        response = {"model": place.model(model.name), "modelVersionId": version}
        return _succeed({"@type": f"{TYPE}UploadModelResponse", **response}, since)
    return _hold_up(ready) if ready.reason in _WELL else _stop(ready)


def _judge_split(operation: Operation, deployed_model: Manifest, seen: Seen) -> Outcome | None:
    """That the call ended before it wrote the split; None where it did not, or nobody can say."""
    if seen.endpoint is None or seen.now is None or not lacks_split(operation, deployed_model, seen.endpoint):
        return None
    if (seen.now - operation.create_time).total_seconds() < SPLIT_SECONDS:
        return _ON_ITS_WAY
    message = f"the call ended before the traffic split was written: undeploy {operation.name}, and deploy again"
    return _fail(ABORTED, message)


def _judge_deployment(operation: Operation, manifest: Manifest, endpoint: Manifest | None, place: Place) -> Outcome:
    """Done when every replica of the wanted generation serves and, if it is wanted to, gets its part of the traffic."""
    dm = DeployedModel.model_validate(manifest)
    generation = min(int(operation.detail or 0) or dm.metadata.generation, dm.metadata.generation)
    stalled = _current(dm, generation, STALLED)
    ready = _current(dm, generation, READY)
    if stalled and stalled.status == "True":
        return _stop(stalled)
    if ready is None or ready.status != "True":
        return _hold_up(ready) if ready else _ON_ITS_WAY
    if operation.type == "DeployModel" and (waiting := _judge_traffic(dm.name, endpoint)):
        return waiting
    response = {"@type": f"{TYPE}{operation.type}Response", "deployedModel": to_deployed_model(manifest, place)}
    return _succeed(response, ready.last_transition_time)


def _judge_traffic(deployed_model: str, manifest: Manifest | None) -> Outcome | None:
    """What keeps a DeployedModel from the traffic that it is wanted to get; None where nothing does."""
    if manifest is None:
        return _fail(NOT_FOUND, "the Endpoint was deleted")
    endpoint = Endpoint.model_validate(manifest)
    split = endpoint.spec.traffic_split
    wanted = split.get(deployed_model, 0) if split else 0
    if not wanted:
        return None
    stalled = _current(endpoint, endpoint.metadata.generation, STALLED)
    applied = _current(endpoint, endpoint.metadata.generation, TRAFFIC_APPLIED)
    if stalled and stalled.status == "True":
        return _stop(stalled)
    if applied and applied.status != "True":
        return _hold_up(applied)
    gets_it = applied and endpoint.status.traffic_split.get(deployed_model, 0) >= wanted
    return None if gets_it else _ON_ITS_WAY


def _current(resource: Resource, generation: int, type_: str) -> Condition | None:
    """A condition, where the operator has judged this generation or a later one."""
    status: Status = resource.status  # type: ignore[attr-defined]  # every kind has one
    return status.condition(type_) if status.observed_generation >= generation else None


def _stop(condition: Condition) -> Outcome:
    return replace(_fail(**_explain(condition)), update_time=condition.last_transition_time)


def _hold_up(condition: Condition) -> Outcome:
    trouble = None if condition.reason in _WELL else _explain(condition)
    return Outcome(trouble=trouble, update_time=condition.last_transition_time)


def _explain(condition: Condition) -> dict[str, Any]:
    code = _CODES.get(condition.reason, _UNKNOWN_CODE)
    return {"code": code, "message": f"{condition.reason}: {condition.message}"}
