"""How a DeployedModel leaves: its weight first, then its pods, then its address. Pure.

Its Deployment, its Service and its NetworkPolicy belong to the Endpoint, too. So they outlive it by as long as the
gateway needs, and go with the Endpoint, whether the operator is there or not.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from pierhead_operator import names
from pierhead_operator.resources import NETWORK_POLICY, Manifest, make_owner_reference
from pierhead_operator.schema import Resource
from pierhead_operator.types import Endpoint

# Longer than a gateway takes from a change of its route until no request goes by the old one, or the API from a change
# of an Endpoint's status.
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


def find_endpoints(left: Iterable[Manifest]) -> set[str]:
    """The Endpoints that what is left of a DeployedModel belongs to: nobody else could send requests to it."""
    owners = (owner for live in left for owner in live["metadata"].get("ownerReferences", []))
    return {owner["name"] for owner in owners if owner["kind"] == Endpoint.KIND}


def is_forwarded(endpoint: Manifest | None, deployed_model: str) -> bool:
    """Whether the REST API, which goes by an Endpoint's status, sends requests to a DeployedModel.

    It does so where no gateway carries predictions, and for some paths where one does. The Endpoint is taken as it is,
    since one that cannot be read by this release may be by the API's.
    """
    if endpoint is None or endpoint["metadata"].get("deletionTimestamp"):
        return False
    split = endpoint.get("status", {}).get("trafficSplit") or {}
    return bool(split.get(deployed_model))


class Step(Enum):
    """What comes next for a DeployedModel that is gone."""

    WAIT = "wait"  # requests may still be sent to its pods
    END_PODS = "end pods"  # those that are in flight they finish by themselves
    END_ADDRESS = "end address"


@dataclass(frozen=True)
class Leaving:
    """What is left of a DeployedModel, as observed."""

    routed: bool  # whether a route leads to it, or the API forwards to it
    drained_for: float  # seconds since it was seen that nobody sends requests
    pods: int


def decide_removal(leaving: Leaving) -> Step:
    """What comes next."""
    if leaving.routed or leaving.drained_for < DRAIN_SECONDS:
        return Step.WAIT
    return Step.END_PODS if leaving.pods else Step.END_ADDRESS
