"""What every service works with: the cluster as one caller may use it, and how an object is made and changed there."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from pierhead_operator.resources import Manifest
from pierhead_operator.schema import Resource
from pierhead_operator.types import KINDS

from pierhead_api.errors import (
    AbortedError,
    AlreadyExistsError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from pierhead_api.names import Place, Projects, make_id
from pierhead_api.operations import read_records

_TRIES = 10  # of which the last comes some 5 s after the first: others write at the same time, the operator too
_UNAVAILABLE_TRIES = 3  # each may take as long as an API server that does not answer
_FIRST_WAIT_SECONDS, _MOST_WAIT_SECONDS = 0.02, 1.0
_NO_SELECTOR: Mapping[str, str] = {}
_BY_KIND = {kind.KIND: kind for kind in KINDS}
Manifests = list[Manifest]


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

    async def create(self, manifest: Manifest) -> Manifest: ...

    async def patch(self, kind: type[Resource], namespace: str, name: str, patch: Manifest) -> Manifest: ...

    async def delete(self, kind: type[Resource], namespace: str, name: str, *, uid: str | None = None) -> None: ...

    async def may(self, verb: str, resource: str, namespace: str, name: str) -> bool: ...


def utc_now() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Session:
    """One caller's session: `make_id` makes ids of new resources."""

    cluster: Cluster
    projects: Projects
    now: Callable[[], datetime] = utc_now
    make_id: Callable[[], str] = make_id
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def create(self, manifest: Manifest, serial: str) -> Manifest:
        """The object as it was made, which has the record of that serial.

        It is made once, even if the answer to a try was lost. Raises AlreadyExistsError, UnavailableError.
        """
        kind, metadata = _BY_KIND[manifest["kind"]], manifest["metadata"]
        async for number in self._try():
            try:
                return await self.cluster.create(manifest)
            except AlreadyExistsError:
                there = await self.cluster.get(kind, metadata["namespace"], metadata["name"])
                if number > 0 and serial in read_records(there):
                    return there
                raise
            except UnavailableError:
                if number + 1 >= _UNAVAILABLE_TRIES:
                    raise
        raise AssertionError("a try is the last one")

    async def edit(
        self,
        kind: type[Resource],
        place: Place,
        name: str,
        make_patch: Callable[[Manifest], Manifest | None],
        serial: str = "",
    ) -> Manifest:
        """The object after the merge patch that `make_patch` makes of it, or as it is where that makes none.

        Where somebody else changes it meanwhile, or the answer is lost, it is read again and `make_patch` decides anew,
        unless it has the record of `serial` by now; after some tries that raises AbortedError, or UnavailableError.
        """
        async for number in self._try():
            manifest = await self.cluster.get(kind, place.namespace, name)
            if serial and serial in read_records(manifest):
                return manifest
            patch = make_patch(manifest)
            if patch is None:
                return manifest
            version = {"resourceVersion": manifest["metadata"]["resourceVersion"]}
            guarded = {**patch, "metadata": {**patch.get("metadata", {}), **version}}
            try:
                return await self.cluster.patch(kind, place.namespace, name, guarded)
            except AbortedError:
                continue
            except UnavailableError:
                if number + 1 >= _UNAVAILABLE_TRIES:
                    raise
        raise AbortedError(f"{kind.KIND} {name} is being changed by others: try again")

    async def _try(self) -> AsyncIterator[int]:
        """The numbers of tries, each a while after the one before: callers who meet once meet again otherwise."""
        for number in range(_TRIES):
            if number:
                most = min(_MOST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**number)
                await self.sleep(most * random.uniform(0.5, 1.0))  # noqa: S311  # spreads load, guards nothing
            yield number

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


def group_by(manifests: Collection[Manifest], field: str) -> dict[str, Manifests]:
    """The DeployedModels by what this field of their spec names."""
    groups: dict[str, Manifests] = {}
    for manifest in manifests:
        groups.setdefault(manifest["spec"][field], []).append(manifest)
    return groups
