"""A shard's committed chunks in storage. Who commits a chunk first decides, also about where it ends."""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from pierhead_server.batch.errors import OutputNotWritableError
from pierhead_server.batch.parts import (
    HEADER_BYTES,
    Header,
    Record,
    decode_header,
    encode_part,
    follow,
    make_name,
    parse_name,
)
from pierhead_server.batch.plan import Position
from pierhead_server.batch.storage import Entry, Storage

logger = logging.getLogger(__name__)

_AT_A_TIME = 16  # headers that are read


class GoneError(Exception):
    """A part is not there any more: another worker has finished the job."""


class Chain:
    """The parts of one shard, in order. Raises OutputNotWritableError, StorageUnreachableError."""

    def __init__(self, storage: Storage, folder: str, shard: int) -> None:
        self._storage = storage
        self._folder = folder  # of all shards' parts
        self._shard = shard
        self.starts: list[Position] = []  # of its parts
        self.end = Position(0, 0)  # where the next one begins
        self.successful = 0
        self.failed = 0

    async def load(self) -> None:
        """Read what was committed by earlier attempts."""
        entries = await self._storage.list_folder(f"{self._folder}/{self._shard:05d}")
        headers: dict[Position, Header] = {}
        for index in range(0, len(entries), _AT_A_TIME):
            some = entries[index : index + _AT_A_TIME]
            read = await asyncio.gather(*(self._read_header(entry.uri) for entry in some))
            headers |= zip(map(_parse_uri, some), read, strict=True)
        for start, header in follow(self.end, headers):
            self._append(start, header)
        if entries:
            logger.info("%d chunks of earlier attempts are there", len(self.starts))

    async def _read_header(self, uri: str) -> Header:
        try:
            return decode_header((await self._storage.read(uri, 0, HEADER_BYTES)).data)
        except FileNotFoundError:
            raise GoneError(uri) from None
        except msgspec.DecodeError:
            raise OutputNotWritableError(f"{uri}: not one of the job's parts") from None

    def _append(self, start: Position, header: Header) -> None:
        self.starts.append(start)
        self.end = header.end
        self.successful += header.successful
        self.failed += header.failed

    async def commit(self, records: Sequence[Record], end: Position) -> bool:
        """Put a part at the chain's end; False where another worker has put one there, which counts."""
        uri = self._uri(self.end)
        mine = await self._storage.create(uri, encode_part(records, end))
        header = _count(records, end) if mine else await self._read_header(uri)
        self._append(self.end, header)
        return mine

    async def read_part(self, start: Position) -> bytes:
        """A part as it lies. Raises GoneError."""
        try:
            return await self._storage.read_all(self._uri(start))
        except FileNotFoundError as error:
            raise GoneError(str(error)) from None

    def _uri(self, start: Position) -> str:
        return f"{self._folder}/{make_name(self._shard, start)}"


def _count(records: Sequence[Record], end: Position) -> Header:
    successful = sum(record.ok for record in records)
    return Header(end, successful, len(records) - successful)


def _parse_uri(entry: Entry) -> Position:
    try:
        return parse_name(entry.uri)
    except ValueError:
        raise OutputNotWritableError(f"{entry.uri}: not one of the job's parts") from None
