"""Tables: what was observed -> what the conditions say."""

from datetime import timedelta

import pytest
from pierhead_operator import status as vocabulary
from pierhead_operator.status import (
    AVAILABLE,
    PROGRESSING,
    READY,
    SERVER_REASONS,
    STALLED,
    TRAFFIC_APPLIED,
    Carried,
    Finding,
    Outcome,
    Traffic,
    Workload,
    compute_deployed_model_status,
    compute_endpoint_status,
    compute_model_status,
    explain_mirror,
    explain_pod,
    explain_route,
    find_unready,
    parse_readiness,
    transition_event,
)
from pierhead_operator.types import DeployedModel, DeployedModelStatus, Endpoint, EndpointStatus
from pierhead_server import app
from pierhead_server.batch.errors import InputNotFoundError
from pierhead_server.errors import StartupError

from tests.unit.operator.conftest import NOW, make_deployed_model, make_endpoint


def make_deployment(replicas=1, updated=1, available=1, observed=7, conditions=(), surge=1):
    status = {"observedGeneration": observed, "replicas": replicas, "updatedReplicas": updated}
    if available:
        status["availableReplicas"] = available
    status["conditions"] = list(conditions)
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1 - surge}}
    return {"metadata": {"name": "dm-photos-1", "generation": 7}, "spec": {"strategy": strategy}, "status": status}


def judge(dm, deployment, pods=(), now=NOW, problem=None, silence=None, told=None):
    """The status of a DeployedModel of version 1."""
    workload = Workload(deployment, pods, told or {})
    return compute_deployed_model_status(dm, Outcome("1", problem, workload, silence), now)


def make_pod(name="p", state=None, last_state=None, ready=False, conditions=(), deleting=False, started=False, ip=""):
    container = {"name": "server", "image": "i", "state": state or {"running": {}}, "lastState": last_state or {}}
    container |= {"started": started, "ready": ready}
    return {
        "metadata": {"name": name} | ({"deletionTimestamp": "2026-11-22T00:00:00Z"} if deleting else {}),
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}, *conditions],
            "containerStatuses": [container],
        }
        | ({"podIP": ip} if ip else {}),
    }


def terminated(message="", code=1, reason="Error"):
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": GPU}
BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}

PODS = {
    "ready": (make_pod(ready=True), None),
    "starting": (make_pod(), None),
    "leaving": (make_pod(state=terminated(), deleting=True), None),
    "ready again after a crash": (make_pod(ready=True, last_state=terminated("boom")), None),
    "image": (
        make_pod(state={"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}}),
        Finding("ImagePullFailed", 'Back-off pulling image "x"'),
    ),
    "config": (
        make_pod(state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}}),
        Finding("ContainerCreationFailed", 'secret "s" not found'),
    ),
    "artifact not found": (
        make_pod(state=terminated("ArtifactNotFound: gs://models/photos/9 holds nothing")),
        Finding("ArtifactNotFound", "gs://models/photos/9 holds nothing"),
    ),
    "artifact not found, backing off": (
        make_pod(state=BACK_OFF, last_state=terminated("ArtifactNotFound: gs://models/photos/9 holds nothing\n")),
        Finding("ArtifactNotFound", "gs://models/photos/9 holds nothing"),
    ),
    "running again between two crashes": (
        make_pod(last_state=terminated("ArtifactInvalid: model.yaml: no such architecture")),
        Finding("ArtifactInvalid", "model.yaml: no such architecture"),
    ),
    "crash": (
        make_pod(state=BACK_OFF, last_state=terminated("Traceback ...\nValueError: bad", code=3)),
        Finding("CrashLooping", "the server ended with exit code 3: Traceback ...\nValueError: bad"),
    ),
    "crash without a word": (
        make_pod(state=terminated(code=139)),
        Finding("CrashLooping", "the server ended with exit code 139: it left no message"),
    ),
    "out of memory": (
        make_pod(state=BACK_OFF, last_state=terminated(code=137, reason="OOMKilled")),
        Finding("OutOfMemory", "the server was killed because it used more than its memory limit"),
    ),
    "no GPU": (make_pod(conditions=[UNSCHEDULABLE]), Finding("Unschedulable", GPU)),
    "no longer ready": (
        make_pod(started=True),
        Finding("NotReady", "the server runs, but says that it is not ready: its log tells why"),
    ),
}


@pytest.mark.parametrize(("pod", "expected"), PODS.values(), ids=PODS.keys())
def test_explain_pod(pod, expected):
    assert explain_pod(pod) == expected


DIES = Finding("ModelProcessDies", "the model's process died 3 times within 60 s: exit code 3; its last words: boom")


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (make_pod(started=True), DIES),
        (make_pod(started=True, last_state=terminated("boom")), DIES),
        (make_pod("other", started=True), PODS["no longer ready"][1]),
        (make_pod(started=True, ready=True), None),
        (make_pod(started=True, deleting=True), None),
    ],
    ids=["says so", "now, whatever was before", "another pod says so", "ready again", "leaving"],
)
def test_what_a_pod_says_of_itself_counts_while_it_is_not_ready(pod, expected):
    assert explain_pod(pod, {"p": DIES}) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (f"ModelProcessDies: {DIES.message}", DIES),
        ("the model's process died (SIGSEGV) and is starting anew", None),
        ("ArtifactInvalid: says who", None),
        ("ModelProcessDies", Finding("ModelProcessDies", "")),
        ("", None),
    ],
)
def test_server_tells_some_causes_by_its_readiness(message, expected):
    assert parse_readiness(message) == expected


def test_those_that_know_why_they_are_not_ready_are_found():
    pods = [
        make_pod("starts", ip="10.0.0.1"),
        make_pod("serves", ip="10.0.0.2", started=True, ready=True),
        make_pod("is-unready", ip="10.0.0.3", started=True),
        make_pod("leaves", ip="10.0.0.4", started=True, deleting=True),
        make_pod("has-no-address-yet", started=True),
        {"metadata": {"name": "new"}},
    ]
    assert find_unready(pods) == {"is-unready": "10.0.0.3"}


def test_model_that_dies_again_and_again_is_stalled_and_gets_no_traffic(deployed_model):
    pods = [make_pod(started=True)]
    status = judge(deployed_model, make_deployment(available=0), pods, told={"p": DIES})
    assert (status.condition(READY).reason, status.condition(READY).message) == (DIES.reason, DIES.message)
    assert [status.condition(type_).status for type_ in (READY, AVAILABLE, STALLED)] == ["False", "False", "True"]
    beside = judge(deployed_model, make_deployment(replicas=2), [*pods, make_pod("q", ready=True)], told={"p": DIES})
    assert beside.condition(READY).reason == DIES.reason
    assert beside.condition(AVAILABLE).status == "True", "another pod answers"


QUOTA = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}
CRASHED = make_pod("crashed", state=terminated("ArtifactNotFound: nothing there"))
# spec, deployment, pods, problem -> Ready's status and reason, Available
WORKLOADS = {
    "nothing yet": ({}, None, [], None, "False", "Progressing", "False"),
    "starting": ({}, make_deployment(available=0), [make_pod()], None, "False", "Progressing", "False"),
    "serving": ({}, make_deployment(), [make_pod(ready=True)], None, "True", "Serving", "True"),
    "change not seen yet": ({}, make_deployment(observed=6), [make_pod(ready=True)], None, "False", "Progressing", "True"),
    "rolling": ({}, make_deployment(replicas=2), [make_pod(ready=True), make_pod()], None, "False", "Progressing", "True"),
    "rollout broken, old pods serve": (
        {}, make_deployment(replicas=2), [make_pod(ready=True), CRASHED], None, "False", "ArtifactNotFound", "True",
    ),
    "crash loop is never Ready": (
        {"automaticResources": {"maxReplicaCount": 2}},
        make_deployment(replicas=2, updated=2), [make_pod(ready=True), CRASHED], None, "False", "ArtifactNotFound", "True",
    ),
    "autoscaler waits for a node": (
        {"automaticResources": {"maxReplicaCount": 2}},
        make_deployment(replicas=2, updated=2), [make_pod(ready=True), make_pod(conditions=[UNSCHEDULABLE])],
        None, "True", "Serving", "True",
    ),
    "scaled up, second pod starts": (
        {"automaticResources": {"maxReplicaCount": 2}},
        make_deployment(replicas=2, updated=2), [make_pod(ready=True), make_pod()], None, "True", "Serving", "True",
    ),
    "minimum not there": (
        {"automaticResources": {"minReplicaCount": 2}},
        make_deployment(replicas=2, updated=2), [make_pod(ready=True), make_pod()], None, "False", "Progressing", "True",
    ),
    "update waits for the GPU that the old pod holds": (
        {}, make_deployment(replicas=2), [make_pod(ready=True), make_pod(conditions=[UNSCHEDULABLE])],
        None, "False", "WaitingForCapacity", "True",
    ),
    "update in place": (
        {}, make_deployment(replicas=1, updated=0, surge=0), [make_pod(ready=True, deleting=True)],
        None, "False", "WaitingForCapacity", "True",
    ),
    "update without a surge, as it is wanted": (
        {"rolloutOptions": {"maxSurgeReplicas": 0, "maxUnavailableReplicas": 1}},
        make_deployment(replicas=1, updated=0, surge=0), [make_pod(ready=True, deleting=True)],
        None, "False", "Progressing", "True",
    ),
    "no GPU": ({}, make_deployment(available=0), [make_pod(conditions=[UNSCHEDULABLE])], None, "False", "Unschedulable", "False"),
    "quota": ({}, make_deployment(replicas=0, updated=0, available=0, conditions=[QUOTA]), [], None, "False", "PodCreationFailed", "False"),
    "update waits for the quota that the old pod uses": (
        {}, make_deployment(replicas=1, updated=0, conditions=[QUOTA]), [make_pod(ready=True)],
        None, "False", "WaitingForCapacity", "True",
    ),
    "update is refused": (
        {}, make_deployment(replicas=1, updated=0, conditions=[{**QUOTA, "message": "violates PodSecurity"}]), [make_pod(ready=True)],
        None, "False", "PodCreationFailed", "True",
    ),
    "model gone, pods still serve": (
        {}, make_deployment(), [make_pod(ready=True)], Finding("ModelNotFound", "no Model photos"), "False", "ModelNotFound", "True",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", WORKLOADS.values(), ids=WORKLOADS.keys())
def test_deployed_model_status(row):
    spec, deployment, pods, problem, ready, reason, available = row
    dm = DeployedModel.model_validate(make_deployed_model(**spec))
    status = judge(dm, deployment, pods, problem=problem)
    found = status.condition(READY)
    assert (found.status, found.reason) == (ready, reason)
    assert found.message
    assert status.condition(AVAILABLE).status == available
    assert status.observed_generation == 3
    assert status.model_version == "1"


def test_pods_that_do_not_answer_through_their_service_are_not_available(deployed_model):
    status = judge(deployed_model, make_deployment(), [make_pod(ready=True)], silence="answered with 500")
    assert status.condition(AVAILABLE).status == "False"
    assert (status.condition(READY).reason, status.condition(READY).message) == ("ProbeFailed", "answered with 500")
    assert status.available_replica_count == 0


def test_status_counts_replicas_and_says_where_they_answer(deployed_model):
    deployment = make_deployment(replicas=3, updated=3, available=2)
    deployment["status"]["readyReplicas"] = 2
    status = judge(deployed_model, deployment)
    assert (status.replicas, status.ready_replicas, status.available_replica_count) == (3, 2, 2)
    assert status.url == "http://dm-photos-1.default.svc"


REASONS = sorted(value for name, value in vars(vocabulary).items() if name.startswith("REASON_"))


@pytest.mark.parametrize("reason", REASONS)
def test_what_is_not_ready_progresses_or_is_stalled(deployed_model, reason):
    """As kstatus reads it: a resource is current, in progress or failed, and never two of them."""
    status = judge(deployed_model, make_deployment(), problem=Finding(reason, "m"))
    values = {type_: status.condition(type_).status for type_ in (READY, PROGRESSING, STALLED)}
    assert values[READY] == "False"
    assert sorted((values[PROGRESSING], values[STALLED])) == ["False", "True"]
    assert all(condition.message for condition in status.conditions if condition.type != AVAILABLE)


def test_what_is_ready_neither_progresses_nor_is_stalled(deployed_model):
    status = judge(deployed_model, make_deployment(), [make_pod(ready=True)])
    assert [status.condition(type_).status for type_ in (READY, PROGRESSING, STALLED)] == ["True", "False", "False"]


def test_model_tells_whom_its_paths_do_not_lead_to(model):
    ready = compute_model_status(model, None, "version 1 is served by 17", NOW).condition("Ready")
    assert (ready.status, ready.message) == ("True", "the default version is 1; version 1 is served by 17")


@pytest.mark.parametrize(
    ("problem", "values"),
    [
        (None, ["True", "False", "False"]),
        (Finding("Rejected", "quota"), ["False", "True", "False"]),
        (Finding("NotOwned", "HTTPRoute mdl-photos belongs to somebody else"), ["False", "False", "True"]),
    ],
)
def test_model_progresses_or_is_stalled_too(model, problem, values):
    status = compute_model_status(model, problem, "", NOW)
    assert [status.condition(type_).status for type_ in (READY, PROGRESSING, STALLED)] == values


def test_deployed_model_status_is_stable(deployed_model):
    """A second look at the same, later and with the pods in another order, gives the same status: no write."""
    pods = [CRASHED, make_pod("other", conditions=[UNSCHEDULABLE])]
    deployment = make_deployment(available=0)
    first = judge(deployed_model, deployment, pods)
    seen = deployed_model.model_copy(update={"status": DeployedModelStatus.model_validate(first.dump())})
    later = NOW + timedelta(minutes=5)
    assert judge(seen, deployment, pods[::-1], later) == seen.status


def test_condition_keeps_its_transition_time_until_its_status_changes(deployed_model):
    starting = judge(deployed_model, make_deployment(available=0))
    dm = deployed_model.model_copy(update={"status": starting})
    later = NOW + timedelta(minutes=1)
    crashed = judge(dm, make_deployment(available=0), [CRASHED], later)
    assert crashed.condition(READY).last_transition_time == NOW
    serving = judge(dm, make_deployment(), now=later)
    assert serving.condition(READY).last_transition_time == later


def test_event_only_on_transitions(deployed_model):
    nothing = deployed_model.status
    starting = judge(deployed_model, make_deployment(available=0))
    assert transition_event(nothing, starting) is None, "each step on the way would be one"
    assert transition_event(starting, starting) is None
    dm = deployed_model.model_copy(update={"status": starting})
    crashed = judge(dm, make_deployment(available=0), [CRASHED], NOW)
    event = transition_event(starting, crashed)
    assert (event.type, event.reason, event.message) == ("Warning", "ArtifactNotFound", "nothing there")
    assert transition_event(crashed, starting) is None
    serving = judge(dm, make_deployment(), now=NOW)
    assert transition_event(crashed, serving).type == "Normal"
    leaving = transition_event(serving, starting)
    assert (leaving.type, leaving.reason) == ("Normal", "Progressing")


def _dms(**available):
    return {
        name.replace("_", "-"): DeployedModel.model_validate(make_deployed_model(name.replace("_", "-"), value))
        for name, value in available.items()
    }


def _few(name, answering, minimum):
    live = make_deployed_model(name, True, dedicatedResources={"minReplicaCount": minimum})
    live["status"]["availableReplicaCount"] = answering
    return {name: DeployedModel.model_validate(live)}


# split, DeployedModels, effective, route's problem -> status, reason, part of the message
TRAFFIC = {
    "empty endpoint": (None, {}, {}, None, "False", "NoDeployedModel", "spec.endpoint photos"),
    "two and no split": (None, _dms(a=True, b=True), {}, None, "False", "TrafficSplitMissing", "how a, b share"),
    "unknown part": ({"a": 90, "x": 10}, _dms(a=True), {"a": 100}, None, "False", "DeployedModelNotFound", "names x"),
    "waiting": ({"a": 80, "b": 20}, _dms(a=True, b=False), {"a": 100}, None, "False", "WaitingForDeployedModels",
                "b does not serve yet (Progressing); traffic now goes to a 100 %"),
    "too few of its own": ({"b": 100}, _few("a", 20, 20) | _few("b", 3, 20), {"a": 87, "b": 13}, None, "False",
                           "WaitingForDeployedModels", "b: 3 of 20 needed replicas answer; traffic now goes to a 87 %, b 13 %"),
    "too few to take over": ({"b": 100}, _few("a", 5, 5) | _few("b", 3, 20), {"a": 63, "b": 37}, None, "False",
                             "WaitingForDeployedModels", "b: 3 of 5 needed replicas answer; traffic now"),
    "nobody": ({"a": 100}, _dms(a=False), {}, None, "False", "WaitingForDeployedModels", "nobody answers yet"),
    "applied": ({"a": 80, "b": 20}, _dms(a=True, b=True), {"a": 80, "b": 20}, None, "True", "TrafficApplied", "a 80 %, b 20 %"),
    "route refused": ({"a": 100}, _dms(a=True), {"a": 100}, Finding("RouteNotAccepted", "no listener"), "False",
                      "RouteNotAccepted", "no listener"),
    "route not ours": ({"a": 100}, _dms(a=False), {}, Finding("NotOwned", "delete it"), "False", "NotOwned", "delete it"),
    "waiting, route too": ({"a": 100}, _dms(a=False), {}, Finding("RoutePending", "not yet"), "False",
                           "WaitingForDeployedModels", "nobody answers yet"),
}  # fmt: skip


@pytest.mark.parametrize("row", TRAFFIC.values(), ids=TRAFFIC.keys())
def test_endpoint_status(row):
    split, there, effective, problem, ready, reason, message = row
    endpoint = Endpoint.model_validate(make_endpoint(split))
    wanted = split if split or len(there) != 1 else dict.fromkeys(there, 100)
    traffic, carried = Traffic(wanted, effective, there), Carried(effective, problem)
    status = compute_endpoint_status(endpoint, traffic, carried, "/p", NOW)
    found = status.condition(READY)
    assert (found.status, found.reason) == (ready, reason)
    assert message in found.message
    assert status.traffic_split == effective
    assert status.condition(TRAFFIC_APPLIED).status == ("False" if problem else "True")


# what gets the copies, the DeployedModels -> part of the message, None where all is well
MIRRORS = {
    "serves": ("b", _dms(a=True, b=True), None),
    "has traffic itself": ("a", _dms(a=True), None),
    "does not serve": ("b", _dms(a=True, b=False), "b does not serve yet (Progressing)"),
    "is not there": ("x", _dms(a=True), "spec.mirror names x, which is no DeployedModel of this endpoint"),
}


@pytest.mark.parametrize(("mirror", "there", "message"), MIRRORS.values(), ids=MIRRORS.keys())
def test_mirror_that_gets_no_copies_is_told_and_traffic_is_well(mirror, there, message):
    live = make_endpoint({"a": 100})
    live["spec"]["mirror"] = {"deployedModel": mirror}
    endpoint = Endpoint.model_validate(live)
    traffic = Traffic({"a": 100}, {"a": 100}, there)
    carried = Carried({"a": 100}, None, explain_mirror(endpoint, traffic))
    status = compute_endpoint_status(endpoint, traffic, carried, "/p", NOW)
    ready = status.condition(READY)
    assert (ready.status, ready.reason) == (("False", "MirrorNotServing") if message else ("True", "TrafficApplied"))
    assert (message or "a 100 %") in ready.message
    assert status.condition(TRAFFIC_APPLIED).status == "True"
    assert status.condition(PROGRESSING).status == ("True" if message else "False")
    assert status.condition(STALLED).status == "False"


@pytest.mark.parametrize("reason", ["Rejected", "RouteNotAccepted"])
def test_mirror_hides_nothing_that_traffic_waits_for(reason):
    endpoint, uncopied = Endpoint.model_validate(make_endpoint({"a": 100})), Finding("MirrorNotServing", "b")
    traffic = Traffic({"a": 100}, {"a": 100}, _dms(a=True))
    status = compute_endpoint_status(endpoint, traffic, Carried({}, Finding(reason, "m"), uncopied), "/p", NOW)
    assert status.condition(READY).reason == reason


def test_endpoint_without_a_mirror_misses_none():
    endpoint = Endpoint.model_validate(make_endpoint({"a": 100}))
    assert explain_mirror(endpoint, Traffic({"a": 100}, {"a": 100}, _dms(a=True))) is None


def test_endpoint_tells_the_split_that_is_carried_and_not_the_one_to_be():
    endpoint = Endpoint.model_validate(make_endpoint({"b": 80, "c": 20}))
    traffic = Traffic({"b": 80, "c": 20}, {"a": 20, "b": 80}, _dms(a=True, b=True, c=False))
    status = compute_endpoint_status(endpoint, traffic, Carried({"a": 100}, Finding("Rejected", "no")), "/p", NOW)
    assert status.traffic_split == {"a": 100}
    assert status.condition(READY).message.endswith("traffic now goes to a 100 %")


def _route(*conditions, parent="public"):
    entry = {"parentRef": {"namespace": "gateways", "name": parent}, "conditions": list(conditions)}
    return {"metadata": {"generation": 2}, "status": {"parents": [entry]}}


def _judged(type_, status="True", generation=2):
    return {"type": type_, "status": status, "observedGeneration": generation, "reason": "R", "message": "m"}


def test_every_cause_that_the_server_tells_is_known():
    """And a batch worker, whose own are beside its module."""
    assert StartupError in InputNotFoundError.__bases__
    assert {error.reason for error in StartupError.__subclasses__()} == set(SERVER_REASONS)


def test_cause_that_the_server_tells_by_its_readiness_is_known():
    assert parse_readiness(f"{app.DIES}: why") == Finding("ModelProcessDies", "why")


ROUTES = {
    "no route": (None, None),
    "taken": (_route(_judged("Accepted"), _judged("ResolvedRefs")), None),
    "not judged": ({"metadata": {"generation": 2}}, "RoutePending"),
    "judged by another gateway": (_route(_judged("Accepted"), _judged("ResolvedRefs"), parent="x"), "RoutePending"),
    "an older one was judged": (_route(_judged("Accepted", generation=1), _judged("ResolvedRefs")), "RoutePending"),
    "refused": (_route(_judged("Accepted", "False"), _judged("ResolvedRefs")), "RouteNotAccepted"),
    "backend missing": (_route(_judged("Accepted"), _judged("ResolvedRefs", "False")), "RouteNotAccepted"),
}


@pytest.mark.parametrize(("route", "reason"), ROUTES.values(), ids=ROUTES.keys())
def test_explain_route(route, reason):
    finding = explain_route(route, [("gateways", "public")])
    assert (finding.reason if finding else None) == reason


def test_status_has_no_empty_map():
    """Server-side apply makes it null where the last entry goes, which the schema refuses."""
    assert "trafficSplit" not in EndpointStatus(traffic_split={}).dump()
    assert EndpointStatus(traffic_split={"a": 100}).dump()["trafficSplit"] == {"a": 100}
