"""The Open Inference Protocol V2 over HTTP, with Triton's extensions for binary tensors and for classification.

A request's inputs are columns with the batch first; `parse` makes rows of them, which are then instances as in every
other dialect. `shape` makes columns of a result.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pierhead_server.binary import decode_base64
from pierhead_server.errors import InternalError, InvalidArgumentError, ValueTensorError, describe_kind
from pierhead_server.finite import count_non_finite
from pierhead_server.messages import Call, Reply
from pierhead_server.protocol import (
    Limits,
    Request,
    Result,
    ServedModel,
    encode_json,
    parse_object,
    suggest,
)
from pierhead_server.signature import DATATYPES, Signature, TensorSpec
from pierhead_server.tensors import Array, flatten, to_array

HEADER_LENGTH = "Inference-Header-Content-Length"

_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
_LENGTH = struct.Struct("<I")  # before each element of BYTES
_MOST_SIZE = 2**63 - 1  # int64, as the protocol has it: thousands of digits cannot even be written into a message
_MOST_DIMENSIONS = 32
MODEL_NAMES = ("model_name", "model_version")  # as KServe's client sends them; the path has chosen the model already
# Request parameters that mean nothing here: there are no sequences, and the queue has one order and one deadline.
TRITONS = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers")


@dataclass(frozen=True)
class Output:
    """One output that is asked for."""

    name: str
    binary: bool
    classes: int = 0  # so many of the best as text, `value:index:label`; 0: the numbers


@dataclass(frozen=True)
class Wanted:
    """What a request asks its answer to be."""

    id: str | None
    binary: bool  # for outputs that are not named
    outputs: tuple[Output, ...]  # none: all there are


@dataclass(frozen=True)
class _Column:
    """One input's values."""

    name: str
    values: "Array | list[object]"  # by rows


class _Tail:
    """The binary part of a body, taken off piece by piece."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def take(self, size: int, where: str) -> memoryview:
        if size > len(self._data):
            raise InvalidArgumentError(f"{where}: {size} bytes, but only {len(self._data)} are left in the body")
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def check_end(self) -> None:
        if self._data:
            raise InvalidArgumentError(f"the body holds {len(self._data)} bytes more than its inputs need")


def parse(call: Call, limits: Limits, signature: Signature | None = None) -> Request:
    """Parse an inference request; raises InvalidArgumentError that names the field and the fix."""
    if call.header_length == 0:
        return Request([_read_raw(call.body, signature)], {}, "oip", Wanted(None, True, ()))
    head, tail = _split(call)
    document = parse_object(head, call.content_type, "inputs")
    _refuse_unknown("", document, ("id", "parameters", "inputs", "outputs", *MODEL_NAMES))
    parameters = _parse_parameters("parameters", document)
    wanted = _parse_wanted(document, parameters, signature)
    for name in list(parameters):
        if name in TRITONS or name.startswith("triton_"):
            del parameters[name]
    columns = _parse_inputs(document.get("inputs"), tail, signature)
    tail.check_end()
    count = len(columns[0].values)
    if count > limits.max_instances:
        raise InvalidArgumentError(f"inputs: {count} rows are more than {limits.max_instances}: split the request")
    arguments = {"parameters": parameters} if parameters else {}
    return Request(_to_rows(columns, count), arguments, "oip", wanted)


def _read_raw(body: bytes, signature: Signature | None) -> object:
    """The one row of a body that is the one input's data and nothing else: Triton's raw binary request."""
    specs = signature.inputs if signature else ()
    if not body:
        raise InvalidArgumentError("the body is empty: send the bytes of one instance")
    if len(specs) > 1:
        names = ", ".join(spec.name for spec in specs)
        raise InvalidArgumentError(f"{HEADER_LENGTH}: 0 is for models of one input, and this one has {names}")
    if not specs or specs[0].dtype == "bytes":
        return body
    (spec,) = specs
    shape = _deduce_shape(len(body) // np.dtype(spec.dtype).itemsize, spec)
    return _read_binary("inputs[0]", "the body", memoryview(body), DATATYPES[spec.dtype], (1, *shape))[0]


def _deduce_shape(count: int, spec: TensorSpec) -> tuple[int, ...]:
    """The shape of so many elements, where at most one size is left open."""
    if spec.shape.count(-1) > 1:
        raise InvalidArgumentError(
            f"{HEADER_LENGTH}: 0 is for inputs of one size to be found out, and {spec.name} has {list(spec.shape)}"
        )
    rest = math.prod(size for size in spec.shape if size != -1)
    return tuple(max(1, count // rest) if size == -1 else size for size in spec.shape)


def _split(call: Call) -> tuple[bytes, _Tail]:
    length = len(call.body) if call.header_length is None else call.header_length
    if not 0 <= length <= len(call.body):
        raise InvalidArgumentError(f"{HEADER_LENGTH}: {length}, but the body has {len(call.body)} bytes")
    return call.body[:length], _Tail(call.body[length:])


def _parse_parameters(where: str, holder: Mapping[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidArgumentError(f"{where}: must be an object, not {describe_kind(parameters)}")
    if "shared_memory_region" in parameters:
        raise InvalidArgumentError(f"{where}.shared_memory_region: there is no shared memory: send the data itself")
    return parameters


def _take_boolean(where: str, parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.pop(name, default)
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{where}.{name}: must be true or false, not {describe_kind(value)}")
    return value


def _parse_wanted(document: Mapping[str, Any], parameters: dict[str, Any], signature: Signature | None) -> Wanted:
    name = document.get("id")
    if name is not None and not isinstance(name, str):
        raise InvalidArgumentError(f"id: must be a string, not {describe_kind(name)}")
    binary = _take_boolean("parameters", parameters, "binary_data_output", False)
    outputs = document.get("outputs")
    if outputs is None:
        return Wanted(name, binary, ())
    entries = _check_entries("outputs", outputs, [spec.name for spec in signature.outputs] if signature else [])
    return Wanted(name, binary, tuple(_parse_output(f"outputs[{i}]", entry, binary) for i, entry in enumerate(entries)))


def _check_entries(where: str, entries: object, known: Sequence[str]) -> list[dict[str, Any]]:
    """Inputs or outputs: objects, each with a name of its own, and a known one where any are known."""
    if not isinstance(entries, list):
        raise InvalidArgumentError(f"{where}: must be a list, not {describe_kind(entries)}")
    seen = set()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InvalidArgumentError(f"{where}[{index}]: must be an object, not {describe_kind(entry)}")
        name = entry.get("name")
        if not isinstance(name, str):
            raise InvalidArgumentError(f"{where}[{index}].name: must be a string, not {describe_kind(name)}")
        if known and name not in known:
            raise InvalidArgumentError(f"{where}[{index}].name: {name} is unknown: {suggest(name, known)}")
        if name in seen:
            raise InvalidArgumentError(f"{where}[{index}].name: {name} is there twice")
        seen.add(name)
    return entries


def _parse_output(where: str, entry: dict[str, Any], binary: bool) -> Output:
    _refuse_unknown(f"{where}.", entry, ("name", "parameters"))
    parameters = dict(_parse_parameters(f"{where}.parameters", entry))
    binary = _take_boolean(f"{where}.parameters", parameters, "binary_data", binary)
    classes = parameters.get("classification", 0)
    if "classification" in parameters and (not _is_whole(classes) or classes < 1):
        raise InvalidArgumentError(f"{where}.parameters.classification: must be a whole number of at least 1")
    return Output(entry["name"], binary, classes)


def _parse_inputs(inputs: object, tail: _Tail, signature: Signature | None) -> list[_Column]:
    if not inputs:
        raise InvalidArgumentError('inputs: missing: send {"inputs": [{"name", "shape", "datatype", "data"}]}')
    specs = {spec.name: spec for spec in signature.inputs} if signature else {}
    entries = _check_entries("inputs", inputs, list(specs))
    columns = [
        _parse_input(f"inputs[{index}]", entry, tail, specs.get(entry["name"])) for index, entry in enumerate(entries)
    ]
    for index, column in enumerate(columns):
        count, first = len(column.values), len(columns[0].values)
        if count != first:
            raise InvalidArgumentError(f"inputs[{index}].shape: a batch of {count}, but inputs[0] has one of {first}")
    for name in specs:
        if name not in {column.name for column in columns}:
            raise InvalidArgumentError(f"inputs: {name} is missing: the model needs it")
    return columns


def _parse_input(where: str, entry: dict[str, Any], tail: _Tail, spec: TensorSpec | None) -> _Column:
    _refuse_unknown(f"{where}.", entry, ("name", "shape", "datatype", "parameters", "data"))
    shape = _parse_shape(f"{where}.shape", entry.get("shape"))
    datatype = entry.get("datatype")
    if datatype == "BF16":
        raise InvalidArgumentError(f"{where}.datatype: BF16 is not supported: send FP32 or FP16")
    if not isinstance(datatype, str) or datatype not in _DTYPES:
        raise InvalidArgumentError(f"{where}.datatype: must be one of {', '.join(_DTYPES)}")
    if spec and spec.dtype != "bytes" and datatype == "BYTES":
        raise InvalidArgumentError(f"{where}.datatype: must be {DATATYPES[spec.dtype]}, not BYTES")
    parameters = _parse_parameters(f"{where}.parameters", entry)
    if "binary_data_size" in parameters:
        if "data" in entry:
            raise InvalidArgumentError(f"{where}: has both data and binary_data_size: send one of them")
        size = parameters["binary_data_size"]
        if not _is_whole(size) or size < 0:
            raise InvalidArgumentError(f"{where}.parameters.binary_data_size: must be a whole number of bytes")
        field = f"{where}.parameters.binary_data_size"
        array = _read_binary(where, field, tail.take(size, field), datatype, shape)
    elif "data" in entry:
        array = _read_json(f"{where}.data", entry["data"], datatype, shape)
    else:
        raise InvalidArgumentError(f"{where}.data: missing")
    if datatype == "BYTES":
        return _Column(entry["name"], _read_bytes_rows(f"{where}.data", array, spec))
    return _Column(entry["name"], array)


def _parse_shape(where: str, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(_is_whole(size) and size >= 0 for size in shape):
        raise InvalidArgumentError(f"{where}: must be a list of whole numbers, the batch first")
    if not 1 <= len(shape) <= _MOST_DIMENSIONS:
        raise InvalidArgumentError(f"{where}: must have 1 to {_MOST_DIMENSIONS} sizes, the batch first")
    if 0 in shape:
        raise InvalidArgumentError(f"{where}: empty: each size must be at least 1")
    if max(shape) > _MOST_SIZE:
        raise InvalidArgumentError(f"{where}: each size must be at most {_MOST_SIZE}")
    return tuple(shape)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_binary(where: str, field: str, data: memoryview, datatype: str, shape: tuple[int, ...]) -> Array:
    """Little-endian, row-major, without padding. The array may be read-only: it lies in the body.

    `field` names what is wrong where there are more or fewer bytes than the shape needs.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _to_object_array(_split_elements(where, data, count), shape)
    dtype = np.dtype(_DTYPES[datatype]).newbyteorder("<")
    if len(data) != count * dtype.itemsize:
        raise InvalidArgumentError(
            f"{field}: shape {list(shape)} of {datatype} needs {count * dtype.itemsize} bytes, got {len(data)}"
        )
    array: Array = np.frombuffer(data, np.uint8 if datatype == "BOOL" else dtype).reshape(shape)
    return array != 0 if datatype == "BOOL" else array.astype(dtype.newbyteorder("="), copy=False)


def _split_elements(where: str, data: memoryview, count: int) -> list[bytes]:
    """Each element has its length before it, in 4 bytes."""
    elements: list[bytes] = []
    position = 0
    while position < len(data) and len(elements) <= count:
        start = position + _LENGTH.size
        if start > len(data):
            raise InvalidArgumentError(f"{where}: the binary data end inside the length of element {len(elements)}")
        position = start + _LENGTH.unpack_from(data, position)[0]
        if position > len(data):
            raise InvalidArgumentError(f"{where}: the binary data end inside element {len(elements)}")
        elements.append(bytes(data[start:position]))
    if len(elements) != count:
        held = "more" if len(elements) > count else f"only {len(elements)}"
        raise InvalidArgumentError(f"{where}: the shape needs {count} elements, the binary data hold {held}")
    return elements


def _read_json(where: str, data: object, datatype: str, shape: tuple[int, ...]) -> Array:
    """A list, flat or nested as the shape is."""
    if not isinstance(data, list):
        raise InvalidArgumentError(f"{where}: must be a list, not {describe_kind(data)}")
    try:
        array = _to_text_array(data) if datatype == "BYTES" else to_array(data, _DTYPES[datatype])
    except ValueTensorError as error:
        raise InvalidArgumentError(f"{where}{error.field}: {error.cause}") from None
    if array.shape not in (shape, (math.prod(shape),)):
        raise InvalidArgumentError(f"{where}: holds {list(array.shape)}, but shape is {list(shape)}")
    reshaped: Array = array.reshape(shape)
    return reshaped


def _to_text_array(data: list[Any]) -> Array:
    nested = flatten(data)
    for position, leaf in enumerate(nested.leaves):
        if not isinstance(leaf, str):
            raise ValueTensorError(nested.locate(position), f"must be a string, not {describe_kind(leaf)}")
    return _to_object_array(nested.leaves, nested.shape)


def _to_object_array(elements: Sequence[object], shape: tuple[int, ...]) -> Array:
    array: Array = np.empty(len(elements), dtype=object)
    array[:] = elements
    reshaped: Array = array.reshape(shape)
    return reshaped


def _read_bytes_rows(where: str, array: Array, spec: TensorSpec | None) -> list[object]:
    """Text as it is, or pictures: of those JSON holds the base64."""
    if spec is None:
        rows: list[object] = array.tolist()
        return rows
    if array.size != len(array):
        raise InvalidArgumentError(f"{where}: must be one element for each of the {len(array)} rows, not {array.size}")
    try:
        return [
            decode_base64(element, f"[{index}]") if isinstance(element, str) else element
            for index, element in enumerate(array.ravel().tolist())
        ]
    except ValueTensorError as error:
        raise InvalidArgumentError(f"{where}{error.field}: {error.cause}") from None


def _to_rows(columns: Sequence[_Column], count: int) -> Sequence[object]:
    if len(columns) == 1:
        return list(columns[0].values)
    return [{column.name: column.values[index] for column in columns} for index in range(count)]


def _refuse_unknown(where: str, given: Mapping[str, object], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise InvalidArgumentError(f"{where}{name}: unknown: {suggest(name, known)}")


def shape(request: Request, result: Result, served: ServedModel) -> Reply:
    """The answer's JSON, and behind it the tensors that are wanted in binary form."""
    wanted = request.wanted or Wanted(None, False, ())
    tensors = _read_tensors(result, len(request.instances))
    pieces: list[bytes] = []
    asked = wanted.outputs or [Output(name, wanted.binary) for name in tensors]
    arrays = [_find(tensors, output.name) for output in asked]
    outputs = [_shape_output(output, array, result.labels, pieces) for output, array in zip(asked, arrays, strict=True)]
    answer: dict[str, object] = {"model_name": served.name, "model_version": served.version}
    if wanted.id is not None:
        answer["id"] = wanted.id
    head = encode_json(answer | {"outputs": outputs})
    headers = {"Content-Type": "application/json"}
    if any("parameters" in output for output in outputs):
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Reply(
        200,
        b"".join((head, *pieces)),
        headers,
        instances=len(request.instances),
        non_finite=_count_non_finite(result, arrays),
    )


def _count_non_finite(result: Result, arrays: Sequence[Array]) -> int:
    """Also of those in binary form, which keep them. What a predictor's array holds as JSON is counted as it was."""
    if any(array.dtype.kind == "O" for array in arrays):
        return count_non_finite(list(result.predictions()))
    return count_non_finite(arrays)


def _read_tensors(result: Result, count: int) -> Mapping[str, Array]:
    try:
        tensors = result.tensors()
    except ValueError as error:
        raise InternalError(f"the model's answer is no tensors: {error}") from error
    for name, array in tensors.items():
        if array.shape[:1] != (count,):
            raise InternalError(f"the model gave {name} with shape {list(array.shape)} for {count} rows")
    return tensors


def _find(tensors: Mapping[str, Array], name: str) -> Array:
    if name not in tensors:
        raise InvalidArgumentError(f"outputs: {name} is unknown: {suggest(name, list(tensors))}")
    return tensors[name]


def _shape_output(output: Output, array: Array, labels: Sequence[str] | None, pieces: list[bytes]) -> dict[str, object]:
    """One output's JSON; in binary form its data join the pieces."""
    if output.classes:
        array = _classify(output, array, labels)
    if array.dtype.kind in "OSU":
        array = _to_object_array([_to_bytes(output.name, element) for element in array.ravel().tolist()], array.shape)
    datatype = "BYTES" if array.dtype.kind == "O" else DATATYPES.get(array.dtype.name)
    if datatype is None:
        raise InternalError(f"the model gave {output.name} as {array.dtype.name}, which the protocol does not know")
    described: dict[str, object] = {"name": output.name, "datatype": datatype, "shape": list(array.shape)}
    if output.binary:
        piece = _to_binary(array)
        pieces.append(piece)
        return described | {"parameters": {"binary_data_size": len(piece)}}
    return described | {"data": _to_text(output.name, array) if datatype == "BYTES" else array.ravel().tolist()}


def _classify(output: Output, array: Array, labels: Sequence[str] | None) -> Array:
    """`value:index:label` of the highest values of each row, best first, of equals the lower index; [n, classes]."""
    if array.dtype.kind not in "biuf" or array.ndim < 2:
        raise InvalidArgumentError(f"outputs: classification: {output.name} holds no list of numbers for each row")
    rows = array.reshape(len(array), -1).astype(np.float64)
    names = labels if labels is not None and len(labels) == rows.shape[1] else None
    order = np.argsort(-rows, axis=1, kind="stable")[:, : output.classes]
    texts = [
        f"{rows[row, index]:f}:{index}" + (f":{names[index]}" if names else "")
        for row, indices in enumerate(order.tolist())
        for index in indices
    ]
    return _to_object_array(texts, order.shape)


def _to_bytes(name: str, element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode("utf-8")
    raise InternalError(f"the model gave {name} with a {type(element).__name__} among text and bytes")


def _to_binary(array: Array) -> bytes:
    if array.dtype.kind == "O":
        elements: list[bytes] = array.ravel().tolist()
        return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _to_text(name: str, array: Array) -> list[str]:
    try:
        return [element.decode("utf-8") for element in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"outputs: {name} holds bytes that are no text: ask for binary_data") from None
