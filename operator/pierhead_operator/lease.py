"""Leader election on a Lease of Kubernetes: of several operators one acts, the others wait warm.

After client-go's model (tools/leaderelection). Clocks of different machines are never compared: a Lease has run out
when this process has seen the same record for the record's duration, by its own monotonic clock. The holder counts
from before it asked for its last renewal, so it stops before anybody else may start.
"""

import asyncio
import logging
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Protocol

from pierhead_operator import names
from pierhead_operator.cluster import ClusterError, Key, Rejected, format_micro_time
from pierhead_operator.resources import Manifest

logger = logging.getLogger(__name__)

KIND = "Lease"
NAME = "pierhead-operator"  # where the chart gives no other
DURATION_SECONDS = 10
# The holder stops writing so long after its last renewal; what is under way then has the rest of the duration to end.
RENEW_DEADLINE_SECONDS = 7.0
RETRY_SECONDS = 2.0
# Of one request for the Lease: one that hangs must leave time for another before the deadline.
REQUEST_SECONDS = 2.5
_JITTER = 1.2
_LEAST_WAIT_SECONDS = 0.05


class LeaseLostError(Exception):
    """This process was the leader and is not any more: what it knows is of no use, it ends."""


class Turn(Enum):
    """What to do about the Lease now."""

    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


@dataclass(frozen=True)
class Record:
    """What a Lease says."""

    holder: str  # empty: it was given up
    seconds: float  # for how long nobody else takes it without another word of its holder
    version: str  # another one after each write


@dataclass(frozen=True)
class Candidate:
    """Who asks for a Lease."""

    identity: str
    watch_namespaces: Sequence[str] = ()  # all of them, if empty


def read_watch_namespaces(lease: Manifest) -> str:
    """The namespaces that a Lease's installation looks after, as it writes them; all of them, if empty."""
    return str(lease["metadata"].get("annotations", {}).get(names.ANNOTATION_WATCH_NAMESPACES, ""))


def looks_after(watch_namespaces: str, namespace: str) -> bool:
    """Whether a namespace is among those of `read_watch_namespaces`."""
    return not watch_namespaces or namespace in watch_namespaces.split(",")


def parse_renew_time(lease: Manifest) -> datetime | None:
    """When a Lease was renewed last, by its holder's clock."""
    moment = (lease.get("spec") or {}).get("renewTime")
    return datetime.fromisoformat(moment) if moment else None


def parse_record(lease: Manifest) -> Record:
    """The record of a Lease object."""
    spec = lease.get("spec") or {}
    return Record(
        holder=spec.get("holderIdentity") or "",
        seconds=float(spec.get("leaseDurationSeconds") or DURATION_SECONDS),
        version=lease["metadata"]["resourceVersion"],
    )


def decide(record: Record | None, observed_at: float, now: float, identity: str) -> Turn:
    """What to do about a Lease whose record this process has seen as it is since `observed_at`, by its own clock."""
    if record is None or not record.holder:
        return Turn.TAKE
    if record.holder == identity:
        return Turn.RENEW
    return Turn.TAKE if now >= observed_at + record.seconds else Turn.WAIT


def compute_wait(record: Record | None, observed_at: float, now: float) -> float:
    """Seconds until the next look: the retry period with jitter, or less where the Lease runs out before."""
    wait = RETRY_SECONDS * random.uniform(1.0, _JITTER)  # noqa: S311  # spreads load, guards nothing
    left = observed_at + record.seconds - now if record else 0.0
    return min(wait, max(left, _LEAST_WAIT_SECONDS)) if left > 0 else wait


def make_lease(live: Manifest | None, key: Key, candidate: Candidate, moment: str) -> Manifest:
    """The Lease as its next holder writes it, over what is there; `moment` is for people."""
    before = (live or {}).get("spec") or {}
    renewed = before.get("holderIdentity") == candidate.identity
    transitions = before.get("leaseTransitions") or 0
    spec = {
        "holderIdentity": candidate.identity,
        "leaseDurationSeconds": DURATION_SECONDS,
        "acquireTime": before.get("acquireTime") if renewed else moment,
        "renewTime": moment,
        "leaseTransitions": transitions if renewed or live is None else transitions + 1,
    }
    metadata: Manifest = live["metadata"] if live else {"name": key.name, "namespace": key.namespace}
    watched = {names.ANNOTATION_WATCH_NAMESPACES: ",".join(candidate.watch_namespaces)}
    annotations = {**metadata.get("annotations", {}), **watched}
    metadata = {**metadata, "annotations": annotations}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": KIND, "metadata": metadata, "spec": spec}


def make_released(live: Manifest, moment: str) -> Manifest:
    """The Lease as its holder leaves it: anybody may take it at once."""
    # The duration must not be 0.
    given_up = {"holderIdentity": "", "leaseDurationSeconds": 1, "acquireTime": moment, "renewTime": moment}
    return {**live, "spec": {**live["spec"], **given_up}}


def make_identity(pod: str) -> str:
    """A name that no other process has: one that comes after this one in the same pod must not take it for its own."""
    return f"{pod}_{secrets.token_hex(4)}"


class LeaseAccess(Protocol):
    """What the election needs of cluster.Cluster."""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None: ...
    async def create(self, manifest: Manifest) -> Manifest: ...
    async def update(self, manifest: Manifest) -> Manifest: ...


class Lease:
    """The right to act: taken, kept and given up by one process."""

    def __init__(
        self,
        cluster: LeaseAccess,
        key: Key,
        candidate: Candidate,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._cluster = cluster
        self._key = key
        self._title = f"{key.namespace}/{key.name}"
        self._candidate = candidate
        self._identity = candidate.identity
        self._clock = clock
        self._sleep = sleep
        self._record: Record | None = None
        self._observed_at = clock()
        self._renewed_at = -math.inf

    @property
    def is_held(self) -> bool:
        """Whether this process may act."""
        return self._clock() < self._renewed_at + RENEW_DEADLINE_SECONDS

    def seconds_left(self) -> float:
        """For how long what this process writes from now on comes before anybody else's; 0 where it must not write."""
        return self._renewed_at + DURATION_SECONDS - self._clock() if self.is_held else 0.0

    async def acquire(self) -> None:
        """Waits until this process holds the Lease."""
        while not await self._try():
            await self._sleep(compute_wait(self._record, self._observed_at, self._clock()))
        logger.info("leads: holds the lease %s as %s", self._title, self._identity)

    async def keep(self) -> None:
        """Renews the Lease until it is lost: raises LeaseLostError then."""
        while True:
            await self._sleep(RETRY_SECONDS)
            if await self._try():
                continue
            if self._holder != self._identity:
                self._renewed_at = -math.inf
                raise LeaseLostError(f"the lease {self._title} is held by {self._holder or 'nobody'}")
            if not self.is_held:
                raise LeaseLostError(f"the lease {self._title} was not renewed for {RENEW_DEADLINE_SECONDS:g} s")

    async def release(self) -> None:
        """Gives the Lease up, if it is held, so that another may take it at once.

        To be called when nothing of this process writes any more.
        """
        if not self.is_held:
            return
        self._renewed_at = -math.inf
        try:
            live = await self._cluster.get(KIND, self._key.namespace, self._key.name)
            if live and parse_record(live).holder == self._identity:
                await self._cluster.update(make_released(live, format_micro_time(datetime.now(UTC))))
                logger.info("gave the lease %s up", self._title)
        except (ClusterError, Rejected) as error:
            logger.warning("lease %s not given up: %s", self._title, error)

    @property
    def _holder(self) -> str:
        return self._record.holder if self._record else ""

    async def _try(self) -> bool:
        """Takes or renews the Lease if that can be; whether it was."""
        try:
            live = await self._cluster.get(KIND, self._key.namespace, self._key.name)
            # Of one that was deleted by hand the last record stands: its holder believes in it for as long.
            if live:
                self._observe(live)
            if decide(self._record, self._observed_at, self._clock(), self._identity) is Turn.WAIT:
                return False
            started = self._clock()
            wanted = make_lease(live, self._key, self._candidate, format_micro_time(datetime.now(UTC)))
            self._observe(await (self._cluster.update(wanted) if live else self._cluster.create(wanted)))
            self._renewed_at = started
        except (ClusterError, Rejected) as error:
            # Also where another was faster: the next look shows who.
            logger.warning("lease %s: %s", self._title, error)
            return False
        return True

    def _observe(self, live: Manifest) -> None:
        before, self._record = self._record, parse_record(live)
        if before is None or before.version != self._record.version:
            self._observed_at = self._clock()
        if self._holder not in ("", self._identity) and (before is None or before.holder != self._holder):
            logger.info("waits: %s holds the lease %s", self._holder, self._title)
