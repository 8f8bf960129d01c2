"""The operator that an installation asks for now: after an upgrade the one before is there for a while, too."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from cluster import processes

Manifest = dict[str, Any]
Kubectl = Callable[..., str]  # runs kubectl with these arguments, and returns what it prints

_REVISION = "deployment.kubernetes.io/revision"
_HASH = "pod-template-hash"


def wait_operator(kubectl: Kubectl, namespace: str, name: str, timeout: float = 120) -> None:
    """Returns once an operator of what the Deployment asks for now leads: whatever is done next, it does.

    `name` is the Deployment's and the Lease's. Raises ClusterError after `timeout` seconds.
    """
    what = f"an operator of the present Deployment {namespace}/{name} leads"
    processes.wait_until(what, lambda: _leads(kubectl, namespace, name), timeout)


def _leads(kubectl: Kubectl, namespace: str, name: str) -> bool:
    def get(*arguments: str) -> Manifest:
        text = kubectl("--namespace", namespace, "get", *arguments, "--ignore-not-found", "--output", "json")
        found: Manifest = json.loads(text) if text else {}
        return found

    deployment, lease = get("deployment", name), get("lease", name)
    pod = find_holder(lease)
    return bool(pod) and is_current(deployment, get("replicasets")["items"], get("pod", pod))


def find_holder(lease: Manifest) -> str:
    """The pod that holds a Lease; '' where none does."""
    return str(lease.get("spec", {}).get("holderIdentity") or "").partition("_")[0]


def is_current(deployment: Manifest, replica_sets: Sequence[Manifest], pod: Manifest) -> bool:
    """Whether a pod is of what the Deployment asks for now, and stays."""
    metadata = deployment["metadata"]
    if deployment.get("status", {}).get("observedGeneration") != metadata["generation"]:
        return False
    current = [
        replica_set["metadata"]["labels"][_HASH]
        for replica_set in replica_sets
        if any(owner["uid"] == metadata["uid"] for owner in replica_set["metadata"].get("ownerReferences", []))
        and replica_set["metadata"]["annotations"][_REVISION] == metadata["annotations"][_REVISION]
    ]
    about = pod.get("metadata", {})
    return "deletionTimestamp" not in about and about.get("labels", {}).get(_HASH) in current
