"""Whole copies of artifacts in one folder, which several processes, and several pods of a node, may use at once.

`<key>/` is a whole copy, `incoming-<key>/` one that is being made, `removing-*/` one that is going. Who makes or uses
one holds a lock (flock) on its folder. The lock ends with its process, however that ends: what bears no lock is in
nobody's use, and a folder that a killed process left behind is known by that.
"""

import contextlib
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

_INCOMING = "incoming-"
_REMOVING = "removing-"
# The folder may hold other things than ours: only these names are ever removed.
_COPY = re.compile(r"(sha256|listing|once)-[0-9a-f]{64}")

_FOLDER_MODE, _FILE_MODE = 0o770, 0o660  # less the process's umask: nobody but the pods' own user and group may write


def make_key(kind: str, hexadecimal: str) -> str:
    """The name of a copy: of `sha256`, its own digest; of `listing`, a hash of what storage says of it.

    Of `once`, no more than a name: such a copy is for the process that made it.
    """
    key = f"{kind}-{hexadecimal}"
    assert _COPY.fullmatch(key), key
    return key


class Cache:
    """The copies in one folder. Every method raises OSError where the disk does."""

    def __init__(self, folder: Path, keep_bytes: int | None = None) -> None:
        self.folder = folder
        self._keep_bytes = keep_bytes  # of copies that nobody uses; None: as many as fit
        self._locks: dict[Path, int] = {}  # file descriptors; open, and with them the locks, until the process ends

    def use(self, key: str) -> Path | None:
        """The whole copy of this key, which nobody removes as long as this process lives; None where there is none."""
        if not self.folder.exists():
            return None
        copy = self.folder / key
        with self._alone():
            if not copy.is_dir():
                return None
            if copy not in self._locks:
                self._lock(copy, fcntl.LOCK_SH)
            os.utime(copy)
            return copy

    def begin(self, key: str) -> Path | None:
        """A new empty folder to make the copy of this key in; None where there is a copy by now.

        Blocks while another process makes it. What killed processes left is removed.
        """
        self.folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        incoming = self.folder / f"{_INCOMING}{key}"
        waited = False
        while True:
            with self._alone():
                if (self.folder / key).is_dir():
                    return None
                left = self._set_aside(list(self.folder.glob(f"{_INCOMING}*")))
                maker = _open(incoming) if incoming.exists() else None
                if maker is None:
                    incoming.mkdir(mode=_FOLDER_MODE)
                    self._lock(incoming, fcntl.LOCK_EX)
            _remove(left)
            self._finish_removals()
            if maker is None:
                return incoming
            if not waited:
                logger.info("another process is copying the same artifact into %s: waiting for it", self.folder)
            waited = True
            _wait_for(maker)

    def finish(self, incoming: Path) -> Path:
        """Make a whole copy of what `begin` gave."""
        with self._alone():
            # A rename: half a copy never bears a key.
            copy = incoming.rename(self.folder / incoming.name.removeprefix(_INCOMING))
            self._locks[copy] = self._locks.pop(incoming)
            os.utime(copy)
            fcntl.flock(self._locks[copy], fcntl.LOCK_SH)
            return copy

    def abandon(self, folder: Path) -> None:
        """Remove what `begin` gave, or a copy that turned out to be spoilt, once nobody uses it."""
        descriptor = self._locks.pop(folder)
        try:
            with self._alone():
                # Where another process found the same copy spoilt, a sound one may have taken its place.
                if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
                    return
                aside = self._rename_aside(folder)
            if _try_lock(descriptor):
                shutil.rmtree(aside, ignore_errors=True)
        finally:
            os.close(descriptor)

    def make_room(self, needed: int = 0) -> None:
        """Remove copies that nobody uses, until no more are left than shall be kept and `needed` bytes are free.

        Those go first whose last use is the longest ago.
        """
        with self._alone():
            idle: list[Path] = []
            for copy in self._copies():
                if _is_unused(copy):
                    idle.append(copy)
                else:
                    os.utime(copy)  # its last use is now
            idle.sort(key=lambda copy: copy.stat().st_mtime_ns)
            short = needed - shutil.disk_usage(self.folder).free
            surplus = choose_surplus([(copy, _measure(copy)) for copy in idle], self._keep_bytes, short)
            aside = self._set_aside(surplus)
        for copy in surplus:
            logger.info("removing %s, which nobody uses", copy)
        _remove(aside)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process looks at the folder meanwhile. For moments only: never while bytes are copied or removed."""
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, _FILE_MODE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _lock(self, folder: Path, how: int) -> None:
        descriptor = _open(folder)
        self._locks[folder] = descriptor
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)

    def _copies(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if _COPY.fullmatch(path.name)]

    def _set_aside(self, folders: Iterable[Path]) -> list[tuple[Path, int]]:
        """Take away the names of those folders that nobody uses, so that nobody finds them; and lock them.

        To remove them takes longer than other processes should wait.
        """
        aside = []
        for folder in folders:
            descriptor = _open(folder)
            if _try_lock(descriptor):
                aside.append((self._rename_aside(folder), descriptor))
            else:
                os.close(descriptor)
        return aside

    def _finish_removals(self) -> None:
        """What processes that ended were removing, and what was spoilt while others used it."""
        for folder in list(self.folder.glob(f"{_REMOVING}*")):
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                descriptor = _open(folder)
                try:
                    if _try_lock(descriptor):
                        shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)

    def _rename_aside(self, folder: Path) -> Path:
        return folder.rename(tempfile.mkdtemp(prefix=_REMOVING, dir=self.folder))


def choose_surplus(idle: Sequence[tuple[Path, int]], keep_bytes: int | None, short: int) -> list[Path]:
    """Which of the unused copies go: given with their sizes, the longest unused first; `short` bytes are missing."""
    kept = sum(size for _, size in idle)
    surplus = []
    # What nobody can take again goes first, and always.
    for copy, size in sorted(idle, key=lambda entry: not _is_once(entry[0])):
        if short > 0 or (keep_bytes is not None and kept > keep_bytes) or _is_once(copy):
            surplus.append(copy)
            kept -= size
            short -= size
    return surplus


def _is_once(copy: Path) -> bool:
    return copy.name.startswith("once-")


def _measure(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


def _wait_for(maker: int) -> None:
    """Until the process that makes what lies in this folder has ended, or is done."""
    try:
        fcntl.flock(maker, fcntl.LOCK_SH)
    finally:
        os.close(maker)


def _try_lock(descriptor: int) -> bool:
    """Lock a folder for this process alone, unless another one has a lock on it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_unused(folder: Path) -> bool:
    descriptor = _open(folder)
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _remove(aside: Iterable[tuple[Path, int]]) -> None:
    for folder, descriptor in aside:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
