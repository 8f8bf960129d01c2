"""What Flux and Argo CD make of each status: Flux by its own kstatus, Argo CD by the script in config/argocd."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pierhead_operator.batch_status import Observed, compute_batch_status
from pierhead_operator.status import (
    Carried,
    Finding,
    Outcome,
    Traffic,
    Workload,
    compute_deployed_model_status,
    compute_endpoint_status,
    compute_model_status,
)
from pierhead_operator.types import BatchPredictionJob, DeployedModel, Endpoint, Model

from cluster import go_build
from cluster.settings import Paths

SCRIPT = Path(__file__).parents[2] / "config" / "argocd" / "health.lua"
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HEALTHY, PROGRESSING, SUSPENDED, DEGRADED = (
    ("Current", "Healthy"),
    ("InProgress", "Progressing"),
    ("InProgress", "Suspended"),
    ("Failed", "Degraded"),
)
COMPLETE = {
    "metadata": {"generation": 1},
    "status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1},
}


def _make(kind, spec, **status):
    metadata = {"name": "photos", "namespace": "default", "uid": "u", "generation": 3}
    return {"apiVersion": "pierhead.dev/v1", "kind": kind, "metadata": metadata, "spec": spec, "status": status}


def _model(problem=None):
    versions = [{"name": "1", "artifactUri": "gs://models/photos/1"}]
    manifest = _make("Model", {"defaultVersion": "1", "versions": versions})
    status = compute_model_status(Model.model_validate(manifest), problem and Finding(problem, "why"), "", NOW)
    return {**manifest, "status": status.dump()}


def _deployed_model(problem=None, deployment=None):
    manifest = _make("DeployedModel", {"endpoint": "photos", "model": "photos"})
    outcome = Outcome("1", problem and Finding(problem, "why"), Workload(deployment, ()))
    status = compute_deployed_model_status(DeployedModel.model_validate(manifest), outcome, NOW)
    return {**manifest, "status": status.dump()}


def _endpoint(split, effective, deployed_models=(), problem=None):
    manifest = _make("Endpoint", {})
    there = {name: DeployedModel.model_validate(_deployed_model()) for name in deployed_models}
    status = compute_endpoint_status(
        Endpoint.model_validate(manifest),
        Traffic(split, effective, there),
        Carried(effective, problem and Finding(problem, "why")),
        "/v1/path",
        NOW,
    )
    return {**manifest, "status": status.dump()}


def _batch(job=None, pods=(), problem=None, **spec):
    source = {"gcsSource": {"uris": ["gs://in/a"]}}
    destination = {"gcsDestination": {"outputUriPrefix": "gs://out"}}
    manifest = _make("BatchPredictionJob", {"model": "m", "inputConfig": source, "outputConfig": destination, **spec})
    observed = Observed("1", "gs://out/a", problem and Finding(problem, "why"), job, pods, ())
    status = compute_batch_status(BatchPredictionJob.model_validate(manifest), observed, NOW)
    return {**manifest, "status": status.dump()}


def _look_again(manifest):
    """A job that has ended, after another reconcile."""
    status = compute_batch_status(
        BatchPredictionJob.model_validate(manifest), Observed("1", "", None, None, (), ()), NOW
    )
    return {**manifest, "status": status.dump()}


def _job(condition=None, reason="", **fields):
    conditions = [{"type": condition, "status": "True", "reason": reason, "message": ""}] if condition else []
    return {"spec": fields, "status": {"conditions": conditions, "succeeded": 1}}


def _edited(manifest):
    return {**manifest, "metadata": {**manifest["metadata"], "generation": 4}}


RUNNING = {"metadata": {"name": "w"}, "status": {"phase": "Running"}}
ROWS = {
    "just created": (_make("DeployedModel", {}, observedGeneration=-1), PROGRESSING),
    "serving, then edited": (_edited(_deployed_model(deployment=COMPLETE)), PROGRESSING),
    "failed, then edited": (_edited(_deployed_model("ArtifactNotFound")), PROGRESSING),
    "model": (_model(), HEALTHY),
    "model whose route is somebody else's": (_model("NotOwned"), DEGRADED),
    "model whose route is refused for now": (_model("Rejected"), PROGRESSING),
    "serving": (_deployed_model(deployment=COMPLETE), HEALTHY),
    "starting": (_deployed_model(), PROGRESSING),
    # What comes in the same commit, or by the platform's care.
    **{reason: (_deployed_model(reason), PROGRESSING) for reason in (
        "ModelNotFound", "ModelVersionNotFound", "EndpointNotFound", "ArtifactUnreachable", "ImagePullFailed",
        "ContainerCreationFailed", "PodCreationFailed", "Unschedulable", "Rejected", "WaitingForCapacity", "NotReady",
        "ProbeFailed",
    )},
    # What somebody must mend.
    **{reason: (_deployed_model(reason), DEGRADED) for reason in (
        "MachineUnknown", "AcceleratorNotUsed", "NotOwned", "ArtifactNotFound", "ArtifactInvalid", "OutOfMemory", "ModelProcessDied",
        "ModelProcessDies", "CrashLooping", "SettingsInvalid",
    )},
    "endpoint": (_endpoint({"a": 100}, {"a": 100}, "a"), HEALTHY),
    "endpoint with nothing on it": (_endpoint(None, {}), PROGRESSING),
    "endpoint whose split is ahead": (_endpoint({"a": 50, "b": 50}, {"a": 100}, "a"), PROGRESSING),
    "endpoint that waits": (_endpoint({"a": 50, "b": 50}, {"a": 100}, "ab"), PROGRESSING),
    "endpoint without a split": (_endpoint(None, {"a": 100}, "ab"), PROGRESSING),
    "endpoint whose gateway waits": (_endpoint({"a": 100}, {"a": 100}, "a", "RoutePending"), PROGRESSING),
    "endpoint whose gateway refuses": (_endpoint({"a": 100}, {"a": 100}, "a", "RouteNotAccepted"), DEGRADED),
    "endpoint of no gateway": (_endpoint({"a": 100}, {"a": 100}, "a", "AccessNotOffered"), DEGRADED),
    "job, just made": (_batch(), PROGRESSING),
    "job without its model": (_batch(problem="ModelNotFound"), PROGRESSING),
    "job that starts": (_batch(_job()), PROGRESSING),
    "job that runs": (_batch(_job(), [RUNNING]), PROGRESSING),
    "job in a queue": (_batch(_job(suspend=True)), SUSPENDED),
    "job that has succeeded": (_batch(_job("Complete")), HEALTHY),
    "job that has succeeded, then edited": (_look_again(_edited(_batch(_job("Complete")))), HEALTHY),
    "job that has failed": (_batch(_job("Failed", "BackoffLimitExceeded")), DEGRADED),
    "job that has failed in part": (_batch(_job("Failed", "FailedIndexes")), DEGRADED),
    "job that was too late": (_batch(_job("Failed", "DeadlineExceeded")), DEGRADED),
    "job of a machine that is none": (_batch(problem="MachineUnknown"), DEGRADED),
    "job that is being cancelled": (_batch(_job(), [RUNNING], cancel=True), PROGRESSING),
    "job that was cancelled": (_batch(cancel=True), DEGRADED),
}  # fmt: skip


@pytest.fixture(scope="module")
def judged():
    """What both make of each row."""
    paths = Paths.from_environment()
    go_build.build(paths, [go_build.HEALTH])
    question = {"script": SCRIPT.read_text(), "objects": [manifest for manifest, _ in ROWS.values()]}
    argv = [go_build.HEALTH.binary(paths, "health")]
    stdout = subprocess.run(
        argv, input=json.dumps(question), stdout=subprocess.PIPE, text=True, timeout=60, check=True
    ).stdout
    return dict(zip(ROWS, json.loads(stdout), strict=True))


@pytest.mark.parametrize("name", ROWS)
def test_flux_and_argo_cd_agree_on_a_status(judged, name):
    _, (flux, argo_cd) = ROWS[name]
    assert (judged[name]["flux"]["status"], judged[name]["argocd"]["status"]) == (flux, argo_cd)
    assert judged[name]["argocd"]["message"]


def test_argo_cd_is_told_the_cause(judged):
    assert judged["ArtifactNotFound"]["argocd"]["message"] == "ArtifactNotFound: why"
