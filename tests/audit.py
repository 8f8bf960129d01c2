"""What the API server noted of those who asked it from within pods."""

import json

from cluster.settings import Paths
from tests.kube import Manifest

Right = tuple[str, str, str]  # API group, resource with its subresource, verb


def make_user(namespace: str, service_account: str) -> str:
    return f"system:serviceaccount:{namespace}:{service_account}"


def find_used_rights(user: str) -> set[Right]:
    """What it asked for and was allowed to."""
    used = set()
    for request in _read(user):
        if not _is_refused(request):
            used.add(_tell(request, request["verb"]))
            # An apply that makes an object needs both rights.
            if request["verb"] == "patch" and request["responseStatus"]["code"] == 201:
                used.add(_tell(request, "create"))
    return used


def find_refused(user: str) -> set[Right]:
    """What it asked for and has no right to; of nobody where the cluster is not this machine's."""
    return {_tell(request, request["verb"]) for request in _read(user) if _is_refused(request)}


def _read(user: str) -> list[Manifest]:
    """Its requests for resources, so far."""
    path = Paths.from_environment().audit
    if not path.exists():
        return []
    with path.open() as lines:
        # The last line may be half written.
        requests = [json.loads(line) for line in lines if f'"{user}"' in line and line.endswith("\n")]
    return [request for request in requests if "objectRef" in request]


def _is_refused(request: Manifest) -> bool:
    return bool(request["annotations"]["authorization.k8s.io/decision"] == "forbid")


def _tell(request: Manifest, verb: str) -> Right:
    about = request["objectRef"]
    resource = "/".join(part for part in (about["resource"], about.get("subresource")) if part)
    return about.get("apiGroup", ""), resource, verb
