"""What every object that Pierhead makes has, and how it is told from what is there. Pure."""

import hashlib
import json
from typing import Any

from pierhead_operator import names
from pierhead_operator.resources.quantities import same_quantity
from pierhead_operator.schema import Resource

Manifest = dict[str, Any]

_AMOUNTS = ("requests", "limits")  # of a container: quantities by resource


def selector(deployed_model: str) -> dict[str, str]:
    """The labels that a DeployedModel's pods, and nobody else's, carry."""
    return {**names.OURS, names.LABEL_DEPLOYED_MODEL: deployed_model}


def make_owner_reference(owner: Resource) -> Manifest:
    """The reference by which Kubernetes deletes an object with the last of its owners."""
    return {"apiVersion": names.API_VERSION, "kind": owner.KIND, "name": owner.name, "uid": owner.metadata.uid}


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
    return live is None or not _contains(live, marked)


def describe(marked: Manifest) -> str:
    """A digest of a manifest of `mark_applied`."""
    return _digest(marked)


def describe_held(live: Manifest, marked: Manifest) -> str:
    """A digest of what `live` has of the fields of a manifest of `mark_applied`."""
    return _digest(_project(live, marked))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _project(live: Any, wanted: Any) -> Any:
    """Of `live` the fields that `wanted` has; lists whole."""
    if isinstance(live, dict) and isinstance(wanted, dict):
        return {key: _project(live[key], wanted[key]) for key in wanted if key in live}
    return live


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
        return wanted in ("", [], {})
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
