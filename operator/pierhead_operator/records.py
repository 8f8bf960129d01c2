"""What the REST API's operations leave on the objects that they are about: annotations that both sides read. Pure.

The API writes that an operation began, the operator writes into an Endpoint's status what became of it. Nobody writes
either of them twice: once done, an operation stays what it is.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from pierhead_operator import names
from pierhead_operator.schema import ApiObject
from pierhead_operator.types import Endpoint, FinishedOperation, Percent

RECORD_PREFIX = f"operations.vertex.{names.GROUP}/"

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
SERIAL = re.compile(r"[0-9]{19}")
RANDOM_DIGITS = 6
MOST_RECORDS = 20  # of one object
_MOST_CHARACTERS = 16 * 1024  # of a record: two splits over all that an Endpoint may name have less


def _check_sum(split: dict[str, int]) -> dict[str, int]:
    if sum(split.values()) != 100:
        raise ValueError("must sum to 100")
    return split


# Anybody may write annotations who may write the spec, where the API server checks the same.
_Split = Annotated[dict[str, Percent], AfterValidator(_check_sum)]


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
        return datetime.fromtimestamp(int(self.serial[:-RANDOM_DIGITS]) / 1000, UTC)

    def refer(self, **more: Any) -> "Record":
        """Its record on another object than its own."""
        return Record(type=self.type, name=self.name, uid=self.uid, **more)


class Record(ApiObject):
    """What an annotation tells of an operation; name and uid where it is about another object than its own.

    Anybody may write annotations who may write the object: what an operation cannot have makes it none.
    """

    type: OperationType
    create_time: str = ""
    name: str = Field("", max_length=63)
    uid: str = Field("", max_length=64)
    detail: str = Field("", pattern=r"^[-a-z0-9]{0,63}$")
    split: _Split | None = None  # the endpoint's wanted split becomes this
    before: _Split | None = None  # DeployModel: and was this
    timeout: int | None = Field(None, ge=0, le=7200)  # seconds after which it has failed; none in records of 0.1
    cancelled: bool = False
    deleted: bool = False  # off the record, though its end is in a status

    def encode(self) -> str:
        """The annotation's value."""
        return json.dumps(self.model_dump(by_alias=True, exclude_defaults=True), sort_keys=True)

    def identify(self, serial: str, uid: str, name: str) -> Operation:
        """The operation; `uid` and `name` are those of the object that has the record."""
        return Operation(serial, self.type, self.uid or uid, self.name or name, self.detail)


def parse_records(annotations: Mapping[str, str]) -> dict[str, Record]:
    """An object's records by serial; what somebody else wrote there is not read."""
    found = {}
    for key, value in annotations.items():
        serial = key.removeprefix(RECORD_PREFIX)
        if key.startswith(RECORD_PREFIX) and SERIAL.fullmatch(serial) and (record := _parse_record(value)):
            found[serial] = record
    return found


def keep_records(annotations: Mapping[str, str]) -> dict[str, str]:
    """The annotations that may be records: of more or larger ones than the API writes the newest, and the others."""
    newest = sorted(key for key in annotations if key.startswith(RECORD_PREFIX))[-MOST_RECORDS:]
    return {key: annotations[key] for key in newest if len(annotations[key]) <= _MOST_CHARACTERS}


def _parse_record(value: str) -> Record | None:
    try:
        return Record.model_validate_json(value)
    except ValidationError:
        return None


def find_finished(endpoint: Endpoint, operation: Operation) -> FinishedOperation | None:
    """What became of an operation, as an Endpoint's status has it."""
    return next((one for one in endpoint.status.operations or () if one.id == operation.id), None)


@dataclass(frozen=True, slots=True)
class SplitMark:
    """That an operation wrote an Endpoint's split: what it became, and, of a deployment, what it was before."""

    deployed_model: str
    split: dict[str, int]
    before: dict[str, int] | None
    failed: bool


def find_marks(endpoint: Endpoint) -> tuple[SplitMark, ...]:
    """Who wrote an Endpoint's split, the newest first; nobody where no deployment failed, and it does not matter."""
    failed = {one.id for one in endpoint.status.operations or () if one.state == "Failed"}
    if not failed:
        return ()
    uid, name = endpoint.metadata.uid, endpoint.name
    return tuple(
        SplitMark(record.name, record.split, record.before, record.identify(serial, uid, name).id in failed)
        for serial, record in sorted(parse_records(endpoint.metadata.annotations).items(), reverse=True)
        if record.split is not None
    )
