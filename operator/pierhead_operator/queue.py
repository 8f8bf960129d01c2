"""A work queue of keys, after client-go's: deduplicating, one worker a key at a time, back-off with jitter."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_BACKOFF_BASE = 0.25
_BACKOFF_LIMIT = 300.0


class WorkQueue(Generic[K]):
    """Keys to work on. A key that is added while it waits is worked on once; while it is worked on, once more."""

    def __init__(self, work: Callable[[K], Awaitable[None]], concurrency: int) -> None:
        self._work = work
        self._concurrency = concurrency
        self._waiting: asyncio.Queue[K] = asyncio.Queue()
        self._dirty: set[K] = set()
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}

    def add(self, key: K) -> None:
        """Asks for `key` to be worked on as soon as a worker is free."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._waiting.put_nowait(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Asks for `key` to be worked on later; an earlier call of `add` takes its place."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(seconds, self.add, key)

    async def run(self) -> None:
        """Works until it is cancelled; an error of `work` that is not an Exception ends it."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(self._concurrency):
                workers.create_task(self._run_worker())

    async def _run_worker(self) -> None:
        while True:
            key = await self._waiting.get()
            self._dirty.discard(key)
            self._working.add(key)
            try:
                await self._work(key)
            except RetryLater:
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                if key not in self._dirty:
                    self.add_after(key, compute_backoff(failures))
            else:
                self._failures.pop(key, None)
            finally:
                self._working.discard(key)
                if key in self._dirty:
                    self._waiting.put_nowait(key)


class RetryLater(Exception):  # noqa: N818  # an instruction, as asyncio's own CancelledError is
    """What `work` raises to have its key worked on again after a back-off."""


def compute_backoff(failures: int) -> float:
    """Seconds to wait after that many failures in a row (1, 2, ...): doubling, bounded, with up to half as jitter."""
    delay = min(_BACKOFF_BASE * 2.0 ** (min(failures, 32) - 1), _BACKOFF_LIMIT)
    return delay * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing
