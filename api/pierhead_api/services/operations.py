"""Long-running operations: what the other services began."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pierhead_operator.records import RECORD_PREFIX, Operation, Record
from pierhead_operator.resources import Manifest
from pierhead_operator.schema import Resource
from pierhead_operator.types import DeployedModel, Endpoint, Model

from pierhead_api.errors import (
    FailedPreconditionError,
    NotFoundError,
    UnimplementedError,
)
from pierhead_api.listing import Listed, ListRequest, select_page
from pierhead_api.names import Place, check_id
from pierhead_api.operations import (
    TARGETS,
    Seen,
    compute_operation,
    find_finished,
    is_there,
    list_operations,
    parse_operation,
    patch_records,
    patch_traffic,
    read_records,
)
from pierhead_api.services.lists import Listing, list_page
from pierhead_api.services.session import Manifests, Session, read_deployed
from pierhead_api.wire import Body

MAX_WAIT_SECONDS = 300.0
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 5.0
_LONGER = 1.5
_OF_ENDPOINTS = ("CreateEndpoint", "DeployModel", "UndeployModel", "MutateDeployedModel")
_OF_MODELS = ("UploadModel", "DeleteModelVersion")
_FIELD, _FILTERABLE = "operations", ("done",)


@dataclass(frozen=True)
class OperationService:
    """google.longrunning.Operations.

    `parent` is what the operation's name has behind the location: `endpoints/E`, `models/M`, or nothing.
    """

    session: Session
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def get(self, place: Place, parent: str, operation_id: str) -> Body:
        """The operation as it is now. Raises NotFoundError."""
        operation = _parse(parent, operation_id)
        return compute_operation(operation, await self._look(place, parent, operation), place, _at(place, parent))

    async def list(self, place: Place, parent: str, request: ListRequest) -> Body:
        """A page of the operations that are on record: those of the last changes of each resource."""
        if not parent:
            return await self._list_all(place, request)
        answers = _compute_all(await self._list_objects(place, parent), place)
        return select_page(Listed(answers, _FIELD, _FILTERABLE), request)

    async def _list_objects(self, place: Place, parent: str) -> Manifests:
        """What may have records of the operations of an Endpoint or a Model."""
        kind, _, name = parent.partition("/")
        cluster, namespace = self.session.cluster, place.namespace
        if kind == "models":
            return [await cluster.get(Model, namespace, check_id(name))]
        fields = {"spec.endpoint": check_id(name)}
        endpoint, deployed = await asyncio.gather(
            cluster.get(Endpoint, namespace, name), cluster.list(DeployedModel, namespace, fields=fields)
        )
        return [endpoint, *deployed]

    async def _list_all(self, place: Place, request: ListRequest) -> Body:
        """Those of each Endpoint and each Model, in the order of their names."""
        cluster = self.session.cluster
        on: dict[str, Manifests] = {}

        async def join(manifests: Manifests) -> None:
            endpoints = [_name(manifest) for manifest in manifests if manifest["kind"] == Endpoint.KIND]
            on.update(await read_deployed(cluster, place.namespace, "endpoint", endpoints))

        def compute(manifest: Manifest) -> list[Body]:
            deployed = on[_name(manifest)] if manifest["kind"] == Endpoint.KIND else []
            return _compute_all([manifest, *deployed], place)

        listing = Listing(
            _FIELD,
            [Endpoint, Model],
            _FILTERABLE,
            describe=compute,
            convert=lambda _, answer: answer,
            join=join,
            joined=["name"],
        )
        return await list_page(cluster, place.namespace, listing, request)

    async def wait(self, place: Place, parent: str, operation_id: str, seconds: float = MAX_WAIT_SECONDS) -> Body:
        """The operation once it is done, or as it is after these seconds."""
        left, pause = min(seconds, MAX_WAIT_SECONDS), _FIRST_PAUSE_SECONDS
        while True:
            answer = await self.get(place, parent, operation_id)
            if answer.get("done") or left <= 0:
                return answer
            await self.pause(min(pause, left))
            left -= pause
            pause = min(pause * _LONGER, _LONGEST_PAUSE_SECONDS)

    async def cancel(self, place: Place, parent: str, operation_id: str) -> Body:
        """Nothing. A deployModel that is not done is undone: its split, if nobody changed it since, and its model.

        Raises UnimplementedError for other operations that are not done.
        """
        operation = _parse(parent, operation_id)
        seen = await self._look(place, parent, operation)
        if compute_operation(operation, seen, place, _at(place, parent)).get("done"):
            return {}
        if operation.type != "DeployModel" or seen.target is None or seen.endpoint is None:
            raise UnimplementedError(f"{operation.type} cannot be cancelled")
        await self.session.check_right("delete", DeployedModel, place, operation.name)
        ended = False

        def make_patch(manifest: Manifest) -> Manifest | None:
            nonlocal ended
            if ended := find_finished(manifest, operation) is not None:
                return None  # meanwhile
            mark = read_records(manifest).get(operation.serial, Record(type=operation.type))
            current = manifest["spec"].get("trafficSplit")
            split = mark.before if mark.split is not None and current == mark.split else current
            return patch_traffic(manifest, split, operation.serial, operation.refer(cancelled=True))

        await self.session.edit(Endpoint, place, _name(seen.endpoint), make_patch)
        if not ended:
            with contextlib.suppress(NotFoundError):
                await self.session.delete(DeployedModel, place, operation.name, operation.uid)
        return {}

    async def delete(self, place: Place, parent: str, operation_id: str) -> Body:
        """Nothing: it is on record no more. Raises FailedPreconditionError while the operation is not done."""
        operation = _parse(parent, operation_id)
        seen = await self._look(place, parent, operation)
        if not compute_operation(operation, seen, place, _at(place, parent)).get("done"):
            raise FailedPreconditionError("the operation is not done")
        if operation.type in ("DeployModel", "MutateDeployedModel") and seen.endpoint:
            # What became of it stays in the status, which is the operator's.
            def make_patch(manifest: Manifest) -> Manifest:
                mark = read_records(manifest).get(operation.serial) or operation.refer()
                gone = mark.model_copy(update={"deleted": True})
                return {"metadata": {"annotations": patch_records(manifest, operation.serial, gone)}}

            await self.session.edit(Endpoint, place, _name(seen.endpoint), make_patch)
            return {}
        patch = {"metadata": {"annotations": {f"{RECORD_PREFIX}{operation.serial}": None}}}
        for kind, manifest in ((TARGETS[operation.type], seen.target), (Endpoint, seen.endpoint)):
            if manifest and operation.serial in read_records(manifest):
                await self.session.cluster.patch(kind, place.namespace, _name(manifest), patch)
        return {}

    async def _look(self, place: Place, parent: str, operation: Operation) -> Seen:
        """What there is of it; raises NotFoundError where `parent` is not what it is of."""
        target = await self._find(TARGETS[operation.type], place, operation.name)
        if TARGETS[operation.type] is not DeployedModel:
            return Seen(target)
        endpoint = parent.removeprefix("endpoints/") or _endpoint_of(target)
        if is_there(operation, target) and _endpoint_of(target) != endpoint:
            raise NotFoundError(f"there is no operation {operation.id} of {parent}")
        return Seen(target, await self._find(Endpoint, place, endpoint) if endpoint else None)

    async def _find(self, kind: type[Resource], place: Place, name: str) -> Manifest | None:
        try:
            return await self.session.cluster.get(kind, place.namespace, name)
        except NotFoundError:
            return None


def _parse(parent: str, operation_id: str) -> Operation:
    """The operation; raises NotFoundError where there can be none of this id below `parent`."""
    operation = parse_operation(operation_id)
    check_id(operation.name)
    kind, _, name = parent.partition("/")
    wrong_kind = (kind == "endpoints" and operation.type not in _OF_ENDPOINTS) or (
        kind == "models" and operation.type not in _OF_MODELS
    )
    named = TARGETS[operation.type] is not DeployedModel
    if wrong_kind or (kind and named and name != operation.name):
        raise NotFoundError(f"there is no operation {operation_id} of {parent}")
    if kind:
        check_id(name)
    return operation


def _compute_all(manifests: Manifests, place: Place) -> list[Body]:
    """The operations on record of a Model, or of an Endpoint and all that is deployed on it."""
    there = {(manifest["kind"], _name(manifest)): manifest for manifest in manifests}
    answers = []
    for operation, owner in list_operations(manifests):
        target = there.get((TARGETS[operation.type].KIND, operation.name))
        endpoint = there.get((Endpoint.KIND, owner.removeprefix("endpoints/")))
        with contextlib.suppress(NotFoundError):  # another object has its name by now
            answers.append(compute_operation(operation, Seen(target, endpoint), place, _at(place, owner)))
    return answers


def _at(place: Place, parent: str) -> str:
    return f"{place.resource}/{parent}" if parent else place.resource


def _endpoint_of(deployed_model: Manifest | None) -> str:
    return str(deployed_model["spec"].get("endpoint", "")) if deployed_model else ""


def _name(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])
