"""File locks: they end with the process that holds them, whatever happens to it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock, then holds it."""
    with _locked(path, fcntl.LOCK_EX):
        yield


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Holds the lock together with others who share it, while none holds it alone."""
    with _locked(path, fcntl.LOCK_SH):
        yield


@contextmanager
def exclusive_if_free(path: Path) -> Iterator[bool]:
    """Yields whether the lock was had; does not wait for it."""
    with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB) as had:
        yield had


@contextmanager
def _locked(path: Path, operation: int) -> Iterator[bool]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, operation)
        except BlockingIOError:
            yield False
            return
        yield True
