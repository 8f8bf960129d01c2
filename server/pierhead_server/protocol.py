"""The predict contract as pure functions: a Call becomes a Request, a Result becomes a Reply. No torch, no I/O.

All dialects but OIP's are here: Vertex AI's, its raw one, AI Platform's and KServe's V1 share their requests and differ
in how they answer. The listener imports this module too, so numpy comes in only where a worker gets.
"""

import codecs
import difflib
import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import msgspec
import pybase64

from pierhead_server.binary import decode_base64, restore_binary
from pierhead_server.compression import GZIP, inflate
from pierhead_server.errors import (
    ApiError,
    InstanceError,
    InternalError,
    InvalidArgumentError,
    QueueFullError,
    UnsupportedEncodingError,
    ValueTensorError,
    describe_kind,
)
from pierhead_server.finite import count_non_finite
from pierhead_server.messages import Call, Dialect, Reply
from pierhead_server.signature import Signature

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pierhead_server.oip import Wanted

RETRY_AFTER_SECONDS = 1

_MOST_GUESSES = 16  # names that are compared with those that are known
_MAX_MESSAGE = 2000  # characters; a message may quote what the caller sent
_PICTURE_FORMS = (
    '{"b64": "<base64>"}, {"content": "<base64>", "mimeType": "image/jpeg"}, {"image": <either>} '
    "or rows x columns x [red, green, blue] of 0 to 255"
)
_IN_PICTURE = ("content", "b64")  # strings of base64
PICTURE_FIELDS = (*_IN_PICTURE, "image", "image_bytes")

_MODEL_RESOURCE = re.compile(r"(projects/[^/]+/locations/)[^/]+(/models/[^/]+)")
_LOCATION = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # what the chart takes for one


@dataclass(frozen=True)
class ServedModel:
    """What every answer says about the model that gave it."""

    deployed_model_id: str
    model: str
    model_display_name: str
    model_version_id: str

    def model_in(self, location: str) -> str:
        """The model's resource name in the location that a request names; the installation's where that is none."""
        found = _MODEL_RESOURCE.fullmatch(self.model)
        if found is None or not _LOCATION.fullmatch(location):
            return self.model
        return f"{found[1]}{location}{found[2]}"

    @property
    def name(self) -> str:
        """The name that KServe's and OIP's clients see."""
        return self.model.rpartition("/")[2] or self.deployed_model_id or "model"

    @property
    def version(self) -> str:
        """The version that they see."""
        return self.model_version_id or "1"


@dataclass(frozen=True)
class Limits:
    """What one request may hold."""

    max_instances: int
    max_body_bytes: int = 10 * 1024 * 1024  # once it is inflated
    max_pixels: int = sys.maxsize  # of all its pictures


@dataclass(frozen=True)
class Request:
    """One prediction request, parsed."""

    # JSON values, in which every {"b64": "..."} has become bytes. Of OIP: an array, bytes or text for each row, or an
    # object of them by the inputs' names.
    instances: Sequence[object]
    arguments: Mapping[str, object]  # all else at the top of the body, `parameters` among it
    dialect: Dialect = "vertex"
    wanted: "Wanted | None" = None  # what an OIP request asks the answer to be
    location: str = ""  # that the path names, as it came


class Result(Protocol):
    """What a model made of one request."""

    @property
    def labels(self) -> Sequence[str] | None:
        """The names of the classes, where there are classes."""
        ...

    @property
    def echoes_key(self) -> bool:
        """Whether an instance's `key` comes back in its prediction, as from TensorFlow's exports."""
        ...

    def predictions(self) -> Sequence[object]:
        """One for each instance: a JSON value; arrays, tensors and bytes may be in it."""
        ...

    def tensors(self) -> "Mapping[str, npt.NDArray[Any]]":
        """The outputs by name, the batch first; of text and bytes an array of objects. For OIP."""
        ...


def parse(call: Call, limits: Limits, signature: Signature | None = None) -> Request:
    """Parse a call of any dialect; raises InvalidArgumentError that names the field and the fix.

    By the signature, where the model has one, OIP's inputs and outputs are checked.
    """
    if call.encoding:
        call = msgspec.structs.replace(call, body=inflate(call.body, limits.max_body_bytes), encoding="")
    if call.dialect == "oip":
        from pierhead_server import oip

        return oip.parse(call, limits, signature)
    if call.dialect == "batch":
        return _parse_batch(call.body)
    if call.dialect == "raw" and _is_binary(call.content_type):
        return _parse_bytes(call)
    document = parse_object(call.body, call.content_type, "instances")
    if call.dialect == "raw" and (inside := _unwrap(call, document)):
        if _is_binary(inside.content_type):
            return _parse_bytes(inside)
        call, document = inside, parse_object(inside.body, inside.content_type, "instances")
    return _parse_instances(call, document, limits)


def _parse_instances(call: Call, document: dict[str, Any], limits: Limits) -> Request:
    if call.dialect == "vertex":
        document.pop("labels", None)  # Vertex AI's, for its bills; the Node client sends them always
    instances = _check_instances(document.pop("instances", None), limits.max_instances)
    # To look through the body takes longer than through flat instances, and less long than through nested ones.
    if all(map(_is_flat, instances)) or b'"b64"' in call.body or b"\\" in call.body:  # an escape may hide the name
        restore_binary(instances)
    return Request(instances, document, call.dialect, location=call.location)


def _parse_bytes(call: Call) -> Request:
    if not call.body:
        raise InvalidArgumentError("the body is empty: send the bytes of one instance")
    return Request((call.body,), {}, call.dialect, location=call.location)


def _unwrap(call: Call, document: Mapping[str, Any]) -> Call | None:
    """What is inside of a google.api.HttpBody, in which Google's generated clients send a rawPredict."""
    wrapped = document.get("httpBody", document.get("http_body"))
    if wrapped is None or "instances" in document:
        return None
    if not isinstance(wrapped, dict):
        raise InvalidArgumentError(f"httpBody: must be an object, not {describe_kind(wrapped)}")
    _refuse_unknown("", document, ("endpoint", "httpBody", "http_body"))
    content_type = wrapped.get("contentType", wrapped.get("content_type")) or "application/json"
    if not isinstance(content_type, str):
        raise InvalidArgumentError(f"httpBody.contentType: must be a string, not {describe_kind(content_type)}")
    try:
        body = decode_base64(wrapped.get("data"), "httpBody.data")
    except ValueTensorError as error:
        raise InvalidArgumentError(str(error)) from None
    return msgspec.structs.replace(call, body=body, content_type=content_type)


def _parse_batch(body: bytes) -> Request:
    """What the batch worker wrote: JSON's values in msgpack, fetched bytes among them."""
    document = msgspec.msgpack.decode(body)
    instances = document.pop("instances")
    restore_binary(instances)
    return Request(instances, document, "batch")


def _kind_of(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _is_binary(content_type: str) -> bool:
    kind = _kind_of(content_type)
    return kind == "application/octet-stream" or kind.startswith("image/")


def parse_object(body: bytes, content_type: str, member: str) -> dict[str, Any]:
    """A JSON object that should hold this member, whatever the type says. Raises InvalidArgumentError."""
    try:
        document = parse_json(body)
    except InvalidArgumentError as error:
        kind = _kind_of(content_type)
        if kind.startswith(("multipart/", "image/")):
            raise InvalidArgumentError(
                f"{kind} is not taken here: send JSON, or the picture itself to :rawPredict"
            ) from error
        raise
    if not isinstance(document, dict):
        raise InvalidArgumentError(f'the body must be a JSON object with "{member}", not {describe_kind(document)}')
    return document


def parse_json(body: bytes) -> Any:
    """JSON in UTF-8, in which NaN, Infinity and -Infinity are numbers too; raises InvalidArgumentError.

    A byte order mark before it is skipped: Windows' editors and shells write one.
    """
    if body.startswith(_BOM):
        body = body[len(_BOM) :]
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise InvalidArgumentError("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _parse_leniently(body)


def _parse_leniently(body: bytes) -> Any:
    """What msgspec refuses: Python's own parser is slower, knows NaN and Infinity, and tells more of an error."""
    try:
        text = body.decode("utf-8")
        value = json.loads(text)
    except UnicodeDecodeError as error:
        cause = "is UTF-16, not UTF-8" if body.startswith(_UTF16) else f"is not UTF-8 (byte {error.start})"
        raise InvalidArgumentError(f"the body {cause}: send JSON in UTF-8") from None
    except RecursionError:
        raise InvalidArgumentError("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(f"the body is not valid JSON: {error}") from None
    except ValueError:
        raise InvalidArgumentError("the body is not valid JSON: a number has too many digits") from None
    if _SURROGATE.search(text):
        _refuse_surrogates(value)
    return value


_BOM = codecs.BOM_UTF8
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _refuse_surrogates(value: object) -> None:
    """Half a character can be parsed, and nobody could write it into an answer or a message."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidArgumentError("the body is not valid JSON: a string holds half a surrogate pair") from None


def _check_instances(instances: object, most: int) -> list[object]:
    if instances is None:
        raise InvalidArgumentError('instances: missing: send {"instances": [...]}')
    if not isinstance(instances, list):
        raise InvalidArgumentError(f"instances: must be a list, not {describe_kind(instances)}")
    if not instances:
        raise InvalidArgumentError("instances: empty: give at least one instance")
    if len(instances) > most:
        raise InvalidArgumentError(f"instances: {len(instances)} are more than {most}: split the request")
    return instances


def _is_flat(instance: object) -> bool:
    if isinstance(instance, dict):
        return not any(isinstance(item, dict | list) for item in instance.values())
    return not isinstance(instance, list)


def refuse_arguments(arguments: Mapping[str, object], known: Sequence[str] = ()) -> None:
    """For models that take no others beside `instances`; raises InvalidArgumentError."""
    given = [name for name, value in arguments.items() if not means_nothing(name, value)]
    _refuse_unknown("", given, ("instances", *known))


def means_nothing(name: str, value: object) -> bool:
    """Whether a client sends this argument without meaning anything by it."""
    # TensorFlow's clients name the signature, of which there is one here; Google's send empty parameters.
    return name == "signature_name" or (name == "parameters" and value in (None, {}))


def _refuse_unknown(where: str, given: Collection[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise InvalidArgumentError(f"{where}{name}: unknown: {suggest(name, known)}")


def suggest(name: str, known: Sequence[str]) -> str:
    """How to mend a name that is not known."""
    near = difflib.get_close_matches(name[:100], known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


@dataclass(frozen=True)
class RankingParameters:
    """What cuts a ranking: classes below the threshold go, then all beyond the first `max_predictions`."""

    confidence_threshold: float = 0.0
    max_predictions: int = 10


def parse_ranking_parameters(arguments: Mapping[str, object]) -> RankingParameters:
    """A classifier's arguments; raises InvalidArgumentError."""
    refuse_arguments(arguments, ("parameters",))
    parameters = arguments.get("parameters")
    if parameters is None:
        return RankingParameters()
    if not isinstance(parameters, dict):
        raise InvalidArgumentError(f"parameters: must be an object, not {describe_kind(parameters)}")
    _refuse_unknown("parameters.", parameters, ("confidenceThreshold", "maxPredictions"))
    threshold = parameters.get("confidenceThreshold")
    if threshold is None:
        threshold = RankingParameters.confidence_threshold
    elif not _is_number(threshold) or not 0 <= threshold <= 1:
        raise InvalidArgumentError("parameters.confidenceThreshold: must be a number from 0 to 1")
    most = parameters.get("maxPredictions")
    if most is None:
        most = RankingParameters.max_predictions
    # Google's clients send protobuf values, in which every number is a double: 10 arrives as 10.0.
    elif not _is_number(most) or not (isinstance(most, int) or most.is_integer()) or most < 1:
        raise InvalidArgumentError("parameters.maxPredictions: must be a whole number of at least 1")
    return RankingParameters(float(threshold), int(most))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shape_ranking(
    confidences: "npt.NDArray[np.floating[Any]]", labels: Sequence[str], parameters: RankingParameters
) -> dict[str, object]:
    """Vertex AI's image prediction of one picture's confidences [classes]: best first, of equals the lower index."""
    import numpy as np

    order = np.argsort(-confidences, kind="stable")[: parameters.max_predictions]
    best = confidences[order].astype(np.float64)
    # Compared as the caller reads them, in double precision; NaN is never enough.
    enough = best >= parameters.confidence_threshold
    indices = order[enough].tolist()
    return {
        "ids": [str(index) for index in indices],
        "displayNames": [labels[index] for index in indices],
        "confidences": best[enough].tolist(),
    }


def read_picture(instance: object) -> "bytes | npt.NDArray[np.uint8]":
    """The picture in a classifier's instance: a file's bytes, or uint8 [height, width, 3]. Raises ValueTensorError."""
    if isinstance(instance, dict):
        return _read_picture_object(instance)
    return _read_picture_value(instance)


def _read_picture_value(value: object) -> "bytes | npt.NDArray[np.uint8]":
    if isinstance(value, bytes):
        if not value:
            raise ValueTensorError("", "empty: put the picture's bytes here")
        return value
    if isinstance(value, str):
        raise ValueTensorError("", f'must be a picture, not a string: is it base64? Send {{"b64": "{value[:8]}..."}}')
    if value is None or isinstance(value, bool | int | float):
        raise ValueTensorError("", f"must be a picture, not {describe_kind(value)}: send {_PICTURE_FORMS}")
    import numpy as np

    from pierhead_server.tensors import to_picture

    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == np.uint8 and value.size:
        return value.tobytes()  # a file's bytes, as OIP's UINT8
    return to_picture(value)


def _read_picture_object(instance: dict[str, Any], where: str = "") -> "bytes | npt.NDArray[np.uint8]":
    """What else the object holds is ignored, such as the `key` by which a client knows its instance again."""
    known = _IN_PICTURE if where else PICTURE_FIELDS
    fields = [name for name in known if name in instance]
    if len(fields) != 1:
        for name in islice(instance, _MOST_GUESSES) if not fields else ():
            if near := difflib.get_close_matches(name[:100], known, n=1):
                raise ValueTensorError(f".{name}", f"unknown: did you mean {near[0]}?")
        raise ValueTensorError("", f"must hold exactly one picture: send {_PICTURE_FORMS}")
    # A picture is known by its first bytes: a wrong mimeType on a sound picture harms nobody, so it is not looked at.
    (field,) = fields
    value = instance[field]
    if field in _IN_PICTURE:
        return value if isinstance(value, bytes) and value else decode_base64(value, f".{field}")
    try:
        return _read_picture_object(value, field) if isinstance(value, dict) else _read_picture_value(value)
    except ValueTensorError as error:
        raise error.within(f".{field}") from None


def shape(request: Request, result: Result, served: ServedModel) -> Reply:
    """The answer to a request, in its dialect; raises InternalError for a result that cannot be one."""
    if request.dialect == "oip":
        from pierhead_server import oip

        return oip.shape(request, result, served)
    predictions = result.predictions()
    if len(predictions) != len(request.instances):
        raise InternalError(f"the model gave {len(predictions)} predictions for {len(request.instances)} instances")
    keyed = _echo_keys(request.instances, predictions) if result.echoes_key else predictions
    body: dict[str, object] = {"predictions": keyed}
    headers = {"Content-Type": "application/json"}
    if request.dialect == "vertex":
        body |= {
            "deployedModelId": served.deployed_model_id,
            "model": served.model_in(request.location),
            "modelDisplayName": served.model_display_name,
            "modelVersionId": served.model_version_id,
        }
    elif request.dialect == "raw":
        headers["X-Vertex-AI-Deployed-Model-Id"] = _to_header(served.deployed_model_id)
        headers["X-Vertex-AI-Model"] = _to_header(served.model_in(request.location))
    encoded = encode_json(body)
    # A number that JSON does not know was written as null; most answers hold none, and are not looked through.
    non_finite = count_non_finite(predictions) if b"null" in encoded else 0
    return Reply(200, encoded, headers, instances=len(request.instances), non_finite=non_finite)


def _echo_keys(instances: Sequence[object], predictions: Sequence[object]) -> list[object]:
    """Each instance's `key` in its prediction. Raises InstanceError."""
    keyed = list(predictions)
    for index, (instance, prediction) in enumerate(zip(instances, predictions, strict=True)):
        if isinstance(instance, dict) and "key" in instance and isinstance(prediction, dict):
            try:
                key = _write_binary(instance["key"])
            except RecursionError:
                raise InstanceError(index, ".key", "nested too deeply") from None
            keyed[index] = {"key": key} | prediction  # an output of this name stays
    return keyed


def _to_header(value: str) -> str:
    """Headers are ASCII: other characters are percent-encoded."""
    return quote(value, safe=" !#$&'()*+,/:;=?@[]")


def encode_json(value: object) -> bytes:
    """As JSON: of arrays and tensors their lists, of bytes {"b64": "..."}, of NaN and Infinity null.

    Raises InternalError that names the type that cannot be written.
    """
    try:
        return msgspec.json.encode(_write_binary(value), enc_hook=_to_builtin)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InternalError(f"the model's answer cannot be written as JSON: {error}") from error


_PLAIN = frozenset({bool, int, float, str, type(None)})


def _write_binary(value: object) -> object:
    """Bytes as {"b64": "..."}, and numpy's keys as Python's; msgspec's own way for bytes is a bare string."""
    if isinstance(value, dict):
        return {_to_key(key): _write_binary(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return value if _PLAIN.issuperset(map(type, value)) else [_write_binary(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return {"b64": pybase64.b64encode_as_string(value)}
    return value


def _to_key(key: Any) -> Any:
    return key.tolist() if hasattr(key, "tolist") else key


def _to_builtin(value: Any) -> object:
    """Of numpy, torch, pandas: whatever has `tolist`."""
    if not hasattr(value, "tolist"):
        name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise InternalError(f"the model's answer holds a value of type {name}, which JSON does not know")
    # numpy's arrays of objects and of bytes are looked through; its other dtypes, and torch's, hold numbers.
    numbers = hasattr(value, "dtype") and getattr(value.dtype, "kind", "f") not in "OSV"
    return value.tolist() if numbers else _write_binary(value.tolist())


def shape_error(dialect: Dialect, error: ApiError) -> Reply:
    """An error's answer: Google's object, or on the other paths its message alone."""
    headers = {"Content-Type": "application/json"}
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if isinstance(error, UnsupportedEncodingError):
        headers["Accept-Encoding"] = GZIP
    return Reply(error.code, encode_error(dialect, error.code, error.status, str(error)), headers)


def encode_error(dialect: Dialect, code: int, status: str, message: str) -> bytes:
    """The body of an error."""
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]}..."
    message = message.encode("utf-8", "backslashreplace").decode("utf-8")
    if dialect in ("vertex", "raw", "probe", "batch"):
        return msgspec.json.encode({"error": {"code": code, "message": message, "status": status}})
    return msgspec.json.encode({"error": message})
