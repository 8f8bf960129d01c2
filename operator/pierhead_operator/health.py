"""/healthz for the kubelet, /metrics and /metrics/resources for Prometheus, on one port."""

import asyncio
import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from pierhead_operator.metrics import Metrics
from pierhead_operator.resource_metrics import ResourceMetrics
from pierhead_operator.resync import INTERVAL_SECONDS

_PORT = 8081
# Liveness fails when nothing was heard of the cluster for this long. An event loop that hangs does not answer at all.
STALE_SECONDS = 3 * INTERVAL_SECONDS


class Heartbeat:
    """When something was last heard."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def beat(self) -> None:
        """It was heard now."""
        self._last = self._clock()

    @property
    def age(self) -> float:
        """Seconds since it was last heard, or since the start."""
        return self._clock() - self._last


def make_app(silence: Callable[[], float], metrics: Metrics, resources: ResourceMetrics) -> web.Application:
    """`silence`: for how many seconds nothing has been heard of the cluster."""

    async def healthz(_: web.Request) -> web.Response:
        seconds = silence()
        status = 200 if seconds < STALE_SECONDS else 503
        return web.Response(status=status, text=f"last heard of the cluster {seconds:.0f} s ago\n")

    async def tell_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def tell_resources(_: web.Request) -> web.Response:
        body = await asyncio.to_thread(resources.render)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/metrics", tell_metrics)
    app.router.add_get("/metrics/resources", tell_resources)
    return app


async def serve(app: web.Application) -> web.AppRunner:
    """Answers until it is cleaned up."""
    # A connection that is kept is a task that is kept, and at its end kopf waits for every task that came after it.
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, port=_PORT).start()
    return runner
