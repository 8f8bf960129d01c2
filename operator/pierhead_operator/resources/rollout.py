"""How the pods of a new template follow those of the old one where there is no room for both. Pure."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pierhead_operator import names
from pierhead_operator.resources.objects import Manifest
from pierhead_operator.resources.quantities import parse_quantity
from pierhead_operator.types import DeployedModel

_SURGE_PERCENTAGE = 25
_TEMPLATE_LABEL = "pod-template-hash"
# As the scheduler says it: `0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: ...`.
_INSUFFICIENT = re.compile(r"Insufficient ([\w./-]*\w)")
_NO_CLAIM = "cannot allocate all claims"
# As the API server says it: `exceeded quota: gpus, requested: pods=1,cpu=2, used: pods=3,cpu=6, limited: pods=3,cpu=6`.
_OVER_QUOTA = re.compile(r"exceeded quota: .*?, requested: (.*?), used: (.*?), limited: (.*)")


def make_rolling_update(dm: DeployedModel, in_place: bool) -> Manifest:
    """How many pods are replaced at a time.

    Make before break: new pods answer before old ones leave. In place: where there is no room for both.
    """
    options = dm.spec.rollout_options
    unavailable = _read_share(options.max_unavailable_replicas, options.max_unavailable_percentage) or 0
    if in_place:
        return {"maxSurge": 0, "maxUnavailable": unavailable or 1}
    surge = _read_share(options.max_surge_replicas, options.max_surge_percentage)
    if surge is None:
        # Of so few the share is 1, too.
        surge = 1 if dm.spec.resources.max_replicas <= 100 // _SURGE_PERCENTAGE else f"{_SURGE_PERCENTAGE}%"
    return {"maxSurge": surge, "maxUnavailable": unavailable}


def _read_share(replicas: int | None, percentage: int | None) -> int | str | None:
    """As Kubernetes has it: a number, or a percentage of the replicas that are wanted; None where neither is given."""
    if replicas is not None:
        return replicas
    return f"{percentage}%" if percentage else percentage


def decide_in_place(deployment: Manifest | None, pods: Sequence[Manifest], now: datetime, wait_seconds: float) -> bool:
    """Whether an old pod leaves before the new one comes: there is no room for both, and it holds what that waits for.

    Asked of the live Deployment and its pods. It says so once a new pod has been waiting for `wait_seconds`, for a node
    or for a quota, and until all old pods are replaced. Whether the old pod answers does not matter: one that is broken
    holds as much.
    """
    if deployment is None:
        return False
    status = deployment.get("status", {})
    updated = status.get("updatedReplicas", 0)
    is_complete = updated >= status.get("replicas", 0)  # there are no old pods
    if _is_in_place(deployment) and (not is_complete or updated < deployment["spec"].get("replicas", 1)):
        return True
    if is_complete:
        return False
    staying = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    since = now - timedelta(seconds=wait_seconds)
    if not updated and (refusal := _long_refusal(deployment, since)):
        # None of the new template is there: all that stay are old.
        return any(_frees_enough(old, refusal) for old in staying)
    return any(
        _may_take_the_place(new, old, missing)
        for new in staying
        if (missing := _long_missing(new, since)) and not _is_on_its_way(new, staying)
        for old in staying
    )


def has_served(deployment: Manifest) -> bool:
    """Whether a pod of the present template has answered, as far as the Deployment's status tells.

    So it does until the Deployment's controller has looked: nobody knows better.
    """
    status = deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return True
    old = status.get("replicas", 0) - status.get("updatedReplicas", 0)
    # Where more pods answer than are old, a new one does. Once all did, they did, whatever became of them.
    return status.get("availableReplicas", 0) > old or (old == 0 and _was_complete(status))


def _was_complete(status: Mapping[str, Any]) -> bool:
    return any(
        condition["type"] == "Progressing" and condition.get("reason") == "NewReplicaSetAvailable"
        for condition in status.get("conditions", [])
    )


def _is_in_place(deployment: Manifest) -> bool:
    step = (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    return step.get("maxSurge") == 0


def _long_refusal(deployment: Manifest, since: datetime) -> str:
    """Why the API server makes no new pod, at least since then; empty where it does."""
    for condition in deployment.get("status", {}).get("conditions", []):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            moment = datetime.fromisoformat(condition["lastTransitionTime"])
            return str(condition.get("message", "")) if moment <= since else ""
    return ""


def _frees_enough(old: Manifest, refusal: str) -> bool:
    """Whether a quota that refuses a new pod has room for it once an old one is gone."""
    parts = _OVER_QUOTA.search(refusal)
    if parts is None:
        return False
    requested, used, limited = (_parse_amounts(part) for part in parts.groups())
    return all(used[name] - _held(old, name) + amount <= limited[name] for name, amount in requested.items())


def _parse_amounts(text: str) -> dict[str, float]:
    """Such as `pods=1,requests.cpu=500m`."""
    return {name: parse_quantity(amount) for name, _, amount in (item.partition("=") for item in text.split(","))}


def _held(pod: Manifest, counted: str) -> float:
    """How much a pod counts against a quota, by the quota's name of it."""
    if counted in ("pods", "count/pods"):
        return 1.0
    kind, _, resource = counted.partition(".")
    if kind in ("requests", "limits"):
        return _amount(pod.get("spec", {}), resource, kind)
    return _amount(pod.get("spec", {}), counted)


def _long_missing(pod: Manifest, since: datetime) -> str:
    """What the scheduler says that a pod lacks, at least since then; empty where it lacks nothing."""
    condition = _scheduled(pod)
    if condition.get("status") != "False" or condition.get("reason") != "Unschedulable":
        return ""
    if datetime.fromisoformat(condition["lastTransitionTime"]) > since:
        return ""
    return str(condition.get("message", ""))


def _scheduled(pod: Manifest) -> Mapping[str, Any]:
    conditions = pod.get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == "PodScheduled"), {})


def _may_take_the_place(new: Manifest, old: Manifest, missing: str) -> bool:
    """Whether a new pod can run where an old one does, in the room that it leaves.

    If it cannot, the old one would be ended for nothing: such as when no node has the accelerator that is now wanted.
    """
    if _template(new) == _template(old) or _scheduled(old).get("status") != "True":
        return False
    asks, held = new.get("spec", {}), old.get("spec", {})
    if not _may_run_where(asks, held):
        return False
    if _NO_CLAIM in missing and asks.get("resourceClaims") == held.get("resourceClaims"):
        return True
    resources = _INSUFFICIENT.findall(missing)
    return bool(resources) and all(_amount(asks, name) <= _amount(held, name) for name in resources)


def _is_on_its_way(waiting: Manifest, pods: Sequence[Manifest]) -> bool:
    """Whether another pod of the template starts: once it answers, an old one leaves by itself."""
    return any(
        _template(pod) == _template(waiting) and _condition(pod, "PodScheduled") and not _condition(pod, "Ready")
        for pod in pods
    )


def _condition(pod: Manifest, type_: str) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(condition["type"] == type_ and condition["status"] == "True" for condition in conditions)


def _template(pod: Manifest) -> str | None:
    label: str | None = pod["metadata"].get("labels", {}).get(_TEMPLATE_LABEL)
    return label


def _may_run_where(asks: Manifest, held: Manifest) -> bool:
    """Whether a pod wants no other nodes than another one does."""
    nodes = held.get("nodeSelector", {}).items()
    return (
        asks.get("nodeSelector", {}).items() <= nodes
        and asks.get("affinity") == held.get("affinity")
        and all(toleration in asks.get("tolerations", []) for toleration in held.get("tolerations", []))
    )


def _amount(pod_spec: Manifest, resource: str, kind: str = "requests") -> float:
    """How much of a resource a pod's server requests, or may use at most (`limits`)."""
    for container in pod_spec.get("containers", []):
        if container["name"] == names.SERVER_CONTAINER:
            quantity = str(container.get("resources", {}).get(kind, {}).get(resource, "0"))
            return parse_quantity(quantity)
    return 0.0
