"""Which Services a route leads to, read from the route itself, whoever made it. Pure."""

from collections.abc import Collection, Iterator

from pierhead_operator import names
from pierhead_operator.resources import Manifest
from pierhead_operator.routing.split import Split


def find_backends(kind: str, route: Manifest) -> set[str]:
    """The names of the Services that a route sends requests or copies to, or sets rules for; none of other kinds."""
    match kind:
        case "HTTPRoute":
            return set(_of_http_route(route))
        case "VirtualService":
            return {host.partition(".")[0] for host in _of_virtual_service(route)}
        case "DestinationRule":
            return {str(route.get("spec", {}).get("host", "")).partition(".")[0]}
    return set()


def _of_http_route(route: Manifest) -> Iterator[str]:
    for rule in route.get("spec", {}).get("rules", []):
        for reference in rule.get("backendRefs", []):
            yield reference["name"]
        for filter_ in rule.get("filters", []):
            if mirror := filter_.get("requestMirror"):
                yield mirror["backendRef"]["name"]


def _of_virtual_service(route: Manifest) -> Iterator[str]:
    for rule in route.get("spec", {}).get("http", []):
        for destination in rule.get("route", []):
            yield destination["destination"]["host"]
        if mirror := rule.get("mirror"):
            yield mirror["host"]


def read_split(route: Manifest, deployed_models: Collection[str]) -> Split:
    """The split that an Endpoint's HTTPRoute or VirtualService carries, as far as it names these DeployedModels.

    A Service's name can be a hash of a DeployedModel's, so that nothing but their names tells whose it is.
    """
    weights = dict(_read_weights(route.get("spec", {})))
    found = {name: weights.get(names.server(name), 0) for name in deployed_models}
    return {name: weight for name, weight in sorted(found.items()) if weight}


def _read_weights(spec: Manifest) -> Iterator[tuple[str, int]]:
    for rule in spec.get("rules", []):
        for reference in rule.get("backendRefs", []):
            yield reference["name"], reference.get("weight", 1)
    for rule in spec.get("http", []):
        for destination in rule.get("route", []):
            yield destination["destination"]["host"].partition(".")[0], destination.get("weight", 0)
