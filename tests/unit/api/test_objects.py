"""What every resource has: labels, what is kept, the etag and the times."""

import pytest
from pierhead_api import objects
from pierhead_api.errors import AbortedError, InvalidArgumentError
from pydantic_core import to_json

from tests.unit.api.conftest import MADE, make_endpoint, merge


def test_labels_of_kubernetes_are_not_a_users():
    manifest = make_endpoint()
    manifest["metadata"]["labels"] = {"team": "a", "app.kubernetes.io/name": "x"}
    assert objects.read_labels(manifest) == {"team": "a"}
    assert objects.patch_labels(manifest, {"stage": "b"}) == {"team": None, "stage": "b"}


def test_mark_refuses_labels_that_are_none():
    with pytest.raises(InvalidArgumentError, match=r"^labels\.a/b: "):
        objects.mark(make_endpoint(), {"a/b": "c"}, {})


def test_what_is_kept_reads_back():
    manifest = objects.mark(make_endpoint(), {}, {"metadata": {"a": [1]}})
    assert objects.read_kept(manifest) == {"metadata": {"a": [1]}}
    assert objects.read_kept(objects.mark(make_endpoint(), {}, {})) == {}


@pytest.mark.parametrize("value", ["", "no JSON", "[1]", "null"])
def test_kept_that_somebody_broke_is_nothing(value):
    manifest = objects.annotate(make_endpoint(), {objects.ANNOTATION_KEPT: value})
    assert objects.read_kept(manifest) == {}


ETAGS = {
    "status": ({"status": {"x": 1}}, True),
    "an operation": ({"metadata": {"annotations": {"operations.vertex.pierhead.dev/1": "x"}}}, True),
    "a label of Kubernetes": ({"metadata": {"labels": {"a/b": "c"}}}, True),
    "resource version": ({"metadata": {"resourceVersion": "9"}}, True),
    "a label": ({"metadata": {"labels": {"a": "b"}}}, False),
    "spec": ({"spec": {"description": "x"}}, False),
    "what is kept": ({"metadata": {"annotations": {objects.ANNOTATION_KEPT: '{"a": 1}'}}}, False),
    "another of the same name": ({"metadata": {"uid": "other"}}, False),
}


@pytest.mark.parametrize(("change", "same"), ETAGS.values(), ids=ETAGS.keys())
def test_etag_changes_with_what_users_write(change, same):
    before, after = make_endpoint(), merge(make_endpoint(), change)
    assert (objects.compute_etag(after) == objects.compute_etag(before)) is same


def test_check_etag():
    objects.check_etag("", "a")
    objects.check_etag("a", "a")
    with pytest.raises(AbortedError):
        objects.check_etag("b", "a")


def test_update_time_is_no_status_write():
    entries = [
        {"time": "2026-11-22T11:30:00Z", "manager": "pierhead-api"},
        {"time": "2026-11-22T11:45:00Z", "manager": "pierhead", "subresource": "status"},
    ]
    assert objects.update_time(make_endpoint()) == MADE
    assert objects.update_time(merge(make_endpoint(), {"metadata": {"managedFields": entries}})) == entries[0]["time"]


def test_kept_that_is_too_deep_to_be_told_is_nothing():
    deep = '{"metadata": ' + "[" * 20_000 + "]" * 20_000 + "}"
    assert objects.read_kept(objects.annotate(make_endpoint(), {objects.ANNOTATION_KEPT: deep})) == {}


def test_kept_as_deep_as_can_be_read_can_be_told():
    for depth in range(100, 300):
        kept = '{"metadata": ' + "[" * depth + "]" * depth + "}"
        manifest = objects.annotate(make_endpoint(), {objects.ANNOTATION_KEPT: kept})
        assert to_json({"models": [{"x": objects.read_kept(manifest)}]})


@pytest.mark.parametrize("value", ['{"a": NaN}', '{"a": Infinity}', '{"a": -Infinity}'])
def test_kept_number_that_json_does_not_have_is_nothing(value):
    manifest = objects.annotate(make_endpoint(), {objects.ANNOTATION_KEPT: value})
    assert objects.read_kept(manifest) == {}


def test_pick_kept_leaves_out_what_is_not_kept_on_purpose():
    kept = {"explanationSpec": {"a": 1}, "endTime": "x"}
    assert objects.pick_kept(kept, ("explanation_spec", "system_labels")) == {"explanationSpec": {"a": 1}}
