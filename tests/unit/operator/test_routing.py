import pytest
from pierhead_operator.routing import compute_effective_split, predict_path, wanted_split
from pierhead_operator.types import Endpoint

from tests.unit.operator.conftest import make_endpoint

# wanted, serving, previous -> effective
SPLITS = {
    "all serve": ({"a": 80, "b": 20}, "ab", {}, {"a": 80, "b": 20}),
    "nobody serves": ({"a": 80, "b": 20}, "", {}, {}),
    "first start: the one that serves takes all": ({"a": 80, "b": 20}, "a", {}, {"a": 100}),
    "canary not up: its share stays": ({"a": 80, "b": 20}, "a", {"a": 100}, {"a": 100}),
    "replacement not up: all stays": ({"b": 100}, "a", {"a": 100}, {"a": 100}),
    "replacement up": ({"b": 100}, "ab", {"a": 100}, {"b": 100}),
    "explicit zero": ({"a": 0, "b": 100}, "ab", {"a": 100}, {"b": 100}),
    "explicit zero, other not up": ({"a": 0, "b": 100}, "a", {"a": 100}, {"a": 100}),
    "zero weight is never a refuge": ({"a": 100, "b": 0}, "b", {"a": 100}, {}),
    "two new, one up: the old one keeps the rest": ({"b": 80, "c": 20}, "ac", {"a": 100}, {"a": 80, "c": 20}),
    "one of three breaks: by wanted weight": ({"a": 50, "b": 30, "c": 20}, "ab", {"a": 50, "b": 30, "c": 20}, {"a": 63, "b": 37}),
    "two break, one is back": ({"a": 50, "b": 30, "c": 20}, "ab", {"a": 100}, {"a": 70, "b": 30}),
    "broken one was removed from the split": ({"a": 100}, "a", {"a": 80, "b": 20}, {"a": 100}),
    "split names what is not there": ({"a": 90, "ghost": 10}, "a", {}, {"a": 100}),
    "no split told: kept": (None, "ab", {"a": 100}, {"a": 100}),
    "no split told, the old one is gone": (None, "b", {"a": 100}, {}),
    "no split told, one of two broke": (None, "a", {"a": 40, "b": 60}, {"a": 100}),
}  # fmt: skip


@pytest.mark.parametrize(("wanted", "serving", "previous", "expected"), SPLITS.values(), ids=SPLITS.keys())
def test_effective_split(wanted, serving, previous, expected):
    assert compute_effective_split(wanted, set(serving), previous) == expected


def _compositions(total_steps, names):
    if len(names) == 1:
        yield {names[0]: total_steps}
        return
    for first in range(total_steps + 1):
        for rest in _compositions(total_steps - first, names[1:]):
            yield {names[0]: first, **rest}


def test_effective_split_is_stable_complete_and_only_on_what_serves():
    """Over every split in steps of 25 % of three, every previous one and every set that serves."""
    splits = [{name: 25 * part for name, part in split.items()} for split in _compositions(4, "abc")]
    for wanted in splits:
        for previous in [{}, *splits]:
            for serving in ("", "a", "b", "c", "ab", "ac", "bc", "abc"):
                effective = compute_effective_split(wanted, set(serving), previous)
                assert set(effective) <= set(serving)
                assert sum(effective.values()) in (0, 100)
                assert all(effective.values())
                assert compute_effective_split(wanted, set(serving), effective) == effective or not effective
                if any(wanted[name] for name in serving) or any(previous.get(name) for name in serving):
                    assert effective, (wanted, previous, serving)
                for name in effective:
                    assert effective[name] >= wanted[name]


def test_uneven_shares_sum_to_100():
    wanted = {"a": 33, "b": 33, "c": 33, "d": 1}
    effective = compute_effective_split(wanted, {"a", "b", "c"}, {})
    assert sum(effective.values()) == 100
    assert compute_effective_split(wanted, {"a", "b", "c"}, effective) == effective


@pytest.mark.parametrize(
    ("split", "there", "expected"),
    [
        ({"a": 100}, ["a", "b"], {"a": 100}),
        (None, ["a"], {"a": 100}),
        (None, [], None),
        (None, ["a", "b"], None),
    ],
)
def test_wanted_split(split, there, expected):
    assert wanted_split(Endpoint.model_validate(make_endpoint(split)), there) == expected


def test_predict_path(endpoint, settings):
    assert predict_path(endpoint, settings) == "/v1/projects/default/locations/local/endpoints/photos:predict"
