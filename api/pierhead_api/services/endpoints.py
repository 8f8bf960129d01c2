"""Endpoints and what is deployed on them."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

from pierhead_operator.records import Operation, Record
from pierhead_operator.resources import Manifest
from pierhead_operator.routing import Split, given_split
from pierhead_operator.types import DeployedModel, Endpoint, Model

from pierhead_api import objects
from pierhead_api.endpoints import (
    MUTABLE,
    MUTABLE_BETA,
    UPDATABLE,
    DeployedModelBody,
    DeployModelBody,
    EndpointBody,
    MutateDeployedModelBody,
    UndeployModelBody,
    describe_endpoint,
    make_deployed_model,
    make_endpoint,
    patch_deployed_model,
    patch_endpoint,
    to_endpoint,
)
from pierhead_api.errors import ApiError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from pierhead_api.listing import ListRequest
from pierhead_api.models import DEPLOYMENT_TIMEOUT, find_deployment_timeout, resolve_version
from pierhead_api.names import Place, check_id, check_new, check_new_deployed_model
from pierhead_api.operations import (
    Seen,
    annotate,
    compute_operation,
    drop_leaving,
    make_serial,
    patch_decided_traffic,
    patch_records,
    patch_traffic,
    read_records,
)
from pierhead_api.services.lists import Listing, list_page
from pierhead_api.services.session import Manifests, Session, find_deployed, read_deployed
from pierhead_api.splits import check_split, decide_deploy_split, decide_undeploy_split
from pierhead_api.wire import Body, parse, parse_mask

_FILTERABLE = ("displayName", "endpoint", "createTime", "updateTime")
_ORDERABLE = ("displayName", "createTime", "updateTime")


@dataclass(frozen=True)
class EndpointService:
    """Vertex AI's EndpointService. `dedicated_dns`: the `host:port` of endpoints that asked for an own address."""

    session: Session
    dedicated_dns: str = ""

    async def create(self, place: Place, body: Any, endpoint_id: str = "") -> Body:
        """The operation CreateEndpoint; raises AlreadyExistsError."""
        sent = parse(EndpointBody, body, beta=place.beta)
        if sent.dedicated_endpoint_enabled and not self.dedicated_dns:
            raise InvalidArgumentError("is not offered by this installation", "dedicatedEndpointEnabled")
        name = check_new(endpoint_id, "endpointId") if endpoint_id else self.session.make_id()
        serial = make_serial(self.session.now())
        wanted = objects.annotate(make_endpoint(sent, place, name), annotate(serial, Record(type="CreateEndpoint")))
        made = await self.session.create(wanted, serial)
        operation = Operation(serial, "CreateEndpoint", made["metadata"]["uid"], name)
        return compute_operation(operation, Seen(made), place, place.endpoint(name))

    async def get(self, place: Place, endpoint: str) -> Body:
        """The Endpoint."""
        manifest, deployed = await self._read(place, endpoint)
        return to_endpoint(manifest, deployed, place, self.dedicated_dns)

    async def list(self, place: Place, request: ListRequest) -> Body:
        """A page of the Endpoints."""
        cluster = self.session.cluster
        on: dict[str, Manifests] = {}

        async def join(endpoints: Manifests) -> None:
            on.update(await read_deployed(cluster, place.namespace, "endpoint", _names(endpoints)))

        listing = Listing(
            "endpoints",
            [Endpoint],
            _FILTERABLE,
            orderable=_ORDERABLE,
            describe=lambda one: [describe_endpoint(one, place)],
            convert=lambda one, _: to_endpoint(one, on[one["metadata"]["name"]], place, self.dedicated_dns),
            join=join,
        )
        return await list_page(cluster, place.namespace, listing, request)

    async def patch(self, place: Place, endpoint: str, body: Any, update_mask: str = "") -> Body:
        """The Endpoint after its update; raises AbortedError where the body's etag is out of date."""
        sent = parse(EndpointBody, body, beta=place.beta)
        fields = parse_mask(update_mask, body, UPDATABLE)
        deployed = await self._list_deployed(place, endpoint)

        def make_patch(manifest: Manifest) -> Manifest:
            staying = _names(drop_leaving(deployed, manifest))
            objects.check_etag(sent.etag, objects.compute_etag(manifest))
            patch = patch_endpoint(sent, manifest, fields)
            if "traffic_split" in fields and (staying or sent.traffic_split):
                split = check_split(sent.traffic_split, staying)
                decided = patch_decided_traffic(manifest, split, self.session.now())
                patch = {part: {**patch[part], **decided[part]} for part in ("metadata", "spec")}
            return patch

        manifest = await self.session.edit(Endpoint, place, endpoint, make_patch)
        return to_endpoint(manifest, deployed, place, self.dedicated_dns)

    async def delete(self, place: Place, endpoint: str) -> Body:
        """The operation DeleteEndpoint; raises FailedPreconditionError while anything is deployed on it."""
        manifest, deployed = await self._read(place, endpoint)
        if deployed:
            there = ", ".join(_names(deployed))
            raise FailedPreconditionError(f"endpoint {endpoint} has deployed models: undeploy {there} first")
        uid = manifest["metadata"]["uid"]
        await self.session.delete(Endpoint, place, endpoint, uid)
        operation = Operation(make_serial(self.session.now()), "DeleteEndpoint", uid, endpoint)
        return compute_operation(operation, Seen(None), place, place.resource)

    async def deploy_model(self, place: Place, endpoint: str, body: Any) -> Body:
        """The operation DeployModel.

        The DeployedModel is made first, and its Endpoint is marked with the operation in the write of the split: should
        this process end before it, the operator knows. Where that cannot be written, nothing is left of the former.
        """
        sent = parse(DeployModelBody, body, beta=place.beta)
        asked = sent.deployed_model
        name = check_new_deployed_model(asked.id) if asked.id else self.session.make_id()
        manifest, deployed = await self._read(place, endpoint)
        target, timeout = await self._find_target(place, asked)

        before = _given(manifest, deployed, name)

        def decide(manifest: Manifest, now: Manifests) -> Split | None:
            if not sent.traffic_split and _given(manifest, now, name) != before:
                return None  # whoever changed it meanwhile has decided
            # What others deploy meanwhile does not make this one the second.
            known = now if sent.traffic_split else deployed
            there = [one for one in _names(drop_leaving(known, manifest)) if one != name]
            return decide_deploy_split(Endpoint.model_validate(manifest), there, sent.traffic_split, name)

        split = decide(manifest, deployed)
        wanted = make_deployed_model(asked, place, name, {"endpoint": endpoint, **target})
        await self.session.check_right("patch", Endpoint, place, endpoint)
        serial = make_serial(self.session.now())
        record = Record(type="DeployModel", name=name, split=split, timeout=timeout)
        made = await self.session.create(objects.annotate(wanted, annotate(serial, record)), serial)
        operation = Operation(serial, "DeployModel", made["metadata"]["uid"], name)

        async def make_patch(manifest: Manifest) -> Manifest:
            nonlocal split
            now = await self._list_deployed(place, endpoint)
            split = decide(manifest, now)
            if split is None:
                mark = operation.refer(timeout=timeout)
                return {"metadata": {"annotations": patch_records(manifest, serial, mark)}}
            mark = operation.refer(before=_given(manifest, now, name), timeout=timeout)
            return patch_traffic(manifest, split, serial, mark)

        try:
            manifest = await self.session.edit(Endpoint, place, endpoint, make_patch, serial)
        except ApiError:
            await self._take_back(place, endpoint, operation)
            raise
        return compute_operation(operation, Seen(made, manifest), place, place.endpoint(endpoint))

    async def _take_back(self, place: Place, endpoint: str, operation: Operation) -> None:
        """Leaves nothing of a deployModel that is answered with an error, as far as that can be done."""

        def make_patch(manifest: Manifest) -> Manifest | None:
            mark = read_records(manifest).get(operation.serial)
            if mark is None or mark.split is None or manifest["spec"].get("trafficSplit") != mark.split:
                return None
            return patch_traffic(manifest, mark.before, operation.serial, operation.refer(cancelled=True))

        with contextlib.suppress(ApiError):
            await self.session.edit(Endpoint, place, endpoint, make_patch)
        with contextlib.suppress(ApiError):
            await self.session.delete(DeployedModel, place, operation.name, operation.uid)

    async def undeploy_model(self, place: Place, endpoint: str, body: Any) -> Body:
        """The operation UndeployModel: first the split is written, then the DeployedModel goes."""
        sent = parse(UndeployModelBody, body)
        name = sent.deployed_model_id
        _, deployed = await self._read(place, endpoint)
        uid = find_deployed(deployed, name)["metadata"]["uid"]
        await self.session.check_right("delete", DeployedModel, place, name)
        operation = Operation(make_serial(self.session.now()), "UndeployModel", uid, name)

        async def make_patch(manifest: Manifest) -> Manifest:
            current = Endpoint.model_validate(manifest)
            there = _names(drop_leaving(await self._list_deployed(place, endpoint), manifest))
            split = decide_undeploy_split(current, there, sent.traffic_split, name)
            return patch_traffic(manifest, split, operation.serial, operation.refer())

        written = await self.session.edit(Endpoint, place, endpoint, make_patch, operation.serial)
        with contextlib.suppress(NotFoundError):
            await self.session.delete(DeployedModel, place, name, uid)
        return compute_operation(operation, Seen(None, written), place, place.endpoint(endpoint))

    async def mutate_deployed_model(self, place: Place, endpoint: str, body: Any, update_mask: str = "") -> Body:
        """The operation MutateDeployedModel; raises InvalidArgumentError for what cannot be changed."""
        sent = parse(MutateDeployedModelBody, body, beta=place.beta)
        asked = sent.deployed_model
        mutable = MUTABLE_BETA if place.beta else MUTABLE
        fields = parse_mask(update_mask or sent.update_mask, asked.model_dump(exclude_unset=True), mutable)
        _, deployed = await self._read(place, endpoint)
        find_deployed(deployed, asked.id)
        serial = make_serial(self.session.now())

        def make_patch(manifest: Manifest) -> Manifest:
            detail = str(manifest["metadata"]["generation"] + 1)
            record = Record(type="MutateDeployedModel", detail=detail, timeout=DEPLOYMENT_TIMEOUT)
            records = patch_records(manifest, serial, record)
            return {"metadata": {"annotations": records}, "spec": patch_deployed_model(asked, manifest, fields)}

        changed = await self.session.edit(DeployedModel, place, asked.id, make_patch, serial)
        operation = read_records(changed)[serial].identify(serial, changed["metadata"]["uid"], asked.id)
        return compute_operation(operation, Seen(changed), place, place.endpoint(endpoint))

    async def _read(self, place: Place, endpoint: str) -> tuple[Manifest, Manifests]:
        return await asyncio.gather(
            self.session.cluster.get(Endpoint, place.namespace, check_id(endpoint)),
            self._list_deployed(place, endpoint),
        )

    async def _list_deployed(self, place: Place, endpoint: str) -> Manifests:
        fields = {"spec.endpoint": check_id(endpoint)}
        return await self.session.cluster.list(DeployedModel, place.namespace, fields=fields)

    async def _find_target(self, place: Place, asked: DeployedModelBody) -> tuple[Body, int]:
        """What of the spec names the version, which is pinned now, and the name that people see.

        And the seconds that its deployment may take.
        """
        name, version = self.session.projects.find_model(place, asked.model, "deployedModel.model")
        manifest = await self.session.cluster.get(Model, place.namespace, name)
        model = Model.model_validate(manifest)
        pinned = resolve_version(model, version).name
        target = {"model": name, "modelVersion": pinned, "displayName": asked.display_name or model.display_name}
        return target, find_deployment_timeout(manifest, pinned)


def _given(endpoint: Manifest, deployed: Manifests, coming: str) -> Split | None:
    """The split that is in force by what was given, if any was, before the DeployedModel `coming` is there."""
    return given_split(Endpoint.model_validate(endpoint), [name for name in _names(deployed) if name != coming])


def _names(manifests: Manifests) -> list[str]:
    return sorted(manifest["metadata"]["name"] for manifest in manifests)
