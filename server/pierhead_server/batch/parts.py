"""A part: one committed chunk of a shard, and the chain that a shard's parts make. Pure.

A part's name says where its first line begins, its first line where the next part begins. Behind that are the lines of
the predictions file, then those of the errors file.
"""

from collections.abc import Iterator, Sequence

import msgspec

from pierhead_server.batch.plan import Position

HEADER_BYTES = 256  # no header is longer


class Header(msgspec.Struct, frozen=True):
    """A part's first line."""

    end: Position
    successful: int
    failed: int


class Record(msgspec.Struct, frozen=True):
    """What became of one line."""

    told: bytes  # the instance, or its key, as JSON
    outcome: bytes  # the prediction, or the error, as JSON
    ok: bool
    name: str = "instance"  # of `told`


def make_name(shard: int, start: Position) -> str:
    """A part's name inside the folder of parts."""
    return f"{shard:05d}/{start.file:05d}-{start.offset:015d}.jsonl"


def parse_name(name: str) -> Position:
    """Where a part of this name begins. Raises ValueError for what is none."""
    file, _, offset = name.rpartition("/")[2].removesuffix(".jsonl").partition("-")
    return Position(int(file), int(offset))


def encode_part(records: Sequence[Record], end: Position) -> bytes:
    """A part's bytes."""
    good = [_join(record, "prediction") for record in records if record.ok]
    bad = [_join(record, "error") for record in records if not record.ok]
    header = msgspec.json.encode(Header(end, len(good), len(bad)))
    return b"".join((header, b"\n", *good, *bad))


def _join(record: Record, field: str) -> bytes:
    return b'{"%b":%b,"%b":%b}\n' % (record.name.encode(), record.told, field.encode(), record.outcome)


def decode_header(part: bytes) -> Header:
    """Of a part's first bytes. Raises msgspec.DecodeError."""
    return msgspec.json.decode(part.partition(b"\n")[0], type=Header)


def split_part(part: bytes) -> tuple[list[bytes], list[bytes]]:
    """The lines for the predictions file and those for the errors file."""
    header, *lines = (line + b"\n" for line in part.split(b"\n")[:-1])
    count = decode_header(header).successful
    return lines[:count], lines[count:]


def follow(start: Position, headers: dict[Position, Header]) -> Iterator[tuple[Position, Header]]:
    """The chain of parts from `start` on, as far as it goes."""
    while (header := headers.get(start)) is not None:
        yield start, header
        start = header.end
