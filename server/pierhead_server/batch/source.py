"""The lines of a shard, from storage, from any position on."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from pierhead_server.batch.document import InputFormat
from pierhead_server.batch.errors import InputInvalidError, LineError, RefusedError, StorageUnreachableError
from pierhead_server.batch.instances import BOM, read_columns
from pierhead_server.batch.lines import Joiner, Span, Splitter
from pierhead_server.batch.plan import File, Plan, Position, Segment
from pierhead_server.batch.storage import Storage

BLOCK_BYTES = 4 * 1024 * 1024  # of a file in one request; one more is read ahead
GZIP = 31  # zlib's number for it


@dataclass(frozen=True)
class Line:
    """One line that is not empty."""

    position: Position
    next: Position  # where the one behind it begins
    data: bytes | None  # None: it is longer than a line may be
    uri: str  # of its file
    columns: Sequence[str] = ()  # of a CSV file


class Source:
    """Reads a plan's files. Raises InputInvalidError, StorageUnreachableError."""

    def __init__(self, storage: Storage, plan: Plan, form: InputFormat) -> None:
        self._storage = storage
        self._plan = plan
        self._form = form

    async def lines(self, segments: Sequence[Segment], start: Position) -> AsyncGenerator[Line]:
        """The lines of these segments, without those before `start`."""
        for segment in segments:
            begin = max(segment.start, start.offset) if segment.file == start.file else segment.start
            if segment.file < start.file or (segment.end is not None and begin >= segment.end):
                continue
            async with aclosing(self._segment_lines(segment, begin)) as lines:
                async for line in lines:
                    yield line

    async def _segment_lines(self, segment: Segment, begin: int) -> AsyncGenerator[Line]:
        number, file = segment.file, self._plan.files[segment.file]
        columns, first = await self._read_header(file) if self._form == "csv" else ([], 0)
        async with aclosing(self._records(file, begin)) as spans:
            async for span in spans:
                if segment.end is not None and span.start >= segment.end:
                    return
                data = span.data.removeprefix(BOM) if span.data is not None and span.start == 0 else span.data
                if span.start >= first and (data is None or data.strip()):
                    yield Line(Position(number, span.start), Position(number, span.end), data, file.uri, columns)

    async def _read_header(self, file: File) -> tuple[list[str], int]:
        """A CSV file's columns, and where the line behind them begins."""
        async with aclosing(self._records(file, 0)) as spans:
            async for span in spans:
                data = (span.data or b"").removeprefix(BOM)
                if span.data is not None and not data.strip():
                    continue
                try:
                    return read_columns(data), span.end
                except LineError as error:
                    raise InputInvalidError(f"{file.uri}: {error}") from None
        return [], 0

    async def _records(self, file: File, begin: int) -> AsyncGenerator[Span]:
        """A file's lines; of a CSV file that is not cut its rows, of which each may have several lines."""
        joiner = Joiner() if self._form == "csv" and (file.gzip or file.whole) else None
        async with aclosing(self._spans(file, begin)) as spans:
            async for span in spans:
                for record in joiner.feed(span) if joiner else (span,):
                    yield record
        for record in joiner.finish() if joiner else ():
            yield record

    async def _spans(self, file: File, begin: int) -> AsyncGenerator[Span]:
        """The lines of a file whose first byte is at `begin` or behind it."""
        # From the byte before: if it ends a line, one begins here, else in the middle of one that is another's.
        at = 0 if file.gzip else max(begin - 1, 0)
        splitter = Splitter(at)
        async with aclosing(self._pieces(file, at)) as pieces:
            async for piece in pieces:
                for span in splitter.feed(piece):
                    if span.start >= begin:
                        yield span
        for span in splitter.finish():
            if span.start >= begin:
                yield span

    def _pieces(self, file: File, at: int) -> AsyncGenerator[bytes]:
        return _inflate(self._blocks(file, 0), file.uri) if file.gzip else self._blocks(file, at)

    async def _blocks(self, file: File, at: int) -> AsyncGenerator[bytes]:
        """A file's bytes as they are stored, one block read ahead."""
        ahead = asyncio.create_task(self._read(file, at)) if at < file.size else None
        try:
            while ahead:
                block = await ahead
                at += len(block)
                ahead = asyncio.create_task(self._read(file, at)) if at < file.size else None
                yield block
        finally:
            if ahead:
                ahead.cancel()

    async def _read(self, file: File, at: int) -> bytes:
        try:
            try:
                block = await self._storage.read(file.uri, at, min(at + BLOCK_BYTES, file.size))
            except StorageUnreachableError:
                # Perhaps only because it has become shorter than that.
                now = await self._storage.head(file.uri)
                _check_unchanged(file, now.size, now.tag)
                raise
        except FileNotFoundError:
            raise InputInvalidError(f"{file.uri}: it was removed after the job had begun") from None
        except RefusedError as error:
            raise InputInvalidError(str(error)) from None
        _check_unchanged(file, block.size, block.tag)
        return block.data


def _check_unchanged(file: File, size: int, tag: str | None) -> None:
    if (size, tag) != (file.size, file.tag):
        raise InputInvalidError(f"{file.uri}: it was changed after the job had begun: start another job")


async def _inflate(blocks: AsyncGenerator[bytes], uri: str) -> AsyncGenerator[bytes]:
    """A gzip file's content, in pieces of bounded size. Raises InputInvalidError."""
    member = zlib.decompressobj(GZIP)
    async with aclosing(blocks):
        try:
            async for block in blocks:
                while block := block.lstrip(b"\0") if member.eof else block:
                    if member.eof:  # several files, one behind another, are one gzip file too
                        member = zlib.decompressobj(GZIP)
                    piece = member.decompress(block, BLOCK_BYTES)
                    if piece:
                        yield piece
                    # Zeros behind a member pad it to a block of a tape's.
                    block = member.unused_data.lstrip(b"\0") if member.eof else member.unconsumed_tail
        except zlib.error as error:
            raise InputInvalidError(f"{uri}: not a whole gzip file: {error}") from None
    if not member.eof:
        raise InputInvalidError(f"{uri}: not a whole gzip file: it ends too early")
