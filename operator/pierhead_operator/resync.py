"""The jittered resync: what a watch lost is found here, and the operator's liveness is told by its age."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence

from aiohttp import web

from pierhead_operator.cluster import Cluster, ClusterError, Key
from pierhead_operator.types import DeployedModel, Endpoint, Model

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 120.0
_RETRY_SECONDS = 5.0
# Liveness fails when the API server could not be listed for this long, or the event loop hangs.
_STALE_SECONDS = 3 * _INTERVAL_SECONDS
_HEALTH_PORT = 8081


class Resync:
    """Lists all resources now and then, and asks for each to be looked after."""

    def __init__(self, cluster: Cluster, enqueue: Callable[[Key], None], namespaces: Sequence[str]) -> None:
        self._cluster = cluster
        self._enqueue = enqueue
        self._namespaces: Sequence[str | None] = namespaces or [None]
        self._last = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last resync that went through."""
        return time.monotonic() - self._last

    async def run(self) -> None:
        """Resyncs until it is cancelled."""
        while True:
            try:
                await self.resync()
            except ClusterError as error:
                logger.warning("resync put off: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._last = time.monotonic()
                # Replicas and restarts must not ask the API server all at once.
                await asyncio.sleep(_INTERVAL_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311

    async def resync(self) -> None:
        """Asks for every resource once; raises ClusterError."""
        for namespace in self._namespaces:
            for kind in (Model, DeployedModel, Endpoint):
                for item in await self._cluster.list_objects(kind.KIND, namespace):
                    metadata = item["metadata"]
                    self._enqueue(Key(kind.KIND, metadata["namespace"], metadata["name"]))


async def serve_health(resync: Resync) -> web.AppRunner:
    """Answers /healthz: 200 while resyncs go through, 503 when the last one is too old."""

    async def healthz(_: web.Request) -> web.Response:
        age = resync.age
        return web.Response(status=200 if age < _STALE_SECONDS else 503, text=f"last resync {age:.0f} s ago\n")

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=_HEALTH_PORT).start()
    return runner
