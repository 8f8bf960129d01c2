"""Which Services a route leads to, read from the route itself, whoever made it. Pure."""

from collections.abc import Iterator

from pierhead_operator.resources import Manifest


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
