"""A request that is too much for one worker at a time, as pieces; and a piece as the request that it is.

A worker finds out: the listener does not look into a request. The listener gathers the answers, in their order.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from pierhead_server.batching import HEAVY_PIXELS
from pierhead_server.errors import InvalidArgumentError
from pierhead_server.messages import Call, Dialect, Reply, Split
from pierhead_server.oip import Wanted
from pierhead_server.protocol import Limits, Request, means_nothing

# What a piece may take: others wait behind it. Shorter, and handing it over would cost too much of it.
PIECE_SECONDS = 0.03
BATCH_SECONDS = 0.1  # and a whole batch, which is worth up to a fifth of what it takes
_TOGETHER_SECONDS = 4 * PIECE_SECONDS  # of several pieces at once
_PIXEL_SECONDS = 15e-9  # to decode one, most often
_REMEMBERED = 16  # requests, of which the fastest is the pace
_ARRAY = 1  # msgpack's type of a numpy array


class Pace:
    """How long the model takes for an instance, as it was seen lately.

    The fastest counts: what else the machine does would make pieces small, and handing them over the longest part.
    """

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=_REMEMBERED)
        self.seconds: float | None = None  # of an instance, after it is prepared; None: nobody knows

    def learn(self, replies: Sequence[Reply | Split]) -> None:
        """What was computed now."""
        for reply in replies:
            if isinstance(reply, Reply) and reply.instances and reply.forward_seconds:
                self._seen.append(reply.forward_seconds / reply.instances)
                self.seconds = min(self._seen)

    def size(self, batch: int) -> "PieceSize":
        """How large a piece may be, where `batch` instances are best computed together."""
        if not self.seconds:
            return PieceSize(max(1, batch), 0.0)
        rows = max(1, int(PIECE_SECONDS / self.seconds))
        if rows >= batch:
            return PieceSize(rows - rows % batch, self.seconds)
        if batch * self.seconds <= BATCH_SECONDS:
            return PieceSize(batch, self.seconds, BATCH_SECONDS)
        return PieceSize(rows, self.seconds)


@dataclass(frozen=True)
class PieceSize:
    """What a piece may hold, unless it is one instance."""

    rows: int
    seconds: float  # that each of them takes, beside decoding
    most: float = PIECE_SECONDS  # that all of it takes

    def fits(self, rows: int, pixels: int) -> bool:
        """Whether so much is one piece."""
        return rows <= self.rows and self.estimate(rows, pixels) <= self.most

    def estimate(self, rows: int, pixels: int) -> float:
        """The seconds that so much takes."""
        return rows * self.seconds + pixels * _PIXEL_SECONDS


@dataclass(frozen=True)
class Measured:
    """A request's instances, and what is known of them before anything is unpacked."""

    instances: Sequence[object]  # as the request's, with less left to do
    pixels: Sequence[int]  # of each instance's pictures


def plan_pieces(pixels: Sequence[int], size: PieceSize) -> list[slice]:
    """Neighbours go together, as many as fit."""
    pieces: list[slice] = []
    start, total = 0, 0
    for index, more in enumerate(pixels):
        if index > start and not size.fits(index + 1 - start, total + more):
            pieces.append(slice(start, index))
            start, total = index, 0
        total += more
    return [*pieces, slice(start, len(pixels))]


def split(call: Call, request: Request, pixels: Sequence[int], size: PieceSize, most_bytes: int) -> Split | None:
    """A request's pieces, of `most_bytes` together; None where it is best computed as it is."""
    parts = plan_pieces(pixels, size)
    if len(parts) == 1 and sum(pixels) <= HEAVY_PIXELS:
        return None
    pieces: list[Call] = []
    try:
        for piece in _make_pieces(call, request, parts):
            pieces.append(piece)
            most_bytes -= len(piece.body)
            if most_bytes < 0:
                return None
    except (OverflowError, RecursionError, TypeError):
        return None  # a number of more than 64 bits, lists too deep: msgpack has no such
    digest = hashlib.blake2b(call.body, digest_size=16).digest()
    longest = max(size.estimate(part.stop - part.start, sum(pixels[part])) for part in parts)
    together = int(_TOGETHER_SECONDS / longest) if longest else 1
    return Split(pieces, [sum(pixels[part]) for part in parts], digest, min(max(1, together), 4))


def check_pixels(pixels: Sequence[int], limits: Limits) -> None:
    """Whether a request's pictures are not too much together. Raises InvalidArgumentError."""
    total = sum(pixels)
    if total > limits.max_pixels:
        raise InvalidArgumentError(
            f"instances: {total} pixels together are more than {limits.max_pixels}: "
            "send fewer or smaller pictures in a request"
        )


class _Piece(msgspec.Struct, array_like=True):
    """A piece's body."""

    instances: list[Any]
    arguments: dict[str, Any]
    dialect: Dialect
    location: str
    wanted: Wanted | None


def _make_pieces(call: Call, request: Request, parts: Sequence[slice]) -> Iterator[Call]:
    encode = msgspec.msgpack.Encoder(enc_hook=_to_extension).encode
    # What says nothing may be long, and would be in each of them.
    arguments = {name: value for name, value in request.arguments.items() if not means_nothing(name, value)}
    alone = call.accepts_gzip and len(parts) == 1  # others' answers are put together
    wanted = request.wanted
    for part in parts:
        instances = list(request.instances[part])
        body = encode(_Piece(instances, arguments, request.dialect, request.location, wanted))
        yield Call(call.dialect, body, location=call.location, accepts_gzip=alone, first=part.start)
        wanted = replace(wanted, id=None) if wanted else None  # the answer is in the frame of the first one's


def restore(call: Call) -> Request:
    """The request that a piece is."""
    piece = _PIECE.decode(call.body)
    return Request(piece.instances, piece.arguments, piece.dialect, piece.wanted, piece.location)


def with_instances(request: Request, measured: Measured) -> Request:
    """The request, with what measuring it has already done."""
    return replace(request, instances=measured.instances)


def _to_extension(value: Any) -> msgspec.msgpack.Ext:
    """An array of numbers, which OIP's requests hold."""
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.hasobject:
        raise TypeError(f"a {type(value).__name__} is no part of a request")
    array = np.asarray(value)
    return msgspec.msgpack.Ext(_ARRAY, msgspec.msgpack.encode((array.dtype.str, array.shape, array.tobytes())))


def _from_extension(code: int, data: memoryview) -> Any:
    assert code == _ARRAY
    dtype, shape, content = msgspec.msgpack.decode(data, type=tuple[str, tuple[int, ...], bytes])
    return np.frombuffer(content, np.dtype(dtype)).reshape(shape)


_PIECE = msgspec.msgpack.Decoder(_Piece, ext_hook=_from_extension)
