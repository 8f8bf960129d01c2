"""What is true of a BatchPredictionJob: a pure function from what was observed to its status."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from pierhead_operator.resources import Manifest
from pierhead_operator.resources.batch import is_queued, renew_value
from pierhead_operator.status import (
    READY,
    REASON_ACCELERATOR_NOT_USED,
    REASON_ARTIFACT_INVALID,
    REASON_ARTIFACT_NOT_FOUND,
    REASON_ARTIFACT_UNREACHABLE,
    REASON_CANCELLED,
    REASON_DEADLINE_EXCEEDED,
    REASON_FAILED,
    REASON_INPUT_INVALID,
    REASON_INPUT_NOT_FOUND,
    REASON_INVALID,
    REASON_MACHINE_UNKNOWN,
    REASON_NOT_OWNED,
    REASON_OUT_OF_MEMORY,
    REASON_OUTPUT_NOT_WRITABLE,
    REASON_OVERRIDE_NOT_ALLOWED,
    REASON_PENDING,
    REASON_QUEUED,
    REASON_REJECTED,
    REASON_RUNNING,
    REASON_SPEC_TOO_LARGE,
    REASON_STORAGE_UNREACHABLE,
    REASON_SUCCEEDED,
    Finding,
    explain_pod,
    judge,
    judge_progress,
)
from pierhead_operator.types import (
    BatchPredictionJob,
    BatchPredictionJobStatus,
    CompletionStats,
    JobError,
    JobState,
    OutputInfo,
    ResourcesConsumed,
    ShardProgress,
    VersionRecord,
)

ENDED: tuple[JobState, ...] = (
    "JOB_STATE_SUCCEEDED",
    "JOB_STATE_PARTIALLY_SUCCEEDED",
    "JOB_STATE_FAILED",
    "JOB_STATE_CANCELLED",
)
RENEWABLE = ("JOB_STATE_PARTIALLY_SUCCEEDED", "JOB_STATE_FAILED")
# Those of google.rpc.Code.
_CODES = {
    REASON_INPUT_INVALID: 3,
    REASON_ARTIFACT_INVALID: 3,
    REASON_MACHINE_UNKNOWN: 3,
    REASON_ACCELERATOR_NOT_USED: 3,
    REASON_OVERRIDE_NOT_ALLOWED: 3,
    REASON_SPEC_TOO_LARGE: 3,
    REASON_INVALID: 3,
    REASON_DEADLINE_EXCEEDED: 4,
    REASON_INPUT_NOT_FOUND: 5,
    REASON_ARTIFACT_NOT_FOUND: 5,
    REASON_OUTPUT_NOT_WRITABLE: 7,
    REASON_OUT_OF_MEMORY: 8,
    REASON_ARTIFACT_UNREACHABLE: 14,
    REASON_STORAGE_UNREACHABLE: 14,
}
_UNKNOWN_CODE = 13
# No worker was made, and none will be: who waits for the job's end shall not wait forever.
_HOPELESS = (
    REASON_MACHINE_UNKNOWN,
    REASON_ACCELERATOR_NOT_USED,
    REASON_OVERRIDE_NOT_ALLOWED,
    REASON_SPEC_TOO_LARGE,
    REASON_INVALID,
)
_INDEX = "batch.kubernetes.io/job-completion-index"
_MOST_FAILURES = 10
_STARTING = Finding(REASON_PENDING, "the workers start")


@dataclass(frozen=True)
class Observed:
    """What there is of a job: its version, its Kubernetes Job and pods, and how far running workers say they are.

    `due` says whether it is time to tell what changes all the while, such as counts; all else is told at once.
    """

    version: str
    output: str
    problem: Finding | None
    job: Manifest | None
    pods: Sequence[Manifest]
    progress: Sequence[ShardProgress]
    due: bool = True
    artifact: VersionRecord | None = None  # what that version is


def is_renewed(batch: BatchPredictionJob) -> bool:
    """Whether somebody asks for another try of a job that ended without all of its predictions."""
    asked = renew_value(batch)
    return batch.status.state in RENEWABLE and asked != batch.status.renewed


@dataclass(frozen=True)
class Verdict:
    """The state of a job, and why."""

    state: JobState
    finding: Finding


def decide_state(batch: BatchPredictionJob, observed: Observed, *, started: bool) -> Verdict:
    """Vertex AI's state of a job that had not ended before; `started`: a worker was once seen."""
    conditions = {c["type"]: c for c in _status(observed.job).get("conditions", []) if c["status"] == "True"}
    if batch.spec.cancel and "Complete" not in conditions:
        if observed.job or observed.pods:
            return Verdict("JOB_STATE_CANCELLING", Finding(REASON_CANCELLED, "the workers end"))
        return Verdict("JOB_STATE_CANCELLED", Finding(REASON_CANCELLED, "spec.cancel is true"))
    if "Complete" in conditions:
        return Verdict("JOB_STATE_SUCCEEDED", Finding(REASON_SUCCEEDED, "every instance has a prediction or an error"))
    if "Failed" in conditions:
        return _judge_failure(conditions["Failed"], observed)
    if observed.job is None:
        problem = observed.problem or _STARTING
        return Verdict("JOB_STATE_FAILED" if problem.reason in _HOPELESS else "JOB_STATE_PENDING", problem)
    if observed.job["spec"].get("suspend"):
        why = "a queue decides when it starts" if is_queued(batch.metadata.labels) else "spec.suspend is true"
        return Verdict("JOB_STATE_QUEUED", Finding(REASON_QUEUED, why))
    trouble = explain_pods(observed.pods) or _find_refusal(observed.problem)
    if count_running(observed.pods) or started:
        return Verdict("JOB_STATE_RUNNING", trouble or Finding(REASON_RUNNING, "the workers predict"))
    return Verdict("JOB_STATE_PENDING", trouble or _STARTING)


def _find_refusal(problem: Finding | None) -> Finding | None:
    """What keeps the spec from having its effect; a Model that is gone, say, is no trouble to workers that run."""
    return problem if problem and problem.reason in (REASON_INVALID, REASON_REJECTED, REASON_NOT_OWNED) else None


def _judge_failure(condition: Mapping[str, Any], observed: Observed) -> Verdict:
    if condition.get("reason") == "DeadlineExceeded":
        finding = Finding(REASON_DEADLINE_EXCEEDED, "not done within spec.activeDeadlineSeconds")
    else:
        finding = explain_pods(observed.pods) or Finding(REASON_FAILED, condition.get("message", ""))
    partly = condition.get("reason") == "FailedIndexes" and _status(observed.job).get("succeeded", 0)
    return Verdict("JOB_STATE_PARTIALLY_SUCCEEDED" if partly else "JOB_STATE_FAILED", finding)


def explain_pods(pods: Sequence[Manifest]) -> Finding | None:
    """Why workers do not predict, from the pods themselves; None where nothing is wrong."""
    findings = [finding for pod in _find_last(pods) if (finding := explain_worker(pod))]
    # The same pods in another order must give the same status.
    return min(findings, key=lambda finding: (finding.reason, finding.message), default=None)


def _find_last(pods: Sequence[Manifest]) -> list[Manifest]:
    """Of each shard's workers the last one: another one took the place of those before."""
    last: dict[str, Manifest] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", ""))):
        last[pod["metadata"].get("labels", {}).get(_INDEX, "")] = pod
    return list(last.values())


def explain_worker(pod: Manifest) -> Finding | None:
    """Why a worker does not predict; None while it does, ends well or leaves."""
    if pod.get("status", {}).get("phase") == "Succeeded":
        return None
    finding = explain_pod(pod)
    if finding and parse_progress(pod):
        return replace(finding, message=finding.message.partition(": ")[0])  # how far it was is no cause
    return finding


def merge_progress(before: Sequence[ShardProgress], news: Sequence[ShardProgress]) -> list[ShardProgress]:
    """How far each shard is: what was committed once stays, whoever tells less by now."""
    known = {one.shard: one for one in before}
    for one in news:
        old = known.get(one.shard)
        if old is None or (one.done, one.bytes_done) >= (old.done, old.bytes_done):
            known[one.shard] = one
    return [known[shard] for shard in sorted(known)]


def compute_batch_status(batch: BatchPredictionJob, observed: Observed, now: datetime) -> BatchPredictionJobStatus:
    """The status of a BatchPredictionJob."""
    before = batch.status if not is_renewed(batch) else BatchPredictionJobStatus()
    if before.state in ENDED:
        return observe_end(batch)
    verdict = decide_state(batch, observed, started=before.start_time is not None)
    ended, started = verdict.state in ENDED, verdict.state == "JOB_STATE_RUNNING" or before.start_time
    shards = merge_progress(before.shards, observed.progress)
    start = before.start_time or (now if started else None)
    share = _compute_share(shards, _count_parts(batch, observed.job))
    status = BatchPredictionJobStatus(
        observed_generation=batch.metadata.generation,
        conditions=_judge_all(batch, verdict, now),
        state=verdict.state,
        progress=_render_progress(share, verdict.state),
        model_version=observed.version,
        artifact=observed.artifact,
        create_time=batch.metadata.creation_timestamp,
        start_time=start,
        end_time=now if ended else None,
        update_time=before.update_time,
        estimated_end_time=None if ended or start is None else _estimate_end(start, share, now),
        completion_stats=_count(shards, complete=verdict.state == "JOB_STATE_SUCCEEDED"),
        output_info=OutputInfo(gcs_output_directory=observed.output),
        partial_failures=_find_failures(observed.pods) if ended else [],
        error=_make_error(verdict.finding) if verdict.state == "JOB_STATE_FAILED" else None,
        resources_consumed=_consume(before, count_running(observed.pods), now),
        # A job may have a thousand, and stay for years.
        shards=[] if verdict.state == "JOB_STATE_SUCCEEDED" else [one for one in shards if _has_begun(one)],
        renewed=renew_value(batch),
    )
    news = status if observed.due else _take_counts(status, before)
    return before if news == before else status.model_copy(update={"update_time": now})


def observe_end(batch: BatchPredictionJob) -> BatchPredictionJobStatus:
    """The status of a job that has ended: it stays, and holds for a spec that was edited since, too.

    Who waits for that spec to be looked at, as Flux does, would wait forever.
    """
    now = {"observed_generation": batch.metadata.generation}
    conditions = [condition.model_copy(update=now) for condition in batch.status.conditions]
    return batch.status.model_copy(update={**now, "conditions": conditions})


def _take_counts(status: BatchPredictionJobStatus, before: BatchPredictionJobStatus) -> BatchPredictionJobStatus:
    """A status with the counts of the one before: what is left to differ is worth a write of its own."""
    counts = ("progress", "estimated_end_time", "completion_stats", "resources_consumed", "shards")
    return status.model_copy(update={name: getattr(before, name) for name in counts})


def _has_begun(shard: ShardProgress) -> bool:
    return shard != ShardProgress(shard=shard.shard)


def _judge_all(batch: BatchPredictionJob, verdict: Verdict, now: datetime) -> list[Any]:
    done = verdict.state == "JOB_STATE_SUCCEEDED"
    failed = verdict.state in ENDED and not done
    return [
        judge(READY, done, verdict.finding, batch, now),
        *judge_progress(None if done else verdict.finding, batch, now, final=failed),
    ]


def _count(shards: Sequence[ShardProgress], *, complete: bool) -> CompletionStats:
    return CompletionStats(
        successful_count=sum(one.successful for one in shards),
        failed_count=sum(one.failed for one in shards),
        incomplete_count=0 if complete else -1,
    )


def _render_progress(share: Fraction | None, state: JobState) -> str:
    if state == "JOB_STATE_SUCCEEDED":
        return "100%"
    return "" if share is None else f"{math.floor(100 * share)}%"


def _count_parts(batch: BatchPredictionJob, job: Manifest | None) -> int:
    """Into how many parts the input is cut."""
    parts: int = (job or {}).get("spec", {}).get("completions", batch.spec.dedicated_resources.max_replicas)
    return parts


def _compute_share(shards: Sequence[ShardProgress], parts: int) -> Fraction | None:
    """How much of the input is done, from 0 to 1; None while nothing is known.

    Parts that nobody has begun are as long as the others: the input is cut so.
    """
    known = [one for one in shards if one.bytes_total or one.done]
    total = sum(one.bytes_total for one in known)
    if not total:
        return None
    return Fraction(sum(one.bytes_done for one in known) * len(known), total * max(parts, len(known)))


def _estimate_end(start: datetime, share: Fraction | None, now: datetime) -> datetime | None:
    if not share:
        return None
    left = (now - start) * float(1 / share - 1)
    return (now + left).replace(second=0, microsecond=0) + timedelta(minutes=1)


def _consume(before: BatchPredictionJobStatus, running: int, now: datetime) -> ResourcesConsumed:
    """Since the last look, by those who run now."""
    since = before.update_time if before.start_time else None
    hours = running * (now - since).total_seconds() / 3600 if since else 0.0
    return ResourcesConsumed(replica_hours=round(before.resources_consumed.replica_hours + hours, 6))


def _find_failures(pods: Sequence[Manifest]) -> list[JobError]:
    """One for each part that failed for good, of a few."""
    found = {}
    for pod in _find_last(pods):
        if pod.get("status", {}).get("phase") == "Failed" and (finding := explain_worker(pod)):
            shard = pod["metadata"].get("labels", {}).get(_INDEX, "")
            found[shard] = _make_error(Finding(finding.reason, f"shard {shard}: {finding.message}"))
    return [found[shard] for shard in sorted(found)][:_MOST_FAILURES]


def _make_error(finding: Finding) -> JobError:
    return JobError(code=_CODES.get(finding.reason, _UNKNOWN_CODE), message=f"{finding.reason}: {finding.message}")


def count_running(pods: Sequence[Manifest]) -> int:
    """How many workers run, and are to."""
    return sum(
        pod.get("status", {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp") for pod in pods
    )


def _status(job: Manifest | None) -> Mapping[str, Any]:
    status: Mapping[str, Any] = (job or {}).get("status", {})
    return status


def parse_progress(pod: Manifest) -> ShardProgress | None:
    """How far a worker was when it ended or was killed; None where it did not say."""
    status = pod.get("status", {})
    ended = [container.get("state", {}).get("terminated") or {} for container in status.get("containerStatuses", [])]
    # Behind its line may be the end of a longer one before, if it was killed in between.
    line = next(iter(ended), {}).get("message", "").partition("\n")[0]
    try:
        return ShardProgress.model_validate_json(line)
    except ValidationError:  # cut off by the node, or somebody else's
        return None
