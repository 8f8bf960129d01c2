"""Who is looked after when something changes."""

import pytest
from pierhead_operator.cluster import Key
from pierhead_operator.feed import OWN_KINDS, Feed
from pierhead_operator.store import Store

LABELS = {
    "app.kubernetes.io/managed-by": "pierhead",
    "pierhead.dev/deployed-model": "photos-1",
    "pierhead.dev/endpoint": "photos",
    "pierhead.dev/model": "animals",
}
DM = Key("DeployedModel", "default", "photos-1")
ENDPOINT = Key("Endpoint", "default", "photos")
MODEL = Key("Model", "default", "animals")


def _object(name="a", version=1, namespace="default", labels=None, **spec):
    metadata = {"name": name, "namespace": namespace, "resourceVersion": str(version), "labels": labels or {}}
    return {"apiVersion": "v1", "metadata": metadata, "spec": spec}


@pytest.fixture
def store():
    return Store(OWN_KINDS | {"Pod", "HTTPRoute"})


@pytest.fixture
def keys():
    return []


@pytest.fixture
def feed(store, keys):
    return Feed(store, keys.append, lambda: None)


def _tell_deployed_model(feed, name="photos-1", version=1, namespace="default"):
    feed.tell("DeployedModel", _object(name, version, namespace, endpoint="photos", model="animals"))


def test_deployed_model_concerns_its_endpoint_and_its_model(feed, keys):
    _tell_deployed_model(feed)
    assert keys == [DM, ENDPOINT, MODEL]


@pytest.mark.parametrize(("owner", "concerned"), [(ENDPOINT, [DM, MODEL]), (MODEL, [DM])], ids=["Endpoint", "Model"])
def test_endpoint_and_model_concern_their_deployed_models(feed, keys, owner, concerned):
    """And an Endpoint their Models, too, whose own paths lead only to what is public."""
    _tell_deployed_model(feed)
    _tell_deployed_model(feed, "other", namespace="elsewhere")
    keys.clear()
    feed.tell(owner.kind, _object(owner.name))
    assert keys == [owner, *concerned]


@pytest.mark.parametrize(
    ("label", "key"),
    [("pierhead.dev/deployed-model", DM), ("pierhead.dev/endpoint", ENDPOINT), ("pierhead.dev/model", MODEL)],
)
def test_child_concerns_whose_it_is(feed, keys, label, key):
    feed.tell("HTTPRoute", _object(labels={label: LABELS[label]}))
    assert keys == [key]


def test_child_of_a_deployed_model_is_that_ones_alone(feed, keys):
    feed.tell("Pod", _object(labels=LABELS))
    assert keys == [DM]


def test_object_that_names_nobody_concerns_nobody(feed, keys):
    feed.tell("Pod", _object())
    assert keys == []


def test_child_that_is_known_already_concerns_nobody(feed, store, keys):
    """The answer to a write told it."""
    store.put("Pod", _object(version=7, labels=LABELS))
    feed.tell("Pod", _object(version=7, labels=LABELS))
    assert keys == []
    feed.tell("Pod", _object(version=8, labels=LABELS))
    assert keys == [DM]


def test_status_that_this_process_wrote_concerns_who_reads_it(feed, store, keys):
    _tell_deployed_model(feed)
    keys.clear()
    store.put("DeployedModel", _object("photos-1", 2, endpoint="photos", model="animals"))
    _tell_deployed_model(feed, version=2)
    assert ENDPOINT in keys


def test_what_is_gone_concerns_the_same(feed, store, keys):
    feed.tell("Pod", _object(labels=LABELS))
    _tell_deployed_model(feed)
    keys.clear()
    feed.tell_deleted("Pod", _object(version=2, labels=LABELS))
    feed.tell_deleted("DeployedModel", _object("photos-1", 2, endpoint="photos", model="animals"))
    assert keys == [DM, DM, ENDPOINT, MODEL]
    assert store.get("Pod", "default", "a") is None


def test_each_event_is_heard(store):
    heard = []
    feed = Feed(store, lambda _: None, lambda: heard.append(1))
    feed.tell("Pod", _object())
    feed.tell("Pod", _object())
    feed.tell_deleted("Pod", _object())
    assert len(heard) == 3
