"""What kopf watches, turned into keys to look after. No logic: an event only says that something may have changed."""

from collections.abc import Callable
from typing import Any

import kopf

from pierhead_operator import names
from pierhead_operator.cluster import Key
from pierhead_operator.settings import OperatorSettings, RoutingSettings
from pierhead_operator.types import DeployedModel, Endpoint, Model

Enqueue = Callable[[Key], None]
Watched = tuple[str, str, str]  # group, version, plural

_SERVICES: Watched = ("", "v1", "services")
# What is made for a DeployedModel, and what tells how it fares.
_SERVING_RESOURCES: tuple[Watched, ...] = (
    _SERVICES,
    ("", "v1", "pods"),
    ("apps", "v1", "deployments"),
    ("autoscaling", "v2", "horizontalpodautoscalers"),
    ("policy", "v1", "poddisruptionbudgets"),
)
_HTTP_ROUTES: Watched = ("gateway.networking.k8s.io", "v1", "httproutes")
_TRAFFIC_POLICIES: Watched = ("gateway.envoyproxy.io", "v1alpha1", "backendtrafficpolicies")
_VIRTUAL_SERVICES: Watched = ("networking.istio.io", "v1", "virtualservices")
_DESTINATION_RULES: Watched = ("networking.istio.io", "v1", "destinationrules")
_ROUTE_RESOURCES = (_HTTP_ROUTES, _TRAFFIC_POLICIES, _VIRTUAL_SERVICES, _DESTINATION_RULES)


def make_kopf_settings() -> kopf.OperatorSettings:
    """kopf as Pierhead needs it: it watches and writes nothing, neither events nor annotations nor finalizers."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    # The namespaces are given, and the kinds are known: no need for the right to list CRDs and namespaces.
    settings.scanning.disabled = True
    # A watch that the network has silently dropped is found at the latest when its time is over.
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    # Longer than liveness waits. An end sooner would only make Kubernetes wait longer and longer before the next start.
    settings.networking.error_backoffs = (1, 1, 2, 3, 5, *[8] * 50)
    # Less than a pod is given to end: one that hangs at its end must not hang until Kubernetes kills it.
    settings.process.ultimate_exiting_timeout = 15
    # The API server chooses: what other people run is never sent here.
    selector = ",".join(f"{label}={value}" for label, value in names.OURS.items())
    for resource in (*_SERVING_RESOURCES, *_ROUTE_RESOURCES):
        settings.watching.label_selectors[resource] = selector
    return settings


def make_registry(enqueue: Enqueue, settings: OperatorSettings) -> kopf.OperatorRegistry:
    """The handlers that feed `enqueue`."""
    registry = kopf.OperatorRegistry()
    _register_login(registry)
    _register_own_kinds(registry, enqueue)
    _register_serving(registry, enqueue)
    _register_routes(registry, enqueue, settings.routing)
    return registry


def _register_login(registry: kopf.OperatorRegistry) -> None:
    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def _register_own_kinds(registry: kopf.OperatorRegistry, enqueue: Enqueue) -> None:
    # kopf fills the indices before the first event is handled.
    @kopf.index(names.GROUP, names.VERSION, DeployedModel.PLURAL, registry=registry, id="by_model")
    def by_model(meta: kopf.Meta, spec: kopf.Spec, **_: Any) -> dict[tuple[str, str], str]:
        return {(meta["namespace"], spec["model"]): meta["name"]}

    @kopf.index(names.GROUP, names.VERSION, DeployedModel.PLURAL, registry=registry, id="by_endpoint")
    def by_endpoint(meta: kopf.Meta, spec: kopf.Spec, **_: Any) -> dict[tuple[str, str], str]:
        return {(meta["namespace"], spec["endpoint"]): meta["name"]}

    @kopf.on.event(names.GROUP, names.VERSION, Model.PLURAL, registry=registry)
    def on_model(meta: kopf.Meta, **indices: Any) -> None:
        enqueue(Key(Model.KIND, meta["namespace"], meta["name"]))
        for deployed_model in indices["by_model"].get((meta["namespace"], meta["name"]), ()):
            enqueue(Key(DeployedModel.KIND, meta["namespace"], deployed_model))

    @kopf.on.event(names.GROUP, names.VERSION, Endpoint.PLURAL, registry=registry)
    def on_endpoint(meta: kopf.Meta, **indices: Any) -> None:
        enqueue(Key(Endpoint.KIND, meta["namespace"], meta["name"]))
        for deployed_model in indices["by_endpoint"].get((meta["namespace"], meta["name"]), ()):
            enqueue(Key(DeployedModel.KIND, meta["namespace"], deployed_model))

    @kopf.on.event(names.GROUP, names.VERSION, DeployedModel.PLURAL, registry=registry)
    def on_deployed_model(meta: kopf.Meta, spec: kopf.Spec, **_: Any) -> None:
        enqueue(Key(DeployedModel.KIND, meta["namespace"], meta["name"]))
        enqueue(Key(Endpoint.KIND, meta["namespace"], spec["endpoint"]))
        # A Model's own routes lead to whoever serves its versions.
        enqueue(Key(Model.KIND, meta["namespace"], spec["model"]))


def _register_serving(registry: kopf.OperatorRegistry, enqueue: Enqueue) -> None:
    def on_serving(meta: kopf.Meta, labels: kopf.Labels, **_: Any) -> None:
        enqueue(Key(DeployedModel.KIND, meta["namespace"], labels[names.LABEL_DEPLOYED_MODEL]))

    wanted: dict[str, Any] = {**names.OURS, names.LABEL_DEPLOYED_MODEL: kopf.PRESENT}
    for resource in _SERVING_RESOURCES:
        kopf.on.event(*resource, registry=registry, id=f"on_{resource[2]}", labels=wanted)(on_serving)


def _register_routes(registry: kopf.OperatorRegistry, enqueue: Enqueue, routing: RoutingSettings) -> None:
    def on_endpoint_route(meta: kopf.Meta, labels: kopf.Labels, **_: Any) -> None:
        enqueue(Key(Endpoint.KIND, meta["namespace"], labels[names.LABEL_ENDPOINT]))

    def on_model_route(meta: kopf.Meta, labels: kopf.Labels, **_: Any) -> None:
        enqueue(Key(Model.KIND, meta["namespace"], labels[names.LABEL_MODEL]))

    # What belongs to a DeployedModel has the names of its Endpoint and its Model, too.
    lone: dict[str, Any] = {**names.OURS, names.LABEL_DEPLOYED_MODEL: kopf.ABSENT}
    for resource in _routed_resources(routing):
        wanted = {**lone, names.LABEL_ENDPOINT: kopf.PRESENT}
        kopf.on.event(*resource, registry=registry, id=f"on_endpoint_{resource[2]}", labels=wanted)(on_endpoint_route)
        wanted = {**lone, names.LABEL_MODEL: kopf.PRESENT}
        kopf.on.event(*resource, registry=registry, id=f"on_model_{resource[2]}", labels=wanted)(on_model_route)


def _routed_resources(routing: RoutingSettings) -> tuple[Watched, ...]:
    """What carries predictions where this provider does: kinds that are not installed cannot be watched."""
    if routing.provider == "gateway-api":
        return (_SERVICES, _HTTP_ROUTES, *((_TRAFFIC_POLICIES,) if routing.envoy_gateway else ()))
    return (_SERVICES, _VIRTUAL_SERVICES, _DESTINATION_RULES) if routing.provider == "istio" else ()
