"""Put an artifact on this machine's disk: from storage into a cache folder, whole or not at all. No torch.

A download takes `_WORKERS` ranges at a time, of one file or of several, each streamed to its place on disk. So it
holds a few chunks for each of them, 35 MB in all (seen), whatever the artifact's size.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

from pierhead_server.artifact import check_links, compute_digest, verify_digest
from pierhead_server.cache import Cache, make_key
from pierhead_server.config import MAX_MODEL_FILE_BYTES, MODEL_FILE, ModelConfig, check_inside, parse_config
from pierhead_server.errors import (
    ArtifactInvalidError,
    ArtifactNotFoundError,
    ArtifactUnreachableError,
    StartupError,
)

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ClientConfig, GCSCredential, ObjectStore, RetryConfig

logger = logging.getLogger(__name__)

MAX_RETRIES = 4  # of a request; with back-off about three seconds, more where storage does not answer at all
MAX_BREAKS = 5  # of the answers to one range's requests, which go on where the last one broke off
PROGRESS_SECONDS = 5.0

_WORKERS = 8
_RANGE_BYTES = 16 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_MEGABYTE = 1_000_000


def fetch_artifact(
    uri: str,
    cache: Cache,
    *,
    emulator: str | None,
    max_bytes: int | None,
    digest: str | None = None,
    on_download: Callable[[ModelConfig], object] = lambda _: None,
) -> Path:
    """Put the artifact on this machine's disk, with this digest where one is given, and return its folder.

    `on_download` is told what comes, where there is no copy of it yet.

    `file://` is read where it is; everything else is copied into the cache, where a copy that an earlier start or
    another process made is taken if it is provably the same. Blocks: not for the event loop.
    Raises ArtifactNotFoundError, ArtifactInvalidError, ArtifactUnreachableError.
    """
    if uri.startswith("file://"):
        folder = Path(unquote(urlsplit(uri).path))
        if not folder.is_dir():
            raise ArtifactNotFoundError(f"{uri}: no such folder")
        if digest is not None:
            verify_digest(folder, digest)
        return folder
    # Imported here: a folder on disk needs no storage client.
    from obstore.exceptions import BaseError

    try:
        return _Source(uri, open_store(uri, emulator), max_bytes, on_download).fetch(cache, digest)
    except BaseError as error:
        raise ArtifactUnreachableError(f"{uri}: {first_line(error)}") from None
    except OSError as error:  # no space, or no right to write; or a file that vanished meanwhile
        raise ArtifactUnreachableError(f"{uri}: copying it to {cache.folder} failed: {first_line(error)}") from None


def open_store(uri: str, emulator: str | None) -> "ObjectStore":
    """The storage of an address. Its credentials come from the environment, as each cloud's own clients take them."""
    from obstore.store import GCSStore, from_url

    options: ClientConfig = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "6h"}
    retry: RetryConfig = {
        "max_retries": MAX_RETRIES,
        "retry_timeout": timedelta(seconds=20),
        "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=2), "base": 2},
    }
    if not uri.startswith("gs://"):
        # Of use only where the environment names an http endpoint (AWS_ENDPOINT_URL): the clouds' own are https.
        return from_url(uri, client_options=options | {"allow_http": True}, retry_config=retry)
    if emulator is None:
        return GCSStore.from_url(uri, client_options=options, retry_config=retry)
    # The client speaks Cloud Storage's XML API, which fake-gcs-server answers under its public host's name alone.
    options |= {"allow_http": True, "default_headers": {"host": "storage.googleapis.com"}}
    return GCSStore.from_url(
        uri,
        config={"base_url": emulator, "skip_signature": True},
        # Deleting would look for credentials in spite of it, and wait for Google's.
        credential_provider=_give_emulators_credential,
        client_options=options,
        retry_config=retry,
    )


def _give_emulators_credential() -> "GCSCredential":
    return {"token": "emulator", "expires_at": None}


@dataclass(frozen=True)
class _Object:
    """One line of storage's listing; its name relative to the artifact's address."""

    name: str
    size: int
    tag: str | None  # the e-tag: another one for another content


@dataclass(frozen=True)
class _Source:
    """One artifact in storage."""

    uri: str
    store: "ObjectStore"
    max_bytes: int | None
    on_download: Callable[[ModelConfig], object]

    def fetch(self, cache: Cache, digest: str | None) -> Path:
        """A whole copy of it."""
        if digest is not None:
            # Before storage is asked for anything.
            copy = self._reuse(cache, _make_key(self.uri, [], digest), lambda copy: compute_digest(copy) == digest)
            if copy is not None:
                return copy
        # Before all else: a missing or wrong model.yaml is known before gigabytes of weights are copied.
        config = self._read_model_file()
        listing = self._list()
        key = _make_key(self.uri, listing, digest)
        while (incoming := cache.begin(key)) is None:
            copy = self._reuse(
                cache, key, lambda copy: compute_digest(copy) == digest if digest else _has_sizes(copy, listing)
            )
            if copy is not None:
                return copy
        self.on_download(config)
        try:
            cache.make_room(sum(entry.size for entry in listing))
            _Download(self.store, incoming, listing).run()
            if digest is not None:
                verify_digest(incoming, digest)
            elif listing != self._list():
                raise ArtifactUnreachableError(f"{self.uri}: it changed while it was copied")
        except BaseException:
            cache.abandon(incoming)
            raise
        return cache.finish(incoming)

    def _reuse(self, cache: Cache, key: str, is_sound: Callable[[Path], bool]) -> Path | None:
        """The copy of an earlier start, or of another process."""
        copy = cache.use(key)
        if copy is None:
            return None
        if not _is_sound(copy, is_sound):
            logger.warning("the copy in %s is spoilt: fetching %s again", copy, self.uri)
            cache.abandon(copy)
            return None
        logger.info("%s did not change since it was copied to %s: not fetched again", self.uri, copy)
        cache.make_room()
        return copy

    def _read_model_file(self) -> ModelConfig:
        try:
            content = self.store.get(MODEL_FILE)
        except FileNotFoundError:
            raise self._missing_model_file() from None
        if content.meta["size"] > MAX_MODEL_FILE_BYTES:
            raise ArtifactInvalidError(
                f"{MODEL_FILE}: larger than {MAX_MODEL_FILE_BYTES} bytes: put labels into a file"
            )
        return parse_config(bytes(content.bytes()))

    def _missing_model_file(self) -> StartupError:
        from obstore.exceptions import BaseError

        try:
            somewhat = next(iter(self.store.list(chunk_size=1)), [])
        except (BaseError, FileNotFoundError):
            # Storage answered for the file, so it can be reached: of a missing bucket the list alone is an error.
            somewhat = []
        if somewhat:
            return ArtifactInvalidError(f"{MODEL_FILE}: missing under {self.uri}: every artifact needs one")
        return ArtifactNotFoundError(f"{self.uri}: nothing is there: check the bucket and the path")

    def _list(self) -> list[_Object]:
        """The artifact's files, sorted by name. Raises ArtifactInvalidError."""
        found = [
            _Object(str(entry["path"]), int(entry["size"]), entry["e_tag"])
            for chunk in self.store.list()
            for entry in chunk
        ]
        total, names = sum(entry.size for entry in found), {entry.name for entry in found}
        if self.max_bytes is not None and total > self.max_bytes:
            raise ArtifactInvalidError(
                f"{self.uri}: {total} bytes are more than PIERHEAD_MAX_ARTIFACT_BYTES, {self.max_bytes}"
            )
        parents = {parent for name in names for parent in _parents(name)}
        files = []
        for entry in found:
            # Consoles make "folders": empty objects whose name is the prefix of others.
            if entry.size == 0 and (not entry.name or entry.name in parents):
                continue
            try:
                check_inside(entry.name)
            except ValueError as error:
                raise ArtifactInvalidError(f"{entry.name!r}: {error}") from None
            files.append(entry)
        return sorted(files, key=lambda entry: entry.name)


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _make_key(uri: str, listing: list[_Object], digest: str | None) -> str:
    """The copy's name in the cache: the same only for the same content."""
    if digest is not None:
        return make_key("sha256", digest.removeprefix("sha256:"))
    if not all(entry.tag for entry in listing):
        return make_key("once", secrets.token_hex(32))  # nothing tells one content from another: never taken again
    told = [_read_boot(), uri, *([entry.name, entry.size, entry.tag] for entry in listing)]
    return make_key("listing", hashlib.sha256(json.dumps(told).encode()).hexdigest())


def _read_boot() -> str:
    """This start of the machine: of an earlier one, files may have their size and not yet their bytes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # a sandbox without it, whose disks do not outlive it either
        return ""


def _is_sound(copy: Path, check: Callable[[Path], bool]) -> bool:
    """Whether a copy passes a check, and no link leads out of it: who put one there would have another file read."""
    try:
        check_links(copy)
        return check(copy)
    except ArtifactInvalidError:
        return False


def _has_sizes(copy: Path, listing: list[_Object]) -> bool:
    paths = ((copy / entry.name, entry.size) for entry in listing)
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


class _Download:
    """The objects of a listing on their way into a folder."""

    def __init__(self, store: "ObjectStore", folder: Path, listing: list[_Object]) -> None:
        self._store = store
        self._folder = folder
        self._sizes = {entry.name: entry.size for entry in listing}
        self._tags: dict[str, str | None] = {}  # of each object's first answer; the others must have the same
        self._lock = threading.Lock()  # of the tags and the count
        self._stopped = threading.Event()
        self._copied = 0

    def run(self) -> None:
        """Copy all. Raises BaseError of obstore, OSError, ArtifactUnreachableError."""
        for name, size in self._sizes.items():
            _allocate(self._folder / name, size)
        start = time.monotonic()
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="fetch") as pool:
            try:
                self._watch({pool.submit(self._copy, *part) for part in self._parts()}, start)
            finally:
                # After an error: what is under way ends at its next chunk, the rest never begins.
                self._stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
        self._log_progress(start)

    def _parts(self) -> Iterator[tuple[str, int, int]]:
        for name, size in self._sizes.items():
            for start in range(0, size, _RANGE_BYTES):
                yield name, start, min(start + _RANGE_BYTES, size)

    def _watch(self, pending: set[Future[None]], start: float) -> None:
        while pending:
            finished, pending = wait(pending, timeout=PROGRESS_SECONDS, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            if pending:
                self._log_progress(start)

    def _log_progress(self, start: float) -> None:
        seconds = max(time.monotonic() - start, 1e-9)
        total = sum(self._sizes.values())
        logger.info("fetched %d of %d bytes, %.0f MB/s", self._copied, total, self._copied / _MEGABYTE / seconds)

    def _copy(self, name: str, start: int, end: int) -> None:
        """One range of an object, to its place in the file."""
        from obstore.exceptions import BaseError

        cause = ""
        with (self._folder / name).open("r+b") as file:
            file.seek(start)
            for attempt in range(MAX_BREAKS + 1):
                stream = self._open(name, file.tell(), end).stream(min_chunk_size=_CHUNK_BYTES)
                try:
                    for chunk in stream:
                        if self._stopped.is_set():
                            return
                        self._write(file, chunk, name, end)
                except BaseError as error:
                    cause = first_line(error)
                else:
                    cause = "the answer ended too early"
                if file.tell() == end:
                    return
                logger.warning("%s broke off at byte %d: %s", name, file.tell(), cause)
                self._stopped.wait(min(0.1 * 2**attempt, 2.0))
        raise ArtifactUnreachableError(f"{name}: broke off {MAX_BREAKS + 1} times: {cause}")

    def _open(self, name: str, start: int, end: int) -> "GetResult":
        """The answer with these bytes. A request that fails is tried again by obstore, and its error is the last."""
        size = self._sizes[name]
        whole = (start, end) == (0, size)
        answer = self._store.get(name) if whole else self._store.get(name, options={"range": (start, end)})
        with self._lock:
            first = self._tags.setdefault(name, answer.meta["e_tag"])
        if answer.meta["e_tag"] != first or answer.meta["size"] != size:
            raise _changed(name)
        return answer

    def _write(self, file: BinaryIO, chunk: bytes, name: str, end: int) -> None:
        if file.tell() + len(chunk) > end:
            raise _changed(name)
        file.write(chunk)
        with self._lock:
            self._copied += len(chunk)


def _changed(name: str) -> ArtifactUnreachableError:
    return ArtifactUnreachableError(f"{name}: it changed while it was copied")


def _allocate(path: Path, size: int) -> None:
    """A file of this size: a disk that is too small says so before anything is copied."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)


def first_line(error: Exception) -> str:
    """Without what follows a `?`: the query of a signed address is a secret."""
    return re.sub(r"\?\S*", "", str(error).split("\n", 1)[0]).strip()
