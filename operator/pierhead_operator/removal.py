"""How a DeployedModel leaves: its weight first, then its pods, then its address. Pure.

Its Deployment, its Service and its NetworkPolicy belong to the Endpoint, too. So they outlive it by as long as the
gateway needs, and go with the Endpoint, whether the operator is there or not.
"""

from dataclasses import dataclass
from enum import Enum

from pierhead_operator import names
from pierhead_operator.resources import NETWORK_POLICY, Manifest, make_owner_reference
from pierhead_operator.schema import Resource

# Longer than a gateway takes from a change of its route until no request goes by the old one.
DRAIN_SECONDS = 10.0
_SHARED_KINDS = frozenset({"Deployment", "Service", NETWORK_POLICY})


def share(manifest: Manifest, endpoint: Resource | None) -> Manifest:
    """What a DeployedModel's object is if it shall outlive it: the Endpoint's, too."""
    if endpoint is None or manifest["kind"] not in _SHARED_KINDS:
        return manifest
    metadata = manifest["metadata"]
    owners = [*metadata["ownerReferences"], make_owner_reference(endpoint)]
    return {**manifest, "metadata": {**metadata, "ownerReferences": owners}}


def is_left(live: Manifest, deployed_model: str) -> bool:
    """Whether an object was made for a DeployedModel of this name that is gone, so that nobody else controls it."""
    metadata = live["metadata"]
    labels = metadata.get("labels", {})
    ours = labels.get(names.LABEL_MANAGED_BY) == names.MANAGED_BY
    controlled = any(reference.get("controller") for reference in metadata.get("ownerReferences", []))
    return ours and labels.get(names.LABEL_DEPLOYED_MODEL) == deployed_model and not controlled


class Step(Enum):
    """What comes next for a DeployedModel that is gone."""

    WAIT = "wait"  # requests may still be sent to its pods
    END_PODS = "end pods"  # those that are in flight they finish by themselves
    END_ADDRESS = "end address"


@dataclass(frozen=True)
class Leaving:
    """What is left of a DeployedModel, as observed."""

    routed: bool  # whether a route leads to it
    drained_for: float  # seconds since it was seen that none does
    pods: int


def decide_removal(leaving: Leaving) -> Step:
    """What comes next."""
    if leaving.routed or leaving.drained_for < DRAIN_SECONDS:
        return Step.WAIT
    return Step.END_PODS if leaving.pods else Step.END_ADDRESS
