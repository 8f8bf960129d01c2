"""Lines that tell a newcomer what is being done, and how long it has taken so far."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_started = time.monotonic()
_lock = threading.Lock()


def say(message: str) -> None:
    """Prints one line to stderr, with the seconds since the program started. Safe from any thread."""
    with _lock:
        print(f"[{time.monotonic() - _started:5.0f} s] {message}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Says what begins, and how many seconds it took once it has ended well."""
    say(f"{what} …")
    begun = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - begun:.1f} s")
