"""The reconcile of a BatchPredictionJob against a fake cluster."""

import json
import random
from copy import deepcopy
from datetime import timedelta

import pytest
from pierhead_operator.batch_reconcile import BatchReconciler
from pierhead_operator.cluster import ClusterError, Invalid, Key, Rejected
from pierhead_operator.progress import PACE_SECONDS, ProgressPoller
from pierhead_operator.settings import NetworkPolicySettings
from pierhead_operator.types import ShardProgress

from tests.unit.operator.conftest import NETWORK_POLICY, NOW, make_batch, make_model
from tests.unit.operator.fakes import Clock, FakeCluster

BATCH = Key("BatchPredictionJob", "default", "nightly")
LABELS = {"app.kubernetes.io/managed-by": "pierhead", "pierhead.dev/batch-prediction-job-uid": "uid-nightly"}


class FakeWorkers:
    """Workers by their address. Fake because there are no pods."""

    def __init__(self):
        self.progress = {}
        self.asked = 0

    async def ask_progress(self, address):
        self.asked += 1
        return self.progress.get(address)


def _make(cluster, settings):
    clock, workers = Clock(), FakeWorkers()
    poller = ProgressPoller(workers, lambda: clock().timestamp())
    return BatchReconciler(cluster, poller, settings, clock), workers


@pytest.fixture
def make_reconciler(settings):
    def make(*objects):
        cluster = FakeCluster(*objects)
        reconciler, workers = _make(cluster, settings)
        cluster.workers = workers
        return cluster, reconciler

    return make


def _wait(reconciler, seconds=PACE_SECONDS):
    reconciler.clock.now += timedelta(seconds=seconds)


def _folder(cluster, name="nightly"):
    """The one that the workers were told."""
    env = cluster.objects["Job", f"bpj-{name}"]["spec"]["template"]["spec"]["containers"][0]["env"]
    return json.loads(next(one["value"] for one in env if one["name"] == "PIERHEAD_BATCH_JOB"))["outputUri"]


def _told_folder(cluster, name="nightly"):
    return cluster.objects["BatchPredictionJob", name]["status"]["outputInfo"]["gcsOutputDirectory"]


def _change(cluster, kind, name, **spec):
    cluster.objects[kind, name]["spec"] |= spec
    cluster.objects[kind, name]["metadata"]["generation"] += 1


def _put_pod(cluster, shard=0, phase="Running"):
    labels = {**LABELS, "batch.kubernetes.io/job-completion-index": str(shard)}
    state = {"terminated": {"exitCode": 137}} if phase == "Failed" else {"running": {}}
    containers = [{"name": "server", "ready": False, "started": False, "state": state}]
    cluster.objects["Pod", f"worker-{shard}"] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"worker-{shard}", "labels": labels},
        "status": {"phase": phase, "podIP": f"10.0.0.{shard}", "containerStatuses": containers},
    }


def _end(cluster, type_="Complete", **condition):
    cluster.objects["Job", "bpj-nightly"]["status"] = {"conditions": [{"type": type_, "status": "True", **condition}]}


def _state(cluster):
    return cluster.objects["BatchPredictionJob", "nightly"]["status"]["state"].removeprefix("JOB_STATE_")


async def test_job_is_made_once_watched_and_ends(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    assert await reconciler.reconcile(BATCH)
    assert cluster.calls == [("status", "BatchPredictionJob", "nightly"), ("apply", "Job", "bpj-nightly")]
    cluster.calls.clear()
    await reconciler.reconcile(BATCH)
    assert cluster.calls == [], "stable: no writes"
    _put_pod(cluster)
    cluster.workers.progress["10.0.0.0"] = ShardProgress(shard=0, successful=5, bytes_done=1, bytes_total=2)
    _wait(reconciler)
    await reconciler.reconcile(BATCH)
    status = cluster.objects["BatchPredictionJob", "nightly"]["status"]
    assert (_state(cluster), status["progress"]) == ("RUNNING", "50%")
    assert status["modelVersion"] == "1"
    assert (
        status["outputInfo"]["gcsOutputDirectory"] == "gs://out/photos/prediction-Photos-2026_11_22T12_00_00_uid-nighZ"
    )
    _end(cluster)
    del cluster.objects["Pod", "worker-0"]
    await reconciler.reconcile(BATCH)
    status = cluster.objects["BatchPredictionJob", "nightly"]["status"]
    assert _state(cluster) == "SUCCEEDED"
    assert status["completionStats"]["successfulCount"] == 5
    cluster.calls.clear()
    assert await reconciler.reconcile(BATCH) is None
    assert cluster.calls == []


async def test_installations_change_leaves_what_runs(make_reconciler, settings):
    """Nothing of what a Job runs can be changed."""
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    changed = settings.model_copy(update={"server": settings.server.model_copy(update={"image": "other"})})
    cluster.calls.clear()
    await _make(cluster, changed)[0].reconcile(BATCH)
    assert cluster.calls == []


async def test_workers_come_after_their_network_policy_which_is_repaired(settings):
    cluster = FakeCluster(make_model(), make_batch())
    policy = NetworkPolicySettings.model_validate(NETWORK_POLICY)
    reconciler, _ = _make(cluster, settings.model_copy(update={"network_policy": policy}))
    cluster.refuse("NetworkPolicy")
    with pytest.raises(ClusterError):
        await reconciler.reconcile(BATCH)
    assert cluster.ready(BATCH) == ("False", "Rejected")
    assert ("Job", "bpj-nightly") not in cluster.objects
    cluster.rejects.clear()
    await reconciler.reconcile(BATCH)
    del cluster.objects["NetworkPolicy", "bpj-nightly"]
    cluster.calls.clear()
    await reconciler.reconcile(BATCH)
    assert cluster.calls == [("apply", "NetworkPolicy", "bpj-nightly")]
    cluster.calls.clear()
    await reconciler.reconcile(BATCH)
    assert cluster.calls == [], "stable: no writes"


async def test_model_that_comes_later_is_waited_for(make_reconciler):
    cluster, reconciler = make_reconciler(make_batch())
    await reconciler.reconcile(BATCH)
    assert cluster.ready(BATCH) == ("False", "ModelNotFound")
    assert _state(cluster) == "PENDING"
    cluster.objects["Model", "photos"] = make_model()
    await reconciler.reconcile(BATCH)
    assert ("apply", "Job", "bpj-nightly") in cluster.calls


async def test_job_that_runs_is_looked_at_though_its_model_is_gone(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    _put_pod(cluster)
    del cluster.objects["Model", "photos"]
    assert await reconciler.reconcile(BATCH)
    assert _state(cluster) == "RUNNING"


async def test_alias_is_resolved_and_the_version_stays(make_reconciler):
    versions = [
        {"name": "1", "artifactUri": "gs://models/photos/1", "aliases": ["stable"]},
        {"name": "2", "artifactUri": "gs://models/photos/2"},
    ]
    cluster, reconciler = make_reconciler(make_model(versions=versions), make_batch(modelVersion="stable"))
    await reconciler.reconcile(BATCH)
    versions[0]["aliases"], versions[1]["aliases"] = [], ["stable"]
    cluster.objects["Model", "photos"] = make_model(versions=versions)
    await reconciler.reconcile(BATCH)
    assert cluster.objects["BatchPredictionJob", "nightly"]["status"]["modelVersion"] == "1"


async def test_job_that_is_made_again_runs_no_version_that_took_the_name_as_its_alias(make_reconciler):
    one, blue = ({"name": name, "artifactUri": f"gs://models/photos/{name}"} for name in ("1", "blue"))
    cluster, reconciler = make_reconciler(make_model(versions=[one, blue]), make_batch(modelVersion="blue"))
    await reconciler.reconcile(BATCH)
    del cluster.objects["Job", "bpj-nightly"]
    green = {"name": "green", "artifactUri": "gs://models/other", "aliases": ["blue"]}
    cluster.objects["Model", "photos"] = make_model(versions=[one, green])
    await reconciler.reconcile(BATCH)
    assert cluster.ready(BATCH) == ("False", "ModelVersionNotFound")
    assert ("Job", "bpj-nightly") not in cluster.objects


async def test_job_takes_no_alias_that_was_another_versions_name(make_reconciler):
    version = {"name": "1", "artifactUri": "gs://models/photos/1", "aliases": ["blue"]}
    known = {"versions": [{"name": "blue", "artifactUri": "gs://models/photos/blue"}]}
    model = make_model(versions=[version])
    cluster, reconciler = make_reconciler({**model, "status": known}, make_batch(modelVersion="blue"))
    await reconciler.reconcile(BATCH)
    assert cluster.ready(BATCH) == ("False", "ModelVersionNotFound")
    assert ("Job", "bpj-nightly") not in cluster.objects


OTHER = make_model(versions=[{"name": "1", "artifactUri": "gs://models/photos/other"}])


async def test_job_does_not_take_another_artifact_of_a_versions_name(make_reconciler):
    known = [{"name": "1", "artifactUri": "gs://models/photos/1"}]
    cluster, reconciler = make_reconciler({**OTHER, "status": {"versions": known}}, make_batch())
    await reconciler.reconcile(BATCH)
    assert cluster.ready(BATCH) == ("False", "VersionChanged")
    assert (_state(cluster), cluster.is_true(BATCH, "Stalled")) == ("PENDING", True)
    assert ("Job", "bpj-nightly") not in cluster.objects
    cluster.objects["Model", "photos"] = make_model()
    await reconciler.reconcile(BATCH)
    assert ("Job", "bpj-nightly") in cluster.objects


async def test_another_try_goes_on_with_the_artifact_that_it_began_with(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    _end(cluster, "Failed", reason="PodFailurePolicy", message="m")
    await reconciler.reconcile(BATCH)
    cluster.objects["Model", "photos"] = OTHER
    cluster.objects["BatchPredictionJob", "nightly"]["metadata"]["annotations"]["pierhead.dev/renew"] = "again"
    for _ in range(2):
        await reconciler.reconcile(BATCH)
    assert ("Job", "bpj-nightly") not in cluster.objects
    assert cluster.ready(BATCH) == ("False", "VersionChanged")


async def test_cancel_takes_the_workers_away(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    _put_pod(cluster)
    cluster.objects["BatchPredictionJob", "nightly"]["spec"]["cancel"] = True
    await reconciler.reconcile(BATCH)
    assert ("delete", "Job", "bpj-nightly") in cluster.calls
    assert _state(cluster) == "CANCELLING"
    del cluster.objects["Pod", "worker-0"]
    await reconciler.reconcile(BATCH)
    assert _state(cluster) == "CANCELLED"


async def test_suspended_job_is_told_so_and_nothing_else(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    cluster.objects["BatchPredictionJob", "nightly"]["spec"]["suspend"] = True
    await reconciler.reconcile(BATCH)
    assert cluster.objects["Job", "bpj-nightly"]["spec"]["suspend"] is True
    assert _state(cluster) == "QUEUED"


async def test_deadline_may_come_later_and_go_again(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    _change(cluster, "BatchPredictionJob", "nightly", activeDeadlineSeconds=60)
    await reconciler.reconcile(BATCH)
    assert cluster.objects["Job", "bpj-nightly"]["spec"]["activeDeadlineSeconds"] == 60
    cluster.calls.clear()
    await reconciler.reconcile(BATCH)
    assert cluster.calls == []
    del cluster.objects["BatchPredictionJob", "nightly"]["spec"]["activeDeadlineSeconds"]
    await reconciler.reconcile(BATCH)
    assert "activeDeadlineSeconds" not in cluster.objects["Job", "bpj-nightly"]["spec"]


async def test_deadline_that_the_job_was_made_with_goes_with_the_specs(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch(activeDeadlineSeconds=60))
    await reconciler.reconcile(BATCH)
    del cluster.objects["BatchPredictionJob", "nightly"]["spec"]["activeDeadlineSeconds"]
    await reconciler.reconcile(BATCH)
    assert "activeDeadlineSeconds" not in cluster.objects["Job", "bpj-nightly"]["spec"]


async def test_change_that_the_api_server_refuses_is_told_and_the_job_looked_after(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    cluster.refuse("Job")
    _put_pod(cluster)
    _change(cluster, "BatchPredictionJob", "nightly", activeDeadlineSeconds=60)
    assert await reconciler.reconcile(BATCH) <= PACE_SECONDS
    assert (_state(cluster), cluster.ready(BATCH)) == ("RUNNING", ("False", "Rejected"))
    cluster.rejects.clear()
    await reconciler.reconcile(BATCH)
    assert cluster.ready(BATCH) == ("False", "Running")


async def test_change_that_a_webhook_takes_back_is_not_asked_for_at_each_look(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    cluster.mutate = lambda live: live["spec"].update(activeDeadlineSeconds=30)
    _change(cluster, "BatchPredictionJob", "nightly", activeDeadlineSeconds=60)
    for _ in range(2):
        await reconciler.reconcile(BATCH)
    cluster.calls.clear()
    await reconciler.reconcile(BATCH)
    assert cluster.calls == []
    cluster.mutate = lambda _: None
    _change(cluster, "BatchPredictionJob", "nightly", activeDeadlineSeconds=90)
    await reconciler.reconcile(BATCH)
    assert cluster.objects["Job", "bpj-nightly"]["spec"]["activeDeadlineSeconds"] == 90


async def test_more_workers_follow_once_the_first_ones_run(make_reconciler):
    resources = {"startingReplicaCount": 2, "maxReplicaCount": 5}
    cluster, reconciler = make_reconciler(make_model(), make_batch(dedicatedResources=resources))
    counts = []
    for pods in (0, 1, 2, 3, 4, 5):
        for shard in range(pods):
            _put_pod(cluster, shard)
        if pods == 3:
            _put_pod(cluster, 3, "Pending")  # there is no room for it yet
        await reconciler.reconcile(BATCH)
        counts.append(cluster.objects["Job", "bpj-nightly"]["spec"]["parallelism"])
    assert counts == [2, 2, 4, 4, 5, 5]
    assert cluster.objects["Job", "bpj-nightly"]["spec"]["completions"] == 5


async def test_queue_alone_starts_what_is_in_it(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch(labels={"kueue.x-k8s.io/queue-name": "gpus"}))
    await reconciler.reconcile(BATCH)
    job = cluster.objects["Job", "bpj-nightly"]
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    job["spec"]["suspend"] = False  # the queue gave it room
    cluster.calls.clear()
    await reconciler.reconcile(BATCH)
    assert not [call for call in cluster.calls if call[1] == "Job"]


def _inject(job):
    """What Kueue changes of a Job when it gives it room."""
    job["spec"] |= {"suspend": False, "parallelism": 3}
    template = job["spec"]["template"]
    template["spec"] |= {"nodeSelector": {"pool": "spot"}, "tolerations": [{"key": "spot", "operator": "Exists"}]}
    template["metadata"]["labels"]["kueue.x-k8s.io/podset"] = "main"


async def test_what_a_queue_injects_stays(make_reconciler):
    resources = {"startingReplicaCount": 2, "maxReplicaCount": 8}
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "low"}
    cluster, reconciler = make_reconciler(make_model(), make_batch(labels=labels, dedicatedResources=resources))
    await reconciler.reconcile(BATCH)
    job = cluster.objects["Job", "bpj-nightly"]
    assert job["metadata"]["labels"].items() >= labels.items()
    _inject(job)
    before = deepcopy(job)
    for shard in range(3):
        _put_pod(cluster, shard)
    for _ in range(3):
        _wait(reconciler)
        await reconciler.reconcile(BATCH)
    assert cluster.objects["Job", "bpj-nightly"] == before


class LateCluster(FakeCluster):
    """Of a Job no watch has told yet."""

    async def get(self, kind, namespace, name):
        return None if kind == "Job" else await super().get(kind, namespace, name)


async def test_what_a_queue_injects_stays_though_the_operator_that_made_the_job_is_gone(make_reconciler, settings):
    cluster, reconciler = make_reconciler(make_model(), make_batch(labels={"kueue.x-k8s.io/queue-name": "gpus"}))
    await reconciler.reconcile(BATCH)
    _inject(cluster.objects["Job", "bpj-nightly"])
    late = LateCluster(*cluster.objects.values())
    await _make(late, settings)[0].reconcile(BATCH)
    assert late.objects["Job", "bpj-nightly"] == cluster.objects["Job", "bpj-nightly"]


async def _renew(cluster, reconciler):
    _end(cluster, "Failed", reason="PodFailurePolicy", message="m")
    await reconciler.reconcile(BATCH)
    assert _state(cluster) == "FAILED"
    cluster.objects["BatchPredictionJob", "nightly"]["metadata"]["annotations"]["pierhead.dev/renew"] = "again"
    old = cluster.objects["Job", "bpj-nightly"]
    await reconciler.reconcile(BATCH)
    assert ("delete", "Job", "bpj-nightly") in cluster.calls
    return old


async def test_another_try_takes_the_same_folder(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    before = _folder(cluster)
    old = await _renew(cluster, reconciler)
    cluster.objects["Job", "bpj-nightly"] = old  # its end takes a moment
    await reconciler.reconcile(BATCH)
    assert _state(cluster) == "PENDING", "what the old one came to is of no interest any more"
    cluster.objects.pop(("Job", "bpj-nightly"), None)
    await reconciler.reconcile(BATCH)
    assert _state(cluster) == "PENDING"
    assert _folder(cluster) == before


async def test_folder_stays_though_its_model_gets_another_name(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    before = _folder(cluster)
    _change(cluster, "Model", "photos", displayName="Photographs")
    await reconciler.reconcile(BATCH)
    assert _told_folder(cluster) == before
    await _renew(cluster, reconciler)
    await reconciler.reconcile(BATCH)
    assert (_folder(cluster), _told_folder(cluster)) == (before, before)


async def test_folder_is_told_before_any_worker_is_made(make_reconciler):
    """What comes to pass before the next try changes nothing."""
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    cluster.refuse("Job")
    with pytest.raises(ClusterError):
        await reconciler.reconcile(BATCH)
    told = _told_folder(cluster)
    versions = [{"name": name, "artifactUri": f"gs://models/photos/{name}"} for name in ("1", "2")]
    _change(cluster, "Model", "photos", displayName="Photographs", defaultVersion="2", versions=versions)
    cluster.rejects.clear()
    await reconciler.reconcile(BATCH)
    assert (_folder(cluster), _told_folder(cluster)) == (told, told)
    assert cluster.objects["BatchPredictionJob", "nightly"]["status"]["modelVersion"] == "1"


class DeafCluster(FakeCluster):
    """Takes no status, as an API server that a webhook of somebody else's keeps from it."""

    async def apply_status(self, resource, status):
        pass


async def test_no_worker_is_made_whose_folder_is_not_told(settings):
    cluster = DeafCluster(make_model(), make_batch())
    with pytest.raises(ClusterError, match="does not tell its folder"):
        await _make(cluster, settings)[0].reconcile(BATCH)
    assert ("Job", "bpj-nightly") not in cluster.objects


async def test_jobs_of_one_second_write_into_folders_of_their_own(make_reconciler):
    first, second = make_batch(), make_batch()
    second["metadata"] |= {"name": "again", "uid": "e5b0a7c2-9d31-4c1e-8a0f-6f1f0f3b2a11"}
    cluster, reconciler = make_reconciler(make_model(), first, second)
    for name in ("nightly", "again"):
        await reconciler.reconcile(Key("BatchPredictionJob", "default", name))
    assert _folder(cluster) != _folder(cluster, "again")
    assert (_folder(cluster), _folder(cluster, "again")) == (_told_folder(cluster), _told_folder(cluster, "again"))


async def test_job_of_before_an_upgrade_keeps_its_folder(make_reconciler):
    """A 0.1.0 named it without the uid, and told it anew by the Model's name of each moment."""
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    old = "gs://out/photos/prediction-Photos-2026_11_22T12_00_00Z"
    container = cluster.objects["Job", "bpj-nightly"]["spec"]["template"]["spec"]["containers"][0]
    for variable in container["env"]:
        if variable["name"] == "PIERHEAD_BATCH_JOB":
            variable["value"] = json.dumps({"outputUri": old})
    renamed = old.replace("Photos", "Photographs")
    cluster.objects["BatchPredictionJob", "nightly"]["status"]["outputInfo"]["gcsOutputDirectory"] = renamed
    cluster.calls.clear()
    await reconciler.reconcile(BATCH)
    assert cluster.calls == [("status", "BatchPredictionJob", "nightly")]
    assert _told_folder(cluster) == old
    await _renew(cluster, reconciler)
    await reconciler.reconcile(BATCH)
    assert _folder(cluster) == old


SHARDS = 100


class Minute:
    """A job of many shards on a fake clock: each event, also of what the operator wrote itself, is looked at at once."""

    def __init__(self, cluster, reconciler):
        self.cluster, self.reconciler = cluster, reconciler
        self.chance = random.Random(7)  # noqa: S311  # the same minute each time
        self.timer = 0.0

    async def run(self):
        for tick in range(600):
            self._advance()
            # Some worker's pod changes every now and then: a probe, a condition.
            events = [True] if self.chance.random() < 0.2 else []
            now = tick / 10
            while events or now >= self.timer:
                events.clear()
                writes = self.cluster.calls.count(("status", "BatchPredictionJob", "nightly"))
                self.timer = now + await self.reconciler.reconcile(BATCH)
                if self.cluster.calls.count(("status", "BatchPredictionJob", "nightly")) > writes:
                    events.append(True)
            _wait(self.reconciler, 0.1)

    def _advance(self):
        for shard in range(SHARDS):
            address, before = f"10.0.0.{shard}", self.cluster.workers.progress.get(f"10.0.0.{shard}")
            done = (before.successful if before else 0) + self.chance.randrange(20)
            self.cluster.workers.progress[address] = ShardProgress(
                shard=shard, successful=done, bytes_done=done, bytes_total=100_000
            )


async def test_minute_of_a_hundred_shards_takes_a_dozen_writes(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch(dedicatedResources={"startingReplicaCount": SHARDS}))
    await reconciler.reconcile(BATCH)
    for shard in range(SHARDS):
        _put_pod(cluster, shard)
    cluster.calls.clear()
    await Minute(cluster, reconciler).run()
    assert 10 <= cluster.calls.count(("status", "BatchPredictionJob", "nightly")) <= 15
    assert 10 * SHARDS <= cluster.workers.asked <= 13 * SHARDS
    told = cluster.objects["BatchPredictionJob", "nightly"]["status"]["completionStats"]["successfulCount"]
    done = sum(progress.successful for progress in cluster.workers.progress.values())
    assert told > 0.9 * done, "it tells how far they are now"


async def test_state_is_told_at_once_and_counts_in_their_turn(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    _put_pod(cluster)
    cluster.workers.progress["10.0.0.0"] = ShardProgress(shard=0, successful=5, bytes_done=1, bytes_total=2)
    _wait(reconciler, 1)
    assert await reconciler.reconcile(BATCH) == PACE_SECONDS - 1
    assert _state(cluster) == "RUNNING"
    cluster.calls.clear()
    _wait(reconciler, 1)
    await reconciler.reconcile(BATCH)
    assert (cluster.calls, cluster.workers.asked) == ([], 0)
    _wait(reconciler, 3)
    await reconciler.reconcile(BATCH)
    assert cluster.objects["BatchPredictionJob", "nightly"]["status"]["progress"] == "50%"
    _put_pod(cluster, phase="Failed")
    cluster.calls.clear()
    await reconciler.reconcile(BATCH)
    assert cluster.calls[0] == ("status", "BatchPredictionJob", "nightly")
    assert cluster.ready(BATCH) == ("False", "CrashLooping")


async def test_job_deletes_itself_when_its_time_is_over(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch(ttlSecondsAfterFinished=60))
    await reconciler.reconcile(BATCH)
    _end(cluster)
    await reconciler.reconcile(BATCH)
    assert await reconciler.reconcile(BATCH) == 60
    reconciler.clock.now = NOW.replace(minute=2)
    await reconciler.reconcile(BATCH)
    assert ("BatchPredictionJob", "nightly") not in cluster.objects


async def test_foreign_job_is_left_alone(make_reconciler):
    foreign = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "bpj-nightly", "uid": "x"}, "spec": {}}
    cluster, reconciler = make_reconciler(make_model(), make_batch(), foreign)
    await reconciler.reconcile(BATCH)
    assert cluster.ready(BATCH) == ("False", "NotOwned")
    assert cluster.objects["Job", "bpj-nightly"] == foreign


async def test_too_many_addresses_are_told(make_reconciler):
    uris = [f"gs://in/{'x' * 2000}/{number}" for number in range(100)]
    cluster, reconciler = make_reconciler(make_model(), make_batch(inputConfig={"gcsSource": {"uris": uris}}))
    await reconciler.reconcile(BATCH)
    assert cluster.ready(BATCH) == ("False", "SpecTooLarge")


async def test_job_with_an_override_that_is_not_allowed_fails_at_once(make_reconciler):
    overrides = {"env": [{"name": "AWS_ENDPOINT_URL", "value": "http://mine"}]}
    cluster, reconciler = make_reconciler(make_model(), make_batch(podOverrides=overrides))
    await reconciler.reconcile(BATCH)
    assert cluster.ready(BATCH) == ("False", "OverrideNotAllowed")
    status = cluster.objects["BatchPredictionJob", "nightly"]["status"]
    assert (_state(cluster), status["error"]["code"]) == ("FAILED", 3)
    assert "spec.podOverrides.env[AWS_ENDPOINT_URL]" in status["error"]["message"]
    assert ("Job", "bpj-nightly") not in cluster.objects


async def test_job_whose_workers_the_api_server_can_never_take_fails_at_once(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    cluster.refuse("Job", Invalid('Job.batch "bpj-nightly" is invalid: spec.template.spec.tolerations[0].key'))
    await reconciler.reconcile(BATCH)
    assert cluster.ready(BATCH) == ("False", "Invalid")
    status = cluster.objects["BatchPredictionJob", "nightly"]["status"]
    assert (_state(cluster), status["error"]["code"]) == ("FAILED", 3)
    assert "tolerations[0].key" in status["error"]["message"]


async def test_job_waits_where_the_installations_policy_is_wrong(settings):
    policy = {"network_policy": NetworkPolicySettings.model_validate(NETWORK_POLICY)}
    cluster = FakeCluster(make_model(), make_batch())
    reconciler, _ = _make(cluster, settings.model_copy(update=policy))
    cluster.refuse("NetworkPolicy", Invalid("spec.egress[0].ports: wrong"))
    with pytest.raises(ClusterError, match="egress"):
        await reconciler.reconcile(BATCH)
    assert (_state(cluster), cluster.ready(BATCH)) == ("PENDING", ("False", "Rejected"))


async def test_job_that_runs_goes_on_though_its_overrides_are_no_longer_allowed(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    _put_pod(cluster)
    cluster.objects["BatchPredictionJob", "nightly"]["spec"]["podOverrides"] = {"labels": {"job-name": "another"}}
    await reconciler.reconcile(BATCH)
    assert _state(cluster) == "RUNNING"


async def test_pods_of_a_job_that_had_the_name_before_count_nothing(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    _put_pod(cluster)
    cluster.objects["Pod", "worker-0"]["metadata"]["labels"]["pierhead.dev/batch-prediction-job-uid"] = "uid-before"
    await reconciler.reconcile(BATCH)
    assert _state(cluster) == "PENDING"


def _fail(cluster, shard=0):
    """A worker that had committed something in an hour, and whose shard had failed five times before."""
    _put_pod(cluster, shard, "Failed")
    pod = cluster.objects["Pod", f"worker-{shard}"]
    pod["metadata"]["annotations"] = {INDEX_FAILURES: "5"}
    times = {"startedAt": "2026-11-22T12:00:00Z", "finishedAt": "2026-11-22T13:00:00Z"}
    words = json.dumps({"shard": shard, "successful": 200})
    pod["status"]["containerStatuses"][0]["state"]["terminated"] |= {**times, "message": words}
    return pod


INDEX_FAILURES = "batch.kubernetes.io/job-index-failure-count"


async def test_worker_that_had_done_something_is_made_again_soon(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    pod = _fail(cluster)
    await reconciler.reconcile(BATCH)
    assert ("patch", "Pod", "worker-0") in cluster.calls
    assert pod["metadata"]["annotations"] == {INDEX_FAILURES: "0"}
    cluster.calls.clear()
    await reconciler.reconcile(BATCH)
    assert cluster.calls == []


async def test_installation_that_may_not_change_pods_goes_on(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_batch())
    await reconciler.reconcile(BATCH)
    _fail(cluster)
    cluster.refuse("Pod", Rejected("pods is forbidden"))
    await reconciler.reconcile(BATCH)
    assert _state(cluster) == "RUNNING" or _state(cluster) == "PENDING"
    assert not [call for call in cluster.calls if call[:2] == ("patch", "Pod")]
