"""What a batch worker tells over HTTP: how far it is, whether it lives, and its metrics."""

import math
from collections.abc import Callable

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pierhead_server.batch.pulse import Pulse
from pierhead_server.metrics import Metrics


class Progress(msgspec.Struct, frozen=True, rename="camel"):
    """What is committed of a shard, by this attempt and those before it."""

    shard: int
    successful: int
    failed: int
    bytes_done: int
    bytes_total: int
    done: bool


class Ended(Progress, frozen=True, rename="camel"):
    """The termination message of a worker whose shard is done."""

    job_done: bool  # and it was the one that said so of the whole job


class Monitor:
    """The routes' handlers; a worker to which nothing came for `stall_seconds` is not alive."""

    def __init__(self, metrics: Metrics, pulse: Pulse, read_progress: Callable[[], Progress]) -> None:
        self._metrics = metrics
        self._pulse = pulse
        self._read_progress = read_progress
        # Without a bound while the model is loaded, which takes as long as its download.
        self.stall_seconds = math.inf

    async def healthz(self, _: Request) -> Response:
        """200 while the worker moves."""
        age = self._pulse.age
        if age > self.stall_seconds:
            return _json({"error": f"nothing has moved for {age:.0f} s"}, 503)
        return _json({"status": "ok"})

    async def progress(self, _: Request) -> Response:
        """What is committed."""
        return _json(self._read_progress())

    async def metrics(self, _: Request) -> Response:
        """Prometheus' text format."""
        return Response(self._metrics.expose(), media_type=CONTENT_TYPE_LATEST)


def _json(body: object, code: int = 200) -> Response:
    return Response(msgspec.json.encode(body), code, media_type="application/json")


def create_app(monitor: Monitor) -> Starlette:
    """The application."""
    handlers = {"/healthz": monitor.healthz, "/v1/progress": monitor.progress, "/metrics": monitor.metrics}
    return Starlette(routes=[Route(path, handler, methods=["GET"]) for path, handler in handlers.items()])
