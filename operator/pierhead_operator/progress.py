"""How far the workers of batch jobs are: they are asked at a pace of its own, whoever looks at a job how often."""

import asyncio
import random
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from pierhead_operator.cluster import Key
from pierhead_operator.looks import Limits, Looks
from pierhead_operator.types import ShardProgress

PACE_SECONDS = 5.0
_ROUND_SECONDS = 4.0  # it ends before the next one begins
_PATIENCE_SECONDS = 0.2  # workers that are well answer in less; nobody waits for others
_LIMITS = Limits(in_all=32, of_a_share=4)  # jobs whose workers are asked
_AT_ONCE = 16  # workers of a job
_MOST_SHARDS = 1000  # as many as a job may have


class WorkerAccess(Protocol):
    """What polling needs of prober.Prober."""

    async def ask_progress(self, address: str) -> ShardProgress | None: ...


@dataclass
class _Polling:
    """Of one try of a job: when its workers were asked last, and what each said at last."""

    attempt: str
    begun: float
    answers: dict[int, ShardProgress] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()  # that did not answer in time


@dataclass(frozen=True)
class Poll:
    """What is known of a job's workers, and whether it is time to tell it."""

    progress: list[ShardProgress]
    due: bool


class ProgressPoller:
    """Asks the workers of each job once in PACE_SECONDS.

    It remembers what a job's status need not tell at once. After a restart it asks, and knows it again.
    """

    def __init__(self, workers: WorkerAccess, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._looks: Looks[Key, None] = Looks(_LIMITS, lambda key: key.namespace)
        self._jobs: dict[Key, _Polling] = {}

    async def poll(self, key: Key, attempt: str, addresses: Collection[str]) -> Poll:
        """What the workers at these addresses said, those of `attempt`; asks them where it is time to.

        A worker that is slow to answer is not waited for: what it says counts the next time.
        """
        now, polling = self._clock(), self._jobs.get(key)
        if polling and polling.attempt == attempt and now - polling.begun < PACE_SECONDS:
            return Poll(list(polling.answers.values()), due=False)
        if polling is None or polling.attempt != attempt:
            polling = self._jobs[key] = _Polling(attempt, now)
        polling.begun = now
        await self._looks.ask(key, partial(self._ask_all, polling, addresses), _PATIENCE_SECONDS)
        return Poll(list(polling.answers.values()), due=True)

    def seconds_left(self, key: Key) -> float:
        """Until it is time to ask a job's workers again."""
        polling = self._jobs.get(key)
        return max(0.0, polling.begun + PACE_SECONDS - self._clock()) if polling else PACE_SECONDS

    def forget(self, key: Key) -> None:
        """Of a job that has ended nothing needs to be known."""
        self._jobs.pop(key, None)

    async def _ask_all(self, polling: _Polling, addresses: Collection[str]) -> None:
        silent = set(addresses)
        # Those that were silent last time come last, in any order, so that they keep nobody from being asked.
        order = sorted(random.sample(sorted(silent), len(silent)), key=polling.silent.__contains__)
        waiting = iter(order)

        async def ask_some() -> None:
            for address in waiting:
                if answer := await self._workers.ask_progress(address):
                    if 0 <= answer.shard < _MOST_SHARDS:  # a worker may be code of somebody else's
                        polling.answers[answer.shard] = answer
                    silent.discard(address)

        with suppress(TimeoutError):
            async with asyncio.timeout(_ROUND_SECONDS), asyncio.TaskGroup() as group:
                for _ in range(min(_AT_ONCE, len(order))):
                    group.create_task(ask_some())
        polling.silent = frozenset(silent)
