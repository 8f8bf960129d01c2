"""The jittered resync: what a watch lost is found here."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from pierhead_operator.cluster import Cluster, ClusterError, Listed, Rejected
from pierhead_operator.feed import OWN_KINDS, watched_labels

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 120.0
_SECOND_SECONDS = 30.0
_RETRY_SECONDS = 5.0


def _uncounted(_kind: str, _count: int) -> None:
    pass


class Resync:
    """Lists all that is watched now and then, corrects what is known by it, and has each resource looked after."""

    def __init__(
        self,
        cluster: Cluster,
        kinds: Collection[str],
        namespaces: Sequence[str],
        tell_listed: Callable[[str, Listed], None],
        count: Callable[[str, int], None] = _uncounted,
    ) -> None:
        self._cluster = cluster
        self._kinds = sorted(kinds)
        self._namespaces: Sequence[str | None] = namespaces or [None]
        self._tell_listed = tell_listed
        self._count = count
        self._last = time.monotonic()
        self.complete = asyncio.Event()  # set once all that is there was seen

    @property
    def age(self) -> float:
        """Seconds since the last resync that went through, or since the start."""
        return time.monotonic() - self._last

    async def run(self) -> None:
        """Resyncs until it is cancelled."""
        while True:
            try:
                await self.resync()
            except (ClusterError, Rejected) as error:
                logger.warning("resync put off: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except Exception:
                # A bug with one object must not end the care for all others.
                logger.exception("resync failed")
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            first, self._last = not self.complete.is_set(), time.monotonic()
            self.complete.set()
            # What went while the watches were not yet there is found soon.
            # Replicas and restarts must not ask the API server all at once.
            await asyncio.sleep((_SECOND_SECONDS if first else INTERVAL_SECONDS) * random.uniform(0.8, 1.2))  # noqa: S311

    async def resync(self) -> None:
        """Lists everything once; raises ClusterError and Rejected."""
        found = Counter(dict.fromkeys(self._kinds, 0))
        for namespace in self._namespaces:
            for kind in self._kinds:
                async for listed in self._cluster.refresh(kind, namespace, watched_labels(kind)):
                    self._tell_listed(kind, listed)
                    found[kind] += 1
        for kind in OWN_KINDS.intersection(self._kinds):
            self._count(kind, found[kind])
