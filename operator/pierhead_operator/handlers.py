"""What kopf watches, turned into keys to look after. No logic: an event only says that something may have changed."""

from collections.abc import Callable
from typing import Any

import kopf

from pierhead_operator import names
from pierhead_operator.cluster import Key
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import DeployedModel, Endpoint, Model

Enqueue = Callable[[Key], None]

_OURS = {names.LABEL_MANAGED_BY: names.MANAGED_BY}
# (group, version, plural) of what is made for a DeployedModel, and of what tells how it fares.
_SERVING_RESOURCES = (
    ("", "v1", "services"),
    ("", "v1", "pods"),
    ("apps", "v1", "deployments"),
    ("autoscaling", "v2", "horizontalpodautoscalers"),
)
# The same for an Endpoint.
_ROUTE_RESOURCES = (("", "v1", "services"), ("gateway.networking.k8s.io", "v1", "httproutes"))


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
    return settings


def make_registry(enqueue: Enqueue, settings: OperatorSettings) -> kopf.OperatorRegistry:
    """The handlers that feed `enqueue`."""
    registry = kopf.OperatorRegistry()
    _register_login(registry)
    _register_own_kinds(registry, enqueue)
    _register_children(registry, enqueue, settings)
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


def _register_children(registry: kopf.OperatorRegistry, enqueue: Enqueue, settings: OperatorSettings) -> None:
    def on_serving(meta: kopf.Meta, labels: kopf.Labels, **_: Any) -> None:
        enqueue(Key(DeployedModel.KIND, meta["namespace"], labels[names.LABEL_DEPLOYED_MODEL]))

    def on_route(meta: kopf.Meta, labels: kopf.Labels, **_: Any) -> None:
        enqueue(Key(Endpoint.KIND, meta["namespace"], labels[names.LABEL_ENDPOINT]))

    for group, version, plural in _SERVING_RESOURCES:
        wanted: dict[str, Any] = {**_OURS, names.LABEL_DEPLOYED_MODEL: kopf.PRESENT}
        kopf.on.event(group, version, plural, registry=registry, id=f"on_{plural}", labels=wanted)(on_serving)
    if settings.routing.provider == "gateway-api":
        wanted = {**_OURS, names.LABEL_ENDPOINT: kopf.PRESENT, names.LABEL_DEPLOYED_MODEL: kopf.ABSENT}
        for group, version, plural in _ROUTE_RESOURCES:
            kopf.on.event(group, version, plural, registry=registry, id=f"on_route_{plural}", labels=wanted)(on_route)
