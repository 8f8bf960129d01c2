"""Make a job's plan, or take the one that another worker made before."""

import asyncio
import logging
from collections.abc import Iterable
from urllib.parse import quote, unquote

import msgspec

from pierhead_server.batch.document import Task
from pierhead_server.batch.errors import InputInvalidError, InputNotFoundError, OutputNotWritableError
from pierhead_server.batch.plan import File, Plan, split_pattern
from pierhead_server.batch.storage import Entry, RefusedError, Storage

logger = logging.getLogger(__name__)

_GZIP_MAGIC = b"\x1f\x8b"
_AT_A_TIME = 16  # files that are looked into


async def pin_plan(storage: Storage, task: Task, version: str) -> Plan:
    """The plan of the job's folder, made if there is none; `version` names the model's.

    Raises InputNotFoundError, InputInvalidError, OutputNotWritableError, StorageUnreachableError.
    """
    uri = f"{task.folder}/.pierhead/plan.json"
    job = _describe(task, version)
    plan = await _read_plan(storage, uri)
    if plan is None:
        made = Plan(await _find_files(storage, task.document.input_uris), task.document.shards, job)
        if await storage.create(uri, made.encode()):
            logger.info("planned %d files in %d shards", len(made.files), made.shards)
            return made
        plan = await _read_plan(storage, uri)
    if plan is None or plan.job != job:
        raise OutputNotWritableError(f"{task.folder}: it holds the output of another job: name another folder")
    return plan


def _describe(task: Task, version: str) -> dict[str, object]:
    told = task.document.model_dump(mode="json", by_alias=True, exclude={"batch_size", "output_uri"})
    return told | {"modelVersionId": version}


async def _read_plan(storage: Storage, uri: str) -> Plan | None:
    try:
        return Plan.decode(await storage.read_all(uri))
    except FileNotFoundError:
        return None
    except RefusedError as error:
        raise OutputNotWritableError(str(error)) from None
    except msgspec.DecodeError as error:
        raise OutputNotWritableError(f"{uri}: not a plan: {error}") from None


async def _find_files(storage: Storage, uris: Iterable[str]) -> list[File]:
    """The files that URIs name, in their order; one that is named twice is there once."""
    entries: dict[str, Entry] = {}
    for uri in uris:
        for entry in await _expand(storage, _normalise(uri)):
            entries.setdefault(entry.uri, entry)
    slots = asyncio.Semaphore(_AT_A_TIME)

    async def look(entry: Entry) -> File:
        async with slots:
            return await _look(storage, entry)

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


async def _look(storage: Storage, entry: Entry) -> File:
    """Whether it is a gzip file its first bytes tell, and no name."""
    magic = b""
    if entry.size >= len(_GZIP_MAGIC):
        try:
            magic = (await storage.read(entry.uri, 0, len(_GZIP_MAGIC))).data
        except FileNotFoundError as error:
            raise InputNotFoundError(str(error)) from None
        except RefusedError as error:
            raise InputInvalidError(str(error)) from None
    return File(entry.uri, entry.size, entry.tag, gzip=magic == _GZIP_MAGIC)
