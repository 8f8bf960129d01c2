"""The reconcile of a BatchPredictionJob: its Kubernetes Job is made once, watched, and ended when it is cancelled."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from pierhead_operator import installation, names
from pierhead_operator.applying import (
    ClusterAccess,
    Settled,
    apply_all,
    retry_if_rejected,
    tell_unreadable,
    write_status,
)
from pierhead_operator.batch_backoff import find_proven, make_reset
from pierhead_operator.batch_status import (
    ENDED,
    Observed,
    compute_batch_status,
    count_running,
    is_renewed,
    observe_end,
    parse_progress,
)
from pierhead_operator.cluster import ClusterError, Invalid, Key, Rejected, UnreadableError
from pierhead_operator.progress import ProgressPoller
from pierhead_operator.reconcile import explain_machine, explain_model, explain_pods, explain_version
from pierhead_operator.resources import Manifest, is_owned, make_deletion, select_image, separate_cache
from pierhead_operator.resources.batch import (
    Batching,
    explain_document,
    explain_instance_config,
    find_output,
    is_of_another_try,
    make_control,
    make_job,
    make_output,
    make_worker_policies,
    renew_value,
)
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.status import REASON_INVALID, REASON_REJECTED, REASON_SPEC_TOO_LARGE, Finding
from pierhead_operator.types import BatchPredictionJob, BatchPredictionJobStatus, Model, ModelVersion
from pierhead_operator.versions import find_version, make_record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchReconciler:
    """Brings one BatchPredictionJob after the other to its end."""

    cluster: ClusterAccess
    workers: ProgressPoller
    settings: OperatorSettings
    clock: Callable[[], datetime]
    installation: str = ""  # as the Reconciler's
    _settled: Settled = field(default_factory=Settled, init=False)
    _controlled: Settled = field(default_factory=Settled, init=False)  # what came of patches

    async def reconcile(self, key: Key) -> float | None:
        """Looks after one job; in how many seconds to look again. Raises ClusterError where another try may help."""
        try:
            return await self._reconcile(key)
        except UnreadableError as error:
            await tell_unreadable(self.cluster, key, error, self.clock())
            return None

    async def _reconcile(self, key: Key) -> float | None:
        batch = await self.cluster.get_resource(BatchPredictionJob, key.namespace, key.name)
        if batch is None or batch.metadata.deletion_timestamp:
            self.workers.forget(key)
            return None
        if batch.status.state in ENDED and not is_renewed(batch):
            self.workers.forget(key)
            await self._write_status(batch, observe_end(batch))
            return await self._outlive(batch)
        live, pods = await self._find_job(batch), await self._list_pods(batch)
        await self._forgive(pods)
        batching, problem = await self._resolve(batch, live)
        if batching and not problem:
            batching = batching if live else await self._tell_output(batching)
            batch, problem = batching.job, await self._apply(batching, live, count_running(pods))
        elif batch.spec.cancel or is_renewed(batch):
            await self._end(live)
        observed = await self._observe(batch, batching, problem, pods)
        await self._write_status(batch, compute_batch_status(batch, observed, self.clock()))
        if observed.job is None:  # else there is more to look after than what was refused
            retry_if_rejected(problem)
        return self.workers.seconds_left(key) if batching or observed.job else None

    async def _resolve(
        self, batch: BatchPredictionJob, live: Manifest | None
    ) -> tuple[Batching | None, Finding | None]:
        """What the job comes to, if its Model is there, and why no worker can be made of it, if none can."""
        model = await self.cluster.get_resource(Model, batch.namespace, batch.spec.model)
        version = resolve_version(batch, model)
        wanted = batch.status.model_version or batch.spec.model_version or ""
        problem = explain_model(batch.spec.model, batch, model, wanted, version)
        ran = [batch.status.artifact] if batch.status.artifact else []
        problem = problem or explain_version(ran, model, version.name if version else "")
        if model is None or version is None or problem:
            return None, problem
        output = find_output(batch, live) or make_output(batch, model)
        settings = separate_cache(version, select_image(version, self.settings))
        batching = Batching(batch, model, version, settings, output)
        return batching, explain_batching(batching)

    async def _tell_output(self, batching: Batching) -> Batching:
        """Writes the folder and the version into the status before there are workers that hold to them.

        Whatever becomes of this process and of the Model, every Job of this BatchPredictionJob has the same.
        """
        batch = batching.job
        if batch.spec.cancel or _tells(batch, batching):
            return batching
        observed = Observed(
            batching.version.name,
            batching.output,
            problem=None,
            job=None,
            pods=[],
            progress=[],
            artifact=make_record(batching.version),
        )
        await self._write_status(batch, compute_batch_status(batch, observed, self.clock()))
        written = await self.cluster.get_resource(BatchPredictionJob, batch.namespace, batch.name)
        if written is None or not _tells(written, batching):
            raise ClusterError(f"the status of {batch.name} does not tell its folder: no worker is made")
        return replace(batching, job=written)

    async def _apply(self, batching: Batching, live: Manifest | None, running: int) -> Finding | None:
        """Makes the Job, or what of it may change."""
        batch = batching.job
        if batch.spec.cancel or (live and is_of_another_try(live, batch)):
            await self._end(live)
            return None
        # Before its workers: none runs that everybody may reach.
        if problem := await self._apply_all(batch, make_worker_policies(batching)):
            # Nothing of a policy is the author's to say: the job waits until the installation's is mended.
            return replace(problem, reason=REASON_REJECTED) if problem.reason == REASON_INVALID else problem
        return await (self._control(live, make_control(batch, live, running)) if live else self._make(batching))

    async def _make(self, batching: Batching) -> Finding | None:
        job, batch = make_job(batching), batching.job
        # Another operator may have made it a moment ago, and a queue have changed it since: no watch has told yet.
        live = await self.cluster.fetch("Job", batch.namespace, job["metadata"]["name"])
        return None if live and is_owned(live, batch) else await self._apply_all(batch, [job])

    async def _control(self, live: Manifest, changes: Manifest) -> Finding | None:
        place = {name: live["metadata"][name] for name in ("name", "namespace")}
        asked = {"kind": live["kind"], **changes, "metadata": {**changes.get("metadata", {}), **place}}
        if not changes or self._controlled.knows(asked, live):
            return None
        try:
            if written := await self.cluster.patch(live, changes):
                self._controlled.remember(asked, written)
        except Rejected as error:
            reason = REASON_INVALID if isinstance(error, Invalid) else REASON_REJECTED
            return Finding(reason, f"Job {live['metadata']['name']}: {error}")
        return None

    async def _apply_all(self, batch: BatchPredictionJob, desired: Sequence[Manifest]) -> Finding | None:
        made = [installation.mark_made(manifest, self.installation) for manifest in desired]
        return await apply_all(self.cluster, batch, made, self._settled)

    async def _write_status(self, batch: BatchPredictionJob, status: BatchPredictionJobStatus) -> None:
        status = installation.mark_claimed(status, self.installation)
        await write_status(self.cluster, batch, batch.status, status)

    async def _end(self, live: Manifest | None) -> None:
        """Takes the workers away; what they committed stays."""
        if live:
            await self.cluster.delete(live)

    async def _forgive(self, pods: Sequence[Manifest]) -> None:
        """Lets Kubernetes make those again soon who had done something: see batch_backoff."""
        for pod in find_proven(pods):
            try:
                await self.cluster.patch(pod, make_reset(pod))
            except Rejected as error:  # it waits as long as Kubernetes lets it
                logger.warning("Pod %s/%s: %s", pod["metadata"]["namespace"], pod["metadata"]["name"], error)

    async def _find_job(self, batch: BatchPredictionJob) -> Manifest | None:
        live = await self.cluster.get("Job", batch.namespace, names.batch(batch.name))
        return live if live and is_owned(live, batch) else None

    async def _list_pods(self, batch: BatchPredictionJob) -> Sequence[Manifest]:
        # By its uid: pods of a job of the same name that was deleted may still be there.
        labels = {**names.OURS, names.LABEL_BATCH_PREDICTION_JOB_UID: batch.metadata.uid}
        return await self.cluster.list_objects("Pod", batch.namespace, labels)

    async def _observe(
        self,
        batch: BatchPredictionJob,
        batching: Batching | None,
        problem: Finding | None,
        pods: Sequence[Manifest],
    ) -> Observed:
        live = await self._find_job(batch)
        key, attempt = Key(batch.KIND, batch.namespace, batch.name), f"{batch.metadata.uid} {renew_value(batch)}"
        poll = await self.workers.poll(key, attempt, find_addresses(pods))
        return Observed(
            version=batching.version.name if batching else batch.status.model_version,
            output=batching.output if batching else find_output(batch, live),
            problem=problem,
            job=None if live and is_of_another_try(live, batch) else live,
            pods=pods,
            progress=[*poll.progress, *(told for pod in pods if (told := parse_progress(pod)))],
            due=poll.due,
            artifact=make_record(batching.version) if batching else batch.status.artifact,
        )

    async def _outlive(self, batch: BatchPredictionJob) -> float | None:
        """Deletes a job some time after its end, if it is to be; in how many seconds."""
        after, end = batch.spec.ttl_seconds_after_finished, batch.status.end_time
        if after is None or end is None:
            return None
        left = after - (self.clock() - end).total_seconds()
        if left > 0:
            return left
        await self.cluster.delete(make_deletion(batch))
        return None


def _tells(batch: BatchPredictionJob, batching: Batching) -> bool:
    """Whether a job's status tells where its output will be, and of which version."""
    told = batch.status
    return (told.output_info.gcs_output_directory, told.model_version) == (batching.output, batching.version.name)


def find_addresses(pods: Sequence[Manifest]) -> list[str]:
    """Of the workers that run."""
    running = [pod["status"] for pod in pods if pod.get("status", {}).get("phase") == "Running"]
    return [status["podIP"] for status in running if status.get("podIP")]


def resolve_version(batch: BatchPredictionJob, model: Model | None) -> ModelVersion | None:
    """The version that predicts: the one that the job began with, else the named one, else the default."""
    if model is None:
        return None
    if begun := batch.status.model_version:
        return model.spec.version(begun)  # by its name alone: an alias may be another version's by now
    return find_version(model, batch.spec.model_version or model.spec.default_version)


def explain_batching(batching: Batching) -> Finding | None:
    """Why no worker can be made of it."""
    spec, settings = batching.job.spec, batching.settings
    too_large, unfit = explain_document(batching), explain_instance_config(batching.job)
    return (
        explain_machine(spec.dedicated_resources.machine_spec, batching.version, settings)
        or explain_pods(spec.pod_overrides, settings)
        or (Finding(REASON_SPEC_TOO_LARGE, too_large) if too_large else None)
        or (Finding(REASON_INVALID, unfit) if unfit else None)
    )
