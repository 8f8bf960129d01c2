"""What becomes of the REST API's operations: tables, and the reconciles that judge and undo."""

import json
from datetime import timedelta

import pytest
from pierhead_operator.cluster import Key
from pierhead_operator.operations import Moment, judge_operations
from pierhead_operator.reconcile import Reconciler
from pierhead_operator.records import RECORD_PREFIX, Operation, Record, find_marks, parse_records
from pierhead_operator.resource_metrics import ResourceMetrics
from pierhead_operator.routing import take_back, wanted_split
from pierhead_operator.status import Traffic
from pierhead_operator.types import DeployedModel, Endpoint, EndpointStatus

from tests.unit.operator.conftest import NOW, SERVED, make_deployed_model, make_endpoint, make_model
from tests.unit.operator.fakes import Clock, FakeCluster, FakeProber
from tests.unit.operator.resources import make_empty_store, put

SERIAL = f"{int(NOW.timestamp() * 1000)}000001"
ID = f"{SERIAL}_DeployModel_uid-photos-1_photos-1"
ENDPOINT = Key("Endpoint", "default", "photos")
DM = Key("DeployedModel", "default", "photos-1")
SPLIT = {"photos-1": 100}
TIMEOUT = 1800
LATE = NOW + timedelta(seconds=TIMEOUT)


def _annotate(live, record, serial=SERIAL):
    live["metadata"].setdefault("annotations", {})[f"{RECORD_PREFIX}{serial}"] = record.encode()
    return live


def _judge(live, ready, reason="Serving", *, stalled=False, generation=3, **status):
    conditions = [
        {"type": type_, "status": str(value), "reason": reason, "message": "m", "lastTransitionTime": NOW}
        for type_, value in {"Ready": ready, "TrafficApplied": ready, "Stalled": stalled}.items()
    ]
    live["status"] = {"observedGeneration": generation, "conditions": conditions, **status}
    return live


def _deployed(record=None, **judged):
    """A DeployedModel that a deployModel made."""
    live = make_deployed_model()
    live["metadata"]["creationTimestamp"] = NOW.isoformat()
    live = _annotate(live, record or Record(type="DeployModel", split=SPLIT, timeout=TIMEOUT))
    return _judge(live, **judged) if judged else live


def _on(endpoint, **record):
    """An Endpoint whose split was written with its record."""
    mark = {"name": "photos-1", "uid": "uid-photos-1", "split": SPLIT, "timeout": TIMEOUT, **record}
    return _annotate(endpoint, Record(type="DeployModel", **mark))


def _decide(deployed, endpoint=None, split=None, now=NOW, since=NOW, **judged):
    """What is remembered by then of the operations: reasons by id, empty where they succeeded; and when to look.

    `since`: the operator looks after something.
    """
    endpoint = Endpoint.model_validate(endpoint or _on(make_endpoint(SPLIT)))
    there = {live["metadata"]["name"]: DeployedModel.model_validate(live) for live in deployed}
    status = EndpointStatus.model_validate(_judge({}, **{"ready": True, **judged})["status"])
    status = status.model_copy(update={"traffic_split": SPLIT if split is None else split})
    traffic = Traffic(wanted_split(endpoint, there), {}, there)
    judgement = judge_operations(endpoint, status, traffic, Moment(now, since))
    return {one.id: one.reason for one in judgement.finished}, judgement.again


SERVES = {"ready": True}
ENDS = {
    "serves, and gets its traffic": ([_deployed(**SERVES)], {}, ""),
    "serves, and wants no traffic": (
        [_deployed(**SERVES), make_deployed_model("b")],
        {"endpoint": _on(make_endpoint({"b": 100}))},
        "",
    ),
    "artifact not found": ([_deployed(ready=False, reason="ArtifactNotFound", stalled=True)], {}, "ArtifactNotFound"),
    "gateway refuses the route": (
        [_deployed(**SERVES)],
        {"split": {}, "ready": False, "reason": "RouteNotAccepted", "stalled": True},
        "RouteNotAccepted",
    ),
    "image never came": ([_deployed(ready=False, reason="ImagePullFailed")], {"now": LATE}, "ImagePullFailed"),
    "no room ever": ([_deployed(ready=False, reason="Unschedulable")], {"now": LATE}, "Unschedulable"),
    "never got ready": ([_deployed(ready=False, reason="Progressing")], {"now": LATE}, "DeadlineExceeded"),
    "nobody ever looked": ([_deployed()], {"now": LATE}, "DeadlineExceeded"),
    "never got its traffic": (
        [_deployed(**SERVES)],
        {"split": {}, "ready": False, "reason": "RoutePending", "now": LATE},
        "DeadlineExceeded",
    ),
    "split never written": (
        [_deployed(**SERVES)],
        {"endpoint": make_endpoint(), "now": NOW + timedelta(minutes=10)},
        "Aborted",
    ),
}


@pytest.mark.parametrize(("deployed", "seen", "reason"), ENDS.values(), ids=ENDS.keys())
def test_end(deployed, seen, reason):
    assert _decide(deployed, **seen) == ({ID: reason}, None)


WAITS = {
    "starts": ([_deployed(ready=False, reason="Progressing")], {}, TIMEOUT),
    "image does not come": ([_deployed(ready=False, reason="ImagePullFailed")], {}, TIMEOUT),
    "an earlier generation is judged": ([_deployed(ready=True, generation=2)], {}, TIMEOUT),
    "no traffic yet": ([_deployed(**SERVES)], {"split": {}}, TIMEOUT),
    "an operator of an earlier release cannot read it": (
        [_deployed(ready=False, reason="Unreadable", stalled=True)],
        {},
        TIMEOUT,
    ),
    "split not written yet": ([_deployed(**SERVES)], {"endpoint": make_endpoint()}, 600),
    "nearly late": ([_deployed(ready=False, reason="Progressing")], {"now": LATE - timedelta(seconds=0.1)}, 1),
}


@pytest.mark.parametrize(("deployed", "seen", "again"), WAITS.values(), ids=WAITS.keys())
def test_on_its_way(deployed, seen, again):
    assert _decide(deployed, **seen) == ({}, again)


WRITTEN = {
    "written, and taken back": _on(make_endpoint()),
    "off the record": _annotate(make_endpoint(), Record(type="UndeployModel"), str(int(SERIAL) + 1)),
}


@pytest.mark.parametrize("endpoint", WRITTEN.values(), ids=WRITTEN.keys())
def test_split_that_somebody_decided_is_not_waited_for(endpoint):
    serves = _deployed(**SERVES)
    assert _decide([serves], endpoint=endpoint, now=NOW + timedelta(minutes=10)) == ({ID: ""}, None)


NONE = {
    "cancelled": ([_deployed(**SERVES)], _on(make_endpoint(SPLIT), cancelled=True)),
    "deleted": ([_deployed(**SERVES)], _on(make_endpoint(SPLIT), deleted=True)),
    "of 0.1, whose deployments never end": (
        [_deployed(Record(type="DeployModel", split=SPLIT), ready=False, reason="ArtifactNotFound", stalled=True)],
        None,
    ),
    "of another object's record": (
        [_annotate(make_deployed_model(), Record(type="DeployModel", uid="x", name="y", timeout=1))],
        None,
    ),
    "no deployment": ([_annotate(make_deployed_model(), Record(type="UndeployModel", timeout=1))], None),
}


@pytest.mark.parametrize(("deployed", "endpoint"), NONE.values(), ids=NONE.keys())
def test_nothing_is_judged(deployed, endpoint):
    assert _decide(deployed, endpoint=endpoint, now=LATE) == ({}, None)


def test_object_that_was_brought_back_is_of_no_operation():
    """As from a backup, which keeps annotations and no status: it must not be undone."""
    live = _deployed()
    live["metadata"]["creationTimestamp"] = (NOW + timedelta(hours=1)).isoformat()
    assert _decide([live], now=NOW + timedelta(hours=2)) == ({}, None)


def test_deployment_whose_end_was_forgotten_is_not_undone():
    """As by an operator of an earlier release, which drops what it does not know of a status."""
    broken = _deployed(ready=False, reason="CrashLooping", stalled=True)
    assert _decide([broken], now=LATE + timedelta(hours=1, seconds=1)) == ({}, None)
    assert _decide([_deployed(**SERVES)], now=LATE + timedelta(days=9)) == ({ID: ""}, None)


def test_deployment_of_0_1_that_serves_is_remembered():
    assert _decide([_deployed(Record(type="DeployModel", split=SPLIT), **SERVES)]) == ({ID: ""}, None)


@pytest.mark.parametrize(("generation", "ends"), [("3", True), ("4", True), ("2", True)])
def test_mutation(generation, ends):
    """Its record has the generation that was to come, which a change of nothing does not bring."""
    live = make_deployed_model()
    record = Record(type="MutateDeployedModel", detail=generation, timeout=TIMEOUT)
    mutation = f"{SERIAL}_MutateDeployedModel_uid-photos-1_photos-1_{generation}"
    live = _judge(_annotate(live, record), ready=True)
    assert _decide([live]) == ({mutation: ""}, None)
    assert _decide([_judge(live, ready=True, generation=1)]) == ({}, TIMEOUT)


def _fail(deployed, now=LATE, **seen):
    """What is remembered of the one operation, which failed."""
    endpoint = Endpoint.model_validate(seen.pop("endpoint", _on(make_endpoint(SPLIT))))
    there = {live["metadata"]["name"]: DeployedModel.model_validate(live) for live in deployed}
    status = EndpointStatus.model_validate(_judge({}, ready=True)["status"])
    [one] = judge_operations(endpoint, status, Traffic(SPLIT, {}, there), Moment(now, seen.get("since", NOW))).finished
    assert one.state == "Failed"
    return one


@pytest.mark.parametrize(("answering", "undone"), [(0, True), (3, None)])
def test_what_answers_predictions_is_never_undone(answering, undone):
    live = _deployed(ready=False, reason="Unschedulable", availableReplicaCount=answering)
    assert _fail([live]).undone is undone


STARTS = timedelta(minutes=5)


@pytest.mark.parametrize("reason", ["CrashLooping", "OutOfMemory", "ModelProcessDied"])
def test_pod_that_ends_is_given_time_to_start_again(reason):
    live = _deployed(ready=False, reason=reason, stalled=True)
    assert _decide([live]) == ({}, STARTS.total_seconds())
    assert _decide([live], now=NOW + STARTS) == ({ID: reason}, None)


def test_pod_that_ends_beside_others_that_answer_ends_nothing_early():
    live = _deployed(ready=False, reason="CrashLooping", stalled=True, availableReplicaCount=3)
    assert _decide([live], now=NOW + STARTS) == ({}, TIMEOUT - STARTS.total_seconds())


def test_operator_that_was_away_looks_before_it_judges():
    """The status of what became ready meanwhile is that of before."""
    began = LATE + timedelta(minutes=20)
    stale = _deployed(ready=False, reason="Progressing")
    assert _decide([stale], now=began, since=began) == ({}, 120)
    assert _decide([stale], now=began + timedelta(minutes=2), since=began) == ({ID: "DeadlineExceeded"}, None)


def test_endpoint_that_was_made_again_fails_nothing():
    endpoint = make_endpoint()
    endpoint["metadata"]["creationTimestamp"] = (NOW + timedelta(minutes=5)).isoformat()
    broken = _deployed(ready=False, reason="ArtifactNotFound", stalled=True)
    assert _decide([broken], endpoint=endpoint, now=LATE) == ({}, None)


def test_copy_of_a_deployed_model_is_of_no_operation():
    copy = _deployed(Record(type="DeployModel", name="photos-1", timeout=TIMEOUT), ready=False)
    copy["metadata"] |= {"name": "mine", "uid": "uid-mine"}
    assert _decide([copy], endpoint=make_endpoint(), now=LATE) == ({}, None)


def test_deployment_whose_model_is_deleted_meanwhile_ends():
    settled = NOW + timedelta(minutes=1)
    assert _decide([], now=NOW) == ({}, 60)  # the watches may not have told of it yet
    assert _decide([], now=settled) == ({ID: "DeployedModelNotFound"}, None)
    assert _decide([], endpoint=_on(make_endpoint(SPLIT), cancelled=True), now=settled) == ({}, None)
    assert _decide([], endpoint=_on(make_endpoint(SPLIT), timeout=None), now=settled) == ({}, None)  # of 0.1


BROKEN = {
    "a time without end": '{"type": "DeployModel", "timeout": 1000000000000}',
    "a time before all time": '{"type": "DeployModel", "timeout": -1}',
    "a generation that is none": '{"type": "MutateDeployedModel", "detail": "' + "9" * 5000 + '"}',
    "a name that nothing has": '{"type": "DeployModel", "name": "' + "x" * 250 + '"}',
}


@pytest.mark.parametrize("value", BROKEN.values(), ids=BROKEN.keys())
def test_record_that_no_operation_has_is_none(value):
    live = make_deployed_model()
    live["metadata"]["annotations"] = {f"{RECORD_PREFIX}{SERIAL}": value}
    assert _decide([live], endpoint=make_endpoint(), now=LATE) == ({}, None)


def _remember(endpoint, *finished):
    endpoint["status"]["operations"] = [{"time": NOW.isoformat(), "state": "Succeeded", **one} for one in finished]
    return endpoint


def test_what_is_known_is_not_judged_again():
    endpoint = _remember(_on(make_endpoint(SPLIT)), {"id": ID})
    broken = _deployed(ready=False, reason="CrashLooping", stalled=True)
    assert _decide([broken], endpoint=endpoint, now=LATE) == ({ID: ""}, None)
    assert _decide([], endpoint=endpoint, now=LATE) == ({ID: ""}, None)


def test_newest_of_what_is_gone_are_remembered():
    gone = [{"id": Operation(str(int(SERIAL) + n), "DeployModel", "u", "x").id} for n in range(1, 60)]
    endpoint = _remember(_on(make_endpoint(SPLIT)), {"id": ID}, *gone)
    finished, _ = _decide([_deployed(**SERVES)], endpoint=endpoint)
    assert list(finished) == [ID, *(one["id"] for one in gone[-50:])]


# --- splits ----------------------------------------------------------------------------------------------------------


def _failed(split, before, *more):
    endpoint = _annotate(
        make_endpoint(split),
        Record(type="DeployModel", name="photos-1", uid="uid-photos-1", split={"photos-1": 50, "a": 50}, before=before),
    )
    return Endpoint.model_validate(_remember(endpoint, {"id": ID, "state": "Failed", "reason": "x"}, *more))


TAKEN_BACK = {
    "as it left it": ({"photos-1": 50, "a": 50}, {"a": 100}, ["a"], {"a": 100}),
    "there was none before": ({"photos-1": 50, "a": 50}, None, ["a"], None),
    "it is there, as after another deployment": (
        {"photos-1": 50, "a": 50},
        {"a": 100},
        ["a", "photos-1"],
        {"photos-1": 50, "a": 50},
    ),
    "somebody added another since": (
        {"photos-1": 20, "a": 60, "b": 20},
        {"a": 100},
        ["a", "b"],
        {"a": 75, "b": 25},
    ),
    "somebody wrote all of it to the one that failed": ({"photos-1": 100}, {"a": 100}, ["a"], {"photos-1": 100}),
    "somebody wrote another": ({"a": 70, "b": 30}, {"a": 100}, ["a", "b"], {"a": 70, "b": 30}),
    "nobody wrote any": (None, {"a": 100}, ["a"], None),
}


def _mark(live, number, name, split, before=None, **more):
    """Of an operation so many after the first one."""
    record = Record(type="DeployModel", name=name, uid=f"uid-{name}", split=split, before=before, **more)
    _annotate(live, record, str(int(SERIAL) + number))
    return f"{int(SERIAL) + number}_DeployModel_uid-{name}_{name}"


@pytest.mark.parametrize("newer", ["DeployModel", "UndeployModel", "UpdateEndpoint"])
def test_split_that_somebody_wrote_since_is_in_force_though_it_is_the_same(newer):
    live = make_endpoint({"a": 100})
    failed = _mark(live, 0, "x", {"a": 100}, before={"a": 50, "b": 50})
    _annotate(live, Record(type=newer, name="b", uid="uid-b", split={"a": 100}), str(int(SERIAL) + 1))
    endpoint = Endpoint.model_validate(_remember(live, {"id": failed, "state": "Failed"}))
    assert wanted_split(endpoint, ["a", "b"]) == {"a": 100}


@pytest.mark.parametrize(("split", "before", "there", "expected"), TAKEN_BACK.values(), ids=TAKEN_BACK.keys())
def test_split_of_a_deployment_that_failed_is_not_in_force(split, before, there, expected):
    endpoint = _failed(split, before)
    assert take_back(endpoint.spec.traffic_split, find_marks(endpoint), there) == expected


def test_deployments_that_failed_one_after_the_other_are_all_taken_back():
    live = make_endpoint({"b": 100})
    first = _mark(live, 0, "a", {"a": 100})
    second = _mark(live, 1, "b", {"b": 100}, before={"a": 100})
    _remember(live, *({"id": one, "state": "Failed"} for one in (first, second)))
    assert wanted_split(Endpoint.model_validate(live), []) is None


def test_metrics_have_the_split_in_force():
    store = make_empty_store()
    live = _on(make_endpoint(SPLIT), before={"a": 100})
    put(store, _remember(live, {"id": ID, "state": "Failed"}))
    put(store, make_deployed_model("a"))
    [wanted] = [one for one in ResourceMetrics(store, lambda: True).collect() if one.name.endswith("wanted_percent")]
    assert [(sample.labels["deployed_model"], sample.value) for sample in wanted.samples] == [("a", 100)]


@pytest.mark.parametrize(
    "value", ["", "{}", "no JSON", '{"type": "Foo"}', '{"type": "DeployModel", "before": {"a": 70}}', "[" * 10**5]
)
def test_record_that_somebody_broke_is_none(value):
    assert parse_records({f"{RECORD_PREFIX}{SERIAL}": value, f"{RECORD_PREFIX}1": json.dumps({"type": "x"})}) == {}


# --- reconciles ------------------------------------------------------------------------------------------------------


@pytest.fixture
def deploying(settings):
    """A cluster with a deployment beside one that serves, the reconciler, and its clock."""
    canary = {"photos-1": 50, "a": 50}
    endpoint = _annotate(
        make_endpoint(canary, trafficSplit={"a": 100}),
        Record(type="DeployModel", name="photos-1", uid="uid-photos-1", split=canary, before={"a": 100}),
    )
    made = _deployed(Record(type="DeployModel", split=canary, before={"a": 100}, timeout=TIMEOUT))
    cluster = FakeCluster(make_model(), endpoint, make_deployed_model("a", available=True), made)
    cluster.objects["DeployedModel", "a"]["metadata"]["uid"] = "uid-a"
    clock = Clock()
    return cluster, Reconciler(cluster, FakeProber(), settings, clock), clock


async def test_deployment_that_comes_to_nothing_leaves_nothing(deploying):
    cluster, reconciler, clock = deploying
    assert await reconciler.reconcile(ENDPOINT) == TIMEOUT
    await reconciler.reconcile(DM)
    assert ("Deployment", "dm-photos-1") in cluster.objects
    clock.now = LATE
    await reconciler.reconcile(ENDPOINT)
    [failed] = cluster.objects["Endpoint", "photos"]["status"]["operations"]
    assert (failed["id"], failed["state"], failed["reason"]) == (ID, "Failed", "DeadlineExceeded")
    await reconciler.reconcile(DM)
    assert ("event", "DeployedModel", "DeadlineExceeded") in cluster.calls
    assert ("DeployedModel", "photos-1") not in cluster.objects
    assert await reconciler.reconcile(ENDPOINT) is None
    endpoint = cluster.objects["Endpoint", "photos"]
    assert endpoint["spec"]["trafficSplit"] == {"photos-1": 50, "a": 50}  # nobody's but its author's
    assert endpoint["status"]["trafficSplit"] == {"a": 100}
    assert cluster.ready(ENDPOINT)[1] != "DeployedModelNotFound"
    cluster.calls.clear()
    await reconciler.reconcile(ENDPOINT)
    assert cluster.calls == []


async def test_who_may_write_a_deployed_model_alone_cannot_have_it_deleted(deploying):
    cluster, reconciler, _ = deploying
    endpoint = cluster.objects["Endpoint", "photos"]
    del endpoint["metadata"]["annotations"]
    _remember(endpoint, {"id": ID, "state": "Failed", "undone": True})
    await reconciler.reconcile(DM)
    assert ("DeployedModel", "photos-1") in cluster.objects


async def test_what_serves_after_all_stays(deploying):
    """The status that the operation was judged by was that of before the operator was away."""
    cluster, reconciler, clock = deploying
    await reconciler.reconcile(DM)
    clock.now = LATE
    await reconciler.reconcile(ENDPOINT)
    assert cluster.objects["Endpoint", "photos"]["status"]["operations"][0]["undone"]
    cluster.objects["Deployment", "dm-photos-1"]["status"] = SERVED
    await reconciler.reconcile(DM)
    assert ("DeployedModel", "photos-1") in cluster.objects


async def test_deployed_model_of_no_operation_is_never_undone(deploying):
    cluster, reconciler, clock = deploying
    del cluster.objects["DeployedModel", "photos-1"]["metadata"]["annotations"]
    clock.now = LATE
    for key in (ENDPOINT, DM, ENDPOINT, DM):
        await reconciler.reconcile(key)
    assert ("DeployedModel", "photos-1") in cluster.objects


async def test_deployment_that_served_is_never_undone(deploying):
    cluster, reconciler, clock = deploying
    live = cluster.objects["DeployedModel", "photos-1"]
    _remember(cluster.objects["Endpoint", "photos"], {"id": ID})
    _judge(live, ready=False, reason="CrashLooping", stalled=True)
    clock.now = LATE
    for key in (ENDPOINT, DM):
        await reconciler.reconcile(key)
    assert ("DeployedModel", "photos-1") in cluster.objects
