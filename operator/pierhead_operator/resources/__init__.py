"""What should exist for a DeployedModel: pure functions from plain data to Kubernetes manifests.

`objects` knows what every object of ours has, `machines` what a pod asks of its node, `overrides` what its author may
not say, `pods` what a pod is made of, `network` who may reach it, `serving` the objects around it, and `rollout` how
pods of one template follow those of another.
"""

from pierhead_operator.resources.machines import select_image, separate_cache, unknown_machine, unused_devices
from pierhead_operator.resources.network import NETWORK_POLICY
from pierhead_operator.resources.objects import (
    INSIDE,
    Manifest,
    describe,
    describe_held,
    is_owned,
    make_deletion,
    make_metadata,
    make_owner_reference,
    make_repair,
    mark_applied,
    needs_apply,
    owns_replicas,
    selector,
)
from pierhead_operator.resources.overrides import explain_overrides, is_never_allowed
from pierhead_operator.resources.pods import Limits, Serving, find_limits
from pierhead_operator.resources.rollout import decide_in_place, has_served
from pierhead_operator.resources.serving import (
    BESIDE_PODS,
    SERVING_KINDS,
    desired_objects,
    is_autoscaled,
    make_deployment,
    make_horizontal_pod_autoscaler,
    make_pod_disruption_budget,
    make_service,
    serving_kinds,
)

__all__ = [
    "BESIDE_PODS",
    "INSIDE",
    "NETWORK_POLICY",
    "SERVING_KINDS",
    "Limits",
    "Manifest",
    "Serving",
    "decide_in_place",
    "describe",
    "describe_held",
    "desired_objects",
    "explain_overrides",
    "find_limits",
    "has_served",
    "is_autoscaled",
    "is_never_allowed",
    "is_owned",
    "make_deletion",
    "make_deployment",
    "make_horizontal_pod_autoscaler",
    "make_metadata",
    "make_owner_reference",
    "make_pod_disruption_budget",
    "make_repair",
    "make_service",
    "mark_applied",
    "needs_apply",
    "owns_replicas",
    "select_image",
    "selector",
    "separate_cache",
    "serving_kinds",
    "unknown_machine",
    "unused_devices",
]
