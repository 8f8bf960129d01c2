"""The JSON of Google's APIs: how requests are read, and what answers are made of. Pure.

A request may be in camelCase or snake_case, have enums as numbers or names, and integers as strings or as 10.0.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel, to_snake
from pydantic_core import PydanticCustomError

from pierhead_api.errors import InvalidArgumentError

Body = dict[str, Any]
TYPE = "type.googleapis.com/google.cloud.aiplatform.v1."
_BETA_TYPE = TYPE.replace(".v1.", ".v1beta1.")
BETA_MARK = ".v1beta1"  # at the end of an operation's id
EMPTY = "type.googleapis.com/google.protobuf.Empty"
# Kubernetes' limit for all annotations of an object is 256 KiB.
MAX_KEPT = 64 * 1024

_UNKNOWN = "extra_forbidden"  # pydantic's type of error for a field that there is not
_LABEL_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")

# The numbers of the protocol buffers; those of the discovery document are in another order.
ACCELERATOR_TYPES = {
    1: "NVIDIA_TESLA_K80",
    2: "NVIDIA_TESLA_P100",
    3: "NVIDIA_TESLA_V100",
    4: "NVIDIA_TESLA_P4",
    5: "NVIDIA_TESLA_T4",
    6: "TPU_V2",
    7: "TPU_V3",
    8: "NVIDIA_TESLA_A100",
    9: "NVIDIA_A100_80GB",
    10: "TPU_V4_POD",
    11: "NVIDIA_L4",
    12: "TPU_V5_LITEPOD",
    13: "NVIDIA_H100_80GB",
    14: "NVIDIA_H100_MEGA_80GB",
    15: "NVIDIA_H200_141GB",
    16: "NVIDIA_B200",
    17: "NVIDIA_GB200",
    18: "NVIDIA_RTX_PRO_6000",
}
JOB_STATES = {
    1: "JOB_STATE_QUEUED",
    2: "JOB_STATE_PENDING",
    3: "JOB_STATE_RUNNING",
    4: "JOB_STATE_SUCCEEDED",
    5: "JOB_STATE_FAILED",
    6: "JOB_STATE_CANCELLING",
    7: "JOB_STATE_CANCELLED",
    11: "JOB_STATE_PARTIALLY_SUCCEEDED",
}


class Message(BaseModel):
    """A request's message: in either case, without fields that Vertex AI does not have."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        """A field that is null was not given, as protocol buffers have it."""
        if isinstance(body, Mapping):
            return {key: value for key, value in body.items() if value is not None}
        return body


M = TypeVar("M", bound=Message)


def _find_accelerator(value: Any) -> Any:
    if value in (None, "", 0, "ACCELERATOR_TYPE_UNSPECIFIED"):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value not in ACCELERATOR_TYPES:
            raise ValueError(f"there is no accelerator type of number {value}")
        return ACCELERATOR_TYPES[int(value)]
    return value


def _unset_zero(value: Any) -> Any:
    """A number that is 0 in a protocol buffer was not given."""
    return None if value == 0 else value


def _check_beta(value: Any, info: ValidationInfo) -> Any:
    if info.context is None or not info.context["beta"]:
        raise PydanticCustomError(_UNKNOWN, "there is no such field")
    return value


# Of a field that v1beta1 has, and v1 has not.
BETA_ONLY = BeforeValidator(_check_beta)
AcceleratorType = Annotated[str | None, BeforeValidator(_find_accelerator)]
Number = Annotated[int | None, BeforeValidator(_unset_zero)]
Labels = dict[str, str]
Percents = dict[str, Annotated[int, Field(ge=0, le=100)]]
# What is not read, or is put away as it came.
Whatever = Any


def parse(kind: type[M], body: Any, *, beta: bool = False) -> M:
    """The message of a request, of v1 or of v1beta1.

    Raises InvalidArgumentError, which names the first field that is wrong.
    """
    try:
        return kind.model_validate(body, context={"beta": beta})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == _UNKNOWN:
            raise InvalidArgumentError(f'Unknown name "{first["loc"][-1]}": Cannot find field.', field) from error
        raise InvalidArgumentError(first["msg"].removeprefix("Value error, "), field) from error


def refuse(message: Message, reasons: Mapping[str, str]) -> None:
    """Raises InvalidArgumentError for the first field of `reasons` that is set, with why and what to do instead."""
    for name, reason in reasons.items():
        if getattr(message, name):
            raise InvalidArgumentError(reason, to_camel(name))


def collect(message: Message, fields: Collection[str]) -> Body:
    """Those of the fields that are set, in camelCase, as they came."""
    return {to_camel(name): value for name in fields if (value := getattr(message, name))}


def require(value: str, field: str) -> str:
    """`value`; raises InvalidArgumentError where it is empty."""
    if not value:
        raise InvalidArgumentError("must be set", field)
    return value


def check_labels(labels: Labels) -> Labels:
    """`labels`, if Kubernetes takes them; raises InvalidArgumentError, which names the one that it does not."""
    for key, value in labels.items():
        if "/" in key:
            raise InvalidArgumentError("a key with a / belongs to Kubernetes", f"labels.{key}")
        if not is_label(key) or (value and not is_label(value)):
            raise InvalidArgumentError(
                "key and value must be at most 63 of [A-Za-z0-9_.-] each, with a letter or digit at both ends",
                f"labels.{key}",
            )
    return labels


def is_label(text: str) -> bool:
    """Whether a label of a user may have this key, or this value beside an empty one."""
    return bool(_LABEL_PART.fullmatch(text))


def parse_mask(update_mask: str, body: Any, known: Collection[str]) -> set[str]:
    """The fields to update, in snake_case: those of the mask; without one, those of `known` that the body has.

    Raises InvalidArgumentError for one that is none of `known`.
    """
    present = {to_snake(key) for key in body} if isinstance(body, Mapping) else set()
    asked = {to_snake(path.strip()) for path in update_mask.split(",") if path.strip()}
    if not asked:
        return present & set(known)
    if asked == {"*"}:
        return set(known)
    if unknown := sorted(asked - set(known)):
        updatable = ", ".join(_to_camel_path(name) for name in known)
        raise InvalidArgumentError(f"{_to_camel_path(unknown[0])} cannot be updated; {updatable} can", "updateMask")
    return asked


def _to_camel_path(path: str) -> str:
    return ".".join(to_camel(part) for part in path.split("."))


def dump_kept(kept: Body) -> str:
    """What an annotation keeps; raises InvalidArgumentError where it is too large."""
    value = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if len(value.encode()) > MAX_KEPT:
        raise InvalidArgumentError(f"{', '.join(kept)} together must be at most {MAX_KEPT} bytes")
    return value


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC, with Z."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def is_time(field: str) -> bool:
    """Whether a field of an answer, in camelCase, is a time."""
    return field.endswith("Time")


def parse_time(text: str, field: str) -> str:
    """A time in RFC 3339 as a text that sorts by time; raises InvalidArgumentError, which names `field`."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError) as error:
        raise InvalidArgumentError(f"{text!r} is no time, such as 2026-01-31T12:00:00Z", field) from error


def to_beta(answer: Any) -> Any:
    """An answer of v1 whose types are v1beta1's, where the same messages have names of their own.

    Operations are marked: clients poll them where no version is told.
    """
    if isinstance(answer, Mapping):
        return {key: _to_beta_text(key, value) for key, value in answer.items()}
    return [to_beta(item) for item in answer] if isinstance(answer, list) else answer


def _to_beta_text(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return to_beta(value)
    if key == "@type":
        return value.replace(TYPE, _BETA_TYPE)
    return value + BETA_MARK if key == "name" and "/operations/" in value else value


def drop_empty(answer: Body) -> Body:
    """The answer without what is not set: Google's clients know a default from a missing field, and no null."""
    return {key: value for key, value in answer.items() if value not in (None, "", [], {})}


def parse_seconds(value: object, field: str) -> float:
    """A duration such as 30s or 1.5s; infinite where there is none. Raises InvalidArgumentError."""
    if value is None or value == "":
        return math.inf
    text = value.removesuffix("s") if isinstance(value, str) and value.endswith("s") else ""
    if not text.replace(".", "", 1).isdecimal() or len(text) > 12:
        raise InvalidArgumentError("must be seconds, such as 30s", field)
    return float(text)
