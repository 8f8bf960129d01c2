"""The bytes that all requests of a server hold together, and who goes when they are short.

What is on its way between a client and the server lasts as long as the client likes: the head of a request, a body, an
answer. Each is a transfer, and where others find no room, the slowest transfers end. Who they are is decided by pure
functions; `Budget` keeps the books.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from pierhead_server.errors import RequestBytesFullError

# A transfer younger than this is never called slow.
SLOW_AFTER_SECONDS = 1.0
# Slow is what moves by less,
SLOW_PACE = 64 * 1024  # bytes a second
# or what holds much and will hold it for longer than this, at its pace,
SLOW_SECONDS = 10.0
# where much is so many times what somebody else asks for: among requests of one size none ends for another one.
MUCH = 4


@dataclass(frozen=True)
class Progress:
    """How far a transfer has come."""

    moved: int  # bytes
    left: int | None  # bytes; None: nobody knows


class Transfer(Protocol):
    """Bytes between a client and the server, of which the client makes the pace."""

    @property
    def begun(self) -> float:
        """When, by the monotonic clock, as all times here."""
        ...

    held: int  # bytes that its end frees; only `Budget.resize` changes it

    def measure(self) -> Progress:
        """How far it has come."""
        ...

    def drop(self) -> None:
        """End it, for want of room."""
        ...


def is_slow(progress: Progress, seconds: float, asked: int) -> bool:
    """Whether a transfer of so many seconds makes room for somebody who asks for so many bytes."""
    pace = progress.moved / seconds
    if pace < SLOW_PACE:
        return True
    left = progress.moved if progress.left is None else progress.left  # of an unknown length as much is expected again
    return left > max(SLOW_SECONDS * pace, MUCH * asked)


def choose_victims(transfers: Iterable[Transfer], asked: int, missing: int, now: float) -> list[Transfer] | None:
    """The slowest transfers, whose end frees `missing` bytes; None where that is not enough: then nobody is dropped.

    `transfers` are in the order in which they began. One that comes along well is never dropped for another one, or in
    a crowd none would ever end.
    """
    slow: list[tuple[float, Transfer]] = []
    for transfer in transfers:
        seconds = now - transfer.begun
        if seconds < SLOW_AFTER_SECONDS:
            break  # and so are all that follow
        progress = transfer.measure()
        if is_slow(progress, seconds, asked):
            slow.append((progress.moved / seconds, transfer))
    slow.sort(key=lambda one: one[0])
    victims: list[Transfer] = []
    for _, transfer in slow:
        if missing <= 0:
            break
        victims.append(transfer)
        missing -= transfer.held
    return victims if missing <= 0 else None


class Budget:
    """Who holds bytes, and how many more there are."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._holders: list[Callable[[], int]] = []
        self._transfers: dict[Transfer, None] = {}  # in the order in which they began
        self._transferred = 0  # bytes, that all transfers hold

    @property
    def held(self) -> int:
        """The bytes that are held by now."""
        return self._transferred + sum(holder() for holder in self._holders)

    def watch(self, holder: Callable[[], int]) -> None:
        """Count what it says, too: bytes that end without any client's doing."""
        self._holders.append(holder)

    def begin(self, transfer: Transfer) -> None:
        """It holds bytes from now on."""
        self._transfers[transfer] = None
        self._transferred += transfer.held

    def resize(self, transfer: Transfer, held: int) -> None:
        """It holds so many bytes by now."""
        if transfer in self._transfers:
            self._transferred += held - transfer.held
        transfer.held = held

    def end(self, transfer: Transfer) -> None:
        """It holds nothing any more."""
        if transfer in self._transfers:
            del self._transfers[transfer]
            self._transferred -= transfer.held

    def find_room(self, asked: int, now: float) -> list[Transfer]:
        """The transfers that must go before `asked` more bytes may be held. Raises RequestBytesFullError."""
        missing = self.held + asked - self._most
        if missing <= 0:
            return []
        victims = choose_victims(self._transfers, asked, missing, now)
        if victims is None:
            raise self.explain()
        return victims

    def make_room(self, asked: int, now: float) -> None:
        """End what must go. Raises RequestBytesFullError."""
        for victim in self.find_room(asked, now):
            self.end(victim)
            victim.drop()

    @property
    def is_over(self) -> bool:
        """Whether more is held than may be: nobody asks before an answer is there."""
        return self.held > self._most

    def explain(self) -> RequestBytesFullError:
        """Why somebody is refused, or has to go."""
        return RequestBytesFullError(f"requests hold {self._most} bytes: try again later")
