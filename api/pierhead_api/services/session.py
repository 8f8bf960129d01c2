"""What every service works with: the cluster as one caller may use it, and how an object is made and changed there."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from pierhead_operator.resources import Manifest
from pierhead_operator.schema import Resource
from pierhead_operator.types import KINDS, DeployedModel

from pierhead_api.errors import (
    AbortedError,
    AlreadyExistsError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from pierhead_api.names import Place, Projects, make_id
from pierhead_api.operations import read_records
from pierhead_api.pages import Ask, Page, follow

# The last wait ends some 5 s after the first try: others write at the same time, the operator too.
_CONFLICT_WAITS = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0)
# For an API server that starts anew; each try may take as long as one that does not answer.
_AWAY_WAITS = (0.5, 1.5)
_NO_SELECTOR: Mapping[str, str] = {}
_BY_KIND = {kind.KIND: kind for kind in KINDS}
# Each such question has the API server look at all that there are.
_FEW = 4
Manifests = list[Manifest]
MakePatch = Callable[[Manifest], Manifest | None] | Callable[[Manifest], Awaitable[Manifest | None]]


class Cluster(Protocol):
    """The custom resources, with one caller's rights. Every method raises what of ApiError applies."""

    async def get(self, kind: type[Resource], namespace: str, name: str) -> Manifest: ...

    async def list(
        self,
        kind: type[Resource],
        namespace: str,
        *,
        fields: Mapping[str, str] = _NO_SELECTOR,
        labels: Mapping[str, str] = _NO_SELECTOR,
    ) -> Manifests: ...

    async def list_page(self, kind: type[Resource], namespace: str, ask: Ask) -> Page: ...

    async def create(self, manifest: Manifest) -> Manifest: ...

    async def patch(self, kind: type[Resource], namespace: str, name: str, patch: Manifest) -> Manifest: ...

    async def delete(self, kind: type[Resource], namespace: str, name: str, *, uid: str | None = None) -> None: ...

    async def may(self, verb: str, resource: str, namespace: str, name: str) -> bool: ...


def utc_now() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


class _Waits:
    """Waits between tries, each some time of its own: callers who meet once meet again otherwise."""

    def __init__(self, seconds: Sequence[float], sleep: Callable[[float], Awaitable[None]]) -> None:
        self._left = [*seconds]
        self._sleep = sleep
        self.begun = False

    async def wait(self, error: Exception) -> None:
        """Until the next try; raises `error` where there is to be none."""
        if not self._left:
            raise error
        self.begun = True
        await self._sleep(self._left.pop(0) * random.uniform(0.5, 1.0))  # noqa: S311  # spreads load, guards nothing


@dataclass(frozen=True)
class Session:
    """One caller's session: `make_id` makes ids of new resources."""

    cluster: Cluster
    projects: Projects
    now: Callable[[], datetime] = utc_now
    make_id: Callable[[], str] = make_id
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def create(self, manifest: Manifest, serial: str = "") -> Manifest:
        """The object as it was made, with the record of `serial`, if any; else its name is of chance.

        It is made once, even if the answer to a try was lost. Raises AlreadyExistsError, UnavailableError.
        """
        kind, metadata = _BY_KIND[manifest["kind"]], manifest["metadata"]
        away = _Waits(_AWAY_WAITS, self.sleep)
        while True:
            try:
                return await self.cluster.create(manifest)
            except AlreadyExistsError:
                there = await self._get_surely(kind, metadata["namespace"], metadata["name"]) if away.begun else None
                if there and (not serial or serial in read_records(there)):
                    return there
                raise
            except UnavailableError as error:
                await away.wait(error)

    async def _get_surely(self, kind: type[Resource], namespace: str, name: str) -> Manifest:
        away = _Waits(_AWAY_WAITS, self.sleep)
        while True:
            try:
                return await self.cluster.get(kind, namespace, name)
            except UnavailableError as error:
                await away.wait(error)

    async def edit(
        self, kind: type[Resource], place: Place, name: str, make_patch: MakePatch, serial: str = ""
    ) -> Manifest:
        """The object after the merge patch that `make_patch` makes of it, or as it is where that makes none.

        Where somebody else changes it meanwhile, or the answer is lost, it is read again and `make_patch` decides anew,
        unless it has the record of `serial` by now; after some tries that raises AbortedError, or UnavailableError.
        """
        conflicts, away = _Waits(_CONFLICT_WAITS, self.sleep), _Waits(_AWAY_WAITS, self.sleep)
        while True:
            manifest = await self._get_surely(kind, place.namespace, name)
            if serial and serial in read_records(manifest):
                return manifest
            made = make_patch(manifest)
            patch = await made if isinstance(made, Awaitable) else made
            if patch is None:
                return manifest
            version = {"resourceVersion": manifest["metadata"]["resourceVersion"]}
            guarded = {**patch, "metadata": {**patch.get("metadata", {}), **version}}
            try:
                return await self.cluster.patch(kind, place.namespace, name, guarded)
            except AbortedError:
                await conflicts.wait(AbortedError(f"{kind.KIND} {name} is being changed by others: try again"))
            except UnavailableError as error:
                await away.wait(error)

    async def delete(self, kind: type[Resource], place: Place, name: str, uid: str) -> None:
        """Has that very object deleted. It is done once, even if the answer was lost. Raises NotFoundError."""
        away = _Waits(_AWAY_WAITS, self.sleep)
        while True:
            try:
                await self.cluster.delete(kind, place.namespace, name, uid=uid)
                return
            except NotFoundError:
                if not away.begun:
                    raise
                return
            except UnavailableError as error:
                await away.wait(error)

    async def check_right(self, verb: str, kind: type[Resource], place: Place, name: str) -> None:
        """Raises PermissionDeniedError where a later write would, which must not stop half-way."""
        if not await self.cluster.may(verb, kind.PLURAL, place.namespace, name):
            raise PermissionDeniedError(f"you may not {verb} {kind.PLURAL} in project {place.project}")


def find_deployed(manifests: Collection[Manifest], name: str) -> Manifest:
    """The DeployedModel of that name; raises NotFoundError."""
    found = next((manifest for manifest in manifests if manifest["metadata"]["name"] == name), None)
    if found is None:
        there = ", ".join(sorted(manifest["metadata"]["name"] for manifest in manifests)) or "nothing"
        raise NotFoundError(f"{name} is not deployed on this endpoint; {there} is")
    return found


async def read_deployed(cluster: Cluster, namespace: str, field: str, names: Collection[str]) -> dict[str, Manifests]:
    """The DeployedModels whose spec has one of these names in a field, by that name."""
    groups: dict[str, Manifests] = {name: [] for name in names}
    if len(groups) <= _FEW:
        asks = [cluster.list(DeployedModel, namespace, fields={f"spec.{field}": name}) for name in groups]
        return dict(zip(groups, await asyncio.gather(*asks), strict=True))
    async for manifests in read_pages(cluster, DeployedModel, namespace):
        for manifest in manifests:
            if manifest["spec"][field] in groups:
                groups[manifest["spec"][field]].append(manifest)
    return groups


def read_pages(
    cluster: Cluster, kind: type[Resource], namespace: str, fields: Mapping[str, str] = _NO_SELECTOR
) -> AsyncIterator[Manifests]:
    """The objects of a namespace whose fields have these values, some at a time."""
    return follow(lambda ask: cluster.list_page(kind, namespace, ask), Ask(fields=fields))
