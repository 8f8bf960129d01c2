"""Where an endpoint's traffic goes: the effective split, and the objects that tell the gateway. Pure."""

from collections.abc import Collection, Mapping

from pierhead_operator import names
from pierhead_operator.resources import Manifest, make_metadata
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import Endpoint

Split = dict[str, int]

# Vertex AI's limit of an online prediction. Without one, Envoy cuts at 15 s.
_REQUEST_TIMEOUT = "60s"
_PORT = 80


def wanted_split(endpoint: Endpoint, deployed_models: Collection[str]) -> Split | None:
    """The split that the spec asks for: its own, or all traffic to the only DeployedModel.

    None where it is not told: no DeployedModel, or several and no split.
    """
    if endpoint.spec.traffic_split is not None:
        return endpoint.spec.traffic_split
    if len(deployed_models) == 1:
        return dict.fromkeys(deployed_models, 100)
    return None


def compute_effective_split(wanted: Mapping[str, int] | None, serving: Collection[str], previous: Split) -> Split:
    """The split that can be had now: weight only on DeployedModels in `serving`, summing to 100, or empty.

    A serving DeployedModel gets at least what it is wanted to get. The weight of the others stays where it was: on
    those that had more than they are wanted to get; where there are none (a DeployedModel broke down), it goes to the
    serving ones by their wanted weights. A DeployedModel of wanted weight 0 gets nothing that it did not have before.
    Applying it again to its own result changes nothing. Without a wanted split the previous one is kept.
    """
    if wanted is None:
        return _shares(100, {name: weight for name, weight in previous.items() if name in serving})
    effective = {name: weight for name, weight in wanted.items() if name in serving}
    waiting = 100 - sum(effective.values())
    if not waiting:
        return {name: weight for name, weight in wanted.items() if weight}
    surplus = {
        name: weight - wanted.get(name, 0)
        for name, weight in previous.items()
        if name in serving and weight > wanted.get(name, 0)
    }
    for name, share in _shares(waiting, surplus or effective).items():
        effective[name] = effective.get(name, 0) + share
    return {name: weight for name, weight in effective.items() if weight} if sum(effective.values()) == 100 else {}


def _shares(total: int, weights: Mapping[str, int]) -> Split:
    """`total` in whole parts proportional to `weights` (largest remainder; ties by name); empty if all are 0."""
    whole = sum(weights.values())
    if not whole:
        return {}
    shares = {name: total * weight // whole for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: (-(total * weights[name] % whole), name))
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return {name: share for name, share in shares.items() if share}


def predict_path(endpoint: Endpoint, settings: OperatorSettings) -> str:
    """The path that predictions of an endpoint are posted to."""
    return f"/v1/{names.endpoint_resource(endpoint.namespace, settings.location, endpoint.name)}:predict"


def make_idle_service(endpoint: Endpoint) -> Manifest:
    """A Service that no pod is behind: a gateway that is sent there answers 503.

    While nobody serves, the route needs somewhere to lead to. Without a backend Gateway API wants 500, which clients
    do not retry; and to the Service of a DeployedModel whose pods are not ready Envoy would send requests all the same.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": make_metadata(names.route(endpoint.name), endpoint, {names.LABEL_ENDPOINT: endpoint.name}),
        "spec": {"ports": [{"name": "http", "port": _PORT, "protocol": "TCP", "appProtocol": "http"}]},
    }


def make_http_route(endpoint: Endpoint, effective: Split, settings: OperatorSettings) -> Manifest:
    """The HTTPRoute that splits an endpoint's predictions among the Services of its DeployedModels.

    `effective` may be empty: then the route leads to the idle Service. Raises ValueError where the settings name no
    gateway.
    """
    gateway = settings.routing.gateway
    if gateway is None:
        raise ValueError("routing.gateway must be set for the provider gateway-api")
    services = {names.server(deployed_model): weight for deployed_model, weight in effective.items()}
    services = services or {names.route(endpoint.name): 1}
    resource = names.endpoint_resource(endpoint.namespace, settings.location, endpoint.name)
    paths = [
        # Gateways compare paths as they are sent, and some clients escape the colon.
        f"/v1/{resource}{colon}predict"
        for colon in (":", "%3A", "%3a")
    ]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": make_metadata(names.route(endpoint.name), endpoint, {names.LABEL_ENDPOINT: endpoint.name}),
        "spec": {
            "parentRefs": [
                {
                    "group": "gateway.networking.k8s.io",
                    "kind": "Gateway",
                    "namespace": gateway.namespace,
                    "name": gateway.name,
                }
            ],
            "rules": [
                {
                    "matches": [{"path": {"type": "Exact", "value": path}} for path in paths],
                    "timeouts": {"request": _REQUEST_TIMEOUT},
                    "backendRefs": [_backend(service, weight) for service, weight in sorted(services.items())],
                }
            ],
        },
    }


def _backend(service: str, weight: int) -> Manifest:
    return {"group": "", "kind": "Service", "name": service, "port": _PORT, "weight": weight}
