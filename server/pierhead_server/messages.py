"""What the listener and the model's processes say to each other: msgpack in frames with their length before them."""

import struct
from typing import BinaryIO, Literal, TypeVar

import msgspec

# `probe` asks for the model's own sample: its calls have no body. `batch` is the batch worker's, in msgpack.
Dialect = Literal["vertex", "raw", "aiplatform", "kserve", "oip", "probe", "batch"]

# What computes: torch's operators on the CPU, a network of OpenVINO's, or a GPU.
Form = Literal["quick", "compiled", "cuda"]

_LENGTH = struct.Struct("!Q")
LENGTH_BYTES = _LENGTH.size


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One prediction request, as it came: nobody has looked into `body` yet."""

    dialect: Dialect
    body: bytes
    content_type: str = "application/json"
    header_length: int | None = None  # OIP's `Inference-Header-Content-Length`: how much of the body is JSON
    location: str = ""  # that the path names, as it came: it may be anything
    encoding: str = ""  # how `body` is compressed: "gzip" or not at all
    accepts_gzip: bool = False  # whether the caller asked for an answer in gzip
    # Of a piece: which of the request's instances its first one is. Only workers make pieces; the body is splitting's.
    first: int | None = None


class Reply(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The answer to one Call, and what it cost."""

    code: int
    body: bytes
    headers: dict[str, str] = msgspec.field(default_factory=lambda: {"Content-Type": "application/json"})
    instances: int = 0
    parse_seconds: float = 0.0  # JSON and base64
    prepare_seconds: float = 0.0  # decoding and preprocessing, or making tensors
    forward_seconds: float = 0.0  # the model, its share of the batch
    # The listener's own to fill in: how long the call waited, and for a batch of how many calls.
    queue_seconds: float = 0.0
    batch: int = 1
    non_finite: int = 0  # numbers in the answer that are NaN or Infinity
    joined: bool = False  # of pieces, by the listener


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """A worker's first message: it is warm."""

    form: str
    batch: int  # how many calls are best computed together
    pipelined: bool = False  # whether it prepares a batch while another one is computed


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag="refusal"):
    """A worker's first message, and its last: it never will be. A StartupError."""

    reason: str
    message: str


FirstMessage = Hello | Refusal


class Split(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Instead of a Reply: the call is too much for one worker at a time; its answer is those to these pieces."""

    pieces: list[Call]
    pixels: list[int]  # of the pictures of each piece, by their headers
    digest: bytes  # of the call: who sends it again is known by it
    together: int = 1  # pieces that a worker may have at once, where nobody else asks: to hand one over takes time, too
    parse_seconds: float = 0.0


M = TypeVar("M")


def frame_length(body: bytes) -> bytes:
    """What stands before a frame's body."""
    return _LENGTH.pack(len(body))


def pack(message: object) -> bytes:
    """A message as a frame."""
    body = msgspec.msgpack.encode(message)
    return frame_length(body) + body


def unpack_length(header: bytes | bytearray) -> int:
    """The length of a frame's body, of its first LENGTH_BYTES bytes."""
    (length,) = _LENGTH.unpack(header)
    return int(length)


def read(stream: BinaryIO, decoder: msgspec.msgpack.Decoder[M]) -> M | None:
    """The next message of a blocking stream; None at its end."""
    header = stream.read(LENGTH_BYTES)
    if len(header) < LENGTH_BYTES:
        return None
    return decoder.decode(stream.read(unpack_length(header)))
