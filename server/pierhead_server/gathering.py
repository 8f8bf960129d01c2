"""A request whose pieces are computed one by one, perhaps by all workers at a time, and the lane where such wait."""

import asyncio
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import msgspec

from pierhead_server.batching import HEAVY_PIXELS
from pierhead_server.errors import ApiError
from pierhead_server.joining import join
from pierhead_server.messages import Call, Reply, Split

_OK = 200


@dataclass(frozen=True)
class Piece:
    """One piece, on its way to a worker."""

    call: Call
    pixels: int
    future: "asyncio.Future[Reply]"
    whole: Hashable  # what stands for all of the request


class Gathering:
    """The pieces of one request, and who waits for all of them.

    The first piece that fails answers for all: its answer is what one worker would have said of the whole request.
    So those before it are waited for, and those behind it are given up.
    """

    def __init__(self, split: Split, future: "asyncio.Future[Reply]", reply: Reply) -> None:
        self.pixels = sum(split.pixels)
        self.held = sum(len(piece.body) for piece in split.pieces)  # bytes: of pieces that wait, and of answers
        self.together = split.together  # pieces that a worker may have at once
        self.future = future
        self._digest = split.digest
        self._dialect = split.pieces[0].dialect
        # What is known of the answer already.
        self._reply = msgspec.structs.replace(reply, parse_seconds=split.parse_seconds)
        self._pieces = deque(zip(split.pieces, split.pixels, strict=True))  # that no worker was given
        self._given = 0
        self._end = len(split.pieces)  # those from here on are given up
        self._good: dict[int, Reply] = {}
        self._failure: Reply | ApiError | None = None
        self._pending: dict[int, asyncio.Future[Reply]] = {}
        future.add_done_callback(lambda _: self._give_up(0))

    @property
    def left(self) -> int:
        """How many pieces wait for a worker."""
        return len(self._pieces)

    @property
    def is_heavy(self) -> bool:
        """Whether its next piece is."""
        return self._pieces[0][1] > HEAVY_PIXELS

    def take(self) -> Piece:
        """The next piece, for a worker."""
        call, pixels = self._pieces.popleft()
        self.held -= len(call.body)
        place = self._given
        self._given += 1
        future = asyncio.get_running_loop().create_future()
        self._pending[place] = future
        future.add_done_callback(lambda done: self._on_done(place, done))
        return Piece(call, pixels, future, self._digest)

    def _on_done(self, place: int, done: "asyncio.Future[Reply]") -> None:
        self._pending.pop(place, None)
        if done.cancelled():
            return
        error = done.exception()
        if place >= self._end:
            return
        if error is None and done.result().code == _OK:
            self._good[place] = done.result()
            self.held += len(done.result().body)
        else:
            assert error is None or isinstance(error, ApiError)
            self._failure = error or done.result()
            self._give_up(place)
        self._settle()

    def _settle(self) -> None:
        """Answer, if there is all that it takes."""
        if len(self._good) < self._end or self.future.done():
            return
        try:
            self.future.set_result(self._finish())
        except ApiError as error:
            self.future.set_exception(error)

    def _finish(self) -> Reply:
        if isinstance(self._failure, ApiError):
            raise self._failure
        reply = self._failure or join(self._dialect, [self._good[place] for place in range(self._end)])
        return msgspec.structs.replace(
            reply,
            parse_seconds=reply.parse_seconds + self._reply.parse_seconds,
            queue_seconds=self._reply.queue_seconds,
            batch=self._reply.batch,
            joined=True,
        )

    def _give_up(self, first: int) -> None:
        """Nobody needs the pieces from there on."""
        self._end = min(self._end, first)
        while self._pieces and self._given + len(self._pieces) > self._end:
            self.held -= len(self._pieces.pop()[0].body)
        for place in [place for place in self._good if place >= first]:
            self.held -= len(self._good.pop(place).body)
        for place in [place for place in self._pending if place >= first]:
            self._pending.pop(place).cancel()


class Pieces:
    """The lane of pieces: requests take turns, so that a small one among them goes past a large one."""

    def __init__(self) -> None:
        self._turns: deque[Gathering] = deque()
        self._known: set[Gathering] = set()  # those that are not answered
        self.pixels = 0  # of all requests that are not answered, those among them whose pieces are all with workers

    def __len__(self) -> int:
        """How many requests have pieces that wait."""
        return len(self._turns)

    @property
    def held_bytes(self) -> int:
        """Of the pieces that wait, and of the answers to others."""
        return sum(gathering.held for gathering in self._known)

    def add(self, gathering: Gathering) -> None:
        """Its pieces wait from now on, until it is answered or given up."""
        self.pixels += gathering.pixels
        self._known.add(gathering)
        self._turns.append(gathering)
        gathering.future.add_done_callback(lambda _: self._remove(gathering))

    def _remove(self, gathering: Gathering) -> None:
        self.pixels -= gathering.pixels
        self._known.discard(gathering)
        if gathering in self._turns:
            self._turns.remove(gathering)

    def can_go(self, *, heavy: bool) -> bool:
        """Whether there is a piece that may go to a worker, be it `heavy` or not."""
        return self._find(heavy=heavy) is not None

    def _find(self, *, heavy: bool) -> Gathering | None:
        waiting = (gathering for gathering in self._turns if gathering.left)
        return next((gathering for gathering in waiting if heavy or not gathering.is_heavy), None)

    def count_together(self, workers: int) -> int:
        """How many pieces to give to one of so many workers, where nobody else asks: the last ones are shared."""
        left = sum(gathering.left for gathering in self._turns)
        return max(1, min(*(gathering.together for gathering in self._turns), -(-left // workers)))

    def take(self, count: int, *, heavy: bool) -> list[Piece]:
        """Up to so many pieces for one worker; a heavy one is alone."""
        pieces: list[Piece] = []
        while len(pieces) < count and (gathering := self._find(heavy=heavy and not pieces)):
            pieces.append(gathering.take())
            self._turns.remove(gathering)
            if gathering.left:
                self._turns.append(gathering)
            if pieces[-1].pixels > HEAVY_PIXELS:
                break
        return pieces

    def clear(self) -> Iterator[Gathering]:
        """Those that wait, to be answered by other means."""
        while self._turns:
            yield self._turns.popleft()
