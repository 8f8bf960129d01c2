"""The model's process: start it, feed it from a bounded queue, watch it, start it anew.

The listener never imports torch. Pictures go to the model process over a socket pair, rankings come back; while a model
computes, however long it holds the GIL, the listener answers probes. A job waits in the listener and only the one being
computed is in the process' hands: when the process dies, that request fails and no other.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pierhead_server.artifact import Artifact
from pierhead_server.errors import (
    ApiError,
    InternalError,
    ModelProcessDiedError,
    QueueFullError,
    StartupError,
    UnavailableError,
)
from pierhead_server.protocol import PredictRequest, Ranking

if TYPE_CHECKING:  # the model process imports this module, and measures nothing
    from pierhead_server.metrics import Metrics

logger = logging.getLogger(__name__)

RESTARTS = 3  # in a row, without an answer between
FIRST_BACKOFF_SECONDS = 0.5  # doubled for each restart in a row
_EXIT_SECONDS = 5.0  # for a process that has closed its socket
_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True)
class Load:
    """The first message to a model process."""

    artifact: Artifact
    threads: int
    max_image_pixels: int


@dataclass(frozen=True)
class Loaded:
    """Its answer: the model is warm."""


@dataclass(frozen=True)
class Answer:
    """The answer to a PredictRequest; `seconds` is what the model process spent on it."""

    rankings: Sequence[Ranking]
    seconds: float


@dataclass(frozen=True)
class Job:
    """A request that waits, with the caller's future. The caller may be gone by the time it is answered."""

    request: PredictRequest
    future: "asyncio.Future[Sequence[Ranking]]"


def run_model_process(connection: socket.socket) -> None:
    """The model process: import torch, load, then answer until the listener is gone."""
    # A terminal's Ctrl-C and a careless `kill` reach the whole group; the listener decides when this process ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Imported here, before the first message: this is what takes the seconds.
    from pierhead_server.model import Classifier, load_classifier

    stream = connection.makefile("rb")
    load = receive(stream)
    if not isinstance(load, Load):
        return
    try:
        classifier: Classifier = load_classifier(
            load.artifact, threads=load.threads, max_image_pixels=load.max_image_pixels
        )
    except StartupError as error:
        send(connection, error)
        return
    send(connection, Loaded())
    while isinstance(request := receive(stream), PredictRequest):
        send(connection, _predict(classifier.predict, request))


def _predict(predict: Callable[[PredictRequest], Sequence[Ranking]], request: PredictRequest) -> Answer | ApiError:
    start = time.perf_counter()
    try:
        return Answer(predict(request), time.perf_counter() - start)
    except ApiError as error:
        return error
    except Exception as error:
        # The model is a stranger's program and may raise anything on its input: this request fails, the next may not.
        logger.exception("the model failed")
        return InternalError(f"the model failed: {type(error).__name__}")


def _frame(message: object) -> bytes:
    """A message with its length before it.

    Both ends are this program: what clients and artifacts hold travels as `bytes` inside and is never unpickled itself.
    """
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def send(connection: socket.socket, message: object) -> None:
    """Send one message to the listener."""
    connection.sendall(_frame(message))


def receive(stream: BinaryIO) -> object:
    """The next message, or None when the listener is gone."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    return pickle.loads(stream.read(*_LENGTH.unpack(header)))  # noqa: S301 - see _frame


ProcessMain = Callable[[socket.socket], None]  # what a model process runs


class ProcessDiedError(Exception):
    """The model process is gone; the message says how."""


class ModelProcess:
    """One process with one model, and this end of the socket pair to it."""

    def __init__(self, process: SpawnProcess, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.died = asyncio.Event()
        asyncio.get_running_loop().add_reader(process.sentinel, self._on_death)

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, main: ProcessMain) -> AsyncIterator["ModelProcess"]:
        """Start a process, which begins to import torch, and stop it at the end."""
        ours, theirs = socket.socketpair()
        # Spawned, not forked: the child has no copy of the listener's event loop, sockets and threads.
        process = multiprocessing.get_context("spawn").Process(target=main, args=(theirs,), daemon=True)
        process.start()  # some ms; in a thread, a cancellation meanwhile would leave a process that nobody stops
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        started = cls(process, reader, writer)
        try:
            yield started
        finally:
            await started._stop()

    def _on_death(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self.died.set()

    async def exchange(self, message: object) -> Any:
        """Send one message and wait for its answer. Raises ProcessDiedError, or the error that was answered."""
        try:
            self._writer.write(_frame(message))
            await self._writer.drain()
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            answer = pickle.loads(await self._reader.readexactly(length))  # noqa: S301 - see _frame
        except (asyncio.IncompleteReadError, ConnectionError):
            raise ProcessDiedError(await self._how_it_died()) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def first_of(self, event: Awaitable[Job]) -> Job:
        """Wait for `event`. Raises ProcessDiedError when the process goes first."""
        wanted, death = asyncio.ensure_future(event), asyncio.ensure_future(self.died.wait())
        try:
            await asyncio.wait({wanted, death}, return_when=asyncio.FIRST_COMPLETED)
            if not wanted.done():
                raise ProcessDiedError(await self._how_it_died())
            return wanted.result()
        finally:
            wanted.cancel()
            death.cancel()

    async def _how_it_died(self) -> str:
        await asyncio.to_thread(self._process.join, _EXIT_SECONDS)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}: most likely out of memory" if name == "SIGKILL" else name

    async def _stop(self) -> None:
        if not self.died.is_set():
            asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._writer.close()
        self._process.kill()  # it holds nothing that could be lost
        await asyncio.to_thread(self._process.join)
        self._process.close()


class Workers:
    """The queue of requests and the model process that answers them."""

    def __init__(
        self,
        *,
        queue_size: int,
        max_image_pixels: int,
        metrics: "Metrics",
        process_main: ProcessMain = run_model_process,
    ) -> None:
        self._queue: asyncio.Queue[Job] = asyncio.Queue(queue_size)
        self._max_image_pixels = max_image_pixels
        self._metrics = metrics
        self._process_main = process_main
        self._answered = 0
        metrics.watch_queue(self._queue.qsize)
        self.artifact: Artifact | None = None
        self.not_ready: str | None = "the model is loading"  # why, or None
        self.failure: str | None = None  # why there will be no model again

    def submit(self, request: PredictRequest) -> "asyncio.Future[Sequence[Ranking]]":
        """Queue a request; cancel the future to give it up. Raises QueueFullError, UnavailableError."""
        if self.failure or not self.artifact:
            raise UnavailableError(self.failure or self.not_ready or "")
        future: asyncio.Future[Sequence[Ranking]] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait(Job(request, future))
        except asyncio.QueueFull:
            raise QueueFullError(f"{self._queue.maxsize} requests are waiting: try again later") from None
        return future

    async def run(self, fetch: Callable[[], Artifact]) -> None:
        """Load the artifact that `fetch` returns (called in a thread) and answer requests, over deaths of the process.

        Ends only by cancellation or by a StartupError.
        """
        try:
            # Beside the start of the process: importing torch takes as long as most downloads.
            fetched = asyncio.create_task(asyncio.to_thread(fetch))
            deaths = 0
            while True:
                answered = self._answered
                try:
                    async with ModelProcess.start(self._process_main) as process:
                        await self._serve(process, await fetched)
                except ProcessDiedError as death:
                    deaths = deaths + 1 if self._answered == answered else 1
                    await self._back_off(death, deaths)
        except StartupError as error:
            self.failure = str(error)
            raise
        finally:
            self._fail_waiting()

    async def _back_off(self, death: ProcessDiedError, deaths: int) -> None:
        """Wait before the next start. Raises ModelProcessDiedError when there should be none."""
        logger.error("the model's process died: %s", death)
        if self.artifact is None:
            raise ModelProcessDiedError(f"{death}, while loading the model")
        if deaths > RESTARTS:
            raise ModelProcessDiedError(f"{death}, {deaths} times in a row")
        self.not_ready = f"the model's process died ({death}) and is starting anew"
        self._metrics.restarts.inc()
        await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2 ** (deaths - 1))

    async def _serve(self, process: ModelProcess, artifact: Artifact) -> None:
        """Load, then answer requests one after another until the process dies."""
        await process.exchange(Load(artifact, thread_count(), self._max_image_pixels))
        self.artifact, self.not_ready = artifact, None
        logger.info("ready: the model has answered its warm-up prediction")
        while True:
            job = await process.first_of(self._queue.get())
            if not job.future.done():  # its caller may have gone while it waited
                await self._answer(process, job)

    async def _answer(self, process: ModelProcess, job: Job) -> None:
        try:
            answer: Answer = await process.exchange(job.request)
        except ProcessDiedError as death:
            _fail(job, InternalError(f"the model's process died of this request ({death})"))
            raise
        except ApiError as error:
            _fail(job, error)
        else:
            self._metrics.model_seconds.observe(answer.seconds)
            if not job.future.done():
                job.future.set_result(answer.rankings)
        self._answered += 1

    def _fail_waiting(self) -> None:
        while not self._queue.empty():
            _fail(self._queue.get_nowait(), UnavailableError(self.failure or "the server is shutting down"))


def _fail(job: Job, error: ApiError) -> None:
    if not job.future.done():
        job.future.set_exception(error)


def thread_count() -> int:
    """How many threads torch computes with: OMP_NUM_THREADS where it is set, else one for each CPU of the container."""
    with contextlib.suppress(KeyError, ValueError):
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    return max(1, min(len(os.sched_getaffinity(0)), _cpu_quota()))


def _cpu_quota(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The container's CPU limit, rounded down: a thread too many waits, spinning, for one that is throttled."""
    with contextlib.suppress(OSError, ValueError):
        # cgroup v2; "max 100000" without a limit.
        quota, period = (cgroup / "cpu.max").read_text().split()
        return int(quota) // int(period)
    with contextlib.suppress(OSError, ValueError):
        # cgroup v1; -1 without a limit.
        limit = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        if limit > 0:
            return limit // int((cgroup / "cpu/cpu.cfs_period_us").read_text())
    return sys.maxsize
