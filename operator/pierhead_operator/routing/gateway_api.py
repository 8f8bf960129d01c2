"""Rules as Gateway API has them: HTTPRoutes, and a policy of Envoy Gateway. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pierhead_operator import names
from pierhead_operator.resources import Manifest, make_metadata
from pierhead_operator.routing.rules import SECRET_HEADERS, SERVICE_PORT, Rule
from pierhead_operator.settings import GatewayReference
from pierhead_operator.types import Endpoint, Model

_GROUP = "gateway.networking.k8s.io"

# What one HTTPRoute may hold. A rule may have 64 matches: an Endpoint's has six for each of up to ten locations, and a
# version's has three for each of up to ten names, in Kubernetes' words and in AI Platform's.
_MAX_RULES = 16
_MAX_MATCHES = 128
MAX_BACKENDS = 16


def make_endpoint_route(endpoint: Endpoint, rule: Rule, gateway: GatewayReference) -> Manifest:
    """The HTTPRoute of an Endpoint."""
    metadata = make_metadata(names.route(endpoint.name), endpoint, {names.LABEL_ENDPOINT: endpoint.name})
    return _make_http_route(metadata, [rule], gateway)


def make_model_routes(model: Model, rules: Sequence[Rule], gateway: GatewayReference) -> list[Manifest]:
    """The HTTPRoutes of a Model: one, or as many as its rules take.

    Of more DeployedModels of one version than a rule may lead to, those with the most weight are taken; of equals the
    first by name.
    """
    labels = {names.LABEL_MODEL: model.name}
    rules = [replace(rule, services=_take_heaviest(rule.services)) for rule in rules]
    return [
        _make_http_route(make_metadata(names.model_route(model.name, number), model, labels), part, gateway)
        for number, part in enumerate(_parts(rules), start=1)
    ]


def _take_heaviest(services: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(services.items(), key=lambda item: (-item[1], item[0]))[:MAX_BACKENDS])


def make_request_limit(endpoint: Endpoint, max_bytes: int) -> Manifest:
    """Envoy Gateway's policy that refuses larger requests with 413, before a pod has to read them."""
    route = names.route(endpoint.name)
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "BackendTrafficPolicy",
        "metadata": make_metadata(route, endpoint, {names.LABEL_ENDPOINT: endpoint.name}),
        "spec": {
            "targetRefs": [{"group": _GROUP, "kind": "HTTPRoute", "name": route}],
            # A policy of the platform team for the whole Gateway counts on; without this, ours would be in its place.
            "mergeType": "StrategicMerge",
            "requestBuffer": {"limit": str(max_bytes)},
        },
    }


def _make_http_route(metadata: Manifest, rules: Sequence[Rule], gateway: GatewayReference) -> Manifest:
    parent = {"group": _GROUP, "kind": "Gateway", "namespace": gateway.namespace, "name": gateway.name}
    if gateway.section_name:
        parent["sectionName"] = gateway.section_name
    spec: Manifest = {"parentRefs": [parent], "rules": [_make_rule(rule) for rule in rules]}
    if gateway.hostnames:
        spec["hostnames"] = gateway.hostnames
    return {"apiVersion": f"{_GROUP}/v1", "kind": "HTTPRoute", "metadata": metadata, "spec": spec}


def _make_rule(rule: Rule) -> Manifest:
    made: Manifest = {
        "matches": [{"path": {"type": "Exact", "value": path}} for path in rule.paths],
        "timeouts": {"request": rule.timeout},
        "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": SECRET_HEADERS}}],
        "backendRefs": [
            {**_make_reference(service), "weight": weight} for service, weight in sorted(rule.services.items())
        ],
    }
    if rule.mirror:
        mirror = {"backendRef": _make_reference(rule.mirror), "percent": rule.mirror_percent}
        made["filters"].append({"type": "RequestMirror", "requestMirror": mirror})
    return made


def _make_reference(service: str) -> Manifest:
    return {"group": "", "kind": "Service", "name": service, "port": SERVICE_PORT}


def _parts(rules: Sequence[Rule]) -> list[list[Rule]]:
    """The rules in order, in as few parts as fit into an HTTPRoute each."""
    parts: list[list[Rule]] = []
    matches = 0
    for rule in rules:
        if not parts or len(parts[-1]) == _MAX_RULES or matches + len(rule.paths) > _MAX_MATCHES:
            parts.append([])
            matches = 0
        parts[-1].append(rule)
        matches += len(rule.paths)
    return parts
