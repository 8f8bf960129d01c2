"""When a DeployedModel says that its autoscaler cannot work."""

from datetime import timedelta

import pytest
from pierhead_operator.scaling import judge_scaling
from pierhead_operator.status import SCALING_ACTIVE, transition_event
from pierhead_operator.types import DeployedModel, DeployedModelStatus

from tests.unit.operator.conftest import NOW, make_deployed_model

NO_METRICS = "unable to get metrics for resource cpu: the server could not find the requested resource"
LONG, BRIEF = 121, 119


def format_moment(seconds):
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(type_, status, seconds, reason="ValidMetricFound", message=""):
    since = format_moment(seconds)
    return {"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}


def make_autoscaler(*conditions):
    return {"kind": "HorizontalPodAutoscaler", "status": {"conditions": list(conditions)}}


WORKS = make_autoscaler(condition("AbleToScale", "True", 5), condition("ScalingActive", "True", 5))


def make_failing(seconds, message=NO_METRICS):
    failure = condition("ScalingActive", "False", seconds, "FailedGetContainerResourceMetric", message)
    return make_autoscaler(condition("AbleToScale", "True", LONG), failure)


def make_dm(available=LONG, before=None, **resources):
    """One that serves since `available` seconds, and whose condition was `before`."""
    raw = make_deployed_model(automaticResources=resources or {"maxReplicaCount": 4})
    conditions = [condition("Available", "True" if available else "False", available or LONG, "PodsAnswer")]
    raw["status"] = {"conditions": [*conditions, *([before] if before else [])]}
    return DeployedModel.model_validate(raw)


IS_TRUE, IS_FALSE = (condition("ScalingActive", status, 500, "Before", "before") for status in ("True", "False"))
ROWS = {
    "not autoscaled": (make_dm(minReplicaCount=2), make_failing(LONG), None),
    "was autoscaled": (make_dm(before=IS_FALSE, minReplicaCount=2), WORKS, None),
    "no autoscaler yet": (make_dm(), None, None),
    "it has said nothing yet": (make_dm(), make_autoscaler(), None),
    "works": (make_dm(), WORKS, ("True", "ValidMetricFound")),
    "works again": (make_dm(before=IS_FALSE), WORKS, ("True", "ValidMetricFound")),
    "works, while no pod answers": (make_dm(available=0), WORKS, ("True", "ValidMetricFound")),
    "has no metrics": (make_dm(), make_failing(LONG), ("False", "FailedGetContainerResourceMetric")),
    "cannot scale": (
        make_dm(),
        make_autoscaler(condition("AbleToScale", "False", LONG, "FailedUpdateScale"), condition("ScalingActive", "True", 5)),
        ("False", "FailedUpdateScale"),
    ),
    "has no metrics for a moment": (make_dm(before=IS_TRUE), make_failing(BRIEF), ("True", "Before")),
    "its pods start": (make_dm(available=0), make_failing(LONG), None),
    "its first pod answers since a moment": (make_dm(available=BRIEF), make_failing(LONG), None),
    "no pod answers any more": (make_dm(available=0, before=IS_TRUE), make_failing(LONG), ("True", "Before")),
    "failed, and no pod answers any more": (make_dm(available=0, before=IS_FALSE), make_failing(LONG), ("False", "Before")),
    "was taken away by hand": (make_dm(before=IS_TRUE), None, ("True", "Before")),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_judge_scaling(row):
    dm, autoscaler, expected = row
    found = judge_scaling(dm, autoscaler, NOW)
    assert (found and (found.status, found.reason)) == expected


def test_message_is_the_autoscaler_s():
    assert NO_METRICS in judge_scaling(make_dm(), make_failing(LONG), NOW).message


CHANGING = "read tcp 10.1.2.{0}:53{0}: i/o timeout of pod dm-photos-1-5c7d{0}"


def test_other_numbers_and_names_are_no_change():
    """The autoscaler says it anew every 15 s: a quiet cluster sees no write of it."""
    first = judge_scaling(make_dm(), make_failing(LONG, CHANGING.format(17)), NOW)
    dm = make_dm(before=first.dump())
    later = NOW + timedelta(seconds=15)
    assert judge_scaling(dm, make_failing(LONG, CHANGING.format(23)), later) == first
    assert NO_METRICS in judge_scaling(dm, make_failing(LONG), later).message, "another cause is told"


def _status(scaling):
    return DeployedModelStatus(conditions=[scaling] if scaling else [])


def test_event_tells_when_it_fails_and_when_it_works_again():
    fails = judge_scaling(make_dm(), make_failing(LONG), NOW)
    works = judge_scaling(make_dm(before=fails.dump()), WORKS, NOW)
    assert works.type == SCALING_ACTIVE
    told = [transition_event(_status(a), _status(b)) for a, b in ((None, fails), (works, fails), (fails, works))]
    assert [(event.type, event.reason) for event in told] == [
        ("Warning", "FailedGetContainerResourceMetric"),
        ("Warning", "FailedGetContainerResourceMetric"),
        ("Normal", "ValidMetricFound"),
    ]
    assert [transition_event(_status(a), _status(b)) for a, b in ((None, works), (fails, fails), (fails, None))] == [
        None,
        None,
        None,
    ]
