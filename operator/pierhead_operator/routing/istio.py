"""Rules as Istio has them: VirtualServices and DestinationRules. Pure."""

from collections.abc import Sequence

from pierhead_operator import names
from pierhead_operator.resources import Manifest, make_metadata
from pierhead_operator.routing.rules import RETRY_AFTER_SECONDS, SECRET_HEADERS, SERVICE_PORT, Refusal, Rule
from pierhead_operator.settings import IstioSettings
from pierhead_operator.types import Endpoint, Model

_API_VERSION = "networking.istio.io/v1"


def make_endpoint_routes(endpoint: Endpoint, rule: Rule, refusal: Refusal, istio: IstioSettings) -> list[Manifest]:
    """The VirtualService of an Endpoint, and before it a DestinationRule for each DeployedModel that it leads to.

    While nobody serves, it answers the `refusal` itself.
    """
    labels = {names.LABEL_ENDPOINT: endpoint.name}
    metadata = make_metadata(names.route(endpoint.name), endpoint, labels)
    if not rule.services:
        return [_make_virtual_service(metadata, [_make_answer(rule, refusal)], istio)]
    servers = {*rule.services, *filter(None, [rule.mirror])}
    return [
        *(_make_destination_rule(make_metadata(server, endpoint, labels)) for server in sorted(servers)),
        _make_virtual_service(metadata, [_make_rule(rule, endpoint.namespace)], istio),
    ]


def make_model_routes(model: Model, rules: Sequence[Rule], istio: IstioSettings) -> list[Manifest]:
    """The VirtualService of a Model, if there is any rule. The DestinationRules are those of its Endpoints."""
    if not rules:
        return []
    metadata = make_metadata(names.model_route(model.name), model, {names.LABEL_MODEL: model.name})
    return [_make_virtual_service(metadata, [_make_rule(rule, model.namespace) for rule in rules], istio)]


def _make_virtual_service(metadata: Manifest, http: Sequence[Manifest], istio: IstioSettings) -> Manifest:
    return {
        "apiVersion": _API_VERSION,
        "kind": "VirtualService",
        "metadata": metadata,
        "spec": {
            "gateways": istio.gateways,
            # Of the same gateway and host, Istio puts all VirtualServices together; the paths keep them apart.
            "hosts": istio.hosts,
            "http": [*http],
        },
    }


def _make_answer(rule: Rule, refusal: Refusal) -> Manifest:
    """A rule that leads nowhere, so that there is nothing to copy either."""
    headers = {"content-type": "application/json"}
    if refusal.is_temporary:
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    return {
        "match": _make_matches(rule),
        "directResponse": {"status": refusal.code, "body": {"string": refusal.to_json()}},
        "headers": {"response": {"set": headers}},
    }


def _make_matches(rule: Rule) -> list[Manifest]:
    return [{"uri": {"exact": path}} for path in rule.paths]


def _make_rule(rule: Rule, namespace: str) -> Manifest:
    made: Manifest = {
        "match": _make_matches(rule),
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
