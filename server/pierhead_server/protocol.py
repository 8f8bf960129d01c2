"""Vertex AI's predict contract as pure functions: parse a request, shape an answer. No torch, no I/O."""

import binascii
import difflib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pierhead_server.errors import ApiError, InvalidArgumentError

# One instance's classes as (index, confidence), best first.
Ranking = Sequence[tuple[int, float]]

_EXAMPLE = '{"content": "<base64>", "mimeType": "image/jpeg"} or {"b64": "<base64>"}'


@dataclass(frozen=True)
class Picture:
    """One instance: an encoded picture, and the field that held it (for messages: `instances[1].content`)."""

    data: bytes
    field: str


@dataclass(frozen=True)
class Parameters:
    """What cuts a ranking: classes below the threshold go, then all beyond the first `max_predictions`."""

    confidence_threshold: float = 0.0
    max_predictions: int = 10


@dataclass(frozen=True)
class PredictRequest:
    """One request: its pictures form one batch."""

    pictures: tuple[Picture, ...]
    parameters: Parameters


@dataclass(frozen=True)
class ServedModel:
    """What every answer says about the model that gave it."""

    deployed_model_id: str
    model: str
    model_display_name: str
    model_version_id: str


def parse_request(body: bytes, *, max_instances: int) -> PredictRequest:
    """Parse a `:predict` body; raises InvalidArgumentError that names the field and the fix."""
    request = _parse_json(body)
    if not isinstance(request, dict):
        raise InvalidArgumentError(f'the body must be a JSON object with "instances", not {_kind(request)}')
    _refuse_unknown("", request, ("instances", "parameters"))
    pictures = _parse_instances(request.get("instances"), max_instances)
    return PredictRequest(pictures, _parse_parameters(request.get("parameters")))


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"the body is not UTF-8 (byte {error.start}): send JSON in UTF-8") from None
    except RecursionError:
        raise InvalidArgumentError("the body is nested too deeply") from None
    except ValueError as error:
        raise InvalidArgumentError(f"the body is not valid JSON: {error}") from None


def _parse_instances(instances: object, max_instances: int) -> tuple[Picture, ...]:
    if instances is None:
        raise InvalidArgumentError(f"instances: missing: give a list of {_EXAMPLE}")
    if not isinstance(instances, list):
        raise InvalidArgumentError(f"instances: must be a list, not {_kind(instances)}")
    if not instances:
        raise InvalidArgumentError(f"instances: empty: give at least one {_EXAMPLE}")
    if len(instances) > max_instances:
        raise InvalidArgumentError(f"instances: {len(instances)} are more than {max_instances}: split the request")
    return tuple(_parse_instance(f"instances[{index}]", instance) for index, instance in enumerate(instances))


def _parse_instance(where: str, instance: object) -> Picture:
    if not isinstance(instance, dict):
        raise InvalidArgumentError(f"{where}: must be an object, {_EXAMPLE}, not {_kind(instance)}")
    _refuse_unknown(where, instance, ("content", "mimeType", "b64"))
    fields = [field for field in ("content", "b64") if field in instance]
    if len(fields) != 1:
        raise InvalidArgumentError(f"{where}: must hold exactly one of content and b64: {_EXAMPLE}")
    # A picture is known by its first bytes: a wrong mimeType on a sound picture harms nobody, so it is not compared.
    if not isinstance(instance.get("mimeType", ""), str):
        raise InvalidArgumentError(f'{where}.mimeType: must be a string such as "image/png"')
    return Picture(_parse_base64(f"{where}.{fields[0]}", instance[fields[0]]), fields[0])


def _parse_base64(where: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{where}: must be a base64 string, not {_kind(value)}")
    try:
        data = binascii.a2b_base64(value, strict_mode=True)
    except ValueError as error:
        raise InvalidArgumentError(
            f"{where}: not valid base64 ({error}): use the standard alphabet with padding and no line breaks"
        ) from None
    if not data:
        raise InvalidArgumentError(f"{where}: empty: put the picture's bytes here, in base64")
    return data


def _parse_parameters(parameters: object) -> Parameters:
    if parameters is None:
        return Parameters()
    if not isinstance(parameters, dict):
        raise InvalidArgumentError(f"parameters: must be an object, not {_kind(parameters)}")
    _refuse_unknown("parameters", parameters, ("confidenceThreshold", "maxPredictions"))
    threshold = parameters.get("confidenceThreshold", Parameters.confidence_threshold)
    if not _is_number(threshold) or not 0 <= threshold <= 1:
        raise InvalidArgumentError("parameters.confidenceThreshold: must be a number from 0 to 1")
    most = parameters.get("maxPredictions", Parameters.max_predictions)
    # Google's clients send protobuf values, in which every number is a double: 10 arrives as 10.0.
    if not _is_number(most) or not math.isfinite(most) or most != int(most) or most < 1:
        raise InvalidArgumentError("parameters.maxPredictions: must be a whole number of at least 1")
    return Parameters(float(threshold), int(most))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_unknown(where: str, given: Collection[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InvalidArgumentError(f"{where}.{name}: unknown: {fix}".removeprefix("."))


def _kind(value: object) -> str:
    """What JSON calls the type of a parsed value."""
    names = {bool: "a boolean", dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value), "a number")


def shape_answer(rankings: Sequence[Ranking], labels: Sequence[str], served: ServedModel) -> Mapping[str, Any]:
    """The body of a successful answer, one prediction for each instance in the request's order."""
    return {
        "predictions": [
            {
                "ids": [str(index) for index, _ in ranking],
                "displayNames": [labels[index] for index, _ in ranking],
                "confidences": [confidence for _, confidence in ranking],
            }
            for ranking in rankings
        ],
        "deployedModelId": served.deployed_model_id,
        "model": served.model,
        "modelDisplayName": served.model_display_name,
        "modelVersionId": served.model_version_id,
    }


def shape_error(error: ApiError) -> Mapping[str, Any]:
    """The body of a failed answer, as Google's APIs write it."""
    return {"error": {"code": error.code, "message": str(error), "status": error.status}}
