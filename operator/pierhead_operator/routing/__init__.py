"""Where traffic goes: the effective split, and the objects that tell whoever carries it. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from pierhead_operator import names
from pierhead_operator.resources import INSIDE, Manifest, make_metadata
from pierhead_operator.routing import gateway_api, istio
from pierhead_operator.routing.backends import read_split
from pierhead_operator.routing.limits import explain_model_limit, explain_split, fit_split
from pierhead_operator.routing.refusals import explain_refusal
from pierhead_operator.routing.rules import SERVICE_PORT, Refusal, Rule, make_endpoint_rule, make_model_rules
from pierhead_operator.routing.serving import Server, describe_server, find_serving, is_offered, name_versions
from pierhead_operator.routing.split import (
    Replicas,
    Split,
    compute_effective_split,
    compute_wanted_split,
    count_needed,
    count_replicas,
    given_split,
    keep_split,
    take_back,
    wanted_split,
)
from pierhead_operator.settings import GatewayReference, IstioSettings, OperatorSettings
from pierhead_operator.types import Endpoint, Model

__all__ = [
    "ROUTE_KINDS",
    "Refusal",
    "Replicas",
    "Server",
    "Split",
    "compute_effective_split",
    "compute_wanted_split",
    "count_needed",
    "count_replicas",
    "describe_server",
    "explain_access",
    "explain_model_limit",
    "explain_refusal",
    "explain_split",
    "find_serving",
    "fit_split",
    "gateway_of",
    "given_split",
    "is_offered",
    "is_open",
    "keep_address",
    "keep_split",
    "make_endpoint_routes",
    "make_idle_service",
    "make_model_routes",
    "name_versions",
    "predict_path",
    "read_split",
    "route_kinds",
    "split_kind",
    "take_back",
    "wanted_split",
]

_POLICY = "BackendTrafficPolicy"

# What each provider may make, apart from the idle Service, which is the same for all that make routes.
ROUTE_KINDS: Mapping[str, frozenset[str]] = {
    "none": frozenset(),
    "gateway-api": frozenset({"HTTPRoute", _POLICY}),
    "istio": frozenset({"VirtualService", "DestinationRule"}),
}


def route_kinds(settings: OperatorSettings) -> frozenset[str]:
    """What this installation may make, apart from the idle Service; no other kind needs to be known to its cluster."""
    kinds = ROUTE_KINDS[settings.routing.provider]
    return kinds if settings.routing.envoy_gateway else kinds - {_POLICY}


def split_kind(settings: OperatorSettings) -> str | None:
    """The kind of the route that carries an endpoint's split; None where the API forwards by the status."""
    return {"gateway-api": "HTTPRoute", "istio": "VirtualService"}.get(settings.routing.provider)


def is_open(settings: OperatorSettings) -> bool:
    """Whether whoever reaches the gateway may predict."""
    return settings.routing.open and split_kind(settings) is not None


def predict_path(endpoint: Endpoint, settings: OperatorSettings) -> str:
    """The path that predictions of an endpoint are posted to."""
    return f"/v1/{names.endpoint_resource(endpoint.namespace, settings.location, endpoint.name)}:predict"


def explain_access(endpoint: Endpoint, settings: OperatorSettings) -> str | None:
    """Why the installation cannot give an endpoint the access that it asks for; None where it can."""
    routing = settings.routing
    if endpoint.spec.access != "Private":
        return None
    if routing.provider == "gateway-api" and routing.private_gateway is None:
        value = "privateGateway"
    elif routing.provider == "istio" and routing.private_istio is None:
        value = "privateIstio"
    else:
        return None
    return f"spec.access: Private needs a gateway that only the cluster reaches: the chart's routing.{value} is not set"


def gateway_of(endpoint: Endpoint, settings: OperatorSettings) -> GatewayReference | None:
    """The Gateway that an endpoint's HTTPRoute attaches to; None where there is none, or the provider is another."""
    routing = settings.routing
    if routing.provider != "gateway-api":
        return None
    return routing.private_gateway if endpoint.spec.access == "Private" else routing.gateway


def _istio_of(endpoint: Endpoint, settings: OperatorSettings) -> IstioSettings | None:
    routing = settings.routing
    if routing.provider != "istio":
        return None
    return routing.private_istio if endpoint.spec.access == "Private" else routing.istio


def make_idle_service(endpoint: Endpoint) -> Manifest:
    """A Service that no pod is behind, and that takes no address: a gateway that is sent there answers 503.

    While nobody serves, a route needs somewhere to lead to. Without a backend Gateway API wants 500, which clients
    do not retry; and to the Service of a DeployedModel whose pods are not ready Envoy would send requests all the same.
    """
    port = {"name": "http", "port": SERVICE_PORT, "protocol": "TCP", "appProtocol": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": make_metadata(names.route(endpoint.name), endpoint, {names.LABEL_ENDPOINT: endpoint.name}),
        "spec": {**INSIDE, "clusterIP": "None", "selector": {}, "ports": [port]},
    }


def keep_address(service: Manifest, live: Manifest | None) -> Manifest:
    """The idle Service with the address that a live one has: Kubernetes lets nobody change it."""
    address = (live or {}).get("spec", {}).get("clusterIP")
    return {**service, "spec": {**service["spec"], "clusterIP": address}} if address else service


def make_endpoint_routes(
    endpoint: Endpoint, effective: Split, mirror_to: str | None, refusal: Refusal, settings: OperatorSettings
) -> list[Manifest]:
    """All that carries an endpoint's predictions: what others refer to comes first.

    `effective` may be empty: then clients are told the `refusal`, by the gateway itself or by the API, which gets what
    has no route; only without an API a route leads to the idle Service. `mirror_to` is the DeployedModel that gets the
    copies that the spec asks for, if it serves. Nothing where the provider makes no routes, or where `explain_access`
    has something to say.
    """
    rule = make_endpoint_rule(endpoint, effective, mirror_to, settings)
    if gateway := gateway_of(endpoint, settings):
        return _make_gateway_routes(endpoint, rule, gateway, settings)
    if configured := _istio_of(endpoint, settings):
        return istio.make_endpoint_routes(endpoint, rule, refusal, configured)
    return []


def _make_gateway_routes(
    endpoint: Endpoint, rule: Rule, gateway: GatewayReference, settings: OperatorSettings
) -> list[Manifest]:
    made = []
    if not rule.services:
        if settings.routing.api_answers:
            return []
        made.append(make_idle_service(endpoint))
        rule = replace(rule, services={names.route(endpoint.name): 1})
    made.append(gateway_api.make_endpoint_route(endpoint, rule, gateway))
    if settings.routing.envoy_gateway and endpoint.spec.max_request_bytes:
        made.append(gateway_api.make_request_limit(endpoint, endpoint.spec.max_request_bytes))
    return made


def make_model_routes(model: Model, serving: Mapping[str, Split], settings: OperatorSettings) -> list[Manifest]:
    """All that carries predictions by AI Platform's paths, which name a Model instead of an Endpoint.

    `serving` is what `find_serving` says of those whom everybody may reach: the routes attach to the public gateway.
    Nothing where nobody serves any version, or the provider makes no routes.
    """
    routing = settings.routing
    rules = make_model_rules(model, serving)
    if routing.provider == "gateway-api" and routing.gateway:
        return gateway_api.make_model_routes(model, rules, routing.gateway)
    if routing.provider == "istio" and routing.istio:
        return istio.make_model_routes(model, rules, routing.istio)
    return []
