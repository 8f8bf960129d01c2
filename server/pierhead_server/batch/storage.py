"""All I/O with storage: by URI, retried with back-off, of any size with bounded memory.

Writes are atomic: an object is there whole or not at all, and `create` makes it only where there is none.
"""

import asyncio
import errno
import logging
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import quote, unquote

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from pierhead_server.batch.allowed import WEB, Allowed
from pierhead_server.batch.errors import (
    MalformedError,
    OutputNotWritableError,
    RefusedError,
    StorageUnreachableError,
)
from pierhead_server.batch.web import Web
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
_MOST_STORES = 64  # that are kept open: a line may name any bucket
_LOCAL = "LocalFileSystem error"
# What a file system says of itself, and not of a path: another try may help.
_LOCAL_TROUBLES = {
    *(errno.EINTR, errno.EIO, errno.EAGAIN, errno.ENOMEM, errno.EBUSY, errno.ENFILE, errno.EMFILE, errno.ENOSPC),
    *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ESTALE, errno.EREMOTEIO, errno.EDQUOT),
}
_NO_BUCKET = "status code: 404 Not Found"  # which obstore knows of an object alone, and of a listing not
_OUT_OF_RANGE = "Requested range was invalid"  # of a file that has become shorter
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
# What storage says of a request that it will never take: a bucket's or an object's name is wrong.
_STATUS = re.compile(r"status code: (400|405|414|451)\b")
_EXPIRED = "ExpiredToken"  # which is 400, too, and passes
_REDIRECT = "Received redirect"  # which storage sends for a bucket of another region

T = TypeVar("T")


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

    Writing raises OutputNotWritableError and StorageUnreachableError. An address that is not `allowed` is refused.
    """

    def __init__(self, emulator: str | None, pulse: "Pulse", allowed: Allowed, volumes: str = VOLUMES) -> None:
        self._emulator = emulator
        self._pulse = pulse
        self._allowed = allowed
        self._volumes = volumes
        self._web = Web(allowed)
        self._stores: OrderedDict[str, ObjectStore] = OrderedDict()

    def _locate(self, uri: str) -> _Place:
        """Raises RefusedError."""
        scheme, _, rest = uri.partition("://")
        try:
            refused = self._allowed.explain(uri)
        except ValueError as error:
            raise MalformedError(f"{uri}: {error}") from None
        if refused:
            raise RefusedError(f"{uri}: {refused}")
        if scheme == "file":
            return _Place(self._open("file:///"), unquote(rest), "file:///", encoded=True)
        if scheme == "pvc":
            inside = f"{self._volumes}/".lstrip("/")
            self._check_links(uri, rest)
            return _Place(self._open("file:///"), inside + rest, "pvc://", inside)
        bucket, _, path = rest.partition("/")
        root = f"{scheme}://{bucket}"
        return _Place(self._open(root), path, f"{root}/")

    def _check_links(self, uri: str, path: str) -> None:
        """A link in a claim may lead anywhere: to the worker's own files, too. Raises RefusedError."""
        claim = Path(self._volumes, path.partition("/")[0]).resolve()
        try:
            found = Path(self._volumes, path).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a name with a zero byte; links in a circle
            raise MalformedError(f"{uri}: {error}") from None
        if not found.is_relative_to(claim):
            raise RefusedError(f"{uri}: a link leads out of the claim")

    def _open(self, root: str) -> "ObjectStore":
        if root not in self._stores:
            try:
                self._stores[root] = open_store(root, self._emulator)
            except (BaseError, ValueError) as error:  # such as of a scheme that has no account in the environment
                raise RefusedError(f"{root}: {first_line(error)}") from None
            if len(self._stores) > _MOST_STORES:
                self._stores.popitem(last=False)
        self._stores.move_to_end(root)
        return self._stores[root]

    async def _try(self, uri: str, ask: Callable[[], Awaitable[T]], rounds: int = ROUNDS) -> T:
        """The answer to a request that may be asked again and again."""
        for attempt in range(rounds):
            try:
                answer = await ask()
            except (PermissionDeniedError, UnauthenticatedError, NotSupportedError) as error:
                raise RefusedError(f"{uri}: {first_line(error)}") from None
            except (InvalidPathError, ValueError) as error:
                raise MalformedError(f"{uri}: {first_line(error)}") from None
            except BaseError as error:
                cause = first_line(error)
                if _NO_BUCKET in cause:
                    raise FileNotFoundError(f"{uri}: no such bucket") from None
                if _is_refusal(cause) and _EXPIRED not in str(error):
                    raise RefusedError(f"{uri}: {cause}") from None
            except FileNotFoundError:
                raise FileNotFoundError(f"{uri}: nothing is there") from None
            except (RefusedError, OSError) as error:  # of a web server, or of the emulator
                cause = first_line(error)
                if isinstance(error, RefusedError):
                    raise type(error)(f"{uri}: {cause}") from None
            else:
                self._pulse.beat()
                return answer
            logger.warning("%s: %s", _hide_query(uri), cause)
            if attempt < rounds - 1:
                self._pulse.count_retry()
                await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2**attempt)
        raise StorageUnreachableError(f"{uri}: {cause}")

    async def head(self, uri: str) -> Entry:
        """An object's size and tag."""
        if is_web(uri):
            answer = await self._try(uri, lambda: self._web.head(uri))
            if answer.size is None:
                raise RefusedError(f"{uri}: the server does not tell its size")
            return Entry(uri, answer.size, _strip_tag(answer.tag))
        place = self._locate(uri)
        meta = await self._try(uri, lambda: place.store.head_async(place.path))
        return Entry(uri, meta["size"], _read_tag(meta))

    async def read(self, uri: str, start: int, end: int) -> Block:
        """The bytes [start, end) of an object, or fewer where it ends before; start lies in it."""
        if is_web(uri):
            data, meta = await self._try(uri, lambda: self._web.get_range(uri, start, end))
            return Block(data, meta.size or 0, _strip_tag(meta.tag))
        place = self._locate(uri)

        async def ask() -> Block:
            answer = await place.store.get_async(place.path, options={"range": (start, end)})
            return Block(bytes(await answer.bytes_async()), answer.meta["size"], _read_tag(answer.meta))

        return await self._try(uri, ask)

    async def read_all(
        self, uri: str, admit: Callable[[int | None], Awaitable[int]] | None = None, rounds: int = ROUNDS
    ) -> bytes:
        """A whole object. Its size, None where nobody tells it, is admitted before its bytes are read.

        `admit` gives how many there may be. Of a web server's file it has to be there.
        """
        most: int | None = None

        async def enter(size: int | None) -> int:
            nonlocal most
            if most is None:  # one that is asked for again is admitted already
                most = await admit(size) if admit else size or 0
            return most

        async def ask_web() -> bytes:
            answer = await self._web.get(uri)
            try:
                return await answer.read(await enter(answer.meta.size))
            finally:
                answer.close()

        if is_web(uri):
            return await self._try(uri, ask_web, rounds)
        place = self._locate(uri)

        async def ask() -> bytes:
            answer = await place.store.get_async(place.path)
            if answer.meta["size"] > await enter(answer.meta["size"]):
                raise RefusedError("it was changed while it was read")
            return bytes(await answer.bytes_async())

        return await self._try(uri, ask, rounds)

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
            place = self._locate(uri)
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
        try:
            place = self._locate(uri)
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
        except (RefusedError, PermissionDeniedError, UnauthenticatedError) as error:
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
    return _strip_tag(meta["e_tag"])


def _strip_tag(tag: str | None) -> str | None:
    """The e-tag: some storages quote it in an answer's header and not in a listing."""
    return tag.strip('"') if tag else None


def is_web(uri: str) -> bool:
    """Whether a web server has it, and not a storage."""
    return uri.partition("://")[0] in WEB


def _is_refusal(cause: str) -> bool:
    """Whether an error tells of what was asked for, so that no other try helps."""
    if _LOCAL in cause:
        code = _OS_ERROR.search(cause)
        return int(code[1]) not in _LOCAL_TROUBLES if code else _OUT_OF_RANGE not in cause
    return bool(_STATUS.search(cause)) or _REDIRECT in cause


def _hide_query(uri: str) -> str:
    """The query of a signed address is a secret."""
    return uri.partition("?")[0] if is_web(uri) else uri


def _measure(data: bytes | IO[bytes]) -> int:
    return len(data) if isinstance(data, bytes) else os.fstat(data.fileno()).st_size
