"""The jittered resync: what a watch lost is found here."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

from pierhead_operator import names
from pierhead_operator.cluster import Cluster, ClusterError, Key, Rejected
from pierhead_operator.types import DeployedModel, Endpoint, Model

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 120.0
_RETRY_SECONDS = 5.0
_KINDS = (Model, DeployedModel, Endpoint)


def _uncounted(_kind: str, _count: int) -> None:
    pass


class Resync:
    """Lists all resources now and then, and asks for each to be looked after."""

    def __init__(
        self,
        cluster: Cluster,
        enqueue: Callable[[Key], None],
        namespaces: Sequence[str],
        count: Callable[[str, int], None] = _uncounted,
    ) -> None:
        self._cluster = cluster
        self._enqueue = enqueue
        self._namespaces: Sequence[str | None] = namespaces or [None]
        self._count = count
        self._last: float | None = None

    @property
    def age(self) -> float | None:
        """Seconds since the last resync that went through, or since they began; None before that."""
        return None if self._last is None else time.monotonic() - self._last

    async def run(self, begin: asyncio.Event) -> None:
        """Resyncs from `begin` until it is cancelled."""
        await begin.wait()
        self._last = time.monotonic()
        while True:
            try:
                await self.resync()
            except (ClusterError, Rejected) as error:
                logger.warning("resync put off: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._last = time.monotonic()
                # Replicas and restarts must not ask the API server all at once.
                await asyncio.sleep(INTERVAL_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311

    async def resync(self) -> None:
        """Asks for every resource once; raises ClusterError and Rejected."""
        found = Counter({kind.KIND: 0 for kind in _KINDS})
        for namespace in self._namespaces:
            for kind in _KINDS:
                for item in await self._cluster.list_objects(kind.KIND, namespace):
                    metadata = item["metadata"]
                    self._enqueue(Key(kind.KIND, metadata["namespace"], metadata["name"]))
                    found[kind.KIND] += 1
            await self._ask_for_leaving(namespace)
        for name, count in found.items():
            self._count(name, count)

    async def _ask_for_leaving(self, namespace: str | None) -> None:
        """Asks for the DeployedModels that are gone and whose Services, the last of them to go, are still there."""
        for service in await self._cluster.list_objects("Service", namespace, names.OURS):
            metadata = service["metadata"]
            if deployed_model := metadata["labels"].get(names.LABEL_DEPLOYED_MODEL):
                self._enqueue(Key(DeployedModel.KIND, metadata["namespace"], deployed_model))
