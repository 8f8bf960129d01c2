"""Which installation looks after a resource where several could: the first one that did, as long as it lives.

An installation is known by the Lease that its operators share, as NAMESPACE/NAME. The status of a resource names the
one that looks after it, and an annotation the one that made an object. Whether another one lives tells its Lease,
which every ServiceAccount may read: it does while it is being renewed, and it names the namespaces that it looks after.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pierhead_operator import lease, names
from pierhead_operator.cluster import Key, Rejected
from pierhead_operator.feed import OWN_KINDS
from pierhead_operator.resources import Manifest
from pierhead_operator.schema import Status
from pierhead_operator.types import DeployedModel, Endpoint

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Status)
Work = Callable[[Key], Awaitable[float | None]]

# How soon to look again at what another installation looks after.
LOOK_AGAIN_SECONDS = 60.0
# Longer than a rolling update leaves a Lease without a holder, or an operator takes to start anew.
GONE_SECONDS = 60.0
_READ_AGAIN_SECONDS = 10.0
_NAME = re.compile(r"[a-z0-9-]+/[a-z0-9.-]+")


def make_name(key: Key) -> str:
    """The installation whose operators share this Lease."""
    return f"{key.namespace}/{key.name}"


def mark_made(manifest: Manifest, installation: str) -> Manifest:
    """An object with the installation that makes it; as it is where that has no name."""
    if not installation:
        return manifest
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), names.ANNOTATION_INSTALLATION: installation}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def mark_claimed(status: S, installation: str) -> S:
    """A status with the installation that looks after its resource; as it is where that has no name."""
    return status.model_copy(update={"installation": installation}) if installation else status


def find_holder(live: Manifest | None) -> str:
    """The installation that looks after a resource, or has made an object; '' where none is named."""
    if live is None:
        return ""
    if live["kind"] in OWN_KINDS:
        return str(live.get("status", {}).get("installation") or "")
    return str(live["metadata"].get("annotations", {}).get(names.ANNOTATION_INSTALLATION) or "")


class ReadAccess(Protocol):
    """What telling installations apart needs of cluster.Cluster."""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None: ...
    async def fetch(self, kind: str, namespace: str, name: str) -> Manifest | None: ...


@dataclass
class _Seen:
    """What is known of another installation."""

    since: float  # since when its Lease is as it is, by this process's clock
    read_at: float = float("-inf")
    version: str | None = None  # None: there is no Lease, or nobody may read it any more
    namespaces: frozenset[str] = frozenset()  # all of them, if empty


class Installations:
    """Tells what another installation looks after from what this one, `own`, may touch."""

    def __init__(self, cluster: ReadAccess, own: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._own = own
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._left: dict[Key, str] = {}
        # Set where objects may be left of kinds that no reconcile knows: at the start, and once another one is gone.
        self.to_tidy = asyncio.Event()
        self.to_tidy.set()

    @property
    def count_left(self) -> int:
        """How many resources are left to other installations."""
        return len(self._left)

    async def is_anothers(self, key: Key) -> bool:
        """Whether another installation that lives looks after a resource; what it does is told once."""
        holder = await self._find_holder(key)
        other = await self._find_other(holder, key.namespace)
        if other is None:
            if self._left.pop(key, None) and holder:
                self.to_tidy.set()
        elif self._left.get(key) != other:
            self._left[key] = other
            logger.info("%s %s/%s is left to the installation %s", key.kind, key.namespace, key.name, other)
        return other is not None

    async def was_made_by_another(self, live: Manifest) -> bool:
        """Whether another installation that lives has made an object, or looks after its owner."""
        holder, namespace = find_holder(live), live["metadata"]["namespace"]
        for reference in live["metadata"].get("ownerReferences", []):
            if not holder and reference["kind"] in OWN_KINDS:
                holder = find_holder(await self._cluster.get(reference["kind"], namespace, reference["name"]))
        return await self._find_other(holder, namespace) is not None

    async def _find_holder(self, key: Key) -> str:
        live = await self._cluster.get(key.kind, key.namespace, key.name)
        if (holder := find_holder(live)) or key.kind != DeployedModel.KIND:
            return holder
        # One that is gone, or came back, leaves its pods with whom they were.
        for kind in ("Deployment", "Service"):
            if holder := find_holder(await self._cluster.get(kind, key.namespace, names.server(key.name))):
                return holder
        # Who weighs an Endpoint's traffic also drains what leaves it.
        endpoint = (live or {}).get("spec", {}).get("endpoint")
        return find_holder(await self._cluster.get(Endpoint.KIND, key.namespace, endpoint)) if endpoint else ""

    async def _find_other(self, holder: str, namespace: str) -> str | None:
        if not _NAME.fullmatch(holder) or holder == self._own:
            return None
        seen = await self._observe(holder)
        lives = self._clock() - seen.since < GONE_SECONDS
        looks_here = not seen.namespaces or namespace in seen.namespaces
        return holder if lives and looks_here else None

    async def _observe(self, installation: str) -> _Seen:
        now = self._clock()
        seen = self._seen.setdefault(installation, _Seen(since=now))
        if now >= seen.read_at + _READ_AGAIN_SECONDS:
            seen.read_at = now  # before it is read: others that ask meanwhile need not
            live = await self._read_lease(installation)
            version = live["metadata"]["resourceVersion"] if live else None
            if version != seen.version:
                seen.version, seen.since = version, now
            if live:
                seen.namespaces = lease.parse_watch_namespaces(live)
        return seen

    async def _read_lease(self, installation: str) -> Manifest | None:
        namespace, _, name = installation.partition("/")
        try:
            return await self._cluster.fetch(lease.KIND, namespace, name)
        except Rejected:
            # Who lives lets everybody read it: the right went with the release.
            return None


async def spare_others(
    key: Key, work: Work, installations: Installations, withdraw: Callable[[Key], Awaitable[None]]
) -> float | None:
    """Does a resource's work, unless another installation looks after it: then what this one made for it goes."""
    if await installations.is_anothers(key):
        await withdraw(key)
        return LOOK_AGAIN_SECONDS
    return await work(key)
