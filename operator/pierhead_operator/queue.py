"""A work queue of keys, after client-go's: deduplicating, one worker a key at a time, back-off with jitter."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_BACKOFF_BASE = 0.25
_BACKOFF_LIMIT = 300.0


def _unobserved(_seconds: float) -> None:
    pass


class WorkQueue(Generic[K]):
    """Keys to work on. A key that is added while it waits is worked on once; while it is worked on, once more.

    `work` gives in how many seconds its key is to be worked on again, if it is, and raises RetryLater for a back-off.
    `observe_wait` is told how many seconds each key waited for a worker.
    """

    def __init__(
        self,
        work: Callable[[K], Awaitable[float | None]],
        concurrency: int,
        observe_wait: Callable[[float], None] = _unobserved,
    ) -> None:
        self._work = work
        self._concurrency = concurrency
        self._observe_wait = observe_wait
        self._began = 0.0
        self._waiting: asyncio.Queue[K] = asyncio.Queue()
        self._dirty: dict[K, float] = {}  # since when
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}

    @property
    def length(self) -> int:
        """How many keys wait to be worked on; those that wait for their time are not among them."""
        return len(self._dirty)

    def add(self, key: K) -> None:
        """Asks for `key` to be worked on as soon as a worker is free."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._dirty:
            return
        self._dirty[key] = time.monotonic()
        if key not in self._working:
            self._waiting.put_nowait(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Asks for `key` to be worked on later; an earlier call of `add` takes its place."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(seconds, self.add, key)

    async def run(self, begin: asyncio.Event) -> None:
        """Works from `begin` until it is cancelled, first on what was added before.

        An error of `work` that is not RetryLater ends it.
        """
        async with asyncio.TaskGroup() as workers:
            for _ in range(self._concurrency):
                workers.create_task(self._run_worker(begin))

    async def _run_worker(self, begin: asyncio.Event) -> None:
        await begin.wait()
        self._began = self._began or time.monotonic()
        while True:
            key = await self._waiting.get()
            # What was added while nobody was to work on it did not wait for a worker.
            self._observe_wait(time.monotonic() - max(self._dirty.pop(key), self._began))
            self._working.add(key)
            try:
                again = await self._work(key)
            except RetryLater:
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                again = compute_backoff(failures)
            else:
                self._failures.pop(key, None)
            finally:
                self._working.discard(key)
                if key in self._dirty:
                    self._waiting.put_nowait(key)
            if again is not None and key not in self._dirty:
                self.add_after(key, again)


class RetryLater(Exception):  # noqa: N818  # an instruction, as asyncio's own CancelledError is
    """What `work` raises to have its key worked on again after a back-off."""


def compute_backoff(failures: int) -> float:
    """Seconds to wait after that many failures in a row (1, 2, ...): doubling, bounded, with up to half as jitter."""
    delay = min(_BACKOFF_BASE * 2.0 ** (min(failures, 32) - 1), _BACKOFF_LIMIT)
    return delay * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing
