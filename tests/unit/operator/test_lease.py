"""The election against a fake API server that knows resource versions, on a clock that only moves when told."""

import asyncio
import itertools
from copy import deepcopy
from datetime import UTC, datetime

import pytest
from pierhead_operator.cluster import ClusterError, Key, Rejected
from pierhead_operator.lease import (
    DURATION_SECONDS,
    RENEW_DEADLINE_SECONDS,
    RETRY_SECONDS,
    Candidate,
    Lease,
    LeaseLostError,
    Record,
    Turn,
    compute_wait,
    decide,
    looks_after,
    make_identity,
    make_lease,
    make_released,
    parse_record,
    parse_renew_time,
    read_watch_namespaces,
)

KEY = Key("Lease", "pierhead-system", "pierhead-operator")
MOMENT = "2026-11-22T12:00:00.000000Z"


def record(holder, seconds=10.0):
    return Record(holder, seconds, "7")


@pytest.mark.parametrize(
    ("seen", "age", "turn"),
    [
        (None, 0, Turn.TAKE),
        (record(""), 0, Turn.TAKE),
        (record("me"), 0, Turn.RENEW),
        (record("me"), 60, Turn.RENEW),
        (record("other"), 0, Turn.WAIT),
        (record("other"), 9.9, Turn.WAIT),
        (record("other"), 10, Turn.TAKE),
        (record("other", seconds=30), 29, Turn.WAIT),
        (record("other", seconds=1), 1, Turn.TAKE),
    ],
)
def test_decide_takes_only_what_is_free_or_has_run_out(seen, age, turn):
    assert decide(seen, 100.0, 100.0 + age, "me") is turn


@pytest.mark.parametrize(
    ("seen", "age", "least", "most"),
    [
        (None, 0, RETRY_SECONDS, RETRY_SECONDS * 1.2),
        (record("other"), 0, RETRY_SECONDS, RETRY_SECONDS * 1.2),
        (record("other"), 9.5, 0.5, 0.5),  # not a retry period after it has run out
        (record("other"), 11, RETRY_SECONDS, RETRY_SECONDS * 1.2),  # it has, and could not be taken
    ],
)
def test_wait_ends_when_the_lease_runs_out(seen, age, least, most):
    assert least <= compute_wait(seen, 100.0, 100.0 + age) <= most


def test_lease_says_who_holds_it_since_when_and_how_often_it_changed_hands():
    first = make_lease(None, KEY, Candidate("a"), MOMENT)
    watched = {"pierhead.dev/watch-namespaces": ""}
    assert first["metadata"] == {"name": KEY.name, "namespace": KEY.namespace, "annotations": watched}
    assert first["spec"] == {
        "holderIdentity": "a",
        "leaseDurationSeconds": 10,
        "acquireTime": MOMENT,
        "renewTime": MOMENT,
        "leaseTransitions": 0,
    }
    later = "2026-11-22T12:00:02.000000Z"
    assert make_lease(first, KEY, Candidate("a"), later)["spec"] == {**first["spec"], "renewTime": later}
    taken = make_lease(first, KEY, Candidate("b"), later)["spec"]
    assert (taken["holderIdentity"], taken["acquireTime"], taken["leaseTransitions"]) == ("b", later, 1)
    released = make_released(first, later)["spec"]
    assert (released["holderIdentity"], released["leaseDurationSeconds"], released["leaseTransitions"]) == ("", 1, 0)


@pytest.mark.parametrize("namespaces", [[], ["team-a"], ["team-a", "team-b"]], ids=len)
def test_lease_says_which_namespaces_are_looked_after(namespaces):
    before = make_lease(None, KEY, Candidate("a", ["other"]), MOMENT)
    lease = make_lease(before, KEY, Candidate("b", namespaces), MOMENT)
    for live in (lease, make_released(lease, MOMENT)):
        watched = read_watch_namespaces(live)
        assert all(looks_after(watched, namespace) for namespace in namespaces)
        assert looks_after(watched, "team") is not bool(namespaces)


def test_lease_of_an_operator_that_does_not_say_is_for_all_namespaces():
    assert looks_after(read_watch_namespaces({"metadata": {"name": KEY.name}}), "team-a")


def test_lease_says_when_it_was_renewed():
    assert parse_renew_time(make_lease(None, KEY, Candidate("a"), MOMENT)) == datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert parse_renew_time({"metadata": {}, "spec": {}}) is None


def test_lease_of_another_program_is_read():
    lease = {"metadata": {"resourceVersion": "3"}, "spec": {"holderIdentity": None}}
    assert parse_record(lease) == Record("", float(DURATION_SECONDS), "3")


def test_identity_is_never_used_twice():
    assert make_identity("pod-1").startswith("pod-1_")
    assert make_identity("pod-1") != make_identity("pod-1")


class Clock:
    """A clock that moves by the sleeps of whoever waits on it; `on_sleep` may do what others do meanwhile."""

    def __init__(self):
        self.now = 1000.0
        self.on_sleep = lambda: None

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds
        self.on_sleep()
        await asyncio.sleep(0)


class FakeCluster:
    """One Lease, with a resource version; `fail` says which of the next requests fail before or after their work."""

    def __init__(self):
        self.live = None
        self.writes = []
        self.fail = iter(())
        self._versions = itertools.count(1)

    async def get(self, kind, namespace, name):
        assert Key(kind, namespace, name) == KEY
        self._maybe_fail("before")
        return deepcopy(self.live)

    async def create(self, manifest):
        self._maybe_fail("before")
        if self.live:
            raise Rejected("already exists")
        return self.write(manifest)

    async def update(self, manifest):
        failure = self._maybe_fail("before")
        if self.live is None or manifest["metadata"]["resourceVersion"] != self.live["metadata"]["resourceVersion"]:
            raise Rejected("the object has been modified")
        written = self.write(manifest)
        if failure == "after":
            raise ClusterError("no answer")
        return written

    def write(self, manifest):
        """As some client, this one or another."""
        self.live = deepcopy(manifest)
        self.live["metadata"]["resourceVersion"] = str(next(self._versions))
        self.writes.append(self.live["spec"]["holderIdentity"])
        return deepcopy(self.live)

    def renew(self, holder):
        """As another holder does; its clock is years off."""
        spec = {"holderIdentity": holder, "leaseDurationSeconds": 10, "renewTime": "2001-01-01T00:00:00.000000Z"}
        self.write({"metadata": {"name": KEY.name, "namespace": KEY.namespace}, "spec": spec})

    def _maybe_fail(self, moment):
        failure = next(self.fail, None)
        if failure == moment:
            raise ClusterError("not reached")
        return failure


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cluster():
    return FakeCluster()


@pytest.fixture
def make(cluster, clock):
    return lambda identity: Lease(cluster, KEY, Candidate(identity), clock, clock.sleep)


async def test_lease_is_taken_where_there_is_none(cluster, clock, make):
    lease = make("a")
    assert not lease.is_held
    assert lease.seconds_left() == 0
    await lease.acquire()
    assert lease.is_held
    assert lease.seconds_left() == DURATION_SECONDS
    assert cluster.live["spec"]["holderIdentity"] == "a"
    assert clock.now == 1000


async def test_holder_writes_until_the_renew_deadline_and_never_longer_than_the_duration(clock, make):
    lease = make("a")
    await lease.acquire()
    clock.now += RENEW_DEADLINE_SECONDS - 0.5
    assert lease.is_held
    assert lease.seconds_left() == pytest.approx(DURATION_SECONDS - RENEW_DEADLINE_SECONDS + 0.5)
    clock.now += 0.5
    assert not lease.is_held
    assert lease.seconds_left() == 0


async def test_lease_is_taken_over_when_it_was_not_renewed_for_its_duration(cluster, clock, make):
    first, second = make("a"), make("b")
    await first.acquire()
    await second.acquire()
    assert clock.now == pytest.approx(1000 + DURATION_SECONDS, abs=0.1)
    assert second.is_held
    assert not first.is_held
    assert cluster.live["spec"]["leaseTransitions"] == 1


async def test_duration_counts_from_what_this_process_saw_and_not_from_what_is_written(cluster, clock, make):
    cluster.renew("other")
    await make("a").acquire()
    assert clock.now == pytest.approx(1000 + DURATION_SECONDS, abs=0.1)


async def test_lease_that_is_renewed_is_left_to_its_holder(cluster, clock, make):
    renewals = iter(range(20))
    clock.on_sleep = lambda: next(renewals, None) is not None and cluster.renew("other")
    cluster.renew("other")
    await make("a").acquire()
    assert cluster.writes == ["other"] * 21 + ["a"]
    assert clock.now >= 1000 + 20 * RETRY_SECONDS + DURATION_SECONDS


async def test_released_lease_is_taken_at_once(cluster, clock, make):
    first, second = make("a"), make("b")
    await first.acquire()
    await first.release()
    assert not first.is_held
    assert (cluster.live["spec"]["holderIdentity"], cluster.live["spec"]["leaseDurationSeconds"]) == ("", 1)
    await second.acquire()
    assert clock.now == 1000
    assert cluster.writes == ["a", "", "b"]


async def test_release_leaves_alone_what_is_not_held(cluster, clock, make):
    lease = make("a")
    await lease.release()
    await lease.acquire()
    clock.now += DURATION_SECONDS
    cluster.renew("other")
    await lease.release()
    assert cluster.writes == ["a", "other"]


async def test_release_that_fails_ends_nothing_but_the_holding(cluster, make, caplog):
    lease = make("a")
    await lease.acquire()
    cluster.fail = iter(["before"])
    await lease.release()
    assert not lease.is_held
    assert "not given up: not reached" in caplog.text


class EnoughError(Exception):
    """The test has seen enough."""


def stop_after(clock, sleeps):
    """Ends an endless renewing."""
    left = iter(range(sleeps - 1))

    def on_sleep():
        if next(left, None) is None:
            raise EnoughError

    clock.on_sleep = on_sleep


async def test_holder_renews(cluster, clock, make):
    lease = make("a")
    await lease.acquire()
    stop_after(clock, 20)
    with pytest.raises(EnoughError):
        await lease.keep()
    assert cluster.writes == ["a"] * 20
    assert lease.is_held
    assert cluster.live["spec"]["leaseTransitions"] == 0


async def test_holder_gets_over_failures_within_the_deadline(cluster, clock, make):
    lease = make("a")
    await lease.acquire()
    cluster.fail = iter(["before", None, "after", None, None])  # a read; a write whose answer is lost
    stop_after(clock, 4)
    with pytest.raises(EnoughError):
        await lease.keep()
    assert cluster.writes == ["a", "a", "a"]
    assert lease.is_held


async def test_holder_that_cannot_renew_loses_the_lease_at_the_deadline(cluster, clock, make):
    lease = make("a")
    await lease.acquire()
    cluster.fail = itertools.repeat("before")
    with pytest.raises(LeaseLostError, match="not renewed for 7 s"):
        await lease.keep()
    assert not lease.is_held
    assert 1000 + RENEW_DEADLINE_SECONDS <= clock.now < 1000 + DURATION_SECONDS


async def test_holder_that_sees_another_one_loses_the_lease_at_once(cluster, clock, make):
    lease = make("a")
    await lease.acquire()
    cluster.renew("other")
    with pytest.raises(LeaseLostError, match="is held by other"):
        await lease.keep()
    assert not lease.is_held
    assert lease.seconds_left() == 0
    assert clock.now == 1000 + RETRY_SECONDS
    assert cluster.writes == ["a", "other"]


async def test_holder_that_slept_goes_on_where_nobody_took_the_lease(cluster, clock, make):
    lease = make("a")
    await lease.acquire()
    clock.now += 3600
    assert not lease.is_held
    stop_after(clock, 2)
    with pytest.raises(EnoughError):
        await lease.keep()
    assert cluster.writes == ["a", "a"]


async def test_who_is_second_to_take_waits_for_the_first(clock):
    class Slow(FakeCluster):
        async def update(self, manifest):
            if self.writes[-1] == "dead":
                self.renew("faster")
            return await super().update(manifest)

    slow = Slow()
    slow.renew("dead")
    await Lease(slow, KEY, Candidate("a"), clock, clock.sleep).acquire()
    assert slow.writes == ["dead", "faster", "a"]
    assert clock.now >= 1000 + 2 * DURATION_SECONDS


async def test_deleted_lease_is_its_holders_until_it_would_have_run_out(cluster, clock, make):
    cluster.renew("other")

    def delete():
        cluster.live = None

    clock.on_sleep = delete
    await make("a").acquire()
    assert clock.now == pytest.approx(1000 + DURATION_SECONDS, abs=0.1)
    assert cluster.writes == ["other", "a"]
