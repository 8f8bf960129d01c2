"""What is kept of objects, and how it is found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pierhead_operator import names
from pierhead_operator.resources import owns_replicas
from pierhead_operator.store import Store, trim


def _object(name="a", version=1, namespace="ns", labels=None, **more):
    metadata = {"name": name, "namespace": namespace, "resourceVersion": str(version), "labels": labels or {}}
    return {"metadata": metadata, "spec": {"version": version}, **more}


@pytest.fixture
def store():
    return Store()


def _names(found):
    return [live["metadata"]["name"] for live in found]


def test_newer_object_takes_the_place_of_an_older_one(store):
    assert store.put("Service", _object(version=9))
    assert store.put("Service", _object(version=10))
    assert store.get("Service", "ns", "a")["spec"] == {"version": 10}


def test_event_that_comes_late_changes_nothing(store):
    """What a write's answer told is newer than events of before it."""
    store.put("Service", _object(version=10))
    assert not store.put("Service", _object(version=9))
    assert not store.put("Service", _object(version=10))
    assert store.get("Service", "ns", "a")["spec"] == {"version": 10}


def test_object_says_its_kind_and_kinds_are_apart(store):
    store.put("Service", _object())
    assert store.get("Service", "ns", "a")["kind"] == "Service"
    assert store.get("Deployment", "ns", "a") is None
    assert store.get("Service", "other", "a") is None


def test_removed_object_is_gone_also_by_its_labels(store):
    labels = {names.LABEL_ENDPOINT: "photos"}
    store.put("Service", _object(labels=labels))
    store.remove("Service", "ns", "a")
    assert store.get("Service", "ns", "a") is None
    assert store.select("Service", "ns", labels) == []


def test_list_takes_away_what_it_has_no_longer(store):
    for name in ("a", "b"):
        store.put("Pod", _object(name))
    store.put("Pod", _object("c", namespace="other"))
    assert store.replace("Pod", "ns", [_object("b", 2), _object("d")]) == [("ns", "a")]
    assert _names(store.select("Pod", None)) == ["b", "d", "c"]
    assert store.replace("Pod", None, []) == [("ns", "b"), ("ns", "d"), ("other", "c")]
    assert store.count("Pod") == 0


def test_label_that_moved_is_found_where_it_is(store):
    store.put("Pod", _object(version=1, labels={names.LABEL_ENDPOINT: "old"}))
    store.put("Pod", _object(version=2, labels={names.LABEL_ENDPOINT: "new"}))
    assert store.select("Pod", "ns", {names.LABEL_ENDPOINT: "old"}) == []
    assert _names(store.select("Pod", "ns", {names.LABEL_ENDPOINT: "new"})) == ["a"]


def test_deployed_models_are_found_by_what_their_spec_names(store):
    store.put("DeployedModel", _object(spec={"endpoint": "photos", "model": "m"}))
    store.put("DeployedModel", _object("b", spec={"endpoint": "other", "model": "m"}))
    assert _names(store.select("DeployedModel", "ns", {names.LABEL_ENDPOINT: "photos"})) == ["a"]
    assert _names(store.select("DeployedModel", "ns", {names.LABEL_MODEL: "m"})) == ["a", "b"]


_LABELS = st.dictionaries(
    st.sampled_from([names.LABEL_ENDPOINT, names.LABEL_MODEL, names.LABEL_MANAGED_BY]), st.sampled_from("xy")
)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["n", "m"]), _LABELS)),
    _LABELS,
    st.sampled_from(["n", "m", None]),
)
def test_selection_is_what_a_look_at_each_object_finds(puts, wanted, namespace):
    store, there = Store(), {}
    for version, (name, where, labels) in enumerate(puts):
        store.put("Pod", _object(name, version, where, labels))
        there[where, name] = labels
    expected = sorted(
        key for key, labels in there.items() if namespace in (None, key[0]) and wanted.items() <= labels.items()
    )
    found = store.select("Pod", namespace, wanted)
    assert [(live["metadata"]["namespace"], live["metadata"]["name"]) for live in found] == expected


def test_only_what_is_read_is_kept():
    live = _object(spec={"containers": ["large"]}, status={"phase": "Running"})
    live["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": "large",
        names.ANNOTATION_APPLIED: "1",
    }
    live["metadata"]["managedFields"] = [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]
    kept = trim("Pod", live)
    assert kept["metadata"]["annotations"] == {names.ANNOTATION_APPLIED: "1"}
    assert "managedFields" not in kept["metadata"]
    assert "spec" not in kept
    assert kept["status"] == {"phase": "Running"}
    assert trim("Service", live)["spec"] == {"containers": ["large"]}


@pytest.mark.parametrize("manager", ["pierhead", "kube-controller-manager"])
def test_who_owns_the_replicas_is_kept(manager):
    live = _object()
    fields = {"f:spec": {"f:replicas": {}, "f:template": {}}}
    live["metadata"]["managedFields"] = [{"manager": manager, "fieldsV1": fields}]
    assert owns_replicas(trim("Deployment", live)) == owns_replicas(live) == (manager == "pierhead")
