"""Two installations on one cluster: what the first looks after is neither changed nor deleted by the second."""

import asyncio
from copy import deepcopy
from datetime import timedelta
from functools import partial

import pytest
from pierhead_operator.batch_reconcile import BatchReconciler
from pierhead_operator.cluster import ClusterError, Conflict, Key, Rejected, format_micro_time
from pierhead_operator.installation import (
    GONE_SECONDS,
    LOOK_AGAIN_SECONDS,
    Installations,
    find_holder,
    is_name,
    mark_claimed,
    spare_others,
)
from pierhead_operator.progress import ProgressPoller
from pierhead_operator.reconcile import Reconciler
from pierhead_operator.settings import NetworkPolicySettings
from pierhead_operator.types import ModelStatus

from tests.unit.operator.conftest import NETWORK_POLICY, NOW, make_batch, make_deployed_model, make_endpoint, make_model
from tests.unit.operator.fakes import Clock, FakeCluster, FakeProber
from tests.unit.operator.test_batch_reconcile import FakeWorkers
from tests.unit.operator.test_reconcile import DM, ENDPOINT, MODEL

FIRST, SECOND = "platform/pierhead-operator", "team/own-operator"
BATCH = Key("BatchPredictionJob", "default", "nightly")
KEYS = (MODEL, ENDPOINT, DM, BATCH)


class Steady:
    """A monotonic clock that moves when it is told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Installation:
    """One of several on a cluster."""

    def __init__(self, cluster, settings, name):
        self.cluster, self.name, self.steady = cluster, name, Steady()
        self.installations = Installations(cluster, name, self.steady, lambda: NOW)
        self.reconciler = Reconciler(cluster, FakeProber(), settings, Clock(), name)
        self.batches = BatchReconciler(cluster, ProgressPoller(FakeWorkers()), settings, Clock(), name)

    async def work(self, *keys):
        """What it does for each of these resources; how soon it looks at the last one again."""
        again = None
        for key in keys:
            reconciler = self.batches if key.kind == "BatchPredictionJob" else self.reconciler
            again = await spare_others(key, reconciler.reconcile, self.installations, self.reconciler.withdraw)
        return again

    async def tidy(self):
        await self.reconciler.delete_of_other_settings(None, self.installations.was_made_by_another)

    def renew(self, namespaces=(), moment=NOW):
        """Its Lease, written anew."""
        namespace, _, name = self.name.partition("/")
        before = self.cluster.objects.get(("Lease", name), {"metadata": {"resourceVersion": "0"}})
        metadata = {
            "name": name,
            "namespace": namespace,
            "resourceVersion": str(int(before["metadata"]["resourceVersion"]) + 1),
            "annotations": {"pierhead.dev/watch-namespaces": ",".join(namespaces)},
        }
        spec = {"renewTime": format_micro_time(moment)}
        self.cluster.objects["Lease", name] = {"kind": "Lease", "metadata": metadata, "spec": spec}


@pytest.fixture
def cluster():
    dm = make_deployed_model(available=True)
    dm["status"]["modelVersion"] = "1"
    return FakeCluster(make_model(), make_endpoint(), dm, make_batch())


@pytest.fixture
def first(cluster, settings):
    """Has a gateway and makes NetworkPolicies."""
    policies = NetworkPolicySettings.model_validate(NETWORK_POLICY)
    return Installation(cluster, settings.model_copy(update={"network_policy": policies}), FIRST)


@pytest.fixture
def second(cluster, settings):
    """Has neither."""
    routing = settings.routing.model_copy(update={"provider": "none"})
    return Installation(cluster, settings.model_copy(update={"routing": routing}), SECOND)


async def _begin(first):
    first.renew()
    await first.work(*KEYS)
    first.cluster.calls.clear()


async def _pass(installation, seconds):
    """Time goes by, in which it looks at everything now and then."""
    for _ in range(int(seconds // LOOK_AGAIN_SECONDS) + 1):
        await installation.work(*KEYS)
        installation.steady.now += LOOK_AGAIN_SECONDS


def _find_holders(cluster):
    return {kind: find_holder(live) for (kind, _), live in cluster.objects.items() if kind not in ("Lease", "Pod")}


async def test_all_that_an_installation_makes_and_looks_after_bears_its_name(cluster, first):
    await _begin(first)
    holders = _find_holders(cluster)
    assert {"Deployment", "Service", "NetworkPolicy", "HTTPRoute", "Job", *(key.kind for key in KEYS)} == holders.keys()
    assert set(holders.values()) == {FIRST}
    assert first.name not in str(cluster.objects["Deployment", "dm-photos-1"]["spec"])
    await first.work(*KEYS, *KEYS)  # no pod answers: what follows from that
    cluster.calls.clear()
    await first.work(*KEYS)
    assert cluster.calls == [], "stable: no writes"


async def test_what_an_earlier_release_made_is_taken_over_and_no_pod_restarts(cluster, settings, first):
    nameless = Installation(cluster, first.reconciler.settings, "")
    await nameless.work(*KEYS)
    template = deepcopy(cluster.objects["Deployment", "dm-photos-1"]["spec"]["template"])
    first.renew()
    await first.work(*(key for key in KEYS if key != BATCH))
    assert {_find_holders(cluster)[kind] for kind in ("Model", "Endpoint", "DeployedModel", "HTTPRoute")} == {FIRST}
    assert cluster.objects["Deployment", "dm-photos-1"]["spec"]["template"] == template


async def test_second_leaves_alone_what_the_first_looks_after(cluster, first, second, caplog):
    caplog.set_level("INFO")
    await _begin(first)
    caplog.clear()
    before = deepcopy(cluster.objects)
    for _ in range(5):
        first.renew()
        second.steady.now += GONE_SECONDS
        assert await second.work(*KEYS) == LOOK_AGAIN_SECONDS
        await second.tidy()
    assert cluster.calls == []
    assert _without_leases(cluster.objects) == _without_leases(before)
    assert second.installations.count_left == len(KEYS)
    assert len(caplog.messages) == caplog.text.count(f"left to the installation {FIRST}") == len(KEYS), "told once each"


def _without_leases(objects):
    return {key: live for key, live in objects.items() if key[0] != "Lease"}


async def test_second_deletes_nothing_of_the_first_that_bears_no_name(cluster, settings, first, second):
    """The first was upgraded: some of its objects were not applied again yet."""
    nameless = Installation(cluster, first.reconciler.settings, "")
    await nameless.work(ENDPOINT)
    first.renew()
    cluster.objects["Endpoint", "photos"]["status"]["installation"] = FIRST
    assert find_holder(cluster.objects["HTTPRoute", "ep-photos"]) == ""
    await second.tidy()
    assert ("HTTPRoute", "ep-photos") in cluster.objects


class Racing(FakeCluster):
    """Lets somebody else act between the first look at a resource and what comes of it."""

    def __init__(self, objects, act):
        super().__init__()
        self.objects, self.act, self.before = objects, act, {}

    async def get_resource(self, kind, namespace, name):
        found = await super().get_resource(kind, namespace, name)
        self.before[kind.KIND, name] = deepcopy(self.objects[kind.KIND, name])
        act, self.act = self.act, _nothing
        await act()
        return found

    async def apply_status(self, resource, status):
        """As the API server with the version of what was read, see cluster.apply_status."""
        key = resource.KIND, resource.name
        if resource.status.installation != status.installation and self.objects[key] != self.before[key]:
            raise Conflict("it has changed")
        return await super().apply_status(resource, status)


async def _nothing():
    pass


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.kind)
async def test_of_two_that_take_the_same_at_once_one_stays(cluster, first, second, key):
    first.renew()
    racing = Installation(Racing(cluster.objects, partial(first.work, key)), second.reconciler.settings, SECOND)
    with pytest.raises(Conflict):
        await racing.work(key)
    assert find_holder(cluster.objects[key.kind, key.name]) == FIRST
    assert await racing.work(key) == LOOK_AGAIN_SECONDS
    await first.work(key)
    assert SECOND not in _find_holders(cluster).values()


async def _is_followed(cluster, first, second):
    await _pass(second, GONE_SECONDS)
    await second.work(*KEYS)
    await second.tidy()
    assert {_find_holders(cluster)[key.kind] for key in KEYS} == {SECOND}
    assert not {("HTTPRoute", "ep-photos"), ("NetworkPolicy", "dm-photos-1")} & cluster.objects.keys()
    assert second.installations.count_left == 0


async def test_second_follows_a_first_that_is_not_heard_of(cluster, first, second):
    await _begin(first)
    second.installations.to_tidy.clear()
    await second.work(*KEYS)
    assert not second.installations.to_tidy.is_set()
    await _is_followed(cluster, first, second)
    assert second.installations.to_tidy.is_set()


async def test_second_follows_a_first_whose_lease_is_gone(cluster, first, second):
    await _begin(first)
    del cluster.objects["Lease", "pierhead-operator"]
    await _is_followed(cluster, first, second)


async def test_first_whose_lease_goes_is_waited_for(cluster, first, second):
    """It may still be on its way out."""
    await _begin(first)
    await second.work(*KEYS)
    del cluster.objects["Lease", "pierhead-operator"]
    second.steady.now += GONE_SECONDS - 1
    await second.work(*KEYS)
    assert cluster.calls == []
    await _is_followed(cluster, first, second)


# By its holder's clock, which may be another: how long ago the Lease was renewed when it is first seen.
@pytest.mark.parametrize(("ago", "waits"), [(0, True), (300, True), (-300, True), (86400, False)])
async def test_second_that_starts_anew_waits_for_a_first_that_was_heard_of_lately(cluster, first, second, ago, waits):
    await _begin(first)
    first.renew(moment=NOW - timedelta(seconds=ago))
    await second.work(ENDPOINT)
    assert (find_holder(cluster.objects["Endpoint", "photos"]) == FIRST) is waits


async def test_first_that_cannot_be_asked_for_is_not_followed(cluster, first, second, monkeypatch):
    await _begin(first)

    async def fetch(kind, namespace, name):
        raise ClusterError("no answer")

    monkeypatch.setattr(cluster, "fetch", fetch)
    for _ in range(2):
        with pytest.raises(ClusterError):
            await second.work(ENDPOINT)
    assert cluster.calls == []


async def test_who_asks_while_another_reads_waits_for_the_lease_too(cluster, first, second, monkeypatch):
    await _begin(first)
    fetch = cluster.fetch

    async def fetch_late(kind, namespace, name):
        await asyncio.sleep(0)
        return await fetch(kind, namespace, name)

    monkeypatch.setattr(cluster, "fetch", fetch_late)
    for _ in range(3):
        await asyncio.gather(*(second.work(key) for key in KEYS))
        assert cluster.calls == []
        first.renew()
        second.steady.now += LOOK_AGAIN_SECONDS


async def test_second_follows_a_first_whose_lease_nobody_may_read(cluster, first, second, monkeypatch):
    await _begin(first)
    monkeypatch.setattr(cluster, "fetch", partial(_forbid_leases, cluster.fetch))
    await _is_followed(cluster, first, second)


async def _forbid_leases(fetch, kind, namespace, name):
    if kind == "Lease":
        raise Rejected("leases is forbidden")
    return await fetch(kind, namespace, name)


async def test_second_follows_at_once_where_the_first_no_longer_looks(cluster, first, second):
    await _begin(first)
    await second.work(*KEYS)
    assert _find_holders(cluster)["Endpoint"] == FIRST
    first.renew(["elsewhere"])
    second.steady.now += 15
    await second.work(*KEYS)
    assert {_find_holders(cluster)[key.kind] for key in KEYS} == {SECOND}


async def test_first_that_comes_back_takes_its_routes_away_and_no_more(cluster, first, second):
    await _begin(first)
    second.renew()
    await _pass(second, GONE_SECONDS)
    await second.work(*KEYS)
    assert _find_holders(cluster)["Endpoint"] == SECOND
    assert find_holder(cluster.objects["HTTPRoute", "ep-photos"]) == FIRST
    cluster.calls.clear()
    first.renew()
    await first.work(*KEYS)
    deleted = {call[1:] for call in cluster.calls}
    assert {call[0] for call in cluster.calls} == {"delete"}
    assert deleted == {
        ("HTTPRoute", "ep-photos"),
        ("HTTPRoute", "mdl-photos"),
        ("NetworkPolicy", "dm-photos-1"),
        ("NetworkPolicy", "bpj-nightly"),
    }


async def test_second_ends_no_pods_of_a_deployed_model_that_is_gone(cluster, first, second):
    await _begin(first)
    del cluster.objects["DeployedModel", "photos-1"]
    cluster.collect_garbage("uid-photos-1")
    await second.work(DM)
    second.reconciler.clock.now = second.reconciler.clock.now.replace(hour=23)
    assert await second.work(DM) == LOOK_AGAIN_SECONDS
    assert cluster.calls == []
    cluster.objects["DeployedModel", "photos-1"] = make_deployed_model()
    await second.work(DM)
    assert cluster.calls == [], "it came back to its pods"


async def test_new_deployed_model_is_for_who_has_its_endpoint(cluster, first, second):
    first.renew()
    await first.work(ENDPOINT)
    cluster.calls.clear()
    assert await second.work(DM) == LOOK_AGAIN_SECONDS
    assert cluster.calls == []


NO_NAMES = {
    "nothing": "",
    "no namespace": "nobody",
    "three parts": "a/b/c",
    "a path": "../secrets/x",
    "a query": "a/../b?watch=1",
    "capitals": "A/B",
    "the parent": "mallory/..",
    "the same": "mallory/.",
    "a dot at its end": "mallory/a.",
    "two dots": "mallory/a..b",
    "a dash first": "mallory/-a",
    "a dotted namespace": "mal.lory/a",
    "a new line": "mallory/a\n",
    "a long namespace": "a" * 64 + "/a",
    "a long Lease": "a/" + "a" * 254,
    "as long as an annotation": "a/" + "a" * 240_000,
}


@pytest.mark.parametrize("name", ["platform/pierhead-operator", "a/b.c-d.e", "0/1", "a" * 63 + "/" + "b" * 253])
def test_name_of_a_lease_is_one(name):
    assert is_name(name)


@pytest.mark.parametrize("holder", NO_NAMES.values(), ids=NO_NAMES.keys())
async def test_name_that_no_lease_has_holds_nothing(cluster, second, holder):
    asked = []

    async def fetch(kind, namespace, name):
        asked.append((kind, namespace, name))

    cluster.fetch = fetch
    cluster.objects["Model", "photos"]["status"]["installation"] = holder
    await second.work(MODEL)
    assert "Lease" not in {kind for kind, _, _ in asked}
    assert find_holder(cluster.objects["Model", "photos"]) == SECOND


# What a tenant writes: the annotation of a Deployment in his namespace, whose DeployedModel is gone


def _name_maker(cluster, installation):
    deployment = cluster.objects["Deployment", "dm-photos-1"]
    deployment["metadata"]["annotations"]["pierhead.dev/installation"] = installation


@pytest.fixture
async def left(cluster, second):
    """Of a DeployedModel that is gone, and whose Deployment says something else from now on."""
    await second.work(*KEYS)
    del cluster.objects["DeployedModel", "photos-1"]
    second.installations.to_tidy.clear()
    return second


async def test_memory_of_installations_is_bounded(cluster, left):
    for number in range(1000):
        left.steady.now += 1
        _name_maker(cluster, f"default/n{number}")
        await left.installations.is_anothers(DM)
    assert len(left.installations._seen) < 100


async def test_installation_that_was_never_seen_holds_nothing(cluster, left):
    for number in range(100):
        _name_maker(cluster, f"default/n{number}")
        assert not await left.installations.is_anothers(DM)
        left.steady.now += GONE_SECONDS - 10
    assert not left.installations.to_tidy.is_set()


async def test_lease_of_a_tenants_own_holds_what_bears_its_name_and_no_more(cluster, left):
    own = Installation(cluster, left.reconciler.settings, "default/mine")
    _name_maker(cluster, own.name)
    for _ in range(3):
        own.renew()
        assert await left.work(*KEYS, DM) == LOOK_AGAIN_SECONDS
        left.steady.now += LOOK_AGAIN_SECONDS
    assert left.installations.count_left == 1
    assert ("Deployment", "dm-photos-1") in cluster.objects
    assert {_find_holders(cluster)[key.kind] for key in (MODEL, ENDPOINT, BATCH)} == {SECOND}
    left.steady.now += GONE_SECONDS
    await left.work(DM)
    assert left.installations.count_left == 0
    assert not left.installations.to_tidy.is_set(), "each time the whole cluster would be looked through"


async def test_leases_of_a_tenants_own_keep_no_other_installation_from_being_followed(cluster, first, second):
    """Who fills the memory has it forget since when the first was not heard of: by its own clock it is gone then."""
    await _begin(first)
    assert await second.work(ENDPOINT) == LOOK_AGAIN_SECONDS
    for number in range(100):
        own = Installation(cluster, second.reconciler.settings, f"default/n{number}")
        own.renew()
        await second.installations._find_other(own.name, "default")
    second.installations._now = lambda: NOW + timedelta(hours=1)
    await second.work(ENDPOINT)
    assert find_holder(cluster.objects["Endpoint", "photos"]) == SECOND


async def test_lease_is_read_once_for_many(cluster, first, second):
    await _begin(first)
    asked = []

    async def fetch(kind, namespace, name):
        asked.append((kind, namespace, name))
        return cluster.objects["Lease", name]

    cluster.fetch = fetch
    await second.work(*KEYS, *KEYS)
    assert asked == [("Lease", "platform", "pierhead-operator")]


def test_status_without_an_installation_stays_as_it_is():
    assert mark_claimed(ModelStatus(), "") == ModelStatus()
    assert mark_claimed(ModelStatus(), FIRST).dump()["installation"] == FIRST
