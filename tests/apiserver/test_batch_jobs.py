"""What of a running Job follows its BatchPredictionJob, and what Kueue changes of it, on a real API server."""

import json

import pytest

from tests.batch import make_batch
from tests.e2e.conftest import make_model
from tests.kube import wait_until

# The node has no GPU: no worker runs.
GPU = {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
KUEUE = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "low"}


def _make(kubectl, labels=None, counts=None, **spec):
    """A job, `job`, and its Job once that is there."""
    resources = {"machineSpec": GPU, **(counts or {})}
    batch = make_batch("job", ["gs://batch-in/lines.jsonl"], dedicatedResources=resources, **spec)
    batch["metadata"]["labels"] = labels or {}
    kubectl.apply(make_model(v1="photos/1"), batch)
    return wait_until("its Job is there", lambda: kubectl.get("job", "bpj-job"), seconds=30)


def _let_operator_look(kubectl):
    """Until it has looked at a spec that was edited just now, in what is of no interest before the end."""
    before = kubectl.get("batchpredictionjob", "job")
    seconds = before["spec"].get("ttlSecondsAfterFinished", 0) + 3600
    kubectl.patch("batchpredictionjob", "job", {"spec": {"ttlSecondsAfterFinished": seconds}})
    wanted = kubectl.get("batchpredictionjob", "job")["metadata"]["generation"]
    wait_until(
        "the operator has looked",
        lambda: kubectl.get("batchpredictionjob", "job")["status"]["observedGeneration"] == wanted,
        seconds=30,
    )


@pytest.mark.parametrize("first", [3600, None], ids=["made-with-it", "it-came-later"])
def test_deadline_that_is_taken_away_is_taken_from_the_job(kubectl, first):
    _make(kubectl, **({"activeDeadlineSeconds": first} if first else {}))
    for seconds in (7200, None):
        kubectl.patch("batchpredictionjob", "job", {"spec": {"activeDeadlineSeconds": seconds}})
        wait_until(
            f"the deadline is {seconds}",
            lambda seconds=seconds: kubectl.get("job", "bpj-job")["spec"].get("activeDeadlineSeconds") == seconds,
            seconds=30,
        )


def test_deadline_of_somebody_else_is_left_alone(kubectl):
    _make(kubectl)
    kubectl.patch("job", "bpj-job", {"spec": {"activeDeadlineSeconds": 3600}})
    _let_operator_look(kubectl)
    assert kubectl.get("job", "bpj-job")["spec"]["activeDeadlineSeconds"] == 3600


def test_no_more_workers_than_at_first_wait_for_room(kubectl):
    job = _make(kubectl, counts={"startingReplicaCount": 2, "maxReplicaCount": 5})
    assert (job["spec"]["parallelism"], job["spec"]["completions"]) == (2, 5)
    wait_until("two wait", lambda: len(_find_pods(kubectl)) == 2, seconds=30)
    _let_operator_look(kubectl)
    assert len(_find_pods(kubectl)) == 2
    assert kubectl.get("job", "bpj-job")["spec"]["parallelism"] == 2


def _find_pods(kubectl):
    return kubectl.items("pods", "pierhead.dev/batch-prediction-job=job")


def test_what_kueue_changes_stays(kubectl):
    job = _make(kubectl, KUEUE, {"startingReplicaCount": 2, "maxReplicaCount": 5})
    assert job["metadata"]["labels"].items() >= KUEUE.items()
    assert job["metadata"]["annotations"]["kueue.x-k8s.io/job-min-parallelism"] == "2"
    assert (job["spec"]["suspend"], job["spec"]["parallelism"]) == (True, 5)
    template = {
        "metadata": {"labels": {"kueue.x-k8s.io/podset": "main"}},
        "spec": {"nodeSelector": {"pool": "spot"}, "tolerations": [{"key": "spot", "operator": "Exists"}]},
    }
    kubectl.patch("job", "bpj-job", {"spec": {"template": template, "parallelism": 3, "suspend": False}})
    wait_until("three wait", lambda: len(_find_pods(kubectl)) == 3, seconds=30)
    before = _read_spec(kubectl)
    _let_operator_look(kubectl)
    assert _read_spec(kubectl) == before
    kubectl.patch("job", "bpj-job", {"spec": {"suspend": True}})  # it takes the room back
    _let_operator_look(kubectl)
    assert _read_spec(kubectl)["suspend"] is True


def _read_spec(kubectl):
    return json.loads(kubectl("get", "job", "bpj-job", "--output", "json"))["spec"]


def test_folder_stays_as_it_was_told_at_first(kubectl):
    job = _make(kubectl)
    uid = kubectl.get("batchpredictionjob", "job")["metadata"]["uid"]
    told = kubectl.get("batchpredictionjob", "job")["status"]["outputInfo"]["gcsOutputDirectory"]
    assert told.endswith(f"_{uid[:8]}Z")
    assert told in json.dumps(job)
    kubectl.patch("model", "photos", {"spec": {"displayName": "Photographs"}})
    _let_operator_look(kubectl)
    assert kubectl.get("batchpredictionjob", "job")["status"]["outputInfo"]["gcsOutputDirectory"] == told
