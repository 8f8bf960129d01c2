"""What is said of a BatchPredictionJob, in tables."""

from datetime import timedelta

import pytest
from pierhead_operator.batch_status import (
    Observed,
    compute_batch_status,
    explain_worker,
    merge_progress,
    parse_progress,
)
from pierhead_operator.status import READY, Finding
from pierhead_operator.types import BatchPredictionJob, BatchPredictionJobStatus, ShardProgress

from tests.unit.operator.conftest import NOW, make_batch

OUTPUT = "gs://out/photos/prediction-Photos-2026_11_22T12_00_00_uid-nighZ"


def make_job(suspend=False, **status):
    return {"spec": {"suspend": suspend}, "status": status}


def make_pod(phase="Running", shard=0, message="", code=0, condition=None):
    ended = {"terminated": {"exitCode": code, "message": message}} if phase in ("Succeeded", "Failed") else {}
    return {
        "metadata": {"name": "w", "labels": {"batch.kubernetes.io/job-completion-index": str(shard)}},
        "status": {
            "phase": phase,
            "podIP": "10.0.0.1",
            "containerStatuses": [{"name": "server", "ready": False, "started": False, "state": ended}],
            "conditions": [condition] if condition else [],
        },
    }


def ended(type_, reason="", message=""):
    return {"type": type_, "status": "True", "reason": reason, "message": message}


def judge(batch, job=None, pods=(), problem=None, progress=(), now=NOW, due=True):
    batch = BatchPredictionJob.model_validate(batch)
    return compute_batch_status(batch, Observed("1", OUTPUT, problem, job, pods, progress, due), now)


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no nvidia.com/gpu"}
NO_GPU = make_pod("Pending", condition=UNSCHEDULABLE)
NO_INPUT = make_pod("Failed", code=65, message="InputNotFound: gs://in/*.jsonl names nothing")
NO_OUTPUT = make_pod("Failed", code=65, message="OutputNotWritable: gs://out: 403")
STOPPED = ended("Failed", "PodFailurePolicy", "Container server failed with exit code 65")
QUEUE = {"kueue.x-k8s.io/queue-name": "gpus"}
# batch, job, pods, problem -> state, Ready's reason, Progressing, Stalled
ROWS = {
    "just made": (make_batch(), None, [], None, "PENDING", "Pending", "True", "False"),
    "no model": (
        make_batch(), None, [], Finding("ModelNotFound", "no Model"), "PENDING", "ModelNotFound", "True", "False",
    ),
    "unknown machine": (
        make_batch(), None, [], Finding("MachineUnknown", "L5"), "FAILED", "MachineUnknown", "False", "True",
    ),
    "starting": (make_batch(), make_job(), [make_pod("Pending")], None, "PENDING", "Pending", "True", "False"),
    "no GPU": (make_batch(), make_job(), [NO_GPU], None, "PENDING", "Unschedulable", "True", "False"),
    "running": (make_batch(), make_job(), [make_pod()], None, "RUNNING", "Running", "True", "False"),
    "running, one waits": (make_batch(), make_job(), [make_pod(), NO_GPU], None, "RUNNING", "Unschedulable", "True", "False"),
    "suspended": (make_batch(suspend=True), make_job(suspend=True), [], None, "QUEUED", "Queued", "True", "False"),
    "in a queue": (make_batch(labels=QUEUE), make_job(suspend=True), [], None, "QUEUED", "Queued", "True", "False"),
    "done": (
        make_batch(), make_job(conditions=[ended("Complete")]), [make_pod("Succeeded")], None,
        "SUCCEEDED", "Succeeded", "False", "False",
    ),
    "no input": (make_batch(), make_job(conditions=[STOPPED]), [NO_INPUT], None, "FAILED", "InputNotFound", "False", "True"),
    "no output": (
        make_batch(), make_job(conditions=[STOPPED]), [NO_OUTPUT], None, "FAILED", "OutputNotWritable", "False", "True",
    ),
    "worker failed, and nobody knows why": (
        make_batch(), make_job(conditions=[ended("Failed", "BackoffLimitExceeded", "too many")]), [], None,
        "FAILED", "Failed", "False", "True",
    ),
    "too late": (
        make_batch(), make_job(conditions=[ended("Failed", "DeadlineExceeded")]), [], None,
        "FAILED", "DeadlineExceeded", "False", "True",
    ),
    "one part failed": (
        make_batch(), make_job(succeeded=3, conditions=[ended("Failed", "FailedIndexes", "failed: 2")]), [], None,
        "PARTIALLY_SUCCEEDED", "Failed", "False", "True",
    ),
    "cancelling": (make_batch(cancel=True), make_job(), [make_pod()], None, "CANCELLING", "Cancelled", "True", "False"),
    "cancelling, workers end": (make_batch(cancel=True), None, [make_pod()], None, "CANCELLING", "Cancelled", "True", "False"),
    "cancelled": (make_batch(cancel=True), None, [], None, "CANCELLED", "Cancelled", "False", "True"),
    "cancelled too late": (
        make_batch(cancel=True), make_job(conditions=[ended("Complete")]), [], None, "SUCCEEDED", "Succeeded", "False", "False",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_state(row):
    batch, job, pods, problem, state, reason, progressing, stalled = row
    status = judge(batch, job, pods, problem)
    assert status.state == f"JOB_STATE_{state}"
    ready = status.condition(READY)
    assert (ready.status, ready.reason) == ("True" if state == "SUCCEEDED" else "False", reason)
    assert ready.message
    assert status.condition("Progressing").status == progressing
    assert status.condition("Stalled").status == stalled
    assert (status.end_time == NOW) == (state in ("SUCCEEDED", "FAILED", "PARTIALLY_SUCCEEDED", "CANCELLED"))


def test_worker_that_another_one_followed_is_forgotten():
    dead, alive = make_pod("Failed", code=137), make_pod()
    dead["metadata"]["creationTimestamp"], alive["metadata"]["creationTimestamp"] = (
        "2026-11-22T12:00:00Z",
        "2026-11-22T12:00:09Z",
    )
    assert judge(make_batch(), make_job(), [alive, dead]).condition(READY).reason == "Running"
    assert judge(make_batch(), make_job(), [dead]).condition(READY).reason == "CrashLooping"


def test_job_that_has_ended_stays_as_it_was():
    before = judge(make_batch(), make_job(conditions=[STOPPED]), [NO_INPUT])
    batch = make_batch()
    batch["status"] = before.dump()
    assert judge(batch, None, [], now=NOW + timedelta(days=1)) == before


def test_job_that_has_ended_holds_for_a_spec_that_was_edited_since():
    batch = make_batch()
    batch["status"] = judge(batch, make_job(conditions=[STOPPED]), [NO_INPUT]).dump()
    batch["metadata"]["generation"] += 1
    after = judge(batch)
    assert after.state == "JOB_STATE_FAILED"
    assert {after.observed_generation, *(one.observed_generation for one in after.conditions)} == {4}


def test_another_try_begins_anew():
    before = judge(make_batch(), make_job(conditions=[STOPPED]), [NO_INPUT])
    batch = make_batch(annotations={"pierhead.dev/renew": "now"})
    batch["status"] = before.dump()
    again = judge(batch)
    assert (again.state, again.renewed, again.error) == ("JOB_STATE_PENDING", "now", None)


def test_error_has_googles_code():
    error = judge(make_batch(), make_job(conditions=[STOPPED]), [NO_INPUT]).error
    assert (error.code, error.message) == (5, "InputNotFound: gs://in/*.jsonl names nothing")


def _shard(shard=0, bytes_done=50, **more):
    return ShardProgress(shard=shard, bytes_done=bytes_done, bytes_total=100, **more)


def test_counts_are_of_all_shards_and_an_end_is_in_sight():
    batch = make_batch()
    first = judge(batch, make_job(), [make_pod()])
    batch["status"] = first.dump()
    told = [_shard(0, 50, successful=8, failed=1), _shard(1, 10, successful=2)]
    later = judge(batch, make_job(), [make_pod()], progress=told, now=NOW + timedelta(minutes=3))
    stats = later.completion_stats
    assert (stats.successful_count, stats.failed_count, stats.incomplete_count) == (10, 1, -1)
    assert later.progress == "30%"
    assert later.start_time == NOW
    assert later.estimated_end_time == NOW + timedelta(minutes=11)
    assert later.resources_consumed.replica_hours == pytest.approx(0.05)
    done = judge(batch, make_job(conditions=[ended("Complete")]), [], progress=told)
    assert (done.progress, done.completion_stats.incomplete_count) == ("100%", 0)


def test_stable_no_change():
    batch = make_batch()
    status = judge(batch, make_job(), [NO_GPU])
    batch["status"] = status.dump()
    assert judge(batch, make_job(), [NO_GPU], now=NOW + timedelta(minutes=1)) == status


def test_stable_while_only_time_and_counts_go_on_and_it_is_not_their_turn():
    batch, told = make_batch(), 0
    for seconds, due in ((0, True), (1, False), (3, False), (5, True), (6, False)):
        now, progress = NOW + timedelta(seconds=seconds), [_shard(0, seconds, successful=seconds)]
        status = judge(batch, make_job(), [make_pod()], progress=progress, now=now, due=due)
        assert (status.dump() != batch.get("status")) == due
        batch["status"] = status.dump()
        told = seconds if due else told
        assert status.completion_stats.successful_count == told
    assert status.resources_consumed.replica_hours == pytest.approx(5 / 3600, abs=1e-6)


@pytest.mark.parametrize(
    "news",
    [
        {"job": make_job(conditions=[ended("Complete")])},
        {"job": make_job(conditions=[STOPPED])},
        {"job": make_job(suspend=True)},
        {"pods": [NO_GPU]},
        {"batch": {"cancel": True}},
    ],
    ids=["done", "failed", "suspended", "no room", "cancelled"],
)
def test_news_wait_for_no_turn_and_bring_the_counts_along(news):
    batch = make_batch()
    batch["status"] = judge(batch, make_job(), [make_pod()]).dump()
    batch["spec"] |= news.get("batch", {})
    job, pods = news.get("job", make_job()), news.get("pods", [make_pod()])
    status = judge(batch, job, pods, progress=[_shard(successful=7)], due=False)
    assert status.update_time == NOW
    assert status.dump() != batch["status"]
    assert status.completion_stats.successful_count == 7


def test_parts_that_nobody_has_begun_are_not_done():
    """Fewer workers may start than there are parts."""
    batch = make_batch(dedicatedResources={"startingReplicaCount": 1, "maxReplicaCount": 4})
    job = {**make_job(), "spec": {"suspend": False, "completions": 4}}
    batch["status"] = judge(batch, job, [make_pod()]).dump()
    half = judge(batch, job, [make_pod()], progress=[_shard(0, 100), _shard(1, 100)], now=NOW + timedelta(minutes=3))
    assert half.progress == "50%"
    assert half.estimated_end_time == NOW + timedelta(minutes=7)
    cancelled = judge(make_batch(**{**batch["spec"], "cancel": True}), progress=[_shard(0, 100)])
    assert cancelled.progress == "25%"


def test_shards_are_told_without_what_is_nothing():
    progress = [_shard(0, 0), ShardProgress(shard=1), _shard(2, 100, successful=9, done=True)]
    running = judge(make_batch(), make_job(), [make_pod()], progress=progress).dump()
    assert running["shards"] == [
        {"shard": 0, "bytesTotal": 100},
        {"shard": 2, "successful": 9, "bytesDone": 100, "bytesTotal": 100, "done": True},
    ]
    assert BatchPredictionJobStatus.model_validate(running).dump() == running


def test_job_that_succeeded_tells_its_counts_alone():
    batch = make_batch()
    progress = [_shard(shard, 100, successful=9, done=True) for shard in range(3)]
    batch["status"] = judge(batch, make_job(), [make_pod()], progress=progress).dump()
    status = judge(batch, make_job(conditions=[ended("Complete")]))
    assert (status.completion_stats.successful_count, status.shards) == (27, [])


@pytest.mark.parametrize("reason", ["Rejected", "NotOwned"])
def test_what_keeps_a_spec_from_its_effect_is_told_while_workers_run(reason):
    status = judge(make_batch(), make_job(), [make_pod()], problem=Finding(reason, "admission webhook denied it"))
    assert (status.state, status.condition(READY).reason) == ("JOB_STATE_RUNNING", reason)


def test_model_that_is_gone_is_no_trouble_to_workers_that_run():
    status = judge(make_batch(), make_job(), [make_pod()], problem=Finding("ModelNotFound", "no Model photos"))
    assert status.condition(READY).reason == "Running"


def test_what_was_committed_once_stays():
    before = [_shard(0, 50, successful=5), _shard(1, 100, successful=9, done=True)]
    # A worker that has just come has not read yet what was committed before it.
    news = [_shard(0, 0), _shard(1, 0), _shard(2, 1)]
    merged = merge_progress(before, news)
    assert [(one.shard, one.bytes_done) for one in merged] == [(0, 50), (1, 100), (2, 1)]


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (make_pod("Succeeded", message="{}"), None),
        (make_pod(), None),
        (NO_INPUT, Finding("InputNotFound", "gs://in/*.jsonl names nothing")),
        (make_pod("Failed", code=65, message="ArtifactNotFound: gone"), Finding("ArtifactNotFound", "gone")),
        (
            make_pod("Failed", code=137, message='{"shard":0,"successful":200}'),
            Finding("CrashLooping", "the server ended with exit code 137"),
        ),
    ],
)
def test_explain_worker(pod, expected):
    assert explain_worker(pod) == expected


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        (
            make_pod("Succeeded", message='{"shard":3,"successful":7,"bytesDone":9,"done":true,"jobDone":true}'),
            ShardProgress(shard=3, successful=7, bytes_done=9, done=True),
        ),
        (make_pod("Succeeded", message="cut o"), None),
        (make_pod("Failed", code=137, message='{"shard":3,"successful":7}'), ShardProgress(shard=3, successful=7)),
        (make_pod("Failed", code=137, message='{"shard":3}\nful":7}'), ShardProgress(shard=3)),
        (make_pod("Failed", message="InputNotFound: gs://in"), None),
        (make_pod(), None),
    ],
)
def test_parse_progress(pod, expected):
    assert parse_progress(pod) == expected


def test_status_of_nothing_is_written_as_nothing():
    assert BatchPredictionJobStatus().dump()["shards"] == []
