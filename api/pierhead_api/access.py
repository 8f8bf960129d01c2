"""Whether a caller may predict, as RBAC has it: asked of the API server with the caller's own token, and remembered."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pierhead_api.errors import ApiError, PermissionDeniedError, UnauthenticatedError

# A right that was taken away counts on for as long.
ALLOW_SECONDS = 10.0
# A right that was given is missed for as long.
DENY_SECONDS = 2.0
_MOST_REMEMBERED = 10_000


@dataclass(frozen=True)
class Asked:
    """What a caller wants to predict with."""

    resource: str  # endpoints or models
    namespace: str
    name: str


# Whether the caller with this token may: raises UnauthenticatedError where it is nobody's, ApiError where none can say.
AskMay = Callable[[str, Asked], Awaitable[bool]]
_Key = tuple[bytes, Asked]


@dataclass(frozen=True)
class _Verdict:
    refusal: tuple[type[ApiError], str] | None
    until: float


class Access:
    """Remembers for a moment who may predict with what."""

    def __init__(self, ask: AskMay, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._verdicts: OrderedDict[_Key, _Verdict] = OrderedDict()  # the one asked for last is the last
        self._asking: dict[_Key, asyncio.Task[_Verdict]] = {}

    async def check(self, token: str, asked: Asked) -> None:
        """Raises PermissionDeniedError, UnauthenticatedError; another ApiError where nobody can say."""
        # The token itself is kept nowhere.
        key = (hashlib.sha256(token.encode()).digest(), asked)
        verdict = self._recall(key) or await self._share(key, token)
        if verdict.refusal:
            refusal, message = verdict.refusal
            raise refusal(message)

    def _recall(self, key: _Key) -> _Verdict | None:
        verdict = self._verdicts.get(key)
        if verdict is None or verdict.until <= self._clock():
            return None
        self._verdicts.move_to_end(key)
        return verdict

    async def _share(self, key: _Key, token: str) -> _Verdict:
        """One question for all that ask the same at once."""
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._decide(key, token))
            task.add_done_callback(lambda done: self._forget(key, done))
        # One of them may leave; the others wait on.
        return await asyncio.shield(task)

    def _forget(self, key: _Key, done: asyncio.Task[_Verdict]) -> None:
        del self._asking[key]
        # All who asked may have left: what went wrong is then nobody's.
        if not done.cancelled():
            done.exception()

    async def _decide(self, key: _Key, token: str) -> _Verdict:
        _, asked = key
        refusal: tuple[type[ApiError], str] | None = None
        try:
            if not await self._ask(token, asked):
                what = f"{asked.resource}/{asked.name} in the namespace {asked.namespace}"
                refusal = PermissionDeniedError, f"you have no right to predict with {what}"
        except UnauthenticatedError as error:
            refusal = UnauthenticatedError, str(error)
        verdict = _Verdict(refusal, self._clock() + (DENY_SECONDS if refusal else ALLOW_SECONDS))
        self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        while len(self._verdicts) > _MOST_REMEMBERED:
            self._verdicts.popitem(last=False)
        return verdict
