"""Who predicts what: the input's files, cut into shards of equal length. Pure.

The files are seen as one long row of bytes, which is cut into equal ranges; a line belongs to the shard in which its
first byte lies. A gzip file cannot be cut, nor can a CSV file with quotes: all of it belongs to the shard of its first
byte.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import msgspec


class File(msgspec.Struct, frozen=True):
    """One file of the input, as it was when the job began."""

    uri: str
    size: int  # bytes in storage
    tag: str | None  # the e-tag: another one for another content
    gzip: bool = False
    whole: bool = False  # whether it cannot be cut, and is none of gzip: a newline may be inside of its quotes


class Plan(msgspec.Struct, frozen=True):
    """What all workers of a job agree on; the first of them wrote it."""

    files: list[File]
    shards: int
    job: dict[str, Any]  # what output depends on beside the files: of another job's folder nothing is taken

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "Plan":
        """Raises msgspec.DecodeError."""
        return msgspec.json.decode(data, type=cls)


class Position(msgspec.Struct, frozen=True, order=True):
    """Where a line may begin: so many bytes, of a gzip file decompressed ones, into a file."""

    file: int
    offset: int


class Segment(msgspec.Struct, frozen=True):
    """A file's part in a shard: the lines whose first byte lies in [start, end)."""

    file: int
    start: int
    end: int | None  # None: to the end of a file that cannot be cut


def compute_segments(plan: Plan, shard: int) -> list[Segment]:
    """What a shard consists of."""
    starts = list(accumulate((file.size for file in plan.files), initial=0))
    first, last = (starts[-1] * edge // plan.shards for edge in (shard, shard + 1))
    return list(_cut(plan.files, starts, first, last))


def _cut(files: Sequence[File], starts: Sequence[int], first: int, last: int) -> Iterator[Segment]:
    for number, file in enumerate(files):
        start, end = max(first - starts[number], 0), min(last - starts[number], file.size)
        if start >= end:
            continue
        if not (file.gzip or file.whole):
            yield Segment(number, start, end)
        elif start == 0:
            yield Segment(number, 0, None)


def end_of(plan: Plan) -> Position:
    """Behind the last file: where a shard's last chunk ends."""
    return Position(len(plan.files), 0)


def count_bytes(plan: Plan, segments: Sequence[Segment], position: Position | None = None) -> int:
    """The bytes of a shard, in storage; with a position those before it. A gzip file counts once it is through."""
    total = 0
    for segment in segments:
        file = plan.files[segment.file]
        size = file.size if segment.end is None else segment.end - segment.start
        if position is None or segment.file < position.file:
            total += size
        elif segment.file == position.file and not file.gzip:
            total += min(max(position.offset - segment.start, 0), size)
    return total


def split_pattern(path: str) -> tuple[str, re.Pattern[str]] | None:
    """Of a path with wildcards the folder to list and what its paths must match; None without any."""
    if "*" not in path:
        return None
    folder = path.partition("*")[0].rpartition("/")[0]
    return folder, re.compile("[^/]*".join(map(re.escape, path.split("*"))))
