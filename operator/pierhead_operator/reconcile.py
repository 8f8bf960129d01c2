"""One reconcile per kind: observe, decide, apply, delete what is surplus, say what is true. Safe at any time."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from pierhead_operator import names, routing
from pierhead_operator.cluster import ClusterError, Key, Rejected
from pierhead_operator.resources import (
    SERVING_KINDS,
    Manifest,
    Serving,
    desired_objects,
    is_owned,
    mark_applied,
    needs_apply,
    selector,
)
from pierhead_operator.schema import Resource, Status
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.status import (
    AVAILABLE,
    REASON_ENDPOINT_NOT_FOUND,
    REASON_MODEL_NOT_FOUND,
    REASON_MODEL_VERSION_NOT_FOUND,
    REASON_NOT_OWNED,
    REASON_REJECTED,
    Event,
    Finding,
    Traffic,
    Workload,
    compute_deployed_model_status,
    compute_endpoint_status,
    compute_model_status,
    explain_route,
    transition_event,
)
from pierhead_operator.types import DeployedModel, Endpoint, Model

R = TypeVar("R", bound=Resource)


class ClusterAccess(Protocol):
    """What reconciling needs of cluster.Cluster."""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None: ...
    async def list_objects(
        self, kind: str, namespace: str | None, labels: dict[str, str] | None = None
    ) -> Sequence[Manifest]: ...
    async def get_resource(self, kind: type[R], namespace: str, name: str) -> R | None: ...
    async def list_resources(self, kind: type[R], namespace: str | None) -> Sequence[R]: ...
    async def apply(self, manifest: Manifest, live: Manifest | None = None) -> None: ...
    async def apply_status(self, resource: Resource, status: Status) -> None: ...
    async def delete(self, live: Manifest) -> None: ...
    async def create_event(self, resource: Resource, event: Event) -> None: ...


@dataclass(frozen=True)
class Reconciler:
    """Brings one resource after the other to what its spec asks for."""

    cluster: ClusterAccess
    settings: OperatorSettings
    clock: Callable[[], datetime]

    async def reconcile(self, key: Key) -> None:
        """Looks after one resource; raises ClusterError where another try may help."""
        by_kind: dict[str, Callable[[Key], Awaitable[None]]] = {
            Model.KIND: self.reconcile_model,
            Endpoint.KIND: self.reconcile_endpoint,
            DeployedModel.KIND: self.reconcile_deployed_model,
        }
        await by_kind[key.kind](key)

    async def reconcile_model(self, key: Key) -> None:
        model = await self.cluster.get_resource(Model, key.namespace, key.name)
        if model:
            await self._write_status(model, model.status, compute_model_status(model, self.clock()))

    async def reconcile_deployed_model(self, key: Key) -> None:
        dm = await self.cluster.get_resource(DeployedModel, key.namespace, key.name)
        if dm is None or dm.metadata.deletion_timestamp:
            return
        model = await self.cluster.get_resource(Model, dm.namespace, dm.spec.model)
        endpoint = await self.cluster.get_resource(Endpoint, dm.namespace, dm.spec.endpoint)
        version = resolve_version(dm, model)
        problem = explain_references(dm, model, version, endpoint)
        serving = make_serving(dm, model, version, self.settings)
        if serving:
            desired = desired_objects(serving)
            problem = await self._apply_all(dm, desired) or problem
            await self._delete_surplus(dm, desired)
        workload = await self._observe_workload(dm)
        # A version that is not there is not pinned, and what runs goes on.
        running = version if serving else dm.status.model_version
        status = compute_deployed_model_status(dm, running, problem, workload, self.clock())
        await self._write_status(dm, dm.status, status)
        _retry_if_rejected(problem)

    async def reconcile_endpoint(self, key: Key) -> None:
        endpoint = await self.cluster.get_resource(Endpoint, key.namespace, key.name)
        if endpoint is None or endpoint.metadata.deletion_timestamp:
            return
        traffic = await self._observe_traffic(endpoint)
        problem = None
        if self.settings.routing.provider == "gateway-api":
            problem = await self._apply_all(endpoint, make_routes(endpoint, traffic.effective, self.settings))
            problem = problem or await self._judge_route(endpoint)
        path = routing.predict_path(endpoint, self.settings)
        status = compute_endpoint_status(endpoint, traffic, path, problem, self.clock())
        await self._write_status(endpoint, endpoint.status, status)
        _retry_if_rejected(problem)

    async def _observe_workload(self, dm: DeployedModel) -> Workload:
        deployment = await self.cluster.get("Deployment", dm.namespace, names.server(dm.name))
        if deployment is None or not is_owned(deployment, dm):
            return Workload(None, ())
        return Workload(deployment, await self.cluster.list_objects("Pod", dm.namespace, selector(dm.name)))

    async def _observe_traffic(self, endpoint: Endpoint) -> Traffic:
        there = {
            dm.name: dm
            for dm in await self.cluster.list_resources(DeployedModel, endpoint.namespace)
            if dm.spec.endpoint == endpoint.name and not dm.metadata.deletion_timestamp
        }
        wanted = routing.wanted_split(endpoint, there)
        serving = {name for name, dm in there.items() if dm.status.is_true(AVAILABLE)}
        effective = routing.compute_effective_split(wanted, serving, endpoint.status.traffic_split)
        return Traffic(wanted, effective, there)

    async def _judge_route(self, endpoint: Endpoint) -> Finding | None:
        gateway = self.settings.routing.gateway
        assert gateway is not None  # the route was made for it
        route = await self.cluster.get("HTTPRoute", endpoint.namespace, names.route(endpoint.name))
        return explain_route(route, [(gateway.namespace, gateway.name)])

    async def _apply_all(self, owner: Resource, desired: list[Manifest]) -> Finding | None:
        """Brings the owner's objects to what is desired; tells what is in the way, if anything."""
        for manifest in desired:
            kind, name = manifest["kind"], manifest["metadata"]["name"]
            live = await self.cluster.get(kind, owner.namespace, name)
            if live and not is_owned(live, owner):
                return Finding(REASON_NOT_OWNED, f"{kind} {name} is not Pierhead's: rename or delete it")
            marked = mark_applied(manifest)
            if needs_apply(marked, live):
                try:
                    await self.cluster.apply(marked, live)
                except Rejected as error:
                    return Finding(REASON_REJECTED, f"{kind} {name}: {error}")
        return None

    async def _delete_surplus(self, dm: DeployedModel, desired: list[Manifest]) -> None:
        """Deletes what a DeployedModel had and is no longer to have."""
        for kind in SERVING_KINDS - {manifest["kind"] for manifest in desired}:
            live = await self.cluster.get(kind, dm.namespace, names.server(dm.name))
            if live and is_owned(live, dm):
                await self.cluster.delete(live)

    async def _write_status(self, resource: Resource, before: Status, after: Status) -> None:
        if after != before:
            await self.cluster.apply_status(resource, after)
        if event := transition_event(before, after):
            await self.cluster.create_event(resource, event)


def _retry_if_rejected(problem: Finding | None) -> None:
    # No event tells that a quota grew or a webhook came to reason: ask again.
    if problem and problem.reason == REASON_REJECTED:
        raise ClusterError(problem.message)


def resolve_version(dm: DeployedModel, model: Model | None) -> str:
    """The version to serve: the named one, else the pinned one, else the default at this moment; '' if none."""
    if dm.spec.model_version:
        return dm.spec.model_version
    return dm.status.model_version or (model.spec.default_version if model else "")


def explain_references(
    dm: DeployedModel, model: Model | None, version: str, endpoint: Endpoint | None
) -> Finding | None:
    """What a DeployedModel refers to and is not there."""
    if model is None:
        return Finding(REASON_MODEL_NOT_FOUND, f"no Model {dm.spec.model} in namespace {dm.namespace}")
    if model.spec.version(version) is None:
        there = ", ".join(v.name for v in model.spec.versions)
        return Finding(REASON_MODEL_VERSION_NOT_FOUND, f"Model {model.name} has no version {version}; it has {there}")
    if endpoint is None:
        return Finding(REASON_ENDPOINT_NOT_FOUND, f"no Endpoint {dm.spec.endpoint} in namespace {dm.namespace}")
    return None


def make_serving(dm: DeployedModel, model: Model | None, version: str, settings: OperatorSettings) -> Serving | None:
    """The DeployedModel with what it resolves to; None where it does not, and what runs is left as it is."""
    found = model.spec.version(version) if model else None
    return Serving(dm, model, found, settings) if model and found else None


def make_routes(endpoint: Endpoint, effective: routing.Split, settings: OperatorSettings) -> list[Manifest]:
    """What carries an endpoint's predictions, in the order in which it is applied."""
    return [routing.make_idle_service(endpoint), routing.make_http_route(endpoint, effective, settings)]
