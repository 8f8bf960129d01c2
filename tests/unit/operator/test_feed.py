"""Who is looked after when something changes."""

import pytest
from pierhead_operator.cluster import Key, Listed
from pierhead_operator.feed import OWN_KINDS, Feed
from pierhead_operator.store import Store

from tests.unit.operator.conftest import make_deployed_model, make_endpoint, make_model

LABELS = {
    "app.kubernetes.io/managed-by": "pierhead",
    "pierhead.dev/deployed-model": "photos-1",
    "pierhead.dev/endpoint": "photos",
    "pierhead.dev/model": "photos",
}
DM = Key("DeployedModel", "default", "photos-1")
ENDPOINT = Key("Endpoint", "default", "photos")
MODEL = Key("Model", "default", "photos")


class Keys:
    """A queue that records how each key is to be worked on."""

    def __init__(self):
        self.at_once, self.soon, self.background = [], [], []

    def add(self, key, *, urgent=True):
        (self.at_once if urgent else self.background).append(key)

    def add_within(self, key, seconds):
        assert 0.1 <= seconds <= 0.2
        self.soon.append(key)

    def clear(self):
        for keys in (self.at_once, self.soon, self.background):
            keys.clear()

    @property
    def all(self):
        return self.at_once + self.soon + self.background


def _object(name="a", version=1, labels=None, **spec):
    metadata = {"name": name, "namespace": "default", "resourceVersion": str(version), "labels": labels or {}}
    return {"apiVersion": "v1", "metadata": metadata, "spec": spec}


def _of_version(live, version, namespace="default", **metadata):
    live["metadata"] |= {"resourceVersion": str(version), "namespace": namespace, **metadata}
    return live


@pytest.fixture
def store():
    return Store(OWN_KINDS | {"Pod", "HTTPRoute"})


@pytest.fixture
def keys():
    return Keys()


@pytest.fixture
def feed(store, keys):
    return Feed(store, keys, lambda: None)


def _tell_deployed_model(feed, version=1, available=None, namespace="default", **metadata):
    feed.tell("DeployedModel", _of_version(make_deployed_model(available=available), version, namespace, **metadata))


def test_deployed_model_concerns_its_endpoint_and_its_model(feed, keys):
    _tell_deployed_model(feed)
    assert (keys.at_once, keys.soon) == ([DM], [ENDPOINT, MODEL])


def test_labels_of_a_deployed_model_concern_nobody_else(feed, keys):
    _tell_deployed_model(feed, labels={"pierhead.dev/endpoint": "theirs", "pierhead.dev/model": "theirs"})
    assert {key.name for key in keys.all} == {"photos-1", "photos"}


@pytest.mark.parametrize(
    ("make", "concerned"),
    [(make_endpoint, [ENDPOINT, DM, MODEL]), (make_model, [MODEL, DM])],
    ids=["Endpoint", "Model"],
)
def test_endpoint_and_model_concern_their_deployed_models(feed, keys, make, concerned):
    """And an Endpoint their Models, too, whose own paths lead only to what is public."""
    _tell_deployed_model(feed)
    _tell_deployed_model(feed, namespace="elsewhere")
    keys.clear()
    feed.tell(make()["kind"], _of_version(make(), 1))
    assert (keys.at_once, keys.soon) == (concerned, [])


@pytest.mark.parametrize(
    ("label", "key"),
    [("pierhead.dev/deployed-model", DM), ("pierhead.dev/endpoint", ENDPOINT), ("pierhead.dev/model", MODEL)],
)
def test_child_concerns_whose_it_is(feed, keys, label, key):
    feed.tell("HTTPRoute", _object(labels={label: LABELS[label]}))
    assert (keys.at_once, keys.soon) == ([], [key])


def test_child_of_a_deployed_model_is_that_ones_alone(feed, keys):
    feed.tell("Pod", _object(labels=LABELS))
    assert keys.soon == [DM]


def test_object_that_names_nobody_concerns_nobody(feed, keys):
    feed.tell("Pod", _object())
    assert keys.all == []


def test_child_that_this_process_wrote_concerns_nobody(feed, keys):
    feed.tell_written("Pod", _object(version=7, labels=LABELS))
    feed.tell("Pod", _object(version=7, labels=LABELS))
    assert keys.all == []
    feed.tell("Pod", _object(version=8, labels=LABELS))
    assert keys.soon == [DM]


def test_status_that_this_process_wrote_concerns_who_reads_it_alone(feed, keys):
    _tell_deployed_model(feed)
    keys.clear()
    feed.tell_written("DeployedModel", _of_version(make_deployed_model(available=True), 2))
    assert (keys.at_once, keys.soon) == ([], [ENDPOINT, MODEL])
    keys.clear()
    _tell_deployed_model(feed, version=2, available=True)
    assert keys.all == []


def test_status_whose_event_comes_before_the_answer_is_no_work_either(feed, keys):
    _tell_deployed_model(feed)
    keys.clear()
    _tell_deployed_model(feed, version=2, available=True)
    assert keys.all == [ENDPOINT, MODEL]


def test_status_that_tells_others_nothing_new_concerns_nobody(feed, keys):
    _tell_deployed_model(feed, available=True)
    keys.clear()
    live = _of_version(make_deployed_model(available=True), 2)
    live["status"]["replicas"] = 7
    feed.tell("DeployedModel", live)
    assert keys.all == []


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 4},
        {"annotations": {"pierhead.dev/renew": "1"}},
        {"labels": {"kueue.x-k8s.io/queue-name": "b"}},
        {"deletionTimestamp": "x"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_asked_of_a_resource_is_work(feed, keys, change):
    _tell_deployed_model(feed)
    keys.clear()
    _tell_deployed_model(feed, version=2, **change)
    assert DM in keys.at_once


@pytest.mark.parametrize(
    "change",
    [{"annotations": {"example.com/look": "again"}}, {"labels": {"team": "vision"}}],
    ids=lambda change: next(iter(change)),
)
def test_labels_and_annotations_that_nobody_reads_are_no_work(feed, keys, change):
    _tell_deployed_model(feed)
    keys.clear()
    _tell_deployed_model(feed, version=2, **change)
    assert keys.all == []


def test_what_is_gone_concerns_the_same(feed, store, keys):
    feed.tell("Pod", _object(labels=LABELS))
    _tell_deployed_model(feed)
    keys.clear()
    feed.tell_deleted("Pod", _object(version=2, labels=LABELS))
    feed.tell_deleted("DeployedModel", _of_version(make_deployed_model(), 2))
    assert (keys.at_once, keys.soon) == ([DM], [DM, ENDPOINT, MODEL])
    assert store.get("Pod", "default", "a") is None


def test_what_cannot_be_read_concerns_whom_it_names_all_the_same(feed, keys):
    live = _of_version(make_deployed_model(dedicatedResources={"minReplicaCount": "many"}), 1)
    feed.tell("DeployedModel", live)
    assert (keys.at_once, keys.soon) == ([DM], [ENDPOINT, MODEL])
    keys.clear()
    feed.tell_deleted("DeployedModel", live)
    assert (keys.at_once, keys.soon) == ([DM], [ENDPOINT, MODEL])


def test_edit_that_the_answer_to_an_own_write_tells_first_is_work(feed, keys):
    """Somebody edits while a status is written: the answer is newer than both events."""
    _tell_deployed_model(feed)
    keys.clear()
    feed.tell_written("DeployedModel", _of_version(make_deployed_model(available=True), 11, generation=4))
    assert keys.at_once == [DM]


def test_namesake_that_came_while_the_watch_was_away_is_work(feed, keys):
    _tell_deployed_model(feed)
    keys.clear()
    _tell_deployed_model(feed, version=2, uid="another")
    assert DM in keys.at_once


def test_what_a_list_tells_waits_for_events(feed, keys):
    feed.tell_listed("DeployedModel", Listed(_of_version(make_deployed_model(), 1)))
    feed.tell_listed("Pod", Listed(_object(labels=LABELS)))
    feed.tell_listed("Pod", Listed(_object()))
    assert (keys.at_once, keys.soon, keys.background) == ([], [], [DM, DM])


def test_what_a_list_tells_first_is_news_for_others(feed, store, keys):
    _tell_deployed_model(feed)
    keys.clear()
    model = _of_version(make_model(), 5)
    change = store.put("Model", model)
    feed.tell_listed("Model", Listed(model, True, change.before, change.after))
    assert (keys.at_once, keys.background) == ([DM], [MODEL])


def test_each_event_is_heard(store, keys):
    heard = []
    feed = Feed(store, keys, lambda: heard.append(1))
    feed.tell("Pod", _object())
    feed.tell("Pod", _object())
    feed.tell_deleted("Pod", _object())
    assert len(heard) == 3
