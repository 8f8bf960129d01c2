"""The answers to a request's pieces as the one answer to it, whatever its dialect. Pure, and without numpy.

Only the answers' frame is read: predictions and tensors' data are put beside each other as the workers wrote them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pierhead_server.errors import InternalError
from pierhead_server.messages import Dialect, Reply

_HEADER_LENGTH = "Inference-Header-Content-Length"
_BINARY_SIZE = "binary_data_size"
_FRAME = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def join(dialect: Dialect, replies: Sequence[Reply]) -> Reply:
    """One answer of several good ones, which are in the order of their instances. Raises InternalError."""
    reply = replies[0]
    if len(replies) > 1:
        try:
            reply = _join_columns(replies) if dialect == "oip" else _join_predictions(replies)
        except (msgspec.MsgspecError, KeyError) as error:
            raise InternalError(f"the answers to parts of this request do not fit together: {error}") from error
    return msgspec.structs.replace(
        reply,
        instances=sum(one.instances for one in replies),
        non_finite=sum(one.non_finite for one in replies),
        parse_seconds=sum(one.parse_seconds for one in replies),
        prepare_seconds=sum(one.prepare_seconds for one in replies),
        forward_seconds=sum(one.forward_seconds for one in replies),
    )


def _join_predictions(replies: Sequence[Reply]) -> Reply:
    frame: dict[str, Any] = _FRAME.decode(replies[0].body)
    parts = (_FRAME.decode(reply.body)["predictions"] for reply in replies)
    frame["predictions"] = msgspec.Raw(_concatenate(parts))
    return Reply(200, msgspec.json.encode(frame), replies[0].headers)


def _concatenate(lists: Iterator[msgspec.Raw]) -> bytes:
    """JSON's lists as one; none of them is empty."""
    return b"[" + b",".join(bytes(one).strip()[1:-1] for one in lists) + b"]"


class _Columns:
    """An answer of the Open Inference Protocol: its outputs, and the binary data of those that have some."""

    def __init__(self, reply: Reply) -> None:
        length = int(reply.headers.get(_HEADER_LENGTH, len(reply.body)))
        self.frame: dict[str, Any] = _FRAME.decode(reply.body[:length])
        self.outputs = [_FRAME.decode(output) for output in _LIST.decode(self.frame["outputs"])]
        self.binary: list[bytes] = []
        for output in self.outputs:
            size = _read_binary_size(output)
            self.binary.append(reply.body[length : length + size])
            length += size


def _read_binary_size(output: dict[str, msgspec.Raw]) -> int:
    parameters = msgspec.json.decode(output.get("parameters", b"{}"))
    return int(parameters.get(_BINARY_SIZE, 0))


def _join_columns(replies: Sequence[Reply]) -> Reply:
    pieces = [_Columns(reply) for reply in replies]
    outputs, tail = [], []
    for place in range(len(pieces[0].outputs)):
        binary = b"".join(piece.binary[place] for piece in pieces)
        outputs.append(_join_output([piece.outputs[place] for piece in pieces], binary))
        tail.append(binary)
    head = msgspec.json.encode(pieces[0].frame | {"outputs": outputs})
    headers = dict(replies[0].headers)
    if _HEADER_LENGTH in headers:
        headers[_HEADER_LENGTH] = str(len(head))
    return Reply(200, b"".join((head, *tail)), headers)


def _join_output(parts: Sequence[dict[str, msgspec.Raw]], binary: bytes) -> dict[str, object]:
    shapes = [msgspec.json.decode(part["shape"], type=list[int]) for part in parts]
    if any(
        (shape[1:], part["datatype"]) != (shapes[0][1:], parts[0]["datatype"])
        for shape, part in zip(shapes, parts, strict=True)
    ):
        raise InternalError("the model's answer is no tensors: its rows differ in shape")
    joined: dict[str, object] = {**parts[0], "shape": [sum(shape[0] for shape in shapes), *shapes[0][1:]]}
    if "data" in parts[0]:
        joined["data"] = msgspec.Raw(_concatenate(part["data"] for part in parts))
    else:
        joined["parameters"] = {_BINARY_SIZE: len(binary)}
    return joined
