"""The life of one server: start, serve, drain, exit."""

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from pierhead_server.app import Gate, Listener, create_app
from pierhead_server.artifact import read_artifact
from pierhead_server.cache import Cache
from pierhead_server.config import CustomPredictor, ModelConfig, OpenvinoProgram, read_config
from pierhead_server.connection import Connection
from pierhead_server.control import Load
from pierhead_server.devices import count_gpus, cpu_count, has_torch
from pierhead_server.errors import SettingsInvalidError
from pierhead_server.fetch import fetch_artifact
from pierhead_server.intake import OVERHEAD_BYTES
from pierhead_server.launch import Launched, launch
from pierhead_server.logs import RequestLog
from pierhead_server.metrics import Metrics
from pierhead_server.protocol import Limits, ServedModel
from pierhead_server.settings import Settings
from pierhead_server.telemetry import Telemetry
from pierhead_server.tracing import make_tracer
from pierhead_server.workers import Pool, Workers

logger = logging.getLogger(__name__)

# What is in flight after the drain gets this long. With the default drain it stays inside Kubernetes' default grace
# period of 30 s, so that a client who sends its body slowly does not turn a clean exit into a kill.
_FINISH_SECONDS = 20

# Longer than a gateway keeps an idle connection (Envoy: an hour), so that it is the gateway who closes: a request sent
# into a connection that the server just closed is an error.
_KEEP_ALIVE_SECONDS = 3900


class Server(uvicorn.Server):
    """uvicorn, which on SIGTERM goes on accepting for a while before it stops, and then exits with 0."""

    def __init__(self, app: Starlette, listener: Listener, *, drain_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                http=partial(Connection, gate=Gate(listener, app)),  # type: ignore[arg-type]  # it makes one
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_FINISH_SECONDS,
            )
        )
        self._listener = listener
        self._drain_seconds = drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn calls it so
        """uvicorn's signal handler: the first signal drains, a second one hurries."""
        if self._listener.draining:
            self.should_exit = True
            return
        self._listener.draining = True
        asyncio.get_running_loop().call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if not self._listener.was_ready:
            # Nobody was ever sent here, and a download in a thread would hold up the exit.
            logger.info("stopped before the model was loaded")
            logging.shutdown()
            os._exit(0)
        logger.info("draining for %s s", self._drain_seconds)
        # A gateway notices a pod that is going only after a while, and until then sends requests.
        asyncio.get_running_loop().call_later(self._drain_seconds, self.stop)

    def stop(self) -> None:
        """Stop accepting, finish what is in flight."""
        self.should_exit = True


async def serve(settings: Settings, launched: Launched) -> None:
    """Serve until SIGTERM, with a fork server that was launched.

    Raises StartupError when there is nothing (any more) to serve, OSError for a taken port.
    """
    served = make_served(settings)
    metrics = Metrics(served)
    starts = chain((launched,), iter(launch, None))
    workers = Workers(make_pool(settings), metrics, starts.__next__)
    log = RequestLog(settings.log_sample, every=settings.access_log)
    telemetry = Telemetry(metrics, make_tracer(os.environ, _describe(served)), log)
    listener = Listener(settings, served, workers, telemetry)
    server = Server(create_app(listener), listener, drain_seconds=settings.drain_seconds)
    with socket.create_server((settings.host, settings.port), backlog=2048) as port:
        logger.info("listening on %s:%d", *port.getsockname()[:2])
        expect_torch = partial(asyncio.get_running_loop().call_soon_threadsafe, workers.expect_torch)
        model = asyncio.create_task(
            workers.run(lambda: fetch(settings, expect_torch), lambda folder: make_load(settings, folder))
        )
        # When the model ends, it ends by an error, and with it the server.
        model.add_done_callback(lambda _: server.stop())
        await server.serve(sockets=[port])
        model.cancel()
        await asyncio.wait({model})
    telemetry.shutdown()
    if not model.cancelled():
        model.result()


def make_served(settings: Settings) -> ServedModel:
    """What answers say of this server."""
    return ServedModel(
        settings.deployed_model_id, settings.model, settings.model_display_name, settings.model_version_id
    )


def _describe(served: ServedModel) -> dict[str, str]:
    """What traces say of this server."""
    return {
        "pierhead.deployed_model_id": served.deployed_model_id,
        "pierhead.model": served.model,
        "pierhead.model_version_id": served.model_version_id,
    }


def make_pool(settings: Settings) -> Pool:
    """How many processes compute, and where."""
    if settings.device == "cuda" and not has_torch():
        raise SettingsInvalidError("PIERHEAD_DEVICE: cuda, but this image is without PyTorch")
    gpus = 0 if settings.device == "cpu" or not has_torch() else count_gpus()
    if settings.device == "cuda" and not gpus:
        raise SettingsInvalidError("PIERHEAD_DEVICE: cuda, but this machine shows no GPU")
    return Pool(
        workers=settings.workers or gpus or cpu_count(),
        queue_size=settings.queue_size,
        answer_seconds=settings.predict_timeout_seconds,
        device="cuda" if gpus else "cpu",
        delay=settings.max_batch_delay_seconds,
        pixels_in_flight=settings.max_pixels_in_flight,
        # One request of the largest size must find room, or it would be told for ever to try again.
        most_bytes=max(settings.max_requests_bytes, settings.max_request_bytes + OVERHEAD_BYTES),
    )


def fetch(settings: Settings, expect_torch: Callable[[], object] = lambda: None) -> Path:
    """The artifact's folder, on this machine and checked; blocks. Raises StartupError.

    `expect_torch` is called while a model is downloaded that needs it.
    """
    logger.info("fetching %s", settings.artifact_uri)
    folder = fetch_artifact(
        settings.artifact_uri,
        Cache(settings.model_dir, settings.model_cache_bytes),
        emulator=settings.storage_emulator_host,
        max_bytes=settings.max_artifact_bytes,
        digest=settings.artifact_digest,
        on_download=lambda config: expect_torch() if needs_torch(config, settings) else None,
    )
    read_artifact(folder)
    return folder


def needs_torch(config: ModelConfig, settings: Settings) -> bool:
    """Whether a model that was never served here will be loaded by torch, as far as can be told before it is there.

    Where there are compiled forms, one of them is likely to be this model's.
    """
    if isinstance(config, CustomPredictor | OpenvinoProgram) or not has_torch():
        return False
    return not (settings.compile and any(settings.compiled_dir.glob("*/"))) or make_pool(settings).device != "cpu"


def make_load(settings: Settings, folder: Path) -> Load:
    """What the fork server is told."""
    pool = make_pool(settings)
    return Load(
        folder=str(folder),
        served=make_served(settings),
        limits=Limits(settings.max_instances, settings.max_request_bytes, settings.max_request_pixels),
        max_image_pixels=settings.max_image_pixels,
        allow_code=settings.allow_code,
        compiled_dir=str(settings.compiled_dir) if settings.compile else None,
        device=choose_device(pool, folder),
        workers=pool.workers,
        worker_memory_bytes=settings.worker_memory_bytes,
        log_level=settings.log_level,
        log_json=settings.log_format == "json",
    )


def choose_device(pool: Pool, folder: Path) -> str:
    """What the artifact is computed on: a network of OpenVINO's never on a GPU."""
    if pool.device == "cpu" or not isinstance(read_config(folder), OpenvinoProgram):
        return pool.device
    logger.warning("format: openvino is computed on the CPU: set PIERHEAD_DEVICE=cpu for a worker on each CPU")
    return "cpu"


def allow_connections() -> None:
    """As many open files as may be: a container often starts with 1,024, and each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def yield_to_workers() -> None:
    """Where all CPUs are taken by workers, what comes is read by and by, and not each time that something comes.

    Each time costs a worker its caches, and while all compute there is nobody to give a request to. An idle CPU takes
    the listener at once, as ever.
    """
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def run(settings: Settings, launched: Launched) -> None:
    """`serve` in an event loop of its own."""
    allow_connections()
    yield_to_workers()
    with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
        runner.run(serve(settings, launched))
