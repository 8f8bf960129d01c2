"""Who callers are, and what they may predict: asked of the API server with their own tokens, and remembered."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pierhead_api.errors import ApiError, PermissionDeniedError, UnauthenticatedError, UnavailableError
from pierhead_api.identity import make_fingerprint

# A right that was taken away counts on for as long.
ALLOW_SECONDS = 10.0
# A right that was given is missed for as long.
DENY_SECONDS = 2.0
_MOST_REMEMBERED = 10_000  # answers, and as many refusals
_MOST_ASKED = 200  # questions at a time

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class _Verdict(Generic[V]):
    answer: V | None
    refusal: tuple[type[ApiError], str] | None
    until: float


class Memory(Generic[K, V]):
    """Remembers answers and refusals for a moment, and asks once for all that want to know the same at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Of each the one asked for last is the last. Nobodies push out no one but nobodies.
        self._answers: OrderedDict[K, _Verdict[V]] = OrderedDict()
        self._refusals: OrderedDict[K, _Verdict[V]] = OrderedDict()
        self._asking: dict[K, asyncio.Task[_Verdict[V]]] = {}

    async def find(self, key: K, ask: Callable[[], Awaitable[V]]) -> V:
        """The answer; raises what `ask` raises, of which refusals are remembered: no right, and nobody's token."""
        verdict = self._recall(key) or await self._share(key, ask)
        if verdict.refusal:
            refusal, message = verdict.refusal
            raise refusal(message)
        return verdict.answer  # type: ignore[return-value]  # there is one

    def _recall(self, key: K) -> _Verdict[V] | None:
        for known in (self._answers, self._refusals):
            verdict = known.get(key)
            if verdict and verdict.until > self._clock():
                known.move_to_end(key)
                return verdict
        return None

    async def _share(self, key: K, ask: Callable[[], Awaitable[V]]) -> _Verdict[V]:
        """One question for all that ask the same at once."""
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= _MOST_ASKED:
                raise UnavailableError("too many callers are being looked up: try again")
            task = self._asking[key] = asyncio.create_task(self._decide(key, ask))
            task.add_done_callback(lambda done: self._forget(key, done))
        # One of them may leave; the others wait on.
        return await asyncio.shield(task)

    def _forget(self, key: K, done: asyncio.Task[_Verdict[V]]) -> None:
        del self._asking[key]
        # All who asked may have left: what went wrong is then nobody's.
        if not done.cancelled():
            done.exception()

    async def _decide(self, key: K, ask: Callable[[], Awaitable[V]]) -> _Verdict[V]:
        try:
            verdict = _Verdict(await ask(), None, self._clock() + ALLOW_SECONDS)
        except (UnauthenticatedError, PermissionDeniedError) as error:
            verdict = _Verdict(None, (type(error), str(error)), self._clock() + DENY_SECONDS)
        known, other = (self._refusals, self._answers) if verdict.refusal else (self._answers, self._refusals)
        other.pop(key, None)
        known[key] = verdict
        known.move_to_end(key)
        while len(known) > _MOST_REMEMBERED:
            known.popitem(last=False)
        return verdict


@dataclass(frozen=True)
class Asked:
    """What a caller wants to predict with."""

    resource: str  # endpoints or models
    namespace: str
    name: str


# Whether the caller with this token may: raises UnauthenticatedError where it is nobody's, ApiError where none can say.
AskMay = Callable[[str, Asked], Awaitable[bool]]


class Access:
    """Remembers for a moment who may predict with what."""

    def __init__(self, ask: AskMay, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._memory: Memory[tuple[bytes, Asked], None] = Memory(clock)

    async def check(self, token: str, asked: Asked) -> None:
        """Raises PermissionDeniedError, UnauthenticatedError; another ApiError where nobody can say."""

        async def ask() -> None:
            if not await self._ask(token, asked):
                what = f"{asked.resource}/{asked.name} in the namespace {asked.namespace}"
                raise PermissionDeniedError(f"you have no right to predict with {what}")

        await self._memory.find((make_fingerprint(token), asked), ask)


class Authentication:
    """Remembers for a moment who callers are."""

    def __init__(self, ask: Callable[[str], Awaitable[str]], clock: Callable[[], float] = time.monotonic) -> None:
        """`ask` tells the user's name of a token, and raises UnauthenticatedError where it is nobody's."""
        self._ask = ask
        self._memory: Memory[bytes, str] = Memory(clock)

    async def find_user(self, token: str) -> str:
        """The user's name; raises UnauthenticatedError, another ApiError where nobody can say."""
        return await self._memory.find(make_fingerprint(token), lambda: self._ask(token))
