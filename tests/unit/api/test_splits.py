"""Tables: a split that is asked for, and the one that is written."""

import pytest
from pierhead_api.errors import FailedPreconditionError, InvalidArgumentError
from pierhead_api.splits import decide_deploy_split, decide_handover_split, decide_undeploy_split
from pierhead_operator.types import Endpoint

from tests.unit.api.conftest import make_endpoint


def _endpoint(split):
    return Endpoint.model_validate(make_endpoint(**({"trafficSplit": split} if split else {})))


DEPLOY = {
    "first": (None, [], {}, {"9": 100}),
    "first, said": (None, [], {"0": 100}, {"9": 100}),
    "first, where a split names what is gone": ({"1": 100}, [], {}, {"9": 100}),
    "canary": ({"1": 100}, ["1"], {"0": 20, "1": 80}, {"9": 20, "1": 80}),
    "no traffic": ({"1": 100}, ["1"], {"0": 0, "1": 100}, {"9": 0, "1": 100}),
    "the split stays": ({"1": 100}, ["1"], {}, None),
    "what the only one gets without a word is said": (None, ["1"], {}, {"1": 100}),
    "nobody knows": (None, ["1", "2"], {}, None),
    "others only": ({"1": 100}, ["1", "2"], {"1": 50, "2": 50}, {"1": 50, "2": 50}),
}


@pytest.mark.parametrize(("split", "deployed", "asked", "expected"), DEPLOY.values(), ids=DEPLOY.keys())
def test_decide_deploy_split(split, deployed, asked, expected):
    assert decide_deploy_split(_endpoint(split), deployed, asked, "9") == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"0": 20, "1": 70}, "must sum to 100, not 90"),
        ({"0": 20, "3": 80}, "3 is not deployed"),
        ({"9": 100}, "9 is not"),
    ],
)
def test_deploy_split_that_cannot_be(asked, message):
    with pytest.raises(InvalidArgumentError, match=f"^trafficSplit: {message}"):
        decide_deploy_split(_endpoint(None), ["1"], asked, "9")


UNDEPLOY = {
    "the last one": ({"1": 100}, ["1"], {}, None),
    "the last one, whatever is asked": ({"1": 100}, ["1"], {"1": 0}, None),
    "without traffic": ({"1": 0, "2": 100}, ["1", "2"], {}, {"2": 100}),
    "not in the split": ({"2": 100}, ["1", "2"], {}, {"2": 100}),
    "others take over": ({"1": 50, "2": 50}, ["1", "2", "3"], {"2": 70, "3": 30}, {"2": 70, "3": 30}),
    "others take over, and it gets 0": ({"1": 50, "2": 50}, ["1", "2"], {"1": 0, "2": 100}, {"2": 100}),
    "nobody knows": (None, ["1", "2"], {}, None),
    "nobody knows, and the SDK makes one up": (None, ["1", "2", "3"], {"1": 0, "2": 1, "3": 1}, None),
    "nobody knew, and it is told": (None, ["1", "2", "3"], {"2": 60, "3": 40}, {"2": 60, "3": 40}),
}


@pytest.mark.parametrize(("split", "deployed", "asked", "expected"), UNDEPLOY.values(), ids=UNDEPLOY.keys())
def test_decide_undeploy_split(split, deployed, asked, expected):
    assert decide_undeploy_split(_endpoint(split), deployed, asked, "1") == expected


def test_undeploy_of_what_has_traffic_needs_a_split():
    with pytest.raises(FailedPreconditionError, match="1 gets 50 % of the traffic: give the split"):
        decide_undeploy_split(_endpoint({"1": 50, "2": 50}), ["1", "2"], {}, "1")


@pytest.mark.parametrize("asked", [{"1": 50, "2": 50}, {"2": 90}, {"3": 100}])
def test_undeploy_split_that_cannot_be(asked):
    with pytest.raises(InvalidArgumentError, match=r"^trafficSplit: "):
        decide_undeploy_split(_endpoint({"1": 100}), ["1", "2"], asked, "1")


HANDOVER = {
    "to the first of those that stay": ({"1": 60, "2": 10, "3": 30}, ["1", "2", "3"], ["3"], {"1": 90, "2": 10}),
    "the first goes": ({"1": 60, "2": 40}, ["1", "2", "3"], ["1"], {"2": 100}),
    "to one that had nothing": ({"1": 100}, ["1", "2"], ["1"], {"2": 100}),
    "several go": ({"1": 20, "2": 30, "3": 50}, ["1", "2", "3"], ["1", "3"], {"2": 100}),
    "weight 0": ({"1": 60, "2": 40, "3": 0}, ["1", "2", "3"], ["3"], None),
    "no weight": ({"1": 60, "2": 40}, ["1", "2", "3"], ["3"], None),
    "nobody stays": ({"1": 100}, ["1"], ["1"], None),
    "the only one gets all without a word": (None, ["1"], ["1"], None),
    "no split": (None, ["1", "2"], ["1"], None),
}


@pytest.mark.parametrize(("split", "deployed", "leaving", "expected"), HANDOVER.values(), ids=HANDOVER.keys())
def test_decide_handover_split(split, deployed, leaving, expected):
    assert decide_handover_split(_endpoint(split), deployed, leaving) == expected
