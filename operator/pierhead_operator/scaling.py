"""Whether a DeployedModel's autoscaler can do its work, said in a condition. Pure."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pierhead_operator.resources import Manifest, is_autoscaled
from pierhead_operator.schema import Condition
from pierhead_operator.status import AVAILABLE, SCALING_ACTIVE, Finding, judge
from pierhead_operator.types import DeployedModel

# A pod has metrics some 30 s after it started. Longer than that and some failures of the metrics' server.
_PATIENCE = timedelta(seconds=120)
_WORKS = Finding("ValidMetricFound", "the autoscaler has its metrics")
# What of a message may be another one each time: a pod's name, a port, a moment.
_VARIABLE = re.compile(r"\S*\d\S*")


def judge_scaling(dm: DeployedModel, autoscaler: Manifest | None, now: datetime) -> Condition | None:
    """The condition ScalingActive; None where nothing is autoscaled, or nobody knows yet.

    It is False once the HorizontalPodAutoscaler has failed for two minutes in which pods answered: a resync finds that.
    Until then it stays as it was, as it does while no pod answers, which has no metrics either.
    """
    if not is_autoscaled(dm):
        return None
    conditions = {c["type"]: c for c in (autoscaler or {}).get("status", {}).get("conditions", [])}
    before = dm.status.condition(SCALING_ACTIVE)
    failed = next((c for type_ in ("AbleToScale", SCALING_ACTIVE) if _is_false(c := conditions.get(type_))), None)
    if failed and _has_lasted(failed, dm, now):
        return judge(SCALING_ACTIVE, False, _explain(failed, before), dm, now)
    if not failed and conditions.get(SCALING_ACTIVE, {}).get("status") == "True":
        return judge(SCALING_ACTIVE, True, _WORKS, dm, now)
    if before is None:
        return None
    return judge(SCALING_ACTIVE, before.status == "True", Finding(before.reason, before.message), dm, now)


def _is_false(condition: Mapping[str, Any] | None) -> bool:
    return condition is not None and condition["status"] == "False"


def _has_lasted(failed: Mapping[str, Any], dm: DeployedModel, now: datetime) -> bool:
    available = dm.status.condition(AVAILABLE)
    if available is None or available.status != "True":
        return False
    since = max(datetime.fromisoformat(failed["lastTransitionTime"]), available.last_transition_time)
    return now - since >= _PATIENCE


def _explain(failed: Mapping[str, Any], before: Condition | None) -> Finding:
    """The autoscaler's own reason and message: the earlier one where only names and numbers in it differ."""
    finding = Finding(failed["reason"], f"replicas stay as many as they are: {failed.get('message', '')}")
    if before and before.reason == finding.reason and _shape(before.message) == _shape(finding.message):
        return Finding(before.reason, before.message)
    return finding


def _shape(message: str) -> str:
    return _VARIABLE.sub("#", message)
