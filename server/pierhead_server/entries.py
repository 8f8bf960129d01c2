"""The folder of compiled forms, which several processes, and several pods, may use at once.

`<key>/` is an entry, `<key>.making/` one that is being made by whoever holds the lock (flock) on `<key>.lock`. Who uses
an entry holds a lock on its folder. A lock ends with its process, however that ends.
"""

import contextlib
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pierhead_server.converted import ConversionError

logger = logging.getLogger(__name__)

_KEPT_SECONDS = 30 * 24 * 3600.0  # that an entry is there which nobody uses
_MOST_TRIES, _TRIED_SECONDS = 3, 24 * 3600.0  # how often in which time makers may be killed at one entry
# The folder may hold other things than ours: only these names are ever removed.
_REMOVED = re.compile(r"[0-9a-f]{32}(\.making|\.removing)?")


def use(entry: Path) -> None:
    """Have nobody remove an entry as long as this process lives. Raises OSError where there is none."""
    descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)  # open until then, and with it the lock
    with contextlib.suppress(OSError):  # of file systems without locks, and of those that are only read
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
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
    folder, tried = entry.with_suffix(".making"), entry.with_suffix(".tried")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    _count(tried)
    try:
        # Made beside it and renamed when whole: half an entry never looks like one.
        made = folder / entry.name
        made.mkdir(parents=True)
        yield made
        made.rename(entry)
    finally:
        tried.unlink()
        shutil.rmtree(folder, ignore_errors=True)


def _count(tried: Path) -> None:
    """One more byte for one more try, which stays there where its process is killed."""
    with contextlib.suppress(FileNotFoundError):
        if time.time() - tried.stat().st_mtime > _TRIED_SECONDS:
            tried.unlink()
    with tried.open("ab") as file:
        if file.tell() >= _MOST_TRIES:
            raise ConversionError(
                f"the processes that made the compiled form were killed {file.tell()} times in a day, most likely for "
                f"want of memory: give the server more, and remove {tried}"
            )
        file.write(b".")


def remove_unused(folder: Path) -> None:
    """Remove the entries that nobody uses, or has used for a month: of other versions, CPUs and models. Raises OSError.

    What killed processes left of them goes, too.
    """
    for path in list(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            if _REMOVED.fullmatch(path.name) and time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                _remove(path)


def _remove(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        logger.info("removing %s, which nobody has used for a month", path)
        # Another name first: nobody finds half of it.
        aside = path.rename(path.with_suffix(".removing"))
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:  # somebody uses it, or nobody can know
        logger.debug("%s stays: %s", path, error)
    finally:
        os.close(descriptor)
