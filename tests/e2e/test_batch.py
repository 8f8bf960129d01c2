"""Batch prediction on the real cluster: real storage, real workers, some of them killed."""

import base64
import json

import pytest

from tests.batch import (
    ENDED,
    Storage,
    count_predictions,
    kill_worker,
    make_batch,
    make_picture,
    read_output,
    read_parts,
    split_uri,
    state,
)
from tests.e2e.conftest import make_model, make_predictor_model, make_slow_echo, upload_predictor
from tests.kube import scale_operator, scratch_namespace, wait_until

LINES = 1000
PICTURE = make_picture()


@pytest.fixture(scope="module")
def storage(cluster):
    with Storage.connected() as storage:
        for bucket in ("batch-in", "batch-out"):
            storage.make_bucket(bucket)
        for number in range(LINES):
            storage.put("batch-in", f"pictures/{number:05d}.jpg", PICTURE)
        storage.put("batch-in", "corrupt.jpg", b"this is no picture")
        yield storage


@pytest.fixture(scope="module")
def photos(cluster):
    with scratch_namespace("batch") as kubectl:
        kubectl.apply(make_model(v1="photos/1"))
        yield kubectl


def _instance(content):
    return {"content": content, "mimeType": "image/jpeg"}


def _put_lines(storage, name, lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    storage.put("batch-in", name, text.encode())
    return f"gs://batch-in/{name}"


def _pictures(count=LINES):
    return [_instance(f"gs://batch-in/pictures/{number:05d}.jpg") for number in range(count)]


def _wait_end(kubectl, name, wanted="SUCCEEDED", seconds=300):
    wait_until(f"{name} ends", lambda: state(kubectl, name) in ENDED, seconds, interval=1)
    found = kubectl.get("batchpredictionjob", name)
    assert found["status"]["state"] == f"JOB_STATE_{wanted}", found["status"]
    return found["status"]


def _reason(kubectl, name):
    return kubectl.condition("batchpredictionjob", name).get("reason")


def _wait_reason(kubectl, name, reason):
    wait_until(f"{name} tells {reason}", lambda: _reason(kubectl, name) == reason, interval=1)
    return kubectl.condition("batchpredictionjob", name)


def _wait_chunk(storage, kubectl, name):
    """Until storage has one: the status tells of it some seconds later, and the worker may have ended by then."""
    folder = wait_until(
        f"{name} has a folder",
        lambda: (
            kubectl.get("batchpredictionjob", name).get("status", {}).get("outputInfo", {}).get("gcsOutputDirectory")
        ),
    )
    bucket, prefix = split_uri(folder)
    wait_until(f"{name} has committed a chunk", lambda: storage.list(bucket, f"{prefix}/.pierhead/parts/"))


# The installed operator stands still meanwhile.
@pytest.mark.exclusive
def test_every_line_comes_once_though_workers_and_the_operator_die(photos, storage):
    broken = [
        _instance("gs://batch-in/corrupt.jpg"),
        _instance("gs://batch-in/nowhere.jpg"),
        '{"content": "gs://batch-in/',
        _instance("not base64"),
    ]
    inline = _instance(base64.b64encode(PICTURE).decode())
    first = _put_lines(storage, "killed/1.jsonl", [*_pictures()[: LINES // 2], "", broken[0], inline, broken[2]])
    second = _put_lines(storage, "killed/2.jsonl", [broken[1], *_pictures()[LINES // 2 :], broken[3]])
    photos.apply(
        make_batch("killed", [f"{first.rpartition('/')[0]}/*.jsonl"], dedicatedResources={"startingReplicaCount": 2})
    )
    assert second.startswith(first[:20])
    _wait_chunk(storage, photos, "killed")
    assert kill_worker(photos, "killed")
    scale_operator(0)
    try:
        wait_until("another one runs", lambda: kill_worker(photos, "killed"), seconds=120)
    finally:
        scale_operator(1)
    status = _wait_end(photos, "killed")
    output = read_output(storage, status["outputInfo"]["gcsOutputDirectory"])
    assert "_SUCCESS" in output.names
    assert set(output.count().values()) == {1}
    assert len(output.predictions) == LINES + 1
    assert len(output.errors) == len(broken)
    assert all(record["prediction"]["displayNames"] == ["espresso"] for record in output.predictions)
    stats = status["completionStats"]
    assert (stats["successfulCount"], stats["failedCount"]) == (LINES + 1, len(broken))
    assert stats["incompleteCount"] == 0
    assert status["modelVersion"] == "v1"
    assert status["startTime"] <= status["endTime"]
    line = photos("get", "bpj", "killed", "--no-headers")
    assert "JOB_STATE_SUCCEEDED" in line
    assert "100%" in line


@pytest.fixture(scope="module")
def slow(cluster):
    """A model that takes its time, and starts soon: a namespace with it."""
    with scratch_namespace("slow") as kubectl:
        kubectl.apply(make_predictor_model(upload_predictor("slow-batch", make_slow_echo(0.02))))
        yield kubectl


def _wait_committed(kubectl, name):
    def committed():
        stats = kubectl.get("batchpredictionjob", name).get("status", {}).get("completionStats", {})
        return stats.get("successfulCount", 0)

    wait_until(f"{name} has committed something", committed, interval=1)


def test_cancelled_job_ends_and_what_was_committed_can_be_read(slow, storage):
    uri = _put_lines(storage, "cancelled.jsonl", [{"number": number} for number in range(20_000)])
    slow.apply(make_batch("cancelled", [uri], modelParameters={}))
    _wait_committed(slow, "cancelled")
    slow.patch("batchpredictionjob", "cancelled", {"spec": {"cancel": True}})
    wait_until("it is cancelled", lambda: state(slow, "cancelled") == "CANCELLED", seconds=30)
    status = slow.get("batchpredictionjob", "cancelled")["status"]
    parts = read_parts(storage, status["outputInfo"]["gcsOutputDirectory"])
    assert count_predictions(parts) >= status["completionStats"]["successfulCount"] > 0


def test_jobs_of_one_second_with_one_prefix_have_folders_of_their_own(slow, storage):
    lines = [{"number": number} for number in range(10)]
    uri = _put_lines(storage, "twins.jsonl", lines)
    names = [f"twin-{number}" for number in range(3)]
    slow.apply(*(make_batch(name, [uri], modelParameters={}) for name in names))
    made = {slow.get("batchpredictionjob", name)["metadata"]["creationTimestamp"] for name in names}
    assert len(made) < len(names), "at least two were made within one second"
    folders = [_wait_end(slow, name)["outputInfo"]["gcsOutputDirectory"] for name in names]
    assert len(set(folders)) == len(names)
    for folder in folders:
        output = read_output(storage, folder)
        assert "_SUCCESS" in output.names
        assert [record["instance"] for record in output.predictions] == lines


def test_more_workers_follow_once_the_first_one_runs(slow, storage):
    lines = [{"number": number} for number in range(3_000)]
    resources = {"startingReplicaCount": 1, "maxReplicaCount": 3}
    uri = _put_lines(storage, "growing.jsonl", lines)
    slow.apply(make_batch("growing", [uri], modelParameters={}, dedicatedResources=resources))
    wait_until("its Job is there", lambda: slow.get("job", "bpj-growing"))
    wait_until("all workers may run", lambda: slow.get("job", "bpj-growing")["spec"]["parallelism"] == 3)
    output = read_output(storage, _wait_end(slow, "growing")["outputInfo"]["gcsOutputDirectory"])
    assert [record["instance"] for record in output.predictions] == lines


def test_another_try_takes_what_the_one_before_had_committed(slow, storage):
    # Of which most are left when the deadline is set, however slow the machine is.
    lines = [{"number": number} for number in range(2_000)]
    slow.apply(make_batch("again", [_put_lines(storage, "again.jsonl", lines)], modelParameters={}))
    _wait_committed(slow, "again")
    slow.patch("batchpredictionjob", "again", {"spec": {"activeDeadlineSeconds": 1}})
    failed = _wait_end(slow, "again", "FAILED")
    assert failed["error"]["code"] == 4
    before = read_parts(storage, failed["outputInfo"]["gcsOutputDirectory"])
    assert 0 < count_predictions(before) < len(lines)
    slow.patch("batchpredictionjob", "again", {"spec": {"activeDeadlineSeconds": 3600}})
    slow("annotate", "bpj", "again", "pierhead.dev/renew=1")
    wait_until("it is tried again", lambda: state(slow, "again") == "RUNNING")
    wait_until(
        "the worker tells what it found",
        lambda: "chunks of earlier attempts are there" in slow("logs", "job/bpj-again", "--ignore-errors"),
        interval=1,
    )
    status = _wait_end(slow, "again")
    assert status["completionStats"]["successfulCount"] == len(lines)
    assert status["outputInfo"] == failed["outputInfo"]
    output = read_output(storage, status["outputInfo"]["gcsOutputDirectory"])
    assert [record["instance"] for record in output.predictions] == lines


def test_what_keeps_a_job_from_running_is_told(photos, storage):
    uri = _put_lines(storage, "few.jsonl", _pictures(3))
    machine = {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
    photos.apply(
        {**(other := make_batch("no-model", [uri])), "spec": {**other["spec"], "model": "nobody"}},
        make_batch("no-output", [uri], output="gs://no-such-bucket/out"),
        make_batch("no-gpu", [uri], dedicatedResources={"machineSpec": machine}),
        make_batch("no-input", ["gs://batch-in/nothing-*.jsonl"]),
    )
    assert "no Model nobody" in _wait_reason(photos, "no-model", "ModelNotFound")["message"]
    assert "no-such-bucket" in _wait_reason(photos, "no-output", "OutputNotWritable")["message"]
    assert "nvidia.com/gpu" in _wait_reason(photos, "no-gpu", "Unschedulable")["message"]
    assert "nothing-*.jsonl" in _wait_reason(photos, "no-input", "InputNotFound")["message"]
    assert state(photos, "no-gpu") == "PENDING"
    photos("delete", "bpj", "no-gpu")
    wait_until("its workers are gone", lambda: not photos.items("pods", "pierhead.dev/batch-prediction-job=no-gpu"))
