"""Tables: what was observed -> what the conditions say."""

from datetime import timedelta

import pytest
from pierhead_operator.status import (
    AVAILABLE,
    READY,
    SERVER_REASONS,
    Finding,
    Traffic,
    Workload,
    compute_deployed_model_status,
    compute_endpoint_status,
    explain_pod,
    explain_route,
    transition_event,
)
from pierhead_operator.types import DeployedModel, DeployedModelStatus, Endpoint
from pierhead_server.errors import StartupError

from tests.unit.operator.conftest import NOW, make_deployed_model, make_endpoint


def make_deployment(replicas=1, updated=1, available=1, observed=7, conditions=()):
    status = {"observedGeneration": observed, "replicas": replicas, "updatedReplicas": updated}
    if available:
        status["availableReplicas"] = available
    status["conditions"] = list(conditions)
    return {"metadata": {"name": "dm-photos-1", "generation": 7}, "status": status}


def make_pod(name="p", state=None, last_state=None, ready=False, conditions=(), deleting=False):
    container = {"name": "server", "image": "i", "state": state or {"running": {}}, "lastState": last_state or {}}
    return {
        "metadata": {"name": name} | ({"deletionTimestamp": "2026-11-22T00:00:00Z"} if deleting else {}),
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}, *conditions],
            "containerStatuses": [container],
        },
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
}


@pytest.mark.parametrize(("pod", "expected"), PODS.values(), ids=PODS.keys())
def test_explain_pod(pod, expected):
    assert explain_pod(pod) == expected


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
    "no GPU": ({}, make_deployment(available=0), [make_pod(conditions=[UNSCHEDULABLE])], None, "False", "Unschedulable", "False"),
    "quota": ({}, make_deployment(replicas=0, updated=0, available=0, conditions=[QUOTA]), [], None, "False", "PodCreationFailed", "False"),
    "model gone, pods still serve": (
        {}, make_deployment(), [make_pod(ready=True)], Finding("ModelNotFound", "no Model photos"), "False", "ModelNotFound", "True",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", WORKLOADS.values(), ids=WORKLOADS.keys())
def test_deployed_model_status(row):
    spec, deployment, pods, problem, ready, reason, available = row
    dm = DeployedModel.model_validate(make_deployed_model(**spec))
    status = compute_deployed_model_status(dm, "1", problem, Workload(deployment, pods), NOW)
    found = status.condition(READY)
    assert (found.status, found.reason) == (ready, reason)
    assert found.message
    assert status.condition(AVAILABLE).status == available
    assert status.observed_generation == 3
    assert status.model_version == "1"


def test_deployed_model_status_is_stable(deployed_model):
    """A second look at the same, later and with the pods in another order, gives the same status: no write."""
    pods = [CRASHED, make_pod("other", conditions=[UNSCHEDULABLE])]
    deployment = make_deployment(available=0)
    first = compute_deployed_model_status(deployed_model, "1", None, Workload(deployment, pods), NOW)
    seen = deployed_model.model_copy(update={"status": DeployedModelStatus.model_validate(first.dump())})
    later = NOW + timedelta(minutes=5)
    assert compute_deployed_model_status(seen, "1", None, Workload(deployment, pods[::-1]), later) == seen.status


def test_condition_keeps_its_transition_time_until_its_status_changes(deployed_model):
    starting = compute_deployed_model_status(deployed_model, "1", None, Workload(make_deployment(available=0), []), NOW)
    dm = deployed_model.model_copy(update={"status": starting})
    later = NOW + timedelta(minutes=1)
    crashed = compute_deployed_model_status(dm, "1", None, Workload(make_deployment(available=0), [CRASHED]), later)
    assert crashed.condition(READY).last_transition_time == NOW
    serving = compute_deployed_model_status(dm, "1", None, Workload(make_deployment(), []), later)
    assert serving.condition(READY).last_transition_time == later


def test_event_only_on_transitions(deployed_model):
    nothing = deployed_model.status
    starting = compute_deployed_model_status(deployed_model, "1", None, Workload(make_deployment(available=0), []), NOW)
    assert transition_event(nothing, starting).type == "Normal"
    assert transition_event(starting, starting) is None
    dm = deployed_model.model_copy(update={"status": starting})
    crashed = compute_deployed_model_status(dm, "1", None, Workload(make_deployment(available=0), [CRASHED]), NOW)
    event = transition_event(starting, crashed)
    assert (event.type, event.reason, event.message) == ("Warning", "ArtifactNotFound", "nothing there")
    serving = compute_deployed_model_status(dm, "1", None, Workload(make_deployment(), []), NOW)
    assert transition_event(crashed, serving).type == "Normal"


def _dms(**available):
    return {
        name.replace("_", "-"): DeployedModel.model_validate(make_deployed_model(name.replace("_", "-"), value))
        for name, value in available.items()
    }


# split, DeployedModels, effective, route's problem -> status, reason, part of the message
TRAFFIC = {
    "empty endpoint": (None, {}, {}, None, "False", "NoDeployedModel", "spec.endpoint photos"),
    "two and no split": (None, _dms(a=True, b=True), {}, None, "False", "TrafficSplitMissing", "how a, b share"),
    "unknown part": ({"a": 90, "x": 10}, _dms(a=True), {"a": 100}, None, "False", "DeployedModelNotFound", "names x"),
    "waiting": ({"a": 80, "b": 20}, _dms(a=True, b=False), {"a": 100}, None, "False", "WaitingForDeployedModels",
                "b does not serve yet (Progressing: m); traffic now goes to a 100 %"),
    "nobody": ({"a": 100}, _dms(a=False), {}, None, "False", "WaitingForDeployedModels", "nobody answers yet"),
    "applied": ({"a": 80, "b": 20}, _dms(a=True, b=True), {"a": 80, "b": 20}, None, "True", "TrafficApplied", "a 80 %, b 20 %"),
    "route refused": ({"a": 100}, _dms(a=True), {"a": 100}, Finding("RouteNotAccepted", "no listener"), "False",
                      "RouteNotAccepted", "no listener"),
}  # fmt: skip


@pytest.mark.parametrize("row", TRAFFIC.values(), ids=TRAFFIC.keys())
def test_endpoint_status(row):
    split, there, effective, problem, ready, reason, message = row
    endpoint = Endpoint.model_validate(make_endpoint(split))
    wanted = split if split or len(there) != 1 else dict.fromkeys(there, 100)
    status = compute_endpoint_status(endpoint, Traffic(wanted, effective, there), "/p", problem, NOW)
    found = status.condition(READY)
    assert (found.status, found.reason) == (ready, reason)
    assert message in found.message
    assert status.traffic_split == effective


def _route(*conditions, parent="public"):
    entry = {"parentRef": {"namespace": "gateways", "name": parent}, "conditions": list(conditions)}
    return {"metadata": {"generation": 2}, "status": {"parents": [entry]}}


def _judged(type_, status="True", generation=2):
    return {"type": type_, "status": status, "observedGeneration": generation, "reason": "R", "message": "m"}


def test_every_cause_that_the_server_tells_is_known():
    assert {error.reason for error in StartupError.__subclasses__()} == set(SERVER_REASONS)


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
