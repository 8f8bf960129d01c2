"""The life of one batch worker: `pierhead-server batch`."""

import asyncio
import contextlib
import ctypes
import logging
import os
import socket
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import FrameType

import msgspec
import uvicorn
from starlette.applications import Starlette

from pierhead_server.artifact import read_artifact
from pierhead_server.batch.app import Ended, Monitor, Progress, create_app
from pierhead_server.batch.arguments import make_arguments
from pierhead_server.batch.caution import Caution
from pierhead_server.batch.chain import Chain, GoneError
from pierhead_server.batch.document import Task
from pierhead_server.batch.errors import OutputNotWritableError
from pierhead_server.batch.finish import Counts, Finisher
from pierhead_server.batch.instances import Reading
from pierhead_server.batch.plan import Plan
from pierhead_server.batch.planning import pin_plan
from pierhead_server.batch.predict import Pictures, Predictor
from pierhead_server.batch.pulse import Pulse
from pierhead_server.batch.shard import SUSPECTS, OvertakenError, Shard
from pierhead_server.batch.source import Source
from pierhead_server.batch.storage import Storage
from pierhead_server.errors import ModelProcessDiedError, StartupError, UnavailableError
from pierhead_server.launch import Launched, launch
from pierhead_server.metrics import Metrics
from pierhead_server.serve import fetch, make_load, make_pool, make_served
from pierhead_server.settings import Settings
from pierhead_server.termination import tell
from pierhead_server.workers import Workers

logger = logging.getLogger(__name__)

EXIT_TERMINATED = 143
_STALL_SECONDS = 300.0  # without a sign of life; storage is tried again for two minutes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_THRESHOLD = 1 << 20  # less than a block of input, more than a batch of most pictures
_TRIM_THRESHOLD = 4 << 20  # that the next batch finds its place
_LEAVE_SECONDS = 2.0  # for the chunk that is being written, and for the note, after SIGTERM


class Worker:
    """One shard's worker, and what it tells."""

    def __init__(self, settings: Settings, task: Task, workers: Workers, pulse: Pulse) -> None:
        self._settings = settings
        self._task = task
        self._workers = workers
        self._pulse = pulse
        self._storage = Storage(settings.storage_emulator_host, pulse, settings.batch_allowed_uris)
        self._finisher = Finisher(self._storage, task, make_served(settings))
        folder = f"{task.folder}/.pierhead"
        self._chain = Chain(self._storage, f"{folder}/parts", task.shard)
        self._caution = Caution(self._storage, f"{folder}/tries/{task.shard:05d}.json", SUSPECTS)
        self._shard: Shard | None = None
        self._finished: Counts | None = None
        self._arguments: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()

    def fetch(self) -> Path:
        """The artifact's folder, on this machine. Blocks. Raises StartupError."""
        loop = self._arguments.get_loop()
        folder = fetch(self._settings, lambda: loop.call_soon_threadsafe(self._workers.expect_torch))
        arguments = make_arguments(read_artifact(folder).config, self._task.document.model_parameters)
        loop.call_soon_threadsafe(self._arguments.set_result, arguments)
        return folder

    @property
    def progress(self) -> Progress:
        """What is committed."""
        shard, counts = self._shard, self._finished or self._chain
        return Progress(
            shard=self._task.shard,
            successful=counts.successful,
            failed=counts.failed,
            bytes_done=(shard.bytes_total if self._finished else shard.bytes_done) if shard else 0,
            bytes_total=shard.bytes_total if shard else 0,
            done=self._finished is not None,
        )

    async def run(self) -> bool:
        """Do the shard's work; whether the whole job is done with it. Raises StartupErrors."""
        plan = await pin_plan(self._storage, self._task, self._settings.model_version_id)
        self._shard = Shard(plan, self._task.shard, self._chain, self._pulse, self._leave_word)
        self._finished = await self._finisher.read_done()
        if self._finished is None:
            self._finished = await self._finish(plan, self._shard)
        await self._caution.remove()
        return await self._finisher.finish_job(plan)

    def _leave_word(self) -> None:
        """For who finds this worker dead: of what was committed since it was asked last, only storage would know."""
        tell(self._settings.termination_log, msgspec.json.encode(self.progress).decode())

    async def _finish(self, plan: Plan, shard: Shard) -> Counts:
        try:
            await self._chain.load()
            await self._caution.begin()
            await shard.run(*await self._make_readers(plan), self._caution)
            return await self._finisher.finish_shard(self._chain)
        except GoneError:
            logger.warning("parts are gone: has another worker finished the job?")
            if counts := await self._finisher.read_done():
                return counts
        raise OutputNotWritableError(f"{self._task.folder}: parts were removed while the job was running")

    async def _make_readers(self, plan: Plan) -> tuple[Source, Predictor]:
        document = self._task.document
        pictures = Pictures(self._storage, self._caution)
        reading = Reading(document.input_format, document.instance_config)
        predictor = Predictor(self._workers, pictures, reading, await self._arguments, self._pulse)
        return Source(self._storage, plan, document.input_format), predictor

    async def leave(self) -> None:
        """Finish what is being written, and say that nothing here is to blame."""
        with contextlib.suppress(TimeoutError, StartupError, OvertakenError, GoneError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                if self._shard:
                    await self._shard.settle()
                await self._caution.take_back()


class Server(uvicorn.Server):
    """uvicorn, which on SIGTERM sets an event and nothing else."""

    def __init__(self, app: Starlette, terminated: asyncio.Event) -> None:
        super().__init__(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False)
        )
        self._terminated = terminated
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn calls it so
        """uvicorn's signal handler."""
        self._loop.call_soon_threadsafe(self._terminated.set)


async def work(settings: Settings, task: Task, launched: Launched) -> Ended:
    """Do a shard's work; SIGTERM ends the process. Raises StartupError, OSError for a taken port."""
    metrics = Metrics(make_served(settings))
    pulse = Pulse(metrics.registry)
    pool = replace(make_pool(settings), queue_size=sys.maxsize, offline=True, batch=task.document.batch_size)
    workers = Workers(pool, metrics, chain((launched,), iter(launch, None)).__next__)
    worker = Worker(settings, task, workers, pulse)
    monitor = Monitor(metrics, pulse, lambda: worker.progress)
    terminated = asyncio.Event()
    with socket.create_server((settings.host, settings.port)) as port:
        logger.info("listening on %s:%d", *port.getsockname()[:2])
        tasks = (
            asyncio.create_task(worker.run()),
            asyncio.create_task(workers.run(worker.fetch, lambda folder: make_load(settings, folder))),
            asyncio.create_task(_watch(workers, pulse, monitor, settings.predict_timeout_seconds)),
            asyncio.create_task(Server(create_app(monitor), terminated).serve(sockets=[port])),
        )
        try:
            ended = await _wait(worker, *tasks[:2], asyncio.create_task(terminated.wait()))
            if ended is None:
                # Threads and processes may be busy for long: their end is not waited for.
                logging.shutdown()
                os._exit(EXIT_TERMINATED)
            return ended
        finally:
            for one in tasks:
                one.cancel()
            await asyncio.wait(tasks)


async def _watch(workers: Workers, pulse: Pulse, monitor: Monitor, answer_seconds: float) -> None:
    """Bound the time without a sign of life, once there is a model."""
    await workers.loaded.wait()
    pulse.beat()
    monitor.stall_seconds = _STALL_SECONDS + 2 * answer_seconds


async def _wait(
    worker: Worker, doing: "asyncio.Task[bool]", model: "asyncio.Task[None]", ending: "asyncio.Task[object]"
) -> Ended | None:
    """For the shard's end, the model's (which is by an error), or SIGTERM."""
    await asyncio.wait({doing, model, ending}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if ending.done():
            return None
        if model.done() or isinstance(doing.exception(), UnavailableError):
            await model  # without it the shard cannot go on, and it knows why
        job_done = doing.result()
        return Ended(**msgspec.structs.asdict(worker.progress), job_done=job_done)
    finally:
        ending.cancel()
        doing.cancel()
        await asyncio.wait({doing}, timeout=_LEAVE_SECONDS)
        if not (_has_died(model) or _has_failed(doing)):  # else perhaps of a line: who comes next shall be careful
            await worker.leave()


def _has_died(model: "asyncio.Task[None]") -> bool:
    return model.done() and isinstance(model.exception(), ModelProcessDiedError)


def _has_failed(doing: "asyncio.Task[bool]") -> bool:
    """Whether it ended by a bug."""
    if not doing.done() or doing.cancelled():
        return False
    return doing.exception() is not None and not isinstance(doing.exception(), StartupError | UnavailableError)


def _give_back_memory() -> None:
    """Let each block of input go back to the kernel when it is read.

    By itself glibc learns from the first one to keep them, and some for each of storage's threads.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


def run(settings: Settings, task: Task, launched: Launched) -> None:
    """`work` in an event loop of its own. Raises StartupError."""
    _give_back_memory()
    words = ""  # after an error its reason or its traceback tells more than how far the worker was
    try:
        with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
            words = msgspec.json.encode(runner.run(work(settings, task, launched))).decode()
    finally:
        tell(settings.termination_log, words)
