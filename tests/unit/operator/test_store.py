"""What is kept of objects, and how it is found."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pierhead_operator import names
from pierhead_operator.records import RECORD_PREFIX
from pierhead_operator.resources import owns_replicas
from pierhead_operator.store import BACKEND, Store, trim

KINDS = ("DeployedModel", "Deployment", "Pod", "Service")


def _object(name="a", version=1, namespace="ns", labels=None, **more):
    metadata = {"name": name, "namespace": namespace, "resourceVersion": str(version), "labels": labels or {}}
    return {"apiVersion": "v1", "metadata": metadata, "spec": {"version": version}, **more}


@pytest.fixture
def store():
    return Store(KINDS)


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
    assert store.names("Service", "ns", names.LABEL_ENDPOINT, "photos") == ["a"]
    assert store.remove("Service", _object(version=2))
    assert store.get("Service", "ns", "a") is None
    assert store.select("Service", "ns", labels) == []
    assert store.names("Service", "ns", names.LABEL_ENDPOINT, "photos") == []


def test_end_of_the_one_before_leaves_its_namesake(store):
    store.put("Service", _object(version=10))
    assert not store.remove("Service", _object(version=9))
    assert store.get("Service", "ns", "a")


def test_answer_that_comes_after_the_end_brings_nothing_back(store):
    store.put("Service", _object(version=1))
    store.remove("Service", _object(version=3))
    assert not store.put("Service", _object(version=2))
    assert store.get("Service", "ns", "a") is None
    assert store.put("Service", _object(version=4))


def _missing(store, namespace, there, version):
    return [live["metadata"]["name"] for live, _ in store.remove_missing("Pod", namespace, there, version)]


def test_list_takes_away_what_it_has_no_longer(store):
    for name in ("a", "b"):
        store.put("Pod", _object(name))
    store.put("Pod", _object("c", namespace="other"))
    assert _missing(store, "ns", {("ns", "b")}, 5) == ["a"]
    assert _names(store.select("Pod", None)) == ["b", "c"]
    assert _missing(store, None, set(), 5) == ["b", "c"]
    assert store.select("Pod", None) == []


def test_list_says_nothing_of_what_came_after_it(store):
    store.put("Pod", _object("a", version=6))
    assert _missing(store, None, set(), 5) == []
    assert _names(store.select("Pod", None)) == ["a"]


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
    store, there = Store(KINDS), {}
    for version, (name, where, labels) in enumerate(puts):
        store.put("Pod", _object(name, version, where, labels))
        there[where, name] = labels
    expected = sorted(
        key for key, labels in there.items() if namespace in (None, key[0]) and wanted.items() <= labels.items()
    )
    found = store.select("Pod", namespace, wanted)
    assert [(live["metadata"]["namespace"], live["metadata"]["name"]) for live in found] == expected


def test_only_what_is_read_is_kept():
    container = {"name": "server", "resources": {"requests": {"cpu": "1"}}}
    spec = {"containers": [{**container, "env": ["large"]}], "nodeSelector": {"zone": "a"}, "volumes": ["large"]}
    live = _object(spec=spec, status={"phase": "Running"})
    record = f"{RECORD_PREFIX}1795348800000000001"
    live["metadata"]["annotations"] = {
        record: "{}",
        f"{RECORD_PREFIX}1795348800000000002": "x" * 20_000,
        "kubectl.kubernetes.io/last-applied-configuration": "large",
        "example.com/anybodys": "large",
        f"{names.GROUP}/of-no-meaning": "large",
        names.ANNOTATION_APPLIED: "1",
    }
    read = {names.LABEL_ENDPOINT: "photos", "pod-template-hash": "1", "batch.kubernetes.io/job-completion-index": "0"}
    live["metadata"]["labels"] = {**read, "team": "vision", "app.kubernetes.io/part-of": "shop"}
    live["metadata"]["managedFields"] = [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]
    kept = trim("Pod", live)
    assert kept["metadata"]["annotations"] == {names.ANNOTATION_APPLIED: "1", record: "{}"}
    assert kept["metadata"]["labels"] == read
    assert "managedFields" not in kept["metadata"]
    assert kept["spec"] == {"containers": [container], "nodeSelector": {"zone": "a"}}
    assert kept["status"] == {"phase": "Running"}
    assert trim("Deployment", live)["spec"] == spec


MADE = [
    made
    for path in sorted((Path(__file__).parents[2] / "golden").glob("*/objects.yaml"))
    for made in yaml.safe_load_all(path.read_text())
]


@pytest.mark.parametrize("made", MADE, ids=lambda made: f"{made['kind']} {made['metadata']['name']}")
def test_what_pierhead_makes_is_kept_as_it_compares_it(made):
    """Else it would be applied at each look."""
    kept = trim(made["kind"], made)["metadata"]
    assert (kept["labels"], kept.get("annotations")) == (
        made["metadata"]["labels"],
        made["metadata"].get("annotations"),
    )


@pytest.mark.parametrize("manager", ["pierhead", "kube-controller-manager"])
def test_who_owns_the_replicas_is_kept(manager):
    live = _object()
    fields = {"f:spec": {"f:replicas": {}, "f:template": {}}}
    live["metadata"]["managedFields"] = [{"manager": manager, "fieldsV1": fields}]
    assert owns_replicas(trim("Deployment", live)) == owns_replicas(live) == (manager == "pierhead")


def test_facts_are_of_what_was_there_when_they_were_asked_for(store):
    store.put("Service", _object("a"))
    store.put("Service", _object("b", namespace="other"))
    found = store.facts("Service")
    first = next(found)
    store.put("Service", _object("c"))
    assert [(namespace, name) for namespace, name, _ in (first, *found)] == [("ns", "a"), ("other", "b")]


def test_labels_of_pierheads_own_kinds_mean_nothing(store):
    """Anybody can write them: a label must not bring a DeployedModel another endpoint's traffic."""
    spec = {"endpoint": "mine", "model": "m"}
    store.put("DeployedModel", _object(spec=spec, labels={names.LABEL_ENDPOINT: "theirs", names.LABEL_MODEL: "other"}))
    assert store.select("DeployedModel", "ns", {names.LABEL_ENDPOINT: "theirs"}) == []
    assert store.names("DeployedModel", "ns", names.LABEL_MODEL, "other") == []
    assert _names(store.select("DeployedModel", "ns", {names.LABEL_ENDPOINT: "mine"})) == ["a"]


@pytest.mark.parametrize("change", [{"spec": None}, {"status": None}, {"spec": "x"}, {"status": []}], ids=str)
@pytest.mark.parametrize("kind", ["Model", "Endpoint", "DeployedModel", "BatchPredictionJob"])
def test_what_cannot_be_read_is_kept(kind, change):
    store = Store([kind])
    assert store.put(kind, {**_object(), **change})
    assert store.get(kind, "ns", "a")


ROUTES = {
    "backend": ("HTTPRoute", {"rules": [{"backendRefs": [{"name": "dm-a", "weight": 1}]}]}),
    "mirror": ("HTTPRoute", {"rules": [{"filters": [{"requestMirror": {"backendRef": {"name": "dm-a"}}}]}]}),
    "host": ("VirtualService", {"http": [{"route": [{"destination": {"host": "dm-a.ns.svc.cluster.local"}}]}]}),
    "mirrored host": ("VirtualService", {"http": [{"mirror": {"host": "dm-a.ns.svc.cluster.local"}}]}),
    "rule": ("DestinationRule", {"host": "dm-a.ns.svc.cluster.local"}),
}


@pytest.mark.parametrize(("kind", "spec"), ROUTES.values(), ids=ROUTES.keys())
def test_routes_are_found_by_where_they_lead(kind, spec):
    store = Store([kind])
    store.put(kind, _object(spec=spec))
    assert store.names(kind, "ns", BACKEND, "dm-a") == ["a"]
    assert store.names(kind, "ns", BACKEND, "dm-aa") == []
    assert store.names(kind, "other", BACKEND, "dm-a") == []
    store.put(kind, _object(version=2, spec={}))
    assert store.names(kind, "ns", BACKEND, "dm-a") == []
