"""Questions to pods, which may take long: asked beside the workers, so many at once and so many of a namespace."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

logger = logging.getLogger(__name__)

# An answer that nobody took so soon tells of what was.
_FRESH_SECONDS = 60.0


@dataclass(frozen=True)
class Limits:
    """How many questions are asked at once."""

    in_all: int
    of_a_share: int


class Looks(Generic[K, T]):
    """Questions by key, one at a time for each. `answered` is told of a key whose answer nobody waited for."""

    def __init__(
        self, limits: Limits, share_of: Callable[[K], Hashable], answered: Callable[[K], None] = lambda _: None
    ) -> None:
        self._limits = limits
        self._all = asyncio.Semaphore(limits.in_all)
        self._of_share: dict[Hashable, tuple[asyncio.Semaphore, int]] = {}  # and how many questions hold or want it
        self._share_of = share_of
        self._answered = answered
        self._tasks: dict[K, asyncio.Task[None]] = {}
        self._answers: dict[K, tuple[float, T]] = {}
        self._awaited: set[K] = set()

    async def ask(self, key: K, question: Callable[[], Awaitable[T]], patience: float) -> T | None:
        """The answer to a question, if it is there within `patience` seconds; it is asked on in any case.

        A question that is under way already was waited for: `answered` tells when to look again.
        """
        if (known := self._take(key)) is not None or key in self._tasks:
            return known
        task = self._tasks[key] = asyncio.create_task(self._find(key, question))
        self._awaited.add(key)
        try:
            await asyncio.wait({task}, timeout=patience)
        finally:
            self._awaited.discard(key)
        return self._take(key)

    def is_asking(self, key: K) -> bool:
        """Whether a question is under way, whose answer will be told."""
        return key in self._tasks

    def _take(self, key: K) -> T | None:
        moment, answer = self._answers.pop(key, (0.0, None))
        return answer if time.monotonic() - moment < _FRESH_SECONDS else None

    async def _find(self, key: K, question: Callable[[], Awaitable[T]]) -> None:
        share = self._share_of(key)
        semaphore, users = self._of_share.get(share, (asyncio.Semaphore(self._limits.of_a_share), 0))
        self._of_share[share] = semaphore, users + 1
        try:
            async with semaphore, self._all:
                self._answers[key] = time.monotonic(), await question()
        except Exception:
            # A bug with one question must not end the others.
            logger.exception("a question about %s failed", key)
        finally:
            del self._tasks[key]
            self._leave(share)
        if key not in self._awaited:
            self._answered(key)

    def _leave(self, share: Hashable) -> None:
        semaphore, users = self._of_share[share]
        if users == 1:
            del self._of_share[share]
        else:
            self._of_share[share] = semaphore, users - 1
