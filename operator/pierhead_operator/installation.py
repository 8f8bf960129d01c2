"""Which installation looks after a resource where several could: the first one that did, as long as it lives.

An installation is known by the Lease that its operators share, as NAMESPACE/NAME. The status of a resource names the
one that looks after it, and an annotation the one that made an object. Whether another one lives tells its Lease,
which every ServiceAccount may read: it does while it is being renewed, and it names the namespaces that it looks after.

Only operators write a status. An annotation may be written by whoever may write the object: it counts in that object's
namespace alone, and costs a bounded amount of memory.
"""

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
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
# A Lease that is seen for the first time is judged by its holder's clock. No two clocks are so far apart.
_CLOCK_SKEW_SECONDS = 600.0
# A cluster has a handful of installations; more names than these are somebody's play.
_MOST_SEEN = 64
# As Kubernetes names a namespace and a Lease: nothing else is made a path of.
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAMESPACE, _LEASE = re.compile(_LABEL), re.compile(rf"{_LABEL}(\.{_LABEL})*")
_LONGEST_NAMESPACE, _LONGEST_LEASE = 63, 253


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


def is_name(installation: str) -> bool:
    """Whether there could be an installation of this name."""
    namespace, _, name = installation.partition("/")
    if len(namespace) > _LONGEST_NAMESPACE or len(name) > _LONGEST_LEASE:
        return False
    return bool(_NAMESPACE.fullmatch(namespace) and _LEASE.fullmatch(name))


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


@dataclass(frozen=True)
class _Seen:
    """What is known of another installation."""

    version: str | None  # of its Lease; None: there is none, or nobody may read it any more
    since: float  # since when that is so, by this process's clock; -inf where it was so long before
    read_at: float
    watch_namespaces: str  # lease.read_watch_namespaces: parsed, what a tenant writes there takes many times as much


_UNSEEN = _Seen(version=None, since=-math.inf, read_at=-math.inf, watch_namespaces="")


def _read_clock() -> datetime:
    return datetime.now(UTC)


class Installations:
    """Tells what another installation looks after from what this one, `own`, may touch."""

    def __init__(
        self,
        cluster: ReadAccess,
        own: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _read_clock,
    ) -> None:
        self._cluster = cluster
        self._own = own
        self._clock = clock
        self._now = now
        self._seen: dict[str, _Seen] = {}  # the one that was read last at its end
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
        live = await self._cluster.get(key.kind, key.namespace, key.name)
        claimed = find_holder(live)
        other = await self._find_other(claimed or await self._find_maker(key, live), key.namespace)
        if other is None:
            # Each time the whole cluster is looked through: an annotation alone does not bring that about.
            if self._left.pop(key, None) and claimed:
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

    async def _find_maker(self, key: Key, live: Manifest | None) -> str:
        """Who is to look after a DeployedModel whose status names nobody, by what is around it."""
        if key.kind != DeployedModel.KIND:
            return ""
        # One that is gone, or came back, leaves its pods with whom they were.
        for kind in ("Deployment", "Service"):
            if maker := find_holder(await self._cluster.get(kind, key.namespace, names.server(key.name))):
                return maker
        # Who weighs an Endpoint's traffic also drains what leaves it.
        endpoint = (live or {}).get("spec", {}).get("endpoint")
        return find_holder(await self._cluster.get(Endpoint.KIND, key.namespace, endpoint)) if endpoint else ""

    async def _find_other(self, holder: str, namespace: str) -> str | None:
        if holder == self._own or not is_name(holder):
            return None
        seen = await self._observe(holder)
        lives = self._clock() - seen.since < GONE_SECONDS
        return holder if lives and lease.looks_after(seen.watch_namespaces, namespace) else None

    async def _observe(self, installation: str) -> _Seen:
        seen = self._seen.get(installation)
        if seen and self._clock() < seen.read_at + _READ_AGAIN_SECONDS:
            return seen
        # Of several that ask at once each reads: what is known may be older than an installation lives unheard.
        return self._remember(installation, await self._read_lease(installation))

    def _remember(self, installation: str, live: Manifest | None) -> _Seen:
        before, now = self._seen.pop(installation, _UNSEEN), self._clock()
        version, since, watched = None, before.since, before.watch_namespaces
        if live:
            version, watched = live["metadata"]["resourceVersion"], lease.read_watch_namespaces(live)
        if version != before.version and (before is not _UNSEEN or self._was_renewed(live)):
            since = now
        seen = self._seen[installation] = _Seen(version, since, now, watched)
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        return seen

    def _was_renewed(self, live: Manifest | None) -> bool:
        """Whether somebody may still hold a Lease of which only this one look is known."""
        renewed = lease.parse_renew_time(live) if live else None
        return renewed is not None and (self._now() - renewed).total_seconds() < _CLOCK_SKEW_SECONDS

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
