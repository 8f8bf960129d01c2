"""What all reconciles do: bring what belongs to a resource to what is desired, and write what is true of it."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Protocol, TypeVar

from pierhead_operator import names, removal
from pierhead_operator.cluster import ClusterError, Conflict, Invalid, Key, Rejected, UnreadableError
from pierhead_operator.resources import (
    Manifest,
    describe,
    describe_held,
    is_owned,
    make_repair,
    mark_applied,
    needs_apply,
)
from pierhead_operator.routing import Server
from pierhead_operator.schema import Resource, Status
from pierhead_operator.status import (
    REASON_INVALID,
    REASON_NOT_OWNED,
    REASON_REJECTED,
    Event,
    Finding,
    compute_unreadable_status,
    keep_own,
    transition_event,
)
from pierhead_operator.types import DeployedModel

R = TypeVar("R", bound=Resource)

_MOST_SETTLED = 50_000  # of each some 200 bytes; what is forgotten is applied once more
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
    def find_public_servers(self, namespace: str, model: str) -> tuple[Mapping[str, Server], Collection[str]]: ...
    def is_routed(self, kinds: Iterable[str], namespace: str, service: str) -> bool: ...
    async def apply(self, manifest: Manifest, live: Manifest | None = None) -> Manifest: ...
    async def patch(self, live: Manifest, changes: Manifest) -> Manifest | None: ...
    async def apply_status(self, resource: Resource, status: Status) -> bool: ...
    async def apply_raw_status(self, key: Key, uid: str, status: Manifest) -> bool: ...
    async def delete(self, live: Manifest) -> None: ...
    async def create_event(self, resource: Resource, event: Event) -> None: ...


@dataclass(frozen=True)
class Settled:
    """What came of applies whose objects are not as they were applied, since a webhook changes them.

    Without it they would be applied at each look. A restart forgets it, and applies each of them once more.
    """

    # What was applied, and what of it the object held then.
    _held: dict[tuple[str, str, str], tuple[str, str]] = field(default_factory=dict)

    def knows(self, marked: Manifest, live: Manifest) -> bool:
        """Whether `live` holds what came of the last apply of `marked`."""
        return self._held.get(_place(marked)) == (describe(marked), describe_held(live, marked))

    def remember(self, marked: Manifest, written: Manifest) -> None:
        """`written` is what came of an apply of `marked`."""
        if needs_apply(marked, written):
            self._held[_place(marked)] = describe(marked), describe_held(written, marked)
            if len(self._held) > _MOST_SETTLED:
                del self._held[next(iter(self._held))]
        else:
            self._held.pop(_place(marked), None)


async def apply_all(
    cluster: ClusterAccess,
    owner: Resource,
    desired: Sequence[Manifest],
    settled: Settled,
    beside: Collection[str] = (),
) -> Finding | None:
    """Brings the owner's objects to what is desired; tells what is in the way, if anything.

    One after the other, and those of the kinds `beside` at once at the end. Nothing is applied where one that the
    watches know of is somebody else's.
    """
    there = [await cluster.get(*_place(manifest)) for manifest in desired]
    for live in there:
        if live and (foreign := _explain_foreign(live, owner)):
            return foreign
    work = [
        (manifest["kind"], partial(_apply, cluster, owner, manifest, live, settled))
        for manifest, live in zip(desired, there, strict=True)
    ]
    for kind, apply in work:
        if kind not in beside and (problem := await apply()):
            return problem
    problems = await asyncio.gather(*(apply() for kind, apply in work if kind in beside))
    return next((problem for problem in problems if problem), None)


async def _apply(
    cluster: ClusterAccess, owner: Resource, manifest: Manifest, live: Manifest | None, settled: Settled
) -> Finding | None:
    marked, name = mark_applied(manifest), f"{manifest['kind']} {manifest['metadata']['name']}"
    if live and (not needs_apply(marked, live) or settled.knows(marked, live)):
        return None
    try:
        settled.remember(marked, await _create_or_apply(cluster, owner, marked, live))
    except _ForeignError as foreign:
        return foreign.finding
    except Invalid as error:
        return Finding(REASON_INVALID, f"{name}: {error}")
    except Rejected as error:
        return Finding(REASON_REJECTED, f"{name}: {error}")
    return None


class _ForeignError(Exception):
    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


async def _create_or_apply(
    cluster: ClusterAccess, owner: Resource, marked: Manifest, live: Manifest | None
) -> Manifest:
    try:
        return await cluster.apply(marked, live)
    except Conflict:
        if live is not None:
            raise
        # Of what has no label of Pierhead's no watch tells: somebody else's, or one of ours that lost it.
        found = await cluster.fetch(*_place(marked))
        if found and (foreign := _explain_foreign(found, owner)):
            raise _ForeignError(foreign) from None
        return await cluster.apply(marked, found)
    except Invalid:
        repair = make_repair(live, marked) if live else None
        if live is None or repair is None:
            raise
        await cluster.patch(live, repair)
        return await cluster.apply(marked, live)


def _explain_foreign(live: Manifest, owner: Resource) -> Finding | None:
    if is_owned(live, owner) or removal.is_left(live, owner.name):
        return None
    return Finding(REASON_NOT_OWNED, _name_owner(live, owner))


def _name_owner(live: Manifest, wanting: Resource) -> str:
    """Whose an object is that `wanting` needs the name of, and the fix."""
    name = f"{live['kind']} {live['metadata']['name']}"
    references = live["metadata"].get("ownerReferences", [])
    owner: Manifest = next((reference for reference in references if reference.get("controller")), {})
    ours = owner.get("apiVersion") == names.API_VERSION
    if ours and (owner["kind"], owner["name"]) != (wanting.KIND, wanting.name):
        return (
            f"{name} is that of {owner['kind']} {owner['name']}, whose name gives the same one:"
            f" delete it, or give this {wanting.KIND} another name"
        )
    return f"{name} is not Pierhead's: {_NOT_OWNED_ADVICE}"


def _place(manifest: Manifest) -> tuple[str, str, str]:
    return manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"]


async def tell_unreadable(cluster: ClusterAccess, key: Key, error: UnreadableError, now: datetime) -> None:
    """Writes that a resource, or one that it names, cannot be read; all else of it stays as it is."""
    live = await cluster.get(key.kind, key.namespace, key.name)
    if live is None or live["metadata"].get("deletionTimestamp"):
        return
    status = compute_unreadable_status(live, str(error), now)
    if status != live.get("status"):
        await cluster.apply_raw_status(key, live["metadata"]["uid"], status)


async def write_status(cluster: ClusterAccess, resource: Resource, before: Status, after: Status) -> None:
    """Writes a status, and tells what changed, if anything did."""
    if after != keep_own(before) and not await cluster.apply_status(resource, after):
        return  # else the same would be told at each look
    if event := transition_event(before, after):
        await cluster.create_event(resource, event)


def retry_if_rejected(problem: Finding | None) -> None:
    """Raises ClusterError where the API server refused an object, though it may take it later."""
    # No event tells that a quota grew or a webhook came to reason: ask again.
    if problem and problem.reason == REASON_REJECTED:
        raise ClusterError(problem.message)
