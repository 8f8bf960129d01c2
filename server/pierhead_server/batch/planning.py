"""Make a job's plan, or take the one that another worker made before."""

import asyncio
import logging
import zlib
from collections.abc import Iterable
from urllib.parse import quote, unquote

import msgspec

from pierhead_server.batch.document import WHOLE, InputFormat, Task
from pierhead_server.batch.errors import InputInvalidError, InputNotFoundError, OutputNotWritableError, RefusedError
from pierhead_server.batch.lines import ENCODING_BYTES, find_wide_encoding
from pierhead_server.batch.plan import File, Plan, split_pattern
from pierhead_server.batch.source import BLOCK_BYTES, GZIP
from pierhead_server.batch.storage import Entry, Storage

logger = logging.getLogger(__name__)

_GZIP_MAGIC = b"\x1f\x8b"
_AT_A_TIME = 16  # files that are looked into
_HEAD_BYTES = 4096


async def pin_plan(storage: Storage, task: Task, version: str) -> Plan:
    """The plan of the job's folder, made if there is none; `version` names the model's.

    Raises InputNotFoundError, InputInvalidError, OutputNotWritableError, StorageUnreachableError.
    """
    uri = f"{task.folder}/.pierhead/plan.json"
    job = _describe(task, version)
    plan = await _read_plan(storage, uri)
    if plan is None:
        document = task.document
        made = Plan(await _find_files(storage, document.input_uris, document.input_format), document.shards, job)
        if await storage.create(uri, made.encode()):
            logger.info("planned %d files in %d shards", len(made.files), made.shards)
            return made
        plan = await _read_plan(storage, uri)
    if plan is None or plan.job != job:
        raise OutputNotWritableError(f"{task.folder}: it holds the output of another job: name another folder")
    return plan


def _describe(task: Task, version: str) -> dict[str, object]:
    document = task.document
    left_out = {"batch_size", "output_uri"}
    if document.instance_config == WHOLE:
        left_out.add("instance_config")  # as in a plan that is older than the field
    return document.model_dump(mode="json", by_alias=True, exclude=left_out) | {"modelVersionId": version}


async def _read_plan(storage: Storage, uri: str) -> Plan | None:
    try:
        return Plan.decode(await storage.read_all(uri))
    except FileNotFoundError:
        return None
    except RefusedError as error:
        raise OutputNotWritableError(str(error)) from None
    except msgspec.DecodeError as error:
        raise OutputNotWritableError(f"{uri}: not a plan: {error}") from None


async def _find_files(storage: Storage, uris: Iterable[str], form: InputFormat) -> list[File]:
    """The files that URIs name, in their order; one that is named twice is there once."""
    entries: dict[str, Entry] = {}
    for uri in uris:
        for entry in await _expand(storage, _normalise(uri)):
            entries.setdefault(entry.uri, entry)
    slots = asyncio.Semaphore(_AT_A_TIME)

    async def look(entry: Entry) -> File:
        async with slots:
            return await _look(storage, entry, form)

    return list(await asyncio.gather(*map(look, entries.values())))


def _normalise(uri: str) -> str:
    """A file's URI with its path encoded, as listings tell it."""
    path = uri.removeprefix("file://")
    return uri if path == uri else f"file://{quote(unquote(path), safe='/*')}"


async def _expand(storage: Storage, uri: str) -> list[Entry]:
    pattern = split_pattern(uri)
    try:
        if pattern is None:
            return [await storage.head(uri)]
        if uri.startswith("http"):
            raise InputInvalidError(f"{uri}: a web server does not list: name each file")
        folder, wanted = pattern
        found = [entry for entry in await storage.list_folder(folder) if wanted.fullmatch(entry.uri)]
    except FileNotFoundError as error:
        raise InputNotFoundError(str(error)) from None
    except RefusedError as error:
        raise InputInvalidError(str(error)) from None
    if not found:
        raise InputNotFoundError(f"{uri}: no file matches")
    return found


async def _look(storage: Storage, entry: Entry, form: InputFormat) -> File:
    """What a file is its first bytes tell, and no name."""
    head = await _read(storage, entry, 0, _HEAD_BYTES)
    gzip = head.startswith(_GZIP_MAGIC)
    if encoding := find_wide_encoding(_unpack(head) if gzip else head):
        raise InputInvalidError(f"{entry.uri}: it is {encoding}, which is not supported: save it as UTF-8")
    whole = form == "csv" and not gzip and await _has_quotes(storage, entry)
    return File(entry.uri, entry.size, entry.tag, gzip=gzip, whole=whole)


def _unpack(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(GZIP).decompress(head, ENCODING_BYTES)
    except zlib.error:
        return b""  # its reader will tell


async def _has_quotes(storage: Storage, entry: Entry) -> bool:
    """Whether a newline may be inside of a field. Of a file that has quotes, most often the first block tells."""
    for start in range(0, entry.size, BLOCK_BYTES):
        if b'"' in await _read(storage, entry, start, start + BLOCK_BYTES):
            return True
    return False


async def _read(storage: Storage, entry: Entry, start: int, end: int) -> bytes:
    if start >= entry.size:
        return b""
    try:
        return (await storage.read(entry.uri, start, min(end, entry.size))).data
    except FileNotFoundError as error:
        raise InputNotFoundError(str(error)) from None
    except RefusedError as error:
        raise InputInvalidError(str(error)) from None
