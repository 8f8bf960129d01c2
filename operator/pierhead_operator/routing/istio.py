"""Rules as Istio has them: VirtualServices and DestinationRules. Pure."""

from collections.abc import Sequence

from pierhead_operator import names
from pierhead_operator.resources import Manifest, make_metadata
from pierhead_operator.routing.rules import SECRET_HEADERS, SERVICE_PORT, Rule
from pierhead_operator.settings import IstioSettings
from pierhead_operator.types import Endpoint, Model

_API_VERSION = "networking.istio.io/v1"


def make_endpoint_routes(endpoint: Endpoint, rule: Rule, istio: IstioSettings) -> list[Manifest]:
    """The VirtualService of an Endpoint, and before it a DestinationRule for each DeployedModel that it leads to."""
    labels = {names.LABEL_ENDPOINT: endpoint.name}
    servers = {*rule.services, *filter(None, [rule.mirror])} - {names.route(endpoint.name)}
    metadata = make_metadata(names.route(endpoint.name), endpoint, labels)
    return [
        *(_make_destination_rule(make_metadata(server, endpoint, labels)) for server in sorted(servers)),
        _make_virtual_service(metadata, [rule], istio),
    ]


def make_model_routes(model: Model, rules: Sequence[Rule], istio: IstioSettings) -> list[Manifest]:
    """The VirtualService of a Model, if there is any rule. The DestinationRules are those of its Endpoints."""
    if not rules:
        return []
    metadata = make_metadata(names.model_route(model.name), model, {names.LABEL_MODEL: model.name})
    return [_make_virtual_service(metadata, rules, istio)]


def _make_virtual_service(metadata: Manifest, rules: Sequence[Rule], istio: IstioSettings) -> Manifest:
    return {
        "apiVersion": _API_VERSION,
        "kind": "VirtualService",
        "metadata": metadata,
        "spec": {
            "gateways": istio.gateways,
            # Of the same gateway and host, Istio puts all VirtualServices together; the paths keep them apart.
            "hosts": istio.hosts,
            "http": [_make_rule(rule, metadata["namespace"]) for rule in rules],
        },
    }


def _make_rule(rule: Rule, namespace: str) -> Manifest:
    made: Manifest = {
        "match": [{"uri": {"exact": path}} for path in rule.paths],
        "timeout": rule.timeout,  # without one, Istio waits forever
        "headers": {"request": {"remove": SECRET_HEADERS}},
        "route": [
            {"destination": _make_destination(service, namespace), "weight": weight}
            for service, weight in sorted(rule.services.items())
        ],
    }
    if rule.mirror:
        made["mirror"] = _make_destination(rule.mirror, namespace)
        made["mirrorPercentage"] = {"value": rule.mirror_percent}
    return made


def _make_destination(service: str, namespace: str) -> Manifest:
    return {"host": _host(service, namespace), "port": {"number": SERVICE_PORT}}


def _make_destination_rule(metadata: Manifest) -> Manifest:
    """How the pods behind a Service, which has the rule's own name, share the requests."""
    return {
        "apiVersion": _API_VERSION,
        "kind": "DestinationRule",
        "metadata": metadata,
        "spec": {
            "host": _host(metadata["name"], metadata["namespace"]),
            # Predictions take long and differ: in turn, one pod would queue while another has nothing to do. It is
            # Istio's own default, said here because a mesh can have another.
            "trafficPolicy": {"loadBalancer": {"simple": "LEAST_REQUEST"}},
        },
    }


def _host(service: str, namespace: str) -> str:
    # In full: a short name is looked up where the reader is, which Istio's documentation warns of.
    return f"{service}.{namespace}.svc.cluster.local"
