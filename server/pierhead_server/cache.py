"""Whole copies of artifacts in one folder, which several processes may use at once.

`<key>/` is a whole copy, `incoming-*/` one that is being made. Who makes or uses one holds a lock (flock) on its
folder. The lock ends with its process, however that ends: what bears no lock is in nobody's use, and a folder that a
killed process left behind is known by that.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_INCOMING = "incoming-"
# The folder may hold other things than ours: only these names are ever removed.
_COPY = re.compile(r"(sha256|listing)-[0-9a-f]{64}")


def make_key(kind: str, hexadecimal: str) -> str:
    """The name of a copy: of `sha256`, its own digest, or of `listing`, a hash of what storage says of it."""
    key = f"{kind}-{hexadecimal}"
    assert _COPY.fullmatch(key), key
    return key


class Cache:
    """The copies in one folder. Every method raises OSError where the disk does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: dict[Path, int] = {}  # file descriptors; open, and with them the locks, until the process ends

    def use(self, key: str) -> Path | None:
        """The whole copy of this key, which nobody removes as long as this process lives; None where there is none."""
        if not self._folder.exists():
            return None
        with self._alone():
            return self._use(self._folder / key)

    def begin(self) -> Path:
        """A new empty folder for a copy; what killed processes left of theirs is removed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._remove_unused(self._folder.glob(f"{_INCOMING}*"))
            incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._folder))
            self._lock(incoming, fcntl.LOCK_EX)
            return incoming

    def finish(self, incoming: Path, key: str) -> Path:
        """Make a whole copy of what `begin` gave; the one that is there already wins."""
        with self._alone():
            there = self._use(self._folder / key)
            if there is not None:
                self._abandon(incoming)
                return there
            # A rename: half a copy never bears a key.
            copy = incoming.rename(self._folder / key)
            self._locks[copy] = self._locks.pop(incoming)
            fcntl.flock(self._locks[copy], fcntl.LOCK_SH)
            return copy

    def abandon(self, folder: Path) -> None:
        """Remove what `begin` gave, or a copy that turned out to be spoilt, once nobody uses it."""
        with self._alone():
            self._abandon(folder)

    def remove_unused(self) -> None:
        """Make room: remove the copies that nobody uses."""
        with self._alone():
            self._remove_unused(path for path in self._folder.iterdir() if _COPY.fullmatch(path.name))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process looks at the folder meanwhile. For moments only: never while something is copied."""
        lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _use(self, copy: Path) -> Path | None:
        if not copy.is_dir():
            return None
        if copy not in self._locks:
            self._lock(copy, fcntl.LOCK_SH)
        return copy

    def _lock(self, folder: Path, how: int) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._locks[folder] = descriptor
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)

    def _abandon(self, folder: Path) -> None:
        os.close(self._locks.pop(folder))
        if not folder.name.startswith(_INCOMING):
            # Away from its name at once, whoever may still use it.
            folder = folder.rename(tempfile.mkdtemp(prefix=_INCOMING, dir=self._folder))
        self._remove_unused([folder])

    def _remove_unused(self, folders: "Iterator[Path] | list[Path]") -> None:
        for folder in folders:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # in use
            else:
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
