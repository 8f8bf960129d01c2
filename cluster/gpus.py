"""Advertises GPUs on the node: the scheduler then behaves as on a machine that has them."""

from __future__ import annotations

from typing import Any

from cluster import kube
from cluster.errors import ClusterError
from cluster.settings import Paths
from cluster.up import NODE_PATH, is_up

RESOURCE = "nvidia.com/gpu"


def advertise(count: int, paths: Paths | None = None) -> None:
    """Makes the node offer `count` GPUs; 0 takes them away. Raises ClusterError when the cluster is not up."""
    paths = paths or Paths.from_environment()
    if not is_up(paths):
        raise ClusterError("the cluster is not up: `python -m cluster up` starts it")
    with kube.Api(paths) as api:
        node = api.get(NODE_PATH)
        if node is None:
            raise ClusterError(f"the API server does not give {NODE_PATH}")
        if operations := make_patch(node["status"], count):
            api.patch_status(NODE_PATH, operations)


def make_patch(status: kube.Object, count: int) -> list[dict[str, Any]]:
    """The JSON patch of a node's status. Both lists are set, since the scheduler reads what is allocatable."""
    pointer = RESOURCE.replace("/", "~1")
    operations: list[dict[str, Any]] = []
    for field in ("capacity", "allocatable"):
        path = f"/status/{field}/{pointer}"
        if count > 0:
            operations.append({"op": "add", "path": path, "value": str(count)})
        elif RESOURCE in status[field]:
            operations.append({"op": "remove", "path": path})
    return operations
