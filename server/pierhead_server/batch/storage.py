"""All I/O with storage: by URI, retried with back-off, of any size with bounded memory.

Writes are atomic: an object is there whole or not at all, and `create` makes it only where there is none.
"""

import asyncio
import logging
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from pierhead_server.batch.errors import OutputNotWritableError, StorageUnreachableError
from pierhead_server.fetch import first_line, open_store

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode
    from obstore.store import ObjectStore

    from pierhead_server.batch.pulse import Pulse

logger = logging.getLogger(__name__)

ROUNDS = 5  # of a request that obstore has retried by itself already
FIRST_BACKOFF_SECONDS = 1.0  # doubled for each round
VOLUMES = "/pierhead/pvc"  # where the operator mounts the claims that `pvc://` URIs name

_WRITER_BYTES = 8 * 1024 * 1024
_WRITES = 2  # of those at a time
_UPLOAD_SECONDS = 60.0
_NOT_FOUND, _PRECONDITION_FAILED = 404, 412
_LOCAL_REFUSALS = ("(os error 1)", "(os error 13)", "(os error 30)")  # EPERM, EACCES, EROFS
_NO_BUCKET = "status code: 404 Not Found"  # which obstore knows of an object alone, and of a listing not

T = TypeVar("T")


class RefusedError(Exception):
    """Storage answers, and not to us; or it cannot do what is asked."""


@dataclass(frozen=True)
class Block:
    """Some bytes of an object, and which object they are of."""

    data: bytes
    size: int  # of the whole object
    tag: str | None


@dataclass(frozen=True)
class Entry:
    """An object in a listing."""

    uri: str
    size: int
    tag: str | None


class Sink(Protocol):
    """What takes an object's bytes."""

    def write(self, data: bytes, /) -> object:
        """Some more of them."""
        ...


@dataclass(frozen=True)
class _Place:
    """Where an object lies: a store, and a path in it."""

    store: "ObjectStore"
    path: str
    root: str  # what a path of this store gets before it to be a URI
    inside: str = ""  # what it loses before that
    encoded: bool = False  # whether its URIs hold paths in URIs' encoding

    def name(self, path: str) -> str:
        """The URI of a path in this store."""
        path = path.removeprefix(self.inside)
        return f"{self.root}{quote(path) if self.encoded else path}"


class Storage:
    """Objects by their URIs. Reading raises FileNotFoundError, RefusedError and StorageUnreachableError.

    Writing raises OutputNotWritableError and StorageUnreachableError.
    """

    def __init__(self, emulator: str | None, pulse: "Pulse", volumes: str = VOLUMES) -> None:
        self._emulator = emulator
        self._pulse = pulse
        self._volumes = volumes
        self._stores: dict[str, ObjectStore] = {}

    def _locate(self, uri: str) -> _Place:
        scheme, _, rest = uri.partition("://")
        if scheme == "file":
            return _Place(self._open("file:///"), unquote(urlsplit(uri).path), "file:///", encoded=True)
        if scheme == "pvc":
            inside = f"{self._volumes}/".lstrip("/")
            return _Place(self._open("file:///"), inside + rest, "pvc://", inside)
        bucket, _, path = rest.partition("/")
        root = f"{scheme}://{bucket}"
        return _Place(self._open(root), path, f"{root}/")

    def _open(self, root: str) -> "ObjectStore":
        if root not in self._stores:
            self._stores[root] = open_store(root, self._emulator)
        return self._stores[root]

    async def _try(self, uri: str, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer to a request that may be asked again and again."""
        for attempt in range(ROUNDS):
            try:
                answer = await ask()
            except (PermissionDeniedError, UnauthenticatedError, NotSupportedError, InvalidPathError) as error:
                raise RefusedError(f"{uri}: {first_line(error)}") from None
            except BaseError as error:
                cause = first_line(error)
                if any(refusal in cause for refusal in _LOCAL_REFUSALS):
                    raise RefusedError(f"{uri}: {cause}") from None
                if _NO_BUCKET in cause:
                    raise FileNotFoundError(f"{uri}: no such bucket") from None
            except FileNotFoundError:
                raise FileNotFoundError(f"{uri}: nothing is there") from None
            except OSError as error:  # of the emulator
                cause = first_line(error)
            else:
                self._pulse.beat()
                return answer
            logger.warning("%s: %s", uri, cause)
            if attempt < ROUNDS - 1:
                self._pulse.count_retry()
                await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2**attempt)
        raise StorageUnreachableError(f"{uri}: {cause}")

    async def head(self, uri: str) -> Entry:
        """An object's size and tag."""
        place = self._locate(uri)
        meta = await self._try(uri, lambda: place.store.head_async(place.path))
        return Entry(uri, meta["size"], _read_tag(meta))

    async def read(self, uri: str, start: int, end: int) -> Block:
        """The bytes [start, end) of an object, or fewer where it ends before; start lies in it."""
        place = self._locate(uri)

        async def ask() -> Block:
            answer = await place.store.get_async(place.path, options={"range": (start, end)})
            return Block(bytes(await answer.bytes_async()), answer.meta["size"], _read_tag(answer.meta))

        return await self._try(uri, ask)

    async def read_all(self, uri: str, admit: Callable[[int], Awaitable[None]] | None = None) -> bytes:
        """A whole object; its size is admitted before its bytes are read."""
        place = self._locate(uri)
        admitted = False

        async def ask() -> bytes:
            nonlocal admitted
            answer = await place.store.get_async(place.path)
            if admit and not admitted:
                await admit(answer.meta["size"])
                admitted = True
            return bytes(await answer.bytes_async())

        return await self._try(uri, ask)

    async def list_folder(self, folder: str) -> list[Entry]:
        """What lies in a folder, at any depth, by name; nothing where there is none."""
        place = self._locate(folder)

        async def ask() -> list[Entry]:
            found = []
            async for page in place.store.list(place.path.strip("/")):
                found += [Entry(place.name(meta["path"]), meta["size"], _read_tag(meta)) for meta in page]
            return found

        return sorted(await self._try(folder, ask), key=lambda entry: entry.uri)

    async def create(self, uri: str, data: bytes) -> bool:
        """Make an object; False, and nothing is changed, where there is one."""
        return await self._put(uri, data, create=True)

    async def replace(self, uri: str, data: bytes) -> None:
        """Make an object, or make it another."""
        await self._put(uri, data, create=False)

    async def _put(self, uri: str, data: bytes, *, create: bool) -> bool:
        place = self._locate(uri)

        async def ask() -> bool:
            if emulated := self._emulated(uri):
                return await asyncio.to_thread(emulated.upload, data, create=create)
            try:
                mode: PutMode = "create" if create else "overwrite"
                await place.store.put_async(place.path, data, mode=mode, use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

        try:
            return await self._try(uri, ask)
        except FileNotFoundError:
            raise OutputNotWritableError(f"{uri}: no such bucket") from None
        except RefusedError as error:
            raise OutputNotWritableError(str(error)) from None

    async def delete(self, uris: list[str]) -> None:
        """Remove objects of one bucket; one that is not there is removed."""
        if not uris:
            return
        places = [self._locate(uri) for uri in uris]

        async def ask() -> None:
            with suppress(FileNotFoundError):
                await places[0].store.delete_async([place.path for place in places])

        try:
            await self._try(uris[0], ask)
        except RefusedError as error:
            raise OutputNotWritableError(str(error)) from None

    def _emulated(self, uri: str) -> "_Emulated | None":
        return _Emulated(self._emulator, uri) if self._emulator and uri.startswith("gs://") else None

    @contextmanager
    def writer(self, uri: str) -> Iterator[Sink]:
        """An object of any size, there when the block ends without an error. Blocks: not for the event loop."""
        place = self._locate(uri)
        try:
            if emulated := self._emulated(uri):
                with tempfile.TemporaryFile() as file:
                    yield file
                    file.seek(0)
                    emulated.upload(file, create=False)
                return
            sink = obstore.open_writer(place.store, place.path, buffer_size=_WRITER_BYTES, max_concurrency=_WRITES)
            yield sink
            sink.close()  # after an error it is not, and so nothing is there
        except FileNotFoundError:
            raise OutputNotWritableError(f"{uri}: no such bucket") from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise OutputNotWritableError(f"{uri}: {first_line(error)}") from None
        except (BaseError, OSError) as error:
            raise StorageUnreachableError(f"{uri}: {first_line(error)}") from None
        self._pulse.beat()


@dataclass(frozen=True)
class _Emulated:
    """An object of a Cloud Storage emulator, which takes uploads by the JSON API alone."""

    address: str
    uri: str

    def upload(self, data: bytes | IO[bytes], *, create: bool) -> bool:
        """False where there is one that should not be. Raises FileNotFoundError, OSError."""
        bucket, _, path = self.uri.removeprefix("gs://").partition("/")
        query = f"uploadType=media&name={quote(path, safe='')}" + ("&ifGenerationMatch=0" if create else "")
        request = urllib.request.Request(  # noqa: S310 - the settings allow http and https
            f"{self.address}/upload/storage/v1/b/{quote(bucket)}/o?{query}",
            data=data,
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(_measure(data))},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=_UPLOAD_SECONDS) as answer:  # noqa: S310 - as above
                answer.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code == _PRECONDITION_FAILED and create:
                    return False
                if error.code == _NOT_FOUND:
                    raise FileNotFoundError(self.uri) from None
                raise OSError(f"the emulator answers {error.code}") from None
        return True


def _read_tag(meta: "ObjectMeta") -> str | None:
    """The e-tag: some storages quote it in an answer's header and not in a listing."""
    tag = meta["e_tag"]
    return tag.strip('"') if tag else None


def _measure(data: bytes | IO[bytes]) -> int:
    return len(data) if isinstance(data, bytes) else os.fstat(data.fileno()).st_size
