"""What every object that Pierhead makes has, and how it is told from what is there. Pure."""

import hashlib
import json
from typing import Any

from pierhead_operator import names
from pierhead_operator.resources.quantities import same_quantity
from pierhead_operator.schema import Resource

Manifest = dict[str, Any]

# Of each Service: from inside the cluster it leads to its own pods that are ready, to each in turn. What is left out,
# whoever may edit it may say: an ExternalName would lead the operator and the API to other namespaces.
INSIDE: Manifest = {"type": "ClusterIP", "publishNotReadyAddresses": False, "sessionAffinity": "None"}

_AMOUNTS = ("requests", "limits")  # of a container: quantities by resource
_LEFT_OUT_IF_FALSE = ("publishNotReadyAddresses",)
# Fields of a spec, by kind, that nobody may add to: one label more in a selector, one peer more in a policy. An apply
# replaces each of them whole. Elsewhere others add what they need, such as a mesh its containers.
_WHOLE = {
    "Service": ("selector",),
    "PodDisruptionBudget": ("selector",),
    "NetworkPolicy": ("podSelector", "policyTypes", "ingress", "egress"),
    "HTTPRoute": ("parentRefs", "rules"),
    "VirtualService": ("gateways", "hosts", "http"),
}
_DEFAULTS = {"protocol": "TCP"}  # what the API server adds to these
# What the API server adds to a Service.
_ASSIGNED = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy")


def selector(deployed_model: str) -> dict[str, str]:
    """The labels that a DeployedModel's pods, and nobody else's, carry."""
    return {**names.OURS, names.LABEL_DEPLOYED_MODEL: deployed_model}


def make_owner_reference(owner: Resource) -> Manifest:
    """The reference by which Kubernetes deletes an object with the last of its owners."""
    return {"apiVersion": names.API_VERSION, "kind": owner.KIND, "name": owner.name, "uid": owner.metadata.uid}


def make_deletion(resource: Resource) -> Manifest:
    """As much of one of Pierhead's own resources as its deletion needs."""
    metadata = {"name": resource.name, "namespace": resource.namespace, "uid": resource.metadata.uid}
    return {"kind": resource.KIND, "metadata": metadata}


def make_metadata(name: str, owner: Resource, labels: dict[str, str]) -> Manifest:
    """The metadata of an object that belongs to `owner`."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": {**names.OURS, **labels},
        "ownerReferences": [{**make_owner_reference(owner), "controller": True, "blockOwnerDeletion": True}],
    }


def mark_applied(desired: Manifest) -> Manifest:
    """`desired` with a digest of itself as an annotation, so that a later look tells whether it was applied."""
    metadata = desired["metadata"]
    annotations = {**metadata.get("annotations", {}), names.ANNOTATION_APPLIED: _digest(desired)}
    return {**desired, "metadata": {**metadata, "annotations": annotations}}


def needs_apply(marked: Manifest, live: Manifest | None) -> bool:
    """Whether a manifest of `mark_applied` has to be sent: it changed, or somebody changed what it says.

    The annotation finds what was removed from the manifest, the comparison what was changed by hand. It is made in the
    API server's normal form: `1024Mi` and `1Gi` are the same, and what is empty is left out.
    """
    return live is None or not _contains(live, marked) or any(_adds(*pair) for pair in _find_whole(live, marked))


def describe(marked: Manifest) -> str:
    """A digest of a manifest of `mark_applied`."""
    return _digest(marked)


def describe_held(live: Manifest, marked: Manifest) -> str:
    """A digest of what `live` has of the fields of a manifest of `mark_applied`."""
    return _digest([_project(live, marked), [there for there, _ in _find_whole(live, marked)]])


def make_repair(live: Manifest, marked: Manifest) -> Manifest | None:
    """A merge patch that brings a Service to what `marked` says where an apply is refused; None where none would.

    An apply leaves what somebody else wrote beside its fields, and that may contradict them: a load balancer's sources
    are refused in a Service that is none.
    """
    if live["kind"] != "Service":
        return None
    foreign = live["spec"].keys() - marked["spec"].keys() - {*_ASSIGNED}
    return {"spec": {**dict.fromkeys(sorted(foreign)), **marked["spec"]}} if foreign else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _project(live: Any, wanted: Any) -> Any:
    """Of `live` the fields that `wanted` has; lists whole."""
    if isinstance(live, dict) and isinstance(wanted, dict):
        return {key: _project(live[key], wanted[key]) for key in wanted if key in live}
    return live


def _find_whole(live: Manifest, marked: Manifest) -> list[tuple[Any, Any]]:
    """What `live` and `marked` have of the fields that nobody may add to."""
    there, wanted = live.get("spec", {}), marked.get("spec", {})
    return [(there.get(field), wanted[field]) for field in _WHOLE.get(marked["kind"], ()) if field in wanted]


def _adds(live: Any, wanted: Any) -> bool:
    """Whether `live` has fields, at any depth, that `wanted` has not; what they have both is not compared."""
    if isinstance(live, list) and isinstance(wanted, list):
        return any(_adds(*pair) for pair in zip(live, wanted, strict=False))
    if not isinstance(live, dict) or not isinstance(wanted, dict):
        return False
    return any(
        _adds(value, wanted[key]) if key in wanted else _DEFAULTS.get(key) != value for key, value in live.items()
    )


def _contains(live: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(_holds(live, key, value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(_contains(*pair) for pair in zip(live, wanted, strict=True))
        )
    return bool(live == wanted)


def _holds(live: Manifest, key: str, wanted: Any) -> bool:
    if key not in live:
        return wanted in ("", [], {}) or (key in _LEFT_OUT_IF_FALSE and wanted is False)
    if key in _AMOUNTS and isinstance(wanted, dict) and isinstance(live[key], dict):
        return all(name in live[key] and same_quantity(live[key][name], amount) for name, amount in wanted.items())
    return _contains(live[key], wanted)


def is_owned(live: Manifest, owner: Resource) -> bool:
    """Whether an object belongs to this very owner, and not to a namesake or to somebody else."""
    references = live.get("metadata", {}).get("ownerReferences", [])
    return any(reference.get("controller") and reference["uid"] == owner.metadata.uid for reference in references)


def owns_replicas(deployment: Manifest) -> bool:
    """Whether `spec.replicas` of a live Deployment is still a field of ours.

    If it is left out of the next apply while nobody else owns it, Kubernetes resets it to 1.
    """
    entries = deployment.get("metadata", {}).get("managedFields", [])
    return any(
        entry.get("manager") == names.FIELD_MANAGER
        and "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        and not entry.get("subresource")
        for entry in entries
    )
