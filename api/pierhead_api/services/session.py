"""What every service works with: the cluster as one caller may use it, and how an object is changed there."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from pierhead_operator.resources import Manifest
from pierhead_operator.schema import Resource

from pierhead_api.errors import AbortedError, NotFoundError, PermissionDeniedError
from pierhead_api.names import Place, Projects, make_id

_TRIES = 5
_NO_SELECTOR: Mapping[str, str] = {}
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

    async def edit(
        self, kind: type[Resource], place: Place, name: str, make_patch: Callable[[Manifest], Manifest | None]
    ) -> Manifest:
        """The object after the merge patch that `make_patch` makes of it, or as it is where that makes none.

        Where somebody else changes it meanwhile, it is read again and `make_patch` decides anew; after some tries that
        raises AbortedError.
        """
        for _ in range(_TRIES):
            manifest = await self.cluster.get(kind, place.namespace, name)
            patch = make_patch(manifest)
            if patch is None:
                return manifest
            version = {"resourceVersion": manifest["metadata"]["resourceVersion"]}
            guarded = {**patch, "metadata": {**patch.get("metadata", {}), **version}}
            try:
                return await self.cluster.patch(kind, place.namespace, name, guarded)
            except AbortedError:
                continue
        raise AbortedError(f"{kind.KIND} {name} is being changed by others: try again")

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
