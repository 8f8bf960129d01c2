"""A work queue of keys, after client-go's: deduplicating, one worker a key at a time, back-off with jitter, and fair.

Keys have a share, such as their namespace: shares take turns, and none holds all workers.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_BACKOFF_BASE = 0.25
_BACKOFF_LIMIT = 300.0
# One key in so many comes from the background, however many others wait: else it might wait forever.
_BACKGROUND_ONE_IN = 16


def _unobserved(_seconds: float) -> None:
    pass


def _own(key: Hashable) -> Hashable:
    return key


class FairLine(Generic[K]):
    """Keys that wait: within a share in their order, and the shares in turn."""

    def __init__(self, share_of: Callable[[K], Hashable]) -> None:
        self._share_of = share_of
        # Both in the order of their turns. The first of a plain dict is found ever more slowly as others before it go.
        self._shares: OrderedDict[Hashable, OrderedDict[K, None]] = OrderedDict()

    def push(self, key: K) -> None:
        """Add a key to the end of its share."""
        self._shares.setdefault(self._share_of(key), OrderedDict())[key] = None

    def discard(self, key: K) -> None:
        """Remove a key, if it is there."""
        share = self._share_of(key)
        if (keys := self._shares.get(share)) is None:
            return
        keys.pop(key, None)
        if not keys:
            del self._shares[share]

    def pop(self, may_take: Callable[[Hashable], bool]) -> K | None:
        """The next key of the next share that `may_take` allows; None where there is none."""
        share = next((share for share in self._shares if may_take(share)), None)
        if share is None:
            return None
        keys = self._shares.pop(share)
        key, _ = keys.popitem(last=False)
        if keys:
            self._shares[share] = keys  # behind all others
        return key


class WorkQueue(Generic[K]):
    """Keys to work on. A key that is added while it waits is worked on once; while it is worked on, once more.

    `work` gives in how many seconds its key is to be worked on again, if it is, and raises RetryLater for a back-off.
    Keys of the same `share_of` hold at most three quarters of the workers. `observe_wait` is told how many seconds each
    key waited for a worker.
    """

    def __init__(
        self,
        work: Callable[[K], Awaitable[float | None]],
        concurrency: int,
        observe_wait: Callable[[float], None] = _unobserved,
        share_of: Callable[[K], Hashable] = _own,
    ) -> None:
        self._work = work
        self._concurrency = concurrency
        self._most_of_a_share = max(1, concurrency * 3 // 4)
        self._observe_wait = observe_wait
        self._share_of = share_of
        self._began = 0.0
        self._events, self._background = FairLine(share_of), FairLine(share_of)
        self._picks = 0
        self._dirty: dict[K, float] = {}  # since when
        self._urgent: set[K] = set()  # of those the ones that an event asks for
        self._working: set[K] = set()
        self._busy: dict[Hashable, int] = {}  # workers by the share that they work for
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._news = asyncio.Event()  # a key came, or a worker is free again

    @property
    def length(self) -> int:
        """How many keys wait to be worked on; those that wait for their time are not among them."""
        return len(self._dirty)

    def add(self, key: K, *, urgent: bool = True) -> None:
        """Asks for `key` to be worked on as soon as a worker is free; not `urgent`, once no event is waiting."""
        if urgent and (timer := self._timers.pop(key, None)):
            timer.cancel()
        if key in self._dirty and (not urgent or key in self._urgent):
            return
        self._dirty.setdefault(key, time.monotonic())
        if urgent:
            self._urgent.add(key)
        if key not in self._working:
            self._stand_in_line(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Asks for `key` to be worked on later; an earlier call of `add` takes its place."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(seconds, self.add, key)

    def add_within(self, key: K, seconds: float) -> None:
        """Asks for `key` to be worked on in `seconds` at the latest: what comes in between needs no work of its own."""
        timer = self._timers.get(key)
        soon = asyncio.get_running_loop().time() + seconds
        if key not in self._urgent and (timer is None or timer.when() > soon):
            self.add_after(key, seconds)

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
            # Work that finds all as it should be waits for nothing: thousands of it would be one turn of the loop.
            await asyncio.sleep(0)
            key = await self._take()
            # What was added while nobody was to work on it did not wait for a worker.
            self._observe_wait(time.monotonic() - max(self._dirty.pop(key), self._began))
            self._urgent.discard(key)
            self._begin(key)
            try:
                again = await self._work(key)
            except RetryLater:
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                again = compute_backoff(failures)
            else:
                self._failures.pop(key, None)
            finally:
                self._end(key)
            if again is not None and key not in self._dirty:
                self.add_within(key, again)

    async def _take(self) -> K:
        while (key := self._pick()) is None:
            self._news.clear()
            await self._news.wait()
        return key

    def _pick(self) -> K | None:
        """The next key that a worker may work on; None where there is none."""
        lines = [self._events, self._background]
        if self._picks % _BACKGROUND_ONE_IN == _BACKGROUND_ONE_IN - 1:
            lines.reverse()
        for line in lines:
            if (key := line.pop(self._may_take)) is not None:
                self._picks += 1
                return key
        return None

    def _may_take(self, share: Hashable) -> bool:
        return self._busy.get(share, 0) < self._most_of_a_share

    def _stand_in_line(self, key: K) -> None:
        (self._background if key in self._urgent else self._events).discard(key)
        (self._events if key in self._urgent else self._background).push(key)
        self._news.set()

    def _begin(self, key: K) -> None:
        self._working.add(key)
        share = self._share_of(key)
        self._busy[share] = self._busy.get(share, 0) + 1

    def _end(self, key: K) -> None:
        self._working.discard(key)
        share = self._share_of(key)
        self._busy[share] -= 1
        if not self._busy[share]:
            del self._busy[share]
        if key in self._dirty:
            self._stand_in_line(key)
        self._news.set()


class RetryLater(Exception):  # noqa: N818  # an instruction, as asyncio's own CancelledError is
    """What `work` raises to have its key worked on again after a back-off."""


def compute_backoff(failures: int) -> float:
    """Seconds to wait after that many failures in a row (1, 2, ...): doubling, bounded, with up to half as jitter."""
    delay = min(_BACKOFF_BASE * 2.0 ** (min(failures, 32) - 1), _BACKOFF_LIMIT)
    return delay * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing
