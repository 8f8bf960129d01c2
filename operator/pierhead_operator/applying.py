"""What all reconciles do: bring what belongs to a resource to what is desired, and write what is true of it."""

import asyncio
from collections.abc import Sequence
from typing import Protocol, TypeVar

from pierhead_operator import removal
from pierhead_operator.cluster import ClusterError, Rejected
from pierhead_operator.resources import Manifest, is_owned, mark_applied, needs_apply
from pierhead_operator.schema import Resource, Status
from pierhead_operator.status import REASON_NOT_OWNED, REASON_REJECTED, Event, Finding, transition_event
from pierhead_operator.types import DeployedModel

R = TypeVar("R", bound=Resource)

_NOT_OWNED_ADVICE = "delete it, or give this resource another name"


class ClusterAccess(Protocol):
    """What reconciling needs of cluster.Cluster."""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None: ...
    async def fetch(self, kind: str, namespace: str, name: str) -> Manifest | None: ...
    async def list_objects(
        self, kind: str, namespace: str | None, labels: dict[str, str] | None = None
    ) -> Sequence[Manifest]: ...
    async def get_resource(self, kind: type[R], namespace: str, name: str) -> R | None: ...
    async def list_deployed_models(self, namespace: str, label: str, name: str) -> Sequence[DeployedModel]: ...
    async def apply(self, manifest: Manifest, live: Manifest | None = None) -> None: ...
    async def apply_control(self, live: Manifest, spec: Manifest) -> None: ...
    async def apply_status(self, resource: Resource, status: Status) -> None: ...
    async def delete(self, live: Manifest) -> None: ...
    async def create_event(self, resource: Resource, event: Event) -> None: ...


async def apply_all(cluster: ClusterAccess, owner: Resource, desired: Sequence[Manifest]) -> Finding | None:
    """Brings the owner's objects to what is desired, one after the other; tells what is in the way, if anything.

    Nothing is applied where one of them is somebody else's.
    """
    there = await asyncio.gather(*(_find(cluster, manifest) for manifest in desired))
    for live in there:
        if live and not is_owned(live, owner) and not removal.is_left(live, owner.name):
            name = f"{live['kind']} {live['metadata']['name']}"
            return Finding(REASON_NOT_OWNED, f"{name} is not Pierhead's: {_NOT_OWNED_ADVICE}")
    for manifest, live in zip(desired, there, strict=True):
        marked = mark_applied(manifest)
        if needs_apply(marked, live):
            try:
                await cluster.apply(marked, live)
            except Rejected as error:
                return Finding(REASON_REJECTED, f"{manifest['kind']} {manifest['metadata']['name']}: {error}")
    return None


async def _find(cluster: ClusterAccess, manifest: Manifest) -> Manifest | None:
    kind, namespace, name = manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"]
    # Of what is not Pierhead's nobody tells.
    return await cluster.get(kind, namespace, name) or await cluster.fetch(kind, namespace, name)


async def write_status(cluster: ClusterAccess, resource: Resource, before: Status, after: Status) -> None:
    """Writes a status, and tells what changed, if anything did."""
    if after != before:
        await cluster.apply_status(resource, after)
    if event := transition_event(before, after):
        await cluster.create_event(resource, event)


def retry_if_rejected(problem: Finding | None) -> None:
    """Raises ClusterError where the API server refused an object."""
    # No event tells that a quota grew or a webhook came to reason: ask again.
    if problem and problem.reason == REASON_REJECTED:
        raise ClusterError(problem.message)
