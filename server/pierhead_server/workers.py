"""The listener's side of the model's processes: start them, feed them from a bounded queue, watch them, exchange them.

The listener never imports torch and never looks into a request. Calls wait here; a worker holds what it computes and,
on a GPU or where much waits, the batch after it. When a worker dies, what it held is computed once more, each call by
itself, so that the one that killed it fails alone; what waited goes to the others.
"""

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from pierhead_server import control
from pierhead_server.batching import (
    HEAVY_PIXELS,
    Backlog,
    BatchPolicy,
    Lanes,
    decide_batch,
    decide_lane,
    has_room_for_heavy,
    is_able,
)
from pierhead_server.budget import Budget
from pierhead_server.control import Died, Expect, Failed, Fork, Formed, Kill, Load, NotFormed, Ready
from pierhead_server.deaths import Deaths
from pierhead_server.errors import (
    ApiError,
    DeadlineExceededError,
    InternalError,
    ModelProcessDiedError,
    QueueFullError,
    RequestBytesFullError,
    StartupError,
    UnavailableError,
    make_startup_error,
)
from pierhead_server.gathering import Gathering, Piece, Pieces
from pierhead_server.launch import Launched, launch
from pierhead_server.messages import (
    LENGTH_BYTES,
    Call,
    FirstMessage,
    Hello,
    Refusal,
    Reply,
    Split,
    frame_length,
    unpack_length,
)
from pierhead_server.signature import Signature

if TYPE_CHECKING:
    from pierhead_server.metrics import Metrics

logger = logging.getLogger(__name__)

RESTARTS = 3  # in a row, without an answer between
FIRST_BACKOFF_SECONDS = 0.5  # doubled for each restart in a row
PROOF_SECONDS = 1.0  # between two predictions of the model's sample, while its deaths keep others away
START_SECONDS = 120.0  # until a worker's first message
# The same where it takes the model to a GPU, which tunes kernels and captures graphs, or loads a model of its own.
SLOW_START_SECONDS = 900.0
# Together at least, where throughput is all: in its quick form a small network takes two thirds of the time so, of
# which the last tenth comes from 8 instead of 4, and a large one no longer than one by one.
OFFLINE_CALLS = 8
_EXIT_SECONDS = 5.0  # for processes whose connection was closed
# Batches that take longer gain nothing by one that is there at once, and what waits behind such a one waits for long.
QUICK_SECONDS = 0.1
PATIENCE_SECONDS = 0.5
_LEARNING = 0.1  # how much a batch's time counts beside those before
_LAST_WORDS_SECONDS = 1.0  # until the connection of a process that is dead has ended
_MOST_SENT_BYTES = 4 << 20
_OK = 200
PIECES_TOGETHER = 4  # on a GPU, whose threads prepare them beside each other; each has several instances
OTHERS_SECONDS = 10.0  # after an ordinary request another one is expected
SOON_SECONDS = 1.0  # and very likely
_ANSWER: msgspec.msgpack.Decoder[Reply | Split] = msgspec.msgpack.Decoder(Reply | Split)
_FIRST: msgspec.msgpack.Decoder[FirstMessage] = msgspec.msgpack.Decoder(FirstMessage)


@dataclass(eq=False)
class Job:
    """A call that waits, with its caller's future. The caller may be gone by the time it is answered."""

    call: Call
    future: "asyncio.Future[Reply]"
    arrived: float
    alone: bool = False  # after a batch that killed its worker
    piece: Piece | None = None  # that the call is, of a larger one
    settled: bool = False  # whether a worker has answered it; another one may, too, that was given it before

    @property
    def blamed(self) -> Hashable:
        """What a death is blamed on: of a piece all of its request, whichever way that was split."""
        return self.piece.whole if self.piece else self.call

    @property
    def is_heavy(self) -> bool:
        """Whether it is known to keep a worker for long."""
        return self.piece is not None and self.piece.pixels > HEAVY_PIXELS


@dataclass(eq=False)
class Batch:
    """What a worker was given at once."""

    jobs: deque[Job]  # not yet answered
    size: int
    sent: float  # by the loop's clock, in seconds
    begun: float = 0.0  # when nothing was before it any more
    recalled: bool = False  # whether its jobs went to others, since what is before it takes long


@dataclass(frozen=True)
class Pool:
    """How many workers there are, and what they are asked."""

    workers: int
    queue_size: int  # calls that may wait
    answer_seconds: float  # that a worker may take for one batch
    device: str = "cpu"
    offline: bool = False  # whether nobody waits for an answer: then throughput is all
    batch: int | None = None  # calls in a batch, whatever suits the model
    delay: float = 0.005  # seconds that a call waits for others while a GPU is busy anyway
    pixels_in_flight: int = sys.maxsize  # of requests in pieces; one alone may have more
    most_bytes: int = sys.maxsize  # of all requests, from the first byte that is read to the answer

    def policy(self, batch: int, *, pipelined: bool = False) -> BatchPolicy:
        """How calls are batched for a worker that computes `batch` of them best."""
        size = self.batch or batch
        if self.offline:
            # The next batch is in the worker's hands when it ends the one before.
            size = self.batch or max(batch, OFFLINE_CALLS)
            return BatchPolicy(size=size, partial=pipelined, depth=2, delay=0.05)
        if not pipelined:
            # A worker that ends a batch would wait for the next one for as long as the listener takes to get a CPU.
            return BatchPolicy(size=size, depth=2, surplus=size)
        return BatchPolicy(size=size, partial=True, depth=2, delay=self.delay)


class ProcessDiedError(Exception):
    """The fork server is gone; the message says how."""


class Worker(asyncio.Protocol):
    """One worker's connection: batches of calls out, replies in, in the same order."""

    def __init__(self, number: int, place: int, pool: "Workers") -> None:
        self.number = number
        self.place = place
        self.ready = False
        self.leaving = False  # gets nothing more
        self.late: float | None = None  # the seconds after which it was killed, for want of an answer
        self.refusal: Refusal | None = None  # why it will never be ready
        self.policy = BatchPolicy()  # until it says what suits it
        self._greeted = False
        self.in_hand: deque[Batch] = deque()  # the one that is computed first
        self.gone = asyncio.Event()  # all that it has said was heard
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._deadline: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None  # of what waits behind a batch

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio calls it."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._expect_message(self._pool.start_seconds)

    def data_received(self, data: bytes) -> None:
        """Replies, whole or in pieces."""
        self._received += data
        while len(self._received) >= LENGTH_BYTES:
            end = LENGTH_BYTES + unpack_length(self._received[:LENGTH_BYTES])
            if len(self._received) < end:
                return
            message = self._received[LENGTH_BYTES:end]
            del self._received[:end]
            if self._greeted:
                self._take(_ANSWER.decode(message))
            else:
                self._greet(_FIRST.decode(message))

    def _greet(self, first: FirstMessage) -> None:
        self._greeted = True
        if isinstance(first, Refusal):
            self.refusal = first
            self.close()  # and with that it ends
            return
        self.ready = True
        self._watch()
        self._pool.on_ready(self, first)

    def _take(self, reply: Reply | Split) -> None:
        batch = self.in_hand[0]
        job = batch.jobs.popleft()
        if not batch.jobs:
            self._end_patience()
            self.in_hand.popleft()
            now = asyncio.get_running_loop().time()
            self._pool.on_batch(now - batch.begun)
            if self.in_hand:
                self.in_hand[0].begun = now
            self._watch()
        self._pool.on_reply(self, batch, job, reply)

    def send(self, jobs: list[Job]) -> None:
        """Give it a batch."""
        assert self._transport is not None
        body = msgspec.msgpack.encode([job.call for job in jobs])
        self._transport.writelines((frame_length(body), body))
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.in_hand.append(Batch(deque(jobs), len(jobs), now, now))
        if len(self.in_hand) == 1:
            self._watch()
        elif self.policy.surplus:
            self._patience = loop.call_later(PATIENCE_SECONDS, self._pool.on_impatience, self)

    def _end_patience(self) -> None:
        if self._patience:
            self._patience.cancel()
            self._patience = None

    def _watch(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None
        if self.in_hand:
            self._expect_message(self._pool.answer_seconds)

    def _expect_message(self, seconds: float) -> None:
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._pool.on_deadline, self, seconds)

    def leave(self) -> None:
        """It ends when it has answered what it holds."""
        self.leaving = True
        if not self._greeted:
            self._pool.kill(self)  # it is busy loading, and may be for ever
        if not self.in_hand:
            self.close()

    def close(self) -> None:
        """Without a connection it ends."""
        self.ready = False
        self._end_patience()
        if self._deadline:
            self._deadline.cancel()
        if self._transport:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it so
        """It is dead, or was closed; how it died, the fork server tells."""
        self.ready = False
        self.gone.set()

    @property
    def welcomes(self) -> bool:
        """Whether it may get calls: not one that will be killed, even if it comes back in this very moment."""
        return self.ready and not self.leaving and self.late is None

    @property
    def is_heavy(self) -> bool:
        """Whether something that it holds keeps it for long."""
        return any(job.is_heavy for batch in self.in_hand for job in batch.jobs)

    def is_able(self, backlog: Backlog) -> bool:
        """Whether it may get one more batch: behind another one where batches are quick, and that one is not heavy."""
        if not is_able(self.policy, backlog, in_hand=len(self.in_hand)) or any(one.recalled for one in self.in_hand):
            return False
        return not self.in_hand or not self.policy.surplus or (self._pool.is_quick and not self.is_heavy)

    @property
    def computing(self) -> list[Job]:
        """What may be to blame for its death: on a CPU what is behind a batch was not begun."""
        batches = self.in_hand if self.policy.partial else [*self.in_hand][:1]
        return [job for batch in batches for job in batch.jobs]

    def take_back(self) -> list[Job]:
        """What it held when it died."""
        self.close()
        jobs = [job for batch in self.in_hand if not batch.recalled for job in batch.jobs]
        self.in_hand.clear()
        return jobs

    def recall(self) -> list[Job]:
        """What waits behind a batch: it may still come to it, and then answers what is answered already."""
        jobs: list[Job] = []
        for batch in [*self.in_hand][1:]:
            if not batch.recalled:
                batch.recalled = True
                jobs += batch.jobs
        return jobs


class Workers:
    """The queue of calls and the processes that answer them."""

    def __init__(
        self,
        pool: Pool,
        metrics: "Metrics",
        start: Callable[[], Launched] = launch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._start = start
        self._waiting: deque[Job] = deque()
        self._pieces = Pieces()  # of calls that waited, and were found to be too much for one worker at a time
        self._passes = 0  # batches of calls that went past pieces
        self._could_go = False  # whether pieces could, when they were looked at last
        self._last_light = float("-inf")  # when a call was given to a worker that answered it as it was
        self._workers: dict[int, Worker] = {}
        self._leaving: dict[int, Worker] = {}  # who goes when the worker of this number is there
        self._policy = pool.policy(1)  # what suits those that were asked last
        self._batch_seconds: float | None = None  # that a batch took of late
        self.start_seconds = START_SECONDS  # that a worker may take until its first message
        self._form: Hello | None = None
        self.form_reason: str | None = None  # why there is no compiled form, where one was tried
        self._server: ForkServer | None = None
        self._in_a_row = 0  # deaths of workers without an answer between
        self._deaths = Deaths(clock)
        self._proof: asyncio.Task[None] | None = None
        self._answered = 0
        self._was_ready = False  # whether a worker ever was
        self._timer: asyncio.TimerHandle | None = None
        self.budget = Budget(pool.most_bytes)
        self.budget.watch(lambda: self.held_bytes)
        metrics.watch_queue(lambda: self.waiting)
        metrics.watch_deaths(lambda: self.dying is not None)
        self.signature: Signature | None = None
        self.loaded = asyncio.Event()  # a model was, at least once
        self.not_ready: str | None = "the model is loading"  # why, or None
        self.failure: str | None = None  # why there will be no model again

    @property
    def answer_seconds(self) -> float:
        """How long a worker may take for one batch."""
        return self._pool.answer_seconds

    @property
    def dying(self) -> str | None:
        """Why nobody should be sent here, whether a process is there or not; None where they may be."""
        return self._deaths.explain()

    def check_capacity(self) -> None:
        """Whether one more call may come, before anything of it is read. Raises QueueFullError, UnavailableError."""
        if self.failure or not self.signature:
            raise UnavailableError(self.failure or self.not_ready or "")
        most = self._pool.queue_size
        # Whose caller is gone takes no place, also in the moment before it leaves the queue.
        gone = sum(job.future.done() for job in self._waiting) if self.waiting >= most else 0
        if self.waiting - gone >= most:
            raise QueueFullError(f"{most} requests are waiting: try again later")

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker, be it for some of their pieces."""
        return len(self._waiting) + len(self._pieces)

    @property
    def held_bytes(self) -> int:
        """The bodies of the calls that wait and of those in workers' hands, and what came of others so far."""
        batches = (batch for worker in self._workers.values() for batch in worker.in_hand)
        calls = sum(len(job.call.body) for jobs in (self._waiting, *(one.jobs for one in batches)) for job in jobs)
        return calls + self._pieces.held_bytes

    @property
    def appetite(self) -> int:
        """How many calls at a time keep all workers busy with whole batches."""
        return self._pool.workers * self._policy.size * (self._policy.depth + 1)

    def submit(self, call: Call, *, alone: bool = False) -> "asyncio.Future[Reply]":
        """Queue a call, which a batch may be made with if it is not `alone`; cancel the future to give it up.

        Raises QueueFullError, UnavailableError.
        """
        self.check_capacity()
        loop = asyncio.get_running_loop()
        job = Job(call, loop.create_future(), loop.time(), alone)
        job.future.add_done_callback(lambda future: self._leave_queue(job) if future.cancelled() else None)
        self._waiting.append(job)
        self._dispatch()
        return job.future

    def _leave_queue(self, job: Job) -> None:
        """Its caller is gone: its place is another's, and its body nobody's."""
        with contextlib.suppress(ValueError):  # a worker has it already
            self._waiting.remove(job)

    def _dispatch(self) -> None:
        """Give waiting calls and pieces to workers until none can take more."""
        now = asyncio.get_running_loop().time()
        while self._waiting or self._pieces:
            if self._waiting and self._waiting[0].future.done():  # its caller went while it waited
                self._waiting.popleft()
                continue
            ready = [worker for worker in self._workers.values() if worker.welcomes]
            backlog = self._measure_backlog(ready, now)
            able = [worker for worker in ready if worker.is_able(backlog)]
            worker = min(able, key=lambda worker: len(worker.in_hand), default=None)
            if worker is None:
                return
            self._could_go = False
            jobs = (self._pieces and self._choose_pieces(worker, ready, now)) or self._choose_calls(worker, backlog)
            if not jobs:
                return
            self._passes += self._could_go
            worker.send(jobs)

    def _choose_pieces(self, worker: Worker, ready: Sequence[Worker], now: float) -> list[Job]:
        """Pieces for a worker, if it is their turn."""
        others_ask = now - self._last_light < OTHERS_SECONDS
        heavy = sum(worker.is_heavy for worker in ready)
        room = has_room_for_heavy(workers=len(ready), heavy=heavy, others_ask=others_ask)
        can_go = self._pieces.can_go(heavy=room)
        if decide_lane(Lanes(bool(self._waiting), can_go, self._passes)) != "pieces":
            self._could_go = can_go
            return []
        self._passes = 0
        if worker.policy.partial:
            count = PIECES_TOGETHER
        else:
            others_ask = bool(self._waiting) or now - self._last_light < SOON_SECONDS
            count = 1 if others_ask else self._pieces.count_together(len(ready))
        pieces = self._pieces.take(count, heavy=room)
        return [Job(piece.call, piece.future, now, piece=piece) for piece in pieces]

    def _choose_calls(self, worker: Worker, backlog: Backlog) -> list[Job]:
        """Calls for a worker, if there are any and it is time."""
        if not self._waiting:
            return []
        jobs = self._pop(decide_batch(worker.policy, backlog, in_hand=len(worker.in_hand)), worker)
        if not jobs and worker.policy.delay:
            self._look_again(worker.policy.delay)
        return jobs

    def _measure_backlog(self, ready: Sequence[Worker], now: float) -> Backlog:
        oldest = now - self._waiting[0].arrived if self._waiting else 0.0
        idle, workers = sum(not worker.in_hand for worker in ready), self._pool.workers
        return Backlog(len(self._waiting), oldest, idle, workers, max(0, workers - len(ready)))

    @property
    def is_quick(self) -> bool:
        """Whether batches take so little that one may wait behind another."""
        return self._batch_seconds is not None and self._batch_seconds < QUICK_SECONDS

    def on_batch(self, seconds: float) -> None:
        """A worker was done with a batch after as long."""
        before = seconds if self._batch_seconds is None else self._batch_seconds
        self._batch_seconds = before + _LEARNING * (seconds - before)

    def on_impatience(self, worker: Worker) -> None:
        """What waits behind a batch has waited for long: others have it, too."""
        self._put_back(worker.recall())
        self._dispatch()

    def _pop(self, count: int, worker: Worker) -> list[Job]:
        """Up to `count` calls whose callers still wait; one that may kill its worker goes alone."""
        jobs: list[Job] = []
        while self._waiting and len(jobs) < count:
            first = self._waiting[0]
            by_itself = first.alone or first.is_heavy
            if by_itself and (jobs or worker.in_hand):
                break
            self._waiting.popleft()
            if not first.future.done():
                jobs.append(first)
            if by_itself and jobs:
                break
        return jobs

    def _look_again(self, seconds: float) -> None:
        """When the first waiting call has waited long enough for others."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch()

    def on_ready(self, worker: Worker, hello: Hello) -> None:
        """A worker is warm."""
        if worker not in self._leaving.values():  # its form goes with it
            self._take_form(hello)
        worker.policy = self._policy
        self._was_ready = True
        self.not_ready = None
        logger.info("worker %d is ready", worker.number)
        number = worker.number
        while leaving := self._leaving.pop(number, None):
            leaving.leave()
            number = leaving.number  # which was perhaps not ready yet itself
        self._count_workers()
        self._dispatch()

    def _count_workers(self) -> None:
        self._metrics.workers.set(sum(worker.ready for worker in self._workers.values()))

    def on_reply(self, worker: Worker, batch: Batch, job: Job, reply: Reply | Split) -> None:
        """A worker has answered one call, or found that it has to be split."""
        self._answered += 1
        self._in_a_row = 0
        if job.settled:
            self._after_reply(worker, job)
            return
        job.settled = True
        if batch.recalled:
            self._leave_queue(job)
        begun = batch.begun if worker.policy.surplus else batch.sent
        known = Reply(_OK, b"", queue_seconds=begun - job.arrived, batch=batch.size)
        if isinstance(reply, Split):
            self._gather(job, reply, known)
        else:
            reply = msgspec.structs.replace(reply, queue_seconds=known.queue_seconds, batch=known.batch)
            if not job.future.done():
                job.future.set_result(reply)
            if job.piece is None:
                self._observe(job.call, reply)
                if job.call.dialect != "probe":
                    self._last_light = max(self._last_light, batch.sent)
        self._after_reply(worker, job)

    def _after_reply(self, worker: Worker, job: Job) -> None:
        if worker.leaving and not worker.in_hand:
            worker.close()
        if job.piece:
            # Its request hears of it first, which may need no more of its pieces.
            asyncio.get_running_loop().call_soon(self._dispatch)
        else:
            self._dispatch()

    def _observe(self, answered: Hashable, reply: Reply) -> None:
        self._deaths.acquit(answered)
        self._take_out_if_dying()
        self._metrics.observe_reply(reply)

    def _gather(self, job: Job, split: Split, known: Reply) -> None:
        """From now on the call's pieces wait, or there is no room for it."""
        if job.future.done():
            return
        if self._pieces.pixels and self._pieces.pixels + sum(split.pixels) > self._pool.pixels_in_flight:
            _fail(job, QueueFullError(f"pictures of {self._pieces.pixels} pixels are being predicted: try again later"))
            return
        gathering = Gathering(split, job.future, known)
        if self.budget.held:  # or nobody would ever make more room for it
            try:
                self.budget.make_room(gathering.held, time.monotonic())
            except RequestBytesFullError as error:
                _fail(job, error)
                return

        digest = split.digest

        def observe(future: "asyncio.Future[Reply]") -> None:
            if not future.cancelled() and not future.exception():
                self._observe(digest, future.result())

        job.future.add_done_callback(observe)
        self._pieces.add(gathering)

    def on_deadline(self, worker: Worker, seconds: float) -> None:
        """A worker does not come back: it is killed, and with it whatever keeps it."""
        worker.late = seconds
        for job in worker.in_hand[0].jobs if worker.in_hand else ():
            if not job.settled:
                _fail(job, DeadlineExceededError(f"the model took more than {seconds:g} s"))
        self.kill(worker)

    def kill(self, worker: Worker) -> None:
        """End it, whatever it does."""
        if self._server:
            self._server.send(Kill(worker.number))

    def expect_torch(self) -> None:
        """Have torch imported while the artifact is fetched."""
        if self._server:
            self._server.send(Expect())

    async def run(self, fetch: Callable[[], Path], make_load: Callable[[Path], Load]) -> None:
        """Load the artifact whose folder `fetch` returns and answer calls, over deaths of processes.

        `fetch` is called in a thread. Ends only by cancellation or by a StartupError.
        """
        try:
            # Beside the start of the process, whose imports take as long as many downloads.
            fetched = asyncio.create_task(asyncio.to_thread(fetch))
            deaths = 0
            while True:
                answered = self._answered
                try:
                    async with ForkServer.run(self._start()) as self._server:
                        await self._serve(self._server, make_load(await fetched))
                except ProcessDiedError as death:
                    deaths = deaths + 1 if self._answered == answered else 1
                    await self._back_off(death, deaths)
        except StartupError as error:
            self.failure = str(error)
            raise
        finally:
            if self._proof:
                self._proof.cancel()
            self._fail_waiting()

    async def _back_off(self, death: ProcessDiedError, deaths: int) -> None:
        """Wait before the next start. Raises ModelProcessDiedError when there should be none."""
        logger.error("the model's process died: %s", death)
        if self.signature is None:
            raise ModelProcessDiedError(f"{death}, while loading the model")
        if deaths > RESTARTS:
            raise ModelProcessDiedError(f"{death}, {deaths} times in a row")
        self.not_ready = f"the model's process died ({death}) and is starting anew"
        self._metrics.restarts.inc()
        self._remember(str(death), ())
        await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2 ** (deaths - 1))

    async def _serve(self, server: "ForkServer", load: Load) -> None:
        """Load, fork the workers, and do what the fork server's events ask for. Raises ProcessDiedError."""
        server.send(load)
        try:
            async for event in server.events():
                match event:
                    case Ready():
                        self.signature = event.signature
                        self.loaded.set()
                        self.start_seconds = SLOW_START_SECONDS if event.slow_start else START_SECONDS
                        self._take_form(Hello(event.form, event.batch))
                        for number in range(self._pool.workers):
                            await self._start_worker(number, number)
                    case Failed():
                        raise make_startup_error(event.reason, event.message)
                    case Formed():
                        self._take_form(Hello(event.form, event.batch))
                        await self._exchange_workers()
                    case NotFormed():
                        self.form_reason = event.reason
                    case Died():
                        await self._replace(event)
        finally:
            self._server = None
            # None of them is to blame: they are computed anew, unless the server ends.
            self._put_back([job for worker in self._workers.values() for job in worker.take_back()])
            self._workers.clear()
            self._leaving.clear()
            self._count_workers()

    def _take_form(self, hello: Hello) -> None:
        """What the model is there in, and how calls for it are batched from now on."""
        if hello == self._form:
            return
        self._form = hello
        if hello.form != "quick":
            self.form_reason = None
        self._policy = self._pool.policy(hello.batch, pipelined=hello.pipelined)
        self._metrics.set_form(hello.form)
        logger.info("the model is there in its %s form, batches of %d", hello.form, hello.batch)

    async def _start_worker(self, number: int, place: int) -> None:
        assert self._server is not None
        ours, theirs = socket.socketpair()
        # As much as the kernel gives: a batch that does not fit comes in parts, each when the listener gets a CPU.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_SENT_BYTES)
        with theirs:
            self._server.send(Fork(number, place), theirs.fileno())
        worker = Worker(number, place, self)
        self._workers[number] = worker
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)

    async def _exchange_workers(self) -> None:
        """Make before break: each worker goes when the one that takes its place is there; no call is lost."""
        going = [*self._leaving.values(), *(worker for worker in self._workers.values() if worker.leaving)]
        for worker in [worker for worker in self._workers.values() if worker not in going]:
            number = self._next_number()
            self._leaving[number] = worker
            await self._start_worker(number, worker.place)

    def _next_number(self) -> int:
        return max(self._workers, default=-1) + 1

    async def _replace(self, death: Died) -> None:
        worker = self._workers.pop(death.worker, None)
        self._count_workers()
        if worker and worker.in_hand:
            # What it has answered is nobody's cause of death.
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_WORDS_SECONDS):
                        await worker.gone.wait()
            except asyncio.CancelledError:
                self._put_back(worker.take_back())
                raise
        if worker is None or (worker.leaving and not worker.in_hand):
            return  # it was sent away
        leaving = self._leaving.pop(death.worker, None)
        if worker.refusal and not self._was_ready:
            raise make_startup_error(worker.refusal.reason, worker.refusal.message)
        # Where others could answer the sample, what failed may be there again in a moment.
        how = worker.refusal.message if worker.refusal else death.how
        how = f"no answer for {worker.late:g} s" if worker.late else how
        told = f"{how}; its last words: {death.words}" if death.words else how
        counts = self._count(worker, told, spare=leaving is not None and leaving.ready)
        self._in_a_row += counts
        logger.error("worker %d died: %s", death.worker, how)
        self._metrics.restarts.inc()
        self._give_back(worker, how)
        if self._in_a_row > RESTARTS:
            raise ModelProcessDiedError(f"{how}, {self._in_a_row} times in a row")
        if not any(worker.ready for worker in self._workers.values()):
            self.not_ready = f"the model's process died ({how}) and is starting anew"
        if self._in_a_row > 1 and counts:
            await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2 ** (self._in_a_row - 2))
        if worker.leaving:
            return  # another one has taken its place
        successor = next((number for number, one in self._leaving.items() if one is worker), None)
        if successor is not None:  # and takes that of the one before, too
            if leaving:
                self._leaving[successor] = leaving
            return
        number = self._next_number()
        if leaving:
            self._leaving[number] = leaving
        await self._start_worker(number, worker.place)

    def _count(self, worker: Worker, how: str, *, spare: bool) -> bool:
        """Remember a worker's death; whether it is a reason to give up. `spare`: another one serves in its place.

        None are calls that take too long, nor a death that one of several calls is to blame for: each is alone the next
        time. Nor, offline, one that a single call is to blame for: millions may wait behind it.
        """
        if worker.late:
            return False
        jobs = worker.computing
        if self._pool.offline:
            return not jobs
        # What nobody but the server asks for is nobody's fault.
        suspects = [job.blamed for job in jobs if job.call.dialect != "probe"]
        news = spare or self._remember(how, suspects)
        return news and not suspects

    def _remember(self, how: str, calls: Iterable[Hashable]) -> bool:
        """A death after which clients may have to stay away; whether it tells of the model."""
        if self._pool.offline or not self._was_ready:
            return True  # nobody was sent here
        news = self._deaths.record(how, calls)
        self._take_out_if_dying()
        return news

    def _take_out_if_dying(self) -> None:
        if self.dying and (self._proof is None or self._proof.done()):
            logger.error("not ready: %s", self.dying)
            self._proof = asyncio.create_task(self._prove())

    async def _prove(self) -> None:
        """Have the model's sample computed meanwhile: that nothing dies where nobody asks proves nothing."""
        while self.dying:
            with contextlib.suppress(ApiError):
                await self.submit(Call("probe", b""))
            await asyncio.sleep(PROOF_SECONDS)
        logger.info("no process of the model died for a while: ready again")

    def _give_back(self, worker: Worker, how: str) -> None:
        """What a dead worker held: a call that was alone with it fails, others are computed anew, each alone."""
        # What it was killed for, for want of an answer, has failed by then: nothing else is to blame.
        suspects = [] if worker.late else worker.computing
        jobs = worker.take_back()
        if len(suspects) > 1:
            for job in suspects:
                job.alone = True
        elif suspects and not suspects[0].settled:
            _fail(suspects[0], InternalError(f"the model's process died of this request ({how})"))
        self._put_back(jobs)
        self._dispatch()

    def _put_back(self, jobs: list[Job]) -> None:
        """Before all that wait, the first to come first."""
        waiting = (job for job in jobs if not job.future.done() and not job.settled)
        self._waiting.extendleft(sorted(waiting, key=lambda job: job.arrived, reverse=True))

    def _fail_waiting(self) -> None:
        while self._waiting:
            _fail(self._waiting.popleft(), UnavailableError(self.failure or "the server is shutting down"))
        for gathering in self._pieces.clear():
            _fail(gathering, UnavailableError(self.failure or "the server is shutting down"))


def _fail(job: Job | Gathering, error: Exception) -> None:
    if not job.future.done():
        job.future.set_exception(error)


class ForkServer:
    """The process that holds the model, and this end of the channel to it."""

    def __init__(self, launched: Launched) -> None:
        self._process = launched.process
        self._channel = launched.channel
        self._told = False  # what to load

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, launched: Launched) -> AsyncIterator["ForkServer"]:
        """End it at the end."""
        started = cls(launched)
        try:
            yield started
        finally:
            if not started._told:
                launched.process.kill()  # it has nothing but imports, which take seconds
            launched.channel.close()  # it ends by itself, and with it its workers
            await started._end()

    def send(self, message: control.ToForkServer, *descriptors: int) -> None:
        """Send a command; a process that is gone is told by `events`."""
        self._told = self._told or isinstance(message, Load)
        control.send(self._channel, message, descriptors)

    async def events(self) -> AsyncIterator[control.FromForkServer]:
        """What it says. Raises ProcessDiedError when it is gone."""
        while (event := await control.receive_event(self._channel)) is not None:
            yield event
        raise ProcessDiedError(control.describe_exit(await self._end()))

    async def _end(self) -> int:
        """Its exit code; it is killed if it takes its time."""
        try:
            return await asyncio.to_thread(self._process.wait, _EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)
