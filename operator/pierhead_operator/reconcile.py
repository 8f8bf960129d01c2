"""One reconcile per kind: observe, decide, apply, delete what is surplus, say what is true. Safe at any time."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol, TypeVar

from pierhead_operator import installation, names, pinning, removal, routing, versions
from pierhead_operator.applying import (
    ClusterAccess,
    Settled,
    apply_all,
    retry_if_rejected,
    tell_unreadable,
    write_status,
)
from pierhead_operator.cluster import ClusterError, Key, Rejected, UnreadableError
from pierhead_operator.operations import Moment, find_failed_deployment, judge_operations
from pierhead_operator.removal import Leaving, Step
from pierhead_operator.resources import (
    BESIDE_PODS,
    NETWORK_POLICY,
    Manifest,
    Serving,
    decide_in_place,
    desired_objects,
    explain_overrides,
    find_limits,
    is_owned,
    make_deletion,
    select_image,
    selector,
    serving_kinds,
    unknown_machine,
    unused_devices,
)
from pierhead_operator.routing import Split
from pierhead_operator.scaling import judge_scaling
from pierhead_operator.schema import Resource, Status
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.status import (
    AVAILABLE,
    REASON_ACCELERATOR_NOT_USED,
    REASON_ACCESS_NOT_OFFERED,
    REASON_ENDPOINT_NOT_FOUND,
    REASON_MACHINE_UNKNOWN,
    REASON_MODEL_NOT_FOUND,
    REASON_MODEL_VERSION_NOT_FOUND,
    REASON_OVERRIDE_NOT_ALLOWED,
    REASON_TOO_MANY_DEPLOYED_MODELS,
    REASON_VERSION_CHANGED,
    Carried,
    Event,
    Finding,
    Outcome,
    Traffic,
    Workload,
    compute_deployed_model_status,
    compute_endpoint_status,
    compute_model_status,
    explain_mirror,
    explain_route,
    find_cause,
    find_unready,
    parse_readiness,
)
from pierhead_operator.types import (
    BatchPredictionJob,
    DeployedModel,
    Endpoint,
    FinishedOperation,
    MachineSpec,
    Model,
    ModelVersion,
    PodOverrides,
    VersionRecord,
)

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)
Judge = Callable[[Manifest], Awaitable[bool]]


async def _nobody_elses(_: Manifest) -> bool:
    return False


# What the objects that are made for a resource have its name as.
_LABELS = {
    Model.KIND: names.LABEL_MODEL,
    Endpoint.KIND: names.LABEL_ENDPOINT,
    DeployedModel.KIND: names.LABEL_DEPLOYED_MODEL,
    BatchPredictionJob.KIND: names.LABEL_BATCH_PREDICTION_JOB,
}

# How soon to look again at what no event will tell.
_DRAIN_AGAIN_SECONDS = 2.0
_CAPACITY_AGAIN_SECONDS = 10.0
_UNREADY_AGAIN_SECONDS = 5.0
_MOST_ASKED = 3  # pods of one DeployedModel that are not ready


class ProberAccess(Protocol):
    """What reconciling needs of prober.Prober."""

    async def ask(self, namespace: str, deployed_model: str) -> str | None: ...
    def find_pause(self, namespace: str, deployed_model: str) -> float | None: ...
    async def ask_readiness(self, key: Key, pods: Mapping[str, str]) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Reconciler:
    """Brings one resource after the other to what its spec asks for."""

    cluster: ClusterAccess
    prober: ProberAccess
    settings: OperatorSettings
    clock: Callable[[], datetime]
    installation: str = ""  # of several: what this one looks after and makes bears its name
    # Since when nobody sends requests to a DeployedModel that is gone. Lost in a restart, it is waited for once more.
    _drained_since: dict[Key, datetime] = field(default_factory=dict, init=False)
    _settled: Settled = field(default_factory=Settled, init=False)
    _since: datetime = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_since", self.clock())

    async def reconcile(self, key: Key) -> float | None:
        """Looks after one resource; in how many seconds to look again, if no event will tell.

        Raises ClusterError where another try may help.
        """
        by_kind: dict[str, Callable[[Key], Awaitable[float | None]]] = {
            Model.KIND: self.reconcile_model,
            Endpoint.KIND: self.reconcile_endpoint,
            DeployedModel.KIND: self.reconcile_deployed_model,
        }
        try:
            return await by_kind[key.kind](key)
        except UnreadableError as error:
            await tell_unreadable(self.cluster, key, error, self.clock())
            return None

    async def reconcile_model(self, key: Key) -> None:
        model = await self.cluster.get_resource(Model, key.namespace, key.name)
        if model is None:
            return
        if model.metadata.deletion_timestamp:
            # Somebody's finalizer may hold it for long, and nobody looks any more who may be reached by its paths.
            await self._delete_surplus_routes(model, [])
            return
        serving = self._find_serving(model)
        routes = self._mark(routing.make_model_routes(model, serving, self.settings))
        problem = await apply_all(self.cluster, model, routes, self._settled)
        await self._delete_surplus_routes(model, routes)
        limit = routing.explain_model_limit(model, serving, self.settings)
        await self._write_status(model, compute_model_status(model, problem, limit, self.clock()))
        retry_if_rejected(problem)

    async def reconcile_deployed_model(self, key: Key) -> float | None:
        dm = await self.cluster.get_resource(DeployedModel, key.namespace, key.name)
        if dm is None or dm.metadata.deletion_timestamp:
            return await self._remove(key)
        self._drained_since.pop(key, None)
        model = await self.cluster.get_resource(Model, dm.namespace, dm.spec.model)
        endpoint = await self.cluster.get_resource(Endpoint, dm.namespace, dm.spec.endpoint)
        version = resolve_version(dm, model)
        before = await self._observe_workload(dm)
        failed = find_failed_deployment(endpoint, dm, self.clock()) if endpoint else None
        if failed and not before.count("availableReplicas"):
            await self._undo(dm, failed)
            return None
        serving = make_serving(dm, model, version, endpoint, self.settings)
        if serving:
            serving = pinning.pin(serving, before.deployment)
        refused = explain_version(dm.status.versions, model, version)
        present = serving.settings if serving else self.settings
        refused = refused or explain_machine(dm.spec.machine_spec, serving.version if serving else None, present)
        refused = refused or explain_pods(dm.spec.pod_overrides, self.settings)
        problem = explain_references(dm, model, version, endpoint) or refused
        if refused:
            serving = None  # what runs is left as it is
        told = pinning.find_told(dm, before.deployment, self.settings)
        ran = versions.remember_run(dm.status.versions, serving.version) if serving else dm.status.versions
        if serving:
            wanted = Outcome(version, problem, before, versions=ran, pins=pinning.add_told(told, serving))
            dm = await self._tell(dm, told, wanted)
            unmade = await self._make(dm, serving, before)
            told = pinning.add_told(told if unmade else [], serving)
            problem = unmade or problem
        outcome = await self._observe_outcome(dm, version if serving else dm.status.model_version, problem)
        note = pinning.explain_limits(serving) if serving else ""
        outcome = replace(outcome, note=note, versions=ran, pins=told)
        await self._write_status(dm, compute_deployed_model_status(dm, outcome, self.clock()))
        retry_if_rejected(problem)
        return decide_next_look(outcome, self.prober.find_pause(dm.namespace, dm.name))

    async def _undo(self, dm: DeployedModel, failed: FinishedOperation) -> None:
        """Leaves nothing of a DeployedModel whose deployModel failed, as Vertex AI does: the caller was told why."""
        await self.cluster.delete(make_deletion(dm))
        await self.cluster.create_event(dm, Event("Warning", failed.reason, f"the deployment failed: {failed.message}"))

    async def reconcile_endpoint(self, key: Key) -> float | None:
        endpoint = await self.cluster.get_resource(Endpoint, key.namespace, key.name)
        if endpoint is None:
            return None
        if endpoint.metadata.deletion_timestamp:
            # Somebody's finalizer may hold it for long, and no change of its access would move its route any more.
            await self._delete_surplus_routes(endpoint, [])
            return None
        traffic = await self._observe_traffic(endpoint)
        routes = self._mark(await self._desired_routes(endpoint, traffic))
        refused = await apply_all(self.cluster, endpoint, routes, self._settled)
        await self._delete_surplus_routes(endpoint, routes)
        untaken = refused or await self._judge_route(endpoint, routes)
        if not untaken:
            await self._delete_idle_service(endpoint, routes)
        live = await self._observe_route(endpoint) if refused else None
        split = find_carried(endpoint, traffic, live) if untaken else traffic.effective
        problem = refused or explain_endpoint(endpoint, traffic, self.settings) or untaken
        # The API, which goes by the status, sends no copies.
        uncopied = explain_mirror(endpoint, traffic) if routing.split_kind(self.settings) else None
        carried = Carried(split, problem, uncopied, is_open=routing.is_open(self.settings))
        path = routing.predict_path(endpoint, self.settings)
        status = compute_endpoint_status(endpoint, traffic, carried, path, self.clock())
        judged = judge_operations(endpoint, status, traffic, Moment(self.clock(), self._since))
        status = status.model_copy(update={"operations": judged.finished or None})
        await self._write_status(endpoint, status)
        retry_if_rejected(problem)
        return judged.again

    def _mark(self, manifests: Sequence[Manifest]) -> list[Manifest]:
        return [installation.mark_made(manifest, self.installation) for manifest in manifests]

    async def _write_status(self, resource: Model | Endpoint | DeployedModel, status: Status) -> None:
        status = installation.mark_claimed(status, self.installation)
        await write_status(self.cluster, resource, resource.status, status)

    async def _tell(self, dm: DeployedModel, told: Sequence[str], wanted: Outcome) -> DeployedModel:
        """Writes what pods run and are made with into the status before a Deployment is made of it.

        Whatever becomes of this process, the next one makes pods with what it finds in the Deployment.
        """
        pins, ran, before = list(wanted.pins), list(wanted.versions), dm.status
        if (pins, ran) == (list(told), before.versions):
            return dm
        if wanted.workload.deployment is None:
            # All that is true until pods come: the same is not written again once the Deployment is there.
            status = compute_deployed_model_status(dm, wanted, self.clock())
        else:
            version = before.model_version or wanted.version
            status = before.model_copy(update={"pins": pins, "versions": ran, "model_version": version})
        status = installation.mark_claimed(status, self.installation)
        await write_status(self.cluster, dm, before, status)
        written = await self.cluster.get_resource(DeployedModel, dm.namespace, dm.name)
        if written is None or (written.status.pins, written.status.installation) != (pins, status.installation):
            raise ClusterError(f"the status of {dm.name} does not tell what its pods are made with: none is made")
        return dm.model_copy(update={"status": status})

    async def _make(self, dm: DeployedModel, serving: Serving, before: Workload) -> Finding | None:
        desired = self._desired(serving, before)
        problem = await apply_all(self.cluster, dm, desired, self._settled, BESIDE_PODS)
        await self._delete_surplus(dm, desired)
        return problem

    def _find_serving(self, model: Model) -> Mapping[str, Split]:
        """Who serves each version of a Model to clients outside the cluster; nobody where no route would tell."""
        if not routing.route_kinds(self.settings):
            return {}
        servers, public = self.cluster.find_public_servers(model.namespace, model.name)
        return routing.find_serving(model.name, [version.name for version in model.spec.versions], servers, public)

    def _desired(self, serving: Serving, before: Workload) -> list[Manifest]:
        """What should exist for a DeployedModel, as it is applied."""
        wait = self.settings.rollout.capacity_wait_seconds
        in_place = decide_in_place(before.deployment, before.pods, self.clock(), wait)
        made = self._mark(desired_objects(serving, in_place))
        desired = [removal.share(manifest, serving.endpoint) for manifest in made]
        return [
            pinning.mark_pinned(manifest, serving) if manifest["kind"] == "Deployment" else manifest
            for manifest in desired
        ]

    async def _observe_workload(self, dm: DeployedModel) -> Workload:
        deployment = await self.cluster.get("Deployment", dm.namespace, names.server(dm.name))
        if deployment is None or not is_owned(deployment, dm):
            return Workload(None, ())
        return Workload(deployment, await self.cluster.list_objects("Pod", dm.namespace, selector(dm.name)))

    async def _observe_outcome(self, dm: DeployedModel, version: str, problem: Finding | None) -> Outcome:
        workload = await self._observe_workload(dm)
        workload = replace(workload, told=await self._ask_unready(dm, workload.pods))
        silence = await self._ask(dm) if workload.count("availableReplicas") else None
        autoscaler = await self.cluster.get("HorizontalPodAutoscaler", dm.namespace, names.server(dm.name))
        ours = autoscaler if autoscaler and is_owned(autoscaler, dm) else None
        scaling = judge_scaling(dm, ours, self.clock())
        return Outcome(version, problem, workload, silence, scaling)

    async def _ask_unready(self, dm: DeployedModel, pods: Sequence[Manifest]) -> dict[str, Finding]:
        """What pods that had started and are not ready say of themselves: a few tell what all of a version suffer."""
        asked = dict(sorted(find_unready(pods).items())[:_MOST_ASKED])
        words = await self.prober.ask_readiness(Key(DeployedModel.KIND, dm.namespace, dm.name), asked)
        return {name: finding for name, message in words.items() if (finding := parse_readiness(message))}

    async def _ask(self, dm: DeployedModel) -> str | None:
        """Why a DeployedModel's pods, though ready, give no predictions through their Service; None where they do."""
        name = names.server(dm.name)
        service = await self.cluster.get("Service", dm.namespace, name)
        if service is None or not is_owned(service, dm):
            return f"no Service {name} of Pierhead's leads to the pods"
        if service["spec"].get("type") == "ExternalName":
            return f"the Service {name} was changed to lead elsewhere"  # and could not be put right
        if dm.status.is_true(AVAILABLE):
            return None  # their readiness tells: weight is there, and probes would compete with it
        return await self.prober.ask(dm.namespace, dm.name)

    async def _observe_traffic(self, endpoint: Endpoint) -> Traffic:
        there = {
            dm.name: dm
            for dm in await self.cluster.list_deployed_models(endpoint.namespace, names.LABEL_ENDPOINT, endpoint.name)
            if not dm.metadata.deletion_timestamp
        }
        wanted = routing.wanted_split(endpoint, there)
        replicas = {name: routing.count_replicas(dm) for name, dm in there.items()}
        effective = routing.compute_effective_split(wanted, replicas, endpoint.status.traffic_split)
        kept = routing.compute_effective_split(None, replicas, endpoint.status.traffic_split)
        effective = routing.fit_split(effective, kept, wanted, self.settings)
        return Traffic(wanted, effective, there)

    async def _desired_routes(self, endpoint: Endpoint, traffic: Traffic) -> list[Manifest]:
        causes = {name: find_cause(dm) for name, dm in traffic.deployed_models.items()}
        refusal = routing.explain_refusal(endpoint, causes)
        mirror_to = mirror_target(endpoint, traffic)
        made = routing.make_endpoint_routes(endpoint, traffic.effective, mirror_to, refusal, self.settings)
        idle = await self._find_idle_service(endpoint)
        return [routing.keep_address(one, idle) if one["kind"] == "Service" else one for one in made]

    async def _find_idle_service(self, endpoint: Endpoint) -> Manifest | None:
        return await self.cluster.get("Service", endpoint.namespace, names.route(endpoint.name))

    async def _delete_idle_service(self, endpoint: Endpoint, routes: Sequence[Manifest]) -> None:
        """Deletes the Service that a route led to while nobody served; only once the gateway leads elsewhere."""
        if any(route["kind"] == "Service" for route in routes):
            return
        live = await self._find_idle_service(endpoint)
        if live and is_owned(live, endpoint):
            await self.cluster.delete(live)

    async def _observe_route(self, endpoint: Endpoint) -> Manifest | None:
        """The route that carries an endpoint's split; None where there is none of ours."""
        kind = routing.split_kind(self.settings)
        live = await self.cluster.get(kind, endpoint.namespace, names.route(endpoint.name)) if kind else None
        return live if live and is_owned(live, endpoint) else None

    async def _judge_route(self, endpoint: Endpoint, routes: Sequence[Manifest]) -> Finding | None:
        """What the gateway says of the route; nothing where nobody judges it, or there is to be none."""
        gateway = routing.gateway_of(endpoint, self.settings)
        if gateway is None or not routes:
            return None
        route = await self.cluster.get("HTTPRoute", endpoint.namespace, names.route(endpoint.name))
        return explain_route(route, [(gateway.namespace, gateway.name)])

    async def _remove(self, key: Key) -> float | None:
        """Takes away what is left of a DeployedModel that is gone, once no request goes there."""
        left = await self._observe_left(key)
        if not left:
            self._drained_since.pop(key, None)
            return None
        now = self.clock()
        routed = self.cluster.is_routed(routing.route_kinds(self.settings), key.namespace, names.server(key.name))
        routed = routed or await self._is_forwarded(key, left)
        since = now if routed else self._drained_since.setdefault(key, now)
        if routed:
            self._drained_since.pop(key, None)
        pods = await self.cluster.list_objects("Pod", key.namespace, selector(key.name))
        step = removal.decide_removal(Leaving(routed, (now - since).total_seconds(), len(pods)))
        for live in left:
            if step is Step.END_ADDRESS or (step is Step.END_PODS and live["kind"] == "Deployment"):
                await self.cluster.delete(live)
        return _DRAIN_AGAIN_SECONDS

    async def _observe_left(self, key: Key) -> list[Manifest]:
        kinds = sorted(serving_kinds(self.settings))
        found = [await self.cluster.get(kind, key.namespace, names.server(key.name)) for kind in kinds]
        return [live for live in found if live and removal.is_left(live, key.name)]

    async def _is_forwarded(self, key: Key, left: Sequence[Manifest]) -> bool:
        """Whether the API forwards to a DeployedModel of which this is left."""
        endpoints = [
            await self.cluster.get(Endpoint.KIND, key.namespace, name) for name in removal.find_endpoints(left)
        ]
        return any(removal.is_forwarded(endpoint, key.name) for endpoint in endpoints)

    async def _delete_surplus(self, dm: DeployedModel, desired: list[Manifest]) -> None:
        """Deletes what a DeployedModel had and is no longer to have."""
        for kind in serving_kinds(self.settings) - {manifest["kind"] for manifest in desired}:
            live = await self.cluster.get(kind, dm.namespace, names.server(dm.name))
            if live and is_owned(live, dm):
                await self.cluster.delete(live)

    async def _delete_surplus_routes(self, owner: Endpoint | Model, routes: Sequence[Manifest]) -> None:
        """Deletes the routes that an Endpoint or a Model had and is no longer to have."""
        wanted = {(route["kind"], route["metadata"]["name"]) for route in routes}
        label = names.LABEL_ENDPOINT if isinstance(owner, Endpoint) else names.LABEL_MODEL
        labels = {**names.OURS, label: owner.name}
        for kind in sorted(routing.route_kinds(self.settings)):
            for live in await self.cluster.list_objects(kind, owner.namespace, labels):
                if (kind, live["metadata"]["name"]) not in wanted and is_owned(live, owner):
                    await self.cluster.delete(live)

    async def withdraw(self, key: Key) -> None:
        """Deletes what this installation made for a resource of another one, which need not know of its kinds."""
        kinds = routing.route_kinds(self.settings) | ({NETWORK_POLICY} if self.settings.network_policy else set())
        labels = {**names.OURS, _LABELS[key.kind]: key.name}
        for kind in sorted(kinds):
            for live in await self.cluster.list_objects(kind, key.namespace, labels):
                if installation.find_holder(live) == self.installation and is_controlled(live, key.kind):
                    await self.cluster.delete(live)

    async def delete_of_other_settings(self, namespace: str | None, is_anothers: Judge = _nobody_elses) -> None:
        """Deletes what is there of other settings, of which no reconcile knows; not what is another installation's."""
        others = frozenset[str]().union(*routing.ROUTE_KINDS.values()) - routing.route_kinds(self.settings)
        if self.settings.network_policy is None:
            others |= {NETWORK_POLICY}
        left = [
            live for kind in sorted(others) for live in await self.cluster.list_objects(kind, namespace, names.OURS)
        ]
        if self.settings.routing.provider == "none":
            services = await self.cluster.list_objects("Service", namespace, names.OURS)
            left += [live for live in services if names.LABEL_DEPLOYED_MODEL not in live["metadata"]["labels"]]
        for live in left:
            if await is_anothers(live):
                continue
            logger.info("%s %s was made by other settings", live["kind"], live["metadata"]["name"])
            try:
                await self.cluster.delete(live)
            except Rejected as error:
                logger.warning("%s %s stays: %s", live["kind"], live["metadata"]["name"], error)


def is_controlled(live: Manifest, kind: str) -> bool:
    """Whether an object belongs to a resource of this kind."""
    references = live["metadata"].get("ownerReferences", [])
    return any(reference.get("controller") and reference["kind"] == kind for reference in references)


def decide_next_look(outcome: Outcome, probe_pause: float | None) -> float | None:
    """In how many seconds something may have changed that no event tells."""
    if outcome.silence:
        return probe_pause
    if find_unready(outcome.workload.pods) and not outcome.workload.told:
        return _UNREADY_AGAIN_SECONDS  # they may know more by then, without an event
    return _CAPACITY_AGAIN_SECONDS if outcome.workload.replacing else None


def resolve_version(dm: DeployedModel, model: Model | None) -> str:
    """The version to serve: the named one, else the pinned one, else the default at this moment; '' if none."""
    if dm.spec.model_version:
        return dm.spec.model_version
    return dm.status.model_version or (model.spec.default_version if model else "")


def mirror_target(endpoint: Endpoint, traffic: Traffic) -> str | None:
    """Who gets copies of an endpoint's requests, if it is there and answers."""
    mirror = endpoint.spec.mirror
    dm = traffic.deployed_models.get(mirror.deployed_model) if mirror else None
    return dm.name if dm and dm.status.is_true(AVAILABLE) else None


def find_carried(endpoint: Endpoint, traffic: Traffic, live: Manifest | None) -> Split:
    """The split by which predictions go while the gateway has not taken the effective one.

    `live` is the route that is there, where the API server refused ours. It is what the next split is computed from:
    weight that has not moved must not be forgotten where it is, or a DeployedModel that serves is left without any.
    """
    before, there = endpoint.status.traffic_split, traffic.deployed_models
    return routing.read_split(live, {*before, *there}) if live else routing.keep_split(before, there)


def explain_references(
    dm: DeployedModel, model: Model | None, version: str, endpoint: Endpoint | None
) -> Finding | None:
    """What a DeployedModel refers to and is not there."""
    found = model.spec.version(version) if model else None
    if missing := explain_model(dm.spec.model, dm, model, version, found):
        return missing
    if endpoint is None:
        return Finding(REASON_ENDPOINT_NOT_FOUND, f"no Endpoint {dm.spec.endpoint} in namespace {dm.namespace}")
    return None


def explain_model(
    name: str, asking: Resource, model: Model | None, version: str, found: ModelVersion | None
) -> Finding | None:
    """Why there is nothing to run for `asking`: no Model of that name, or in it no such version."""
    if model is None:
        return Finding(REASON_MODEL_NOT_FOUND, f"no Model {name} in namespace {asking.namespace}")
    if found is None:
        there = ", ".join(v.name for v in model.spec.versions)
        return Finding(REASON_MODEL_VERSION_NOT_FOUND, f"Model {name} has no version {version}; it has {there}")
    return None


def explain_version(ran: Sequence[VersionRecord], model: Model | None, version: str) -> Finding | None:
    """A version that is not what it was; `ran` is what whoever asks has run already, if anything."""
    found = model.spec.version(version) if model else None
    message = versions.explain_version(model, found, ran) if model and found else None
    return Finding(REASON_VERSION_CHANGED, message) if message else None


def explain_machine(machine: MachineSpec, version: ModelVersion | None, settings: OperatorSettings) -> Finding | None:
    """A machine that the installation does not know, or whose accelerators the version would make no use of."""
    if message := unknown_machine(machine, settings):
        return Finding(REASON_MACHINE_UNKNOWN, message)
    message = unused_devices(machine, version, settings) if version else None
    return Finding(REASON_ACCELERATOR_NOT_USED, message) if message else None


def explain_pods(overrides: PodOverrides, settings: OperatorSettings) -> Finding | None:
    """What the author of a pod may not say of it."""
    message = explain_overrides(overrides, settings.server)
    return Finding(REASON_OVERRIDE_NOT_ALLOWED, message) if message else None


def explain_endpoint(endpoint: Endpoint, traffic: Traffic, settings: OperatorSettings) -> Finding | None:
    """What of an Endpoint's spec the installation does not offer."""
    if message := routing.explain_access(endpoint, settings):
        return Finding(REASON_ACCESS_NOT_OFFERED, message)
    if message := routing.explain_split(traffic.wanted, settings):
        return Finding(REASON_TOO_MANY_DEPLOYED_MODELS, message)
    return None


def make_serving(
    dm: DeployedModel, model: Model | None, version: str, endpoint: Endpoint | None, settings: OperatorSettings
) -> Serving | None:
    """The DeployedModel with what it resolves to; None where it does not, and what runs is left as it is."""
    found = model.spec.version(version) if model else None
    if model is None or found is None:
        return None
    return Serving(dm, model, found, select_image(found, settings), endpoint, find_limits(endpoint))
