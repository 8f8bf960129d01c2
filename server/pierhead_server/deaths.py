"""Whether the model's processes die so often that nobody should be sent here. Pure: the clock is given.

A request may be to blame instead of the model. The same bytes count once, so that a client that sends them again and
again takes the model from nobody; a request that was answered is not to blame.
"""

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

MOST_DEATHS = 3
WINDOW_SECONDS = 60.0
# Without a death. Doubled at each relapse, and forgotten after a while, as Kubernetes' own back-off of a container is.
FIRST_QUIET_SECONDS = 60.0
MOST_QUIET_SECONDS = 300.0
FORGIVEN_SECONDS = 600.0

_MOST_REMEMBERED = 64  # deaths; those of one request are one
_NEVER = float("-inf")


@dataclass
class Death:
    """One death that is remembered."""

    moment: float
    how: str
    suspects: set[int]  # hashes of the calls that may be to blame; without any it is the model


class Deaths:
    """The deaths of the last minute, and what follows from them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: list[Death] = []
        self._answered = _NEVER  # when a call was, last
        self._cause = ""
        self._quiet = FIRST_QUIET_SECONDS
        self._until = _NEVER  # nobody should be sent here before

    def record(self, how: str, calls: Iterable[Hashable] = ()) -> bool:
        """Remember a death with the calls that the process held.

        Whether it tells of the model: not where this very call killed before, and others were answered meanwhile.
        """
        now = self._forget_old()
        suspects = set(map(hash, calls))
        if len(suspects) == 1:
            if any(death.suspects == suspects for death in self._recent):
                return now - self._answered > WINDOW_SECONDS
            # It is to blame, too, for the end of the batch that it was in.
            self._recent = [death for death in self._recent if not suspects <= death.suspects]
        self._recent = [*self._recent, Death(now, how, suspects)][-_MOST_REMEMBERED:]
        self._judge(now)
        return True

    def acquit(self, call: Hashable) -> None:
        """A call was answered: what it was suspected of is the fault of others, or of the model."""
        self._answered = self._clock()
        suspected = [death for death in self._recent if death.suspects]
        if not suspected:
            return  # most often: a hash of megabytes costs a millisecond
        key = hash(call)
        for death in suspected:
            death.suspects.discard(key)
        self._judge(self._forget_old())

    def explain(self) -> str | None:
        """Why nobody should be sent here; None where they may be. The same words until that is over."""
        return self._cause if self._clock() < self._until else None

    def _forget_old(self) -> float:
        now = self._clock()
        self._recent = [death for death in self._recent if now - death.moment < WINDOW_SECONDS]
        return now

    def _judge(self, now: float) -> None:
        counted = [death for death in self._recent if len(death.suspects) <= 1]  # of several, one will show itself
        blamed = {call for death in counted for call in death.suspects}
        number = len(blamed) + sum(not death.suspects for death in counted)
        if now >= self._until:
            if number < MOST_DEATHS:
                return
            relapsed = now - self._until < FORGIVEN_SECONDS
            self._quiet = min(2 * self._quiet, MOST_QUIET_SECONDS) if relapsed else FIRST_QUIET_SECONDS
            self._cause = f"the model's process died {MOST_DEATHS} times within {WINDOW_SECONDS:g} s: {counted[-1].how}"
        if counted:
            self._until = max(self._until, counted[-1].moment + self._quiet)
