"""The folder of compiled forms, which several processes, and several pods, may use at once.

`<key>/` is an entry. Who holds the lock (flock) on `<key>.lock` makes it, in a folder of its own that is renamed when
the entry is whole: half an entry never looks like one. Whose lock others do not see, as on some file systems of many
nodes, makes one that others make, too.
"""

import contextlib
import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pierhead_server.converted import NETWORK, ConversionError

logger = logging.getLogger(__name__)

TOUCH_SECONDS = 24 * 3600.0  # who uses an entry says so as often
_KEPT_SECONDS = 30 * TOUCH_SECONDS  # that an entry is there which nobody uses
_MOST_TRIES, _TRIED_SECONDS = 3, 24 * 3600.0  # how often makers may be killed at one entry, in which time each
_LEFT_SECONDS = 24 * 3600.0  # after which what somebody was making is what a killed process left
# The folder may hold other things than ours: only these names are ever removed.
_ENTRY = re.compile(r"[0-9a-f]{32}")
_LEFT = re.compile(r"[0-9a-f]{32}\.\w+\.(making|removing)|[0-9a-f]{32}\.tried")


def touch(entry: Path) -> None:
    """Tell that somebody uses it."""
    with contextlib.suppress(OSError):  # of folders that are only read
        os.utime(entry)


@contextlib.contextmanager
def alone(entry: Path) -> Iterator[None]:
    """Nobody else makes this entry meanwhile; waits where somebody does. Raises OSError."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with entry.with_suffix(".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def making(entry: Path) -> Iterator[Path]:
    """An empty folder that becomes the entry, for whoever is `alone` with it.

    Raises OSError, and ConversionError where those who made it before were killed time and again: for want of memory,
    with a pod that begins anew each time.
    """
    tried = entry.with_suffix(".tried")
    _count(tried)
    try:
        with _own_folder(entry, "making") as folder:
            made = folder / entry.name
            made.mkdir()
            yield made
            made.rename(entry)
    finally:
        tried.unlink(missing_ok=True)


def _count(tried: Path) -> None:
    """One more byte for one more try, which stays there where its process is killed."""
    with contextlib.suppress(FileNotFoundError):
        if _is_older(tried.stat(), _TRIED_SECONDS):
            tried.unlink()
    with tried.open("ab") as file:
        if file.tell() >= _MOST_TRIES:
            raise ConversionError(
                f"the last {file.tell()} processes that made the compiled form were killed, most likely for want of"
                f" memory: give the server more, and remove {tried}"
            )
        file.write(b".")


def forgive(entry: Path) -> None:
    """Whoever made it was ended in good order: it does not count. Nothing where somebody else makes it."""
    with contextlib.suppress(OSError), entry.with_suffix(".lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tried = entry.with_suffix(".tried")
        os.truncate(tried, max(0, tried.stat().st_size - 1))


def remove(entry: Path) -> None:
    """Remove an entry that is none. Raises OSError."""
    with _own_folder(entry, "removing") as folder:
        entry.rename(folder / entry.name)  # nobody finds half of it


def remove_unused(folder: Path) -> None:
    """Remove the entries that nobody has used for a month: of other versions, CPUs and models.

    What killed processes left of them goes, too.
    """
    for path in list(folder.iterdir()):
        try:
            _remove_unused(path)
        except OSError as error:  # of one, which is no reason to keep the others
            logger.warning("%s stays: %s", path, error)


def _remove_unused(path: Path) -> None:
    found = path.lstat()
    if _LEFT.fullmatch(path.name) and _is_older(found, _LEFT_SECONDS):
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    elif _ENTRY.fullmatch(path.name) and (path / NETWORK).is_file() and _is_older(found, _KEPT_SECONDS):
        logger.info("removing %s, which nobody has used for a month", path)
        remove(path)


def _is_older(found: os.stat_result, seconds: float) -> bool:
    """Also where the clock went back: what is from the future is of no use as a beginning."""
    return abs(time.time() - found.st_mtime) > seconds


@contextlib.contextmanager
def _own_folder(entry: Path, what: str) -> Iterator[Path]:
    """A new folder beside the entry, which is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", suffix=f".{what}", dir=entry.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
