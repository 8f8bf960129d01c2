"""What should exist for a BatchPredictionJob: an Indexed Job, of which each index is one part of the input. Pure."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pierhead_operator import names
from pierhead_operator.resources.machines import compute_machine
from pierhead_operator.resources.network import make_network_policy
from pierhead_operator.resources.objects import Manifest, make_metadata
from pierhead_operator.resources.pods import (
    ServerPod,
    escape,
    make_container,
    make_log_env,
    make_model_env,
    make_pod_metadata,
    make_pod_spec,
    make_probe,
)
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import BatchPredictionJob, Model, ModelVersion

# What a worker exits with where no other try would help; its last words tell why.
EXIT_USER_ERROR = 65
# One string of a process's environment can be 128 KiB.
MAX_DOCUMENT_BYTES = 120 * 1024
_QUEUE_LABEL = f"{names.KUEUE}queue-name"
# A worker that is lost takes a chunk with it, and the next one goes on from there: many may be lost.
_RETRIES_OF_A_SHARD = 100
# To commit what is being written.
_GRACE_SECONDS = 20
_PVC = re.compile(r"^pvc://([^/]+)/")
_PVC_FOLDER = "/pierhead/pvc"
_DOCUMENT_VARIABLE = "PIERHEAD_BATCH_JOB"
_ALLOWED_VARIABLE = "PIERHEAD_BATCH_ALLOWED_URIS"
# A file system's name has at most 255 bytes, and the folder's has 41 more than this.
_MAX_SHOWN_BYTES = 128
_UID_CHARACTERS = 8


@dataclass(frozen=True)
class Batching:
    """A BatchPredictionJob together with what it resolves to."""

    job: BatchPredictionJob
    model: Model
    version: ModelVersion
    settings: OperatorSettings
    output: str  # the job's own folder

    @property
    def labels(self) -> dict[str, str]:
        """The labels of all that belongs to it."""
        return {
            names.LABEL_NAME: "pierhead-batch",
            names.LABEL_BATCH_PREDICTION_JOB: self.job.name,
            names.LABEL_MODEL: self.job.spec.model,
        }


def make_output(job: BatchPredictionJob, model: Model) -> str:
    """A job's own folder, as Vertex AI names it: of the model and of the moment in which the job was made.

    In the place of the moment's milliseconds, which Kubernetes does not tell, is the beginning of the job's uid: jobs
    of one manifest are made in one second.
    """
    prefix = job.spec.output_config.gcs_destination.output_uri_prefix.rstrip("/")
    shown = re.sub(r"[^\w.-]+", "_", model.display_name).encode()[:_MAX_SHOWN_BYTES].decode(errors="ignore")
    created = job.metadata.creation_timestamp
    assert created is not None  # the API server gave it
    return f"{prefix}/prediction-{shown}-{created:%Y_%m_%dT%H_%M_%S}_{job.metadata.uid[:_UID_CHARACTERS]}Z"


def find_output(job: BatchPredictionJob, live: Manifest | None) -> str:
    """The job's own folder: where its workers write to, else what its status tells; empty where there is none yet."""
    return (read_output(live) if live else "") or job.status.output_info.gcs_output_directory


def read_output(live: Manifest) -> str:
    """The folder that the workers of a Job were told; empty where it does not say."""
    containers = live["spec"]["template"]["spec"]["containers"]
    variables = [variable for container in containers for variable in container.get("env", [])]
    told = next((one.get("value", "") for one in variables if one["name"] == _DOCUMENT_VARIABLE), "")
    try:
        document = json.loads(told.replace("$$", "$"))  # as Kubernetes does
    except ValueError:
        return ""
    return str(document.get("outputUri", "")) if isinstance(document, dict) else ""


def make_document(batching: Batching) -> str:
    """What a worker is told: one JSON document."""
    job = batching.job
    spec = job.spec
    document: dict[str, Any] = {
        "inputFormat": spec.input_config.instances_format,
        "inputUris": spec.input_config.gcs_source.uris,
        "outputFormat": spec.output_config.predictions_format,
        "outputUri": batching.output,
        "modelParameters": spec.model_parameters,
        "shards": spec.dedicated_resources.max_replicas,
        "batchSize": spec.manual_batch_tuning_parameters.batch_size,
    }
    if spec.instance_config and (config := spec.instance_config.dump()):
        document["instanceConfig"] = config
    return json.dumps(document, separators=(",", ":"), sort_keys=True)


def explain_document(batching: Batching) -> str | None:
    """Why a worker cannot be told what to do; None where it can."""
    size = len(make_document(batching).encode())
    if size <= MAX_DOCUMENT_BYTES:
        return None
    return f"spec.inputConfig.gcsSource.uris and modelParameters: {size} bytes: name the files by * or by a folder"


def explain_instance_config(job: BatchPredictionJob) -> str | None:
    """Why a worker cannot do what the job's instanceConfig asks for; None where it can."""
    config = job.spec.instance_config
    if config is None or job.spec.input_config.instances_format != "file-list":
        return None
    if not (config.key_field or config.included_fields or config.excluded_fields or config.instance_type == "array"):
        return None
    return "spec.instanceConfig: a file-list has no fields: take it out, or name the files in lines of jsonl"


def make_job(batching: Batching) -> Manifest:
    """The workers. Made once: of what it runs nothing of a Job can change."""
    job = batching.job
    resources, queued = job.spec.dedicated_resources, is_queued(job.metadata.labels)
    spec: Manifest = {
        "completionMode": "Indexed",
        "completions": resources.max_replicas,
        # A queue gives room to as many as it has, and need not wait for it to be enough for all.
        "parallelism": resources.max_replicas if queued else resources.starting_replica_count,
        "backoffLimitPerIndex": _RETRIES_OF_A_SHARD,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": names.SERVER_CONTAINER,
                        "operator": "In",
                        "values": [EXIT_USER_ERROR],
                    },
                },
            ]
        },
        # A queue decides when it begins; so does whoever suspends it.
        "suspend": job.spec.suspend or queued,
        "template": _make_template(batching),
    }
    annotations = {names.ANNOTATION_RENEW: renew_value(job)}
    if deadline := job.spec.active_deadline_seconds:
        spec["activeDeadlineSeconds"] = deadline
        annotations[names.ANNOTATION_DEADLINE] = str(deadline)
    if queued and resources.starting_replica_count < resources.max_replicas:
        annotations[names.KUEUE_MIN_PARALLELISM] = str(resources.starting_replica_count)
    kueue = {label: value for label, value in job.metadata.labels.items() if label.startswith(names.KUEUE)}
    metadata = make_metadata(names.batch(job.name), job, {**batching.labels, **kueue})
    metadata["annotations"] = annotations
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def make_worker_policies(batching: Batching) -> list[Manifest]:
    """Who asks the workers how far they are, and nobody else; nothing where the installation wants none."""
    job, policy = batching.job, batching.settings.network_policy
    if policy is None:
        return []
    metadata = make_metadata(names.batch(job.name), job, batching.labels)
    pods = {**names.OURS, names.LABEL_BATCH_PREDICTION_JOB: job.name}
    return [make_network_policy(metadata, pods, policy.monitoring, policy.egress)]


def renew_value(job: BatchPredictionJob) -> str:
    """What asks for another try, each time that it changes."""
    return job.metadata.annotations.get(names.ANNOTATION_RENEW, "")


def is_of_another_try(live: Manifest, job: BatchPredictionJob) -> bool:
    """Whether a Job was made before the last try was asked for."""
    return bool(live["metadata"].get("annotations", {}).get(names.ANNOTATION_RENEW, "") != renew_value(job))


def make_control(job: BatchPredictionJob, live: Manifest, running: int) -> Manifest:
    """What of a Job that is there has to be changed, as a merge patch; empty where nothing has.

    `running` workers run.
    """
    wanted: Manifest = {}
    # What a queue takes away or gives is not ours to say. The Job's own label tells: one of its owner may come later.
    if not is_queued(live["metadata"].get("labels", {})):
        wanted = {"suspend": job.spec.suspend, "parallelism": decide_parallelism(job, live["spec"], running)}
    deadline = job.spec.active_deadline_seconds
    asked = live["metadata"].get("annotations", {}).get(names.ANNOTATION_DEADLINE)
    if deadline or asked:  # else one that is there is somebody else's
        wanted["activeDeadlineSeconds"] = deadline
    changes: Manifest = {}
    if spec := {field: value for field, value in wanted.items() if live["spec"].get(field) != value}:
        changes["spec"] = spec
    if asked != (told := str(deadline) if deadline else None):
        changes["metadata"] = {"annotations": {names.ANNOTATION_DEADLINE: told}}
    return changes


def decide_parallelism(job: BatchPredictionJob, spec: Manifest, running: int) -> int:
    """How many workers a Job of this spec may have at a time: `startingReplicaCount`, twice as many once all run.

    So those that wait for room are never more than those that have it.
    """
    resources = job.spec.dedicated_resources
    most: int = min(resources.max_replicas, spec.get("completions", 1))
    if job.spec.suspend:  # it starts again as it did at first
        return min(resources.starting_replica_count, most)
    now: int = spec["parallelism"]
    return min(2 * now if running >= now else now, most)


def is_queued(labels: Mapping[str, str]) -> bool:
    """Whether Kueue decides when a job with these labels runs."""
    return _QUEUE_LABEL in labels


def _make_template(batching: Batching) -> Manifest:
    job, settings = batching.job, batching.settings
    spec = job.spec
    pod = ServerPod(
        server=settings.server,
        machine=compute_machine(spec.dedicated_resources.machine_spec, settings),
        overrides=spec.pod_overrides,
        service_account=spec.service_account,
        env=[
            *make_model_env(batching.model, batching.version, settings),
            {"name": _DOCUMENT_VARIABLE, "value": escape(make_document(batching))},
            # Also where it is the worker's default, so that no Secret of the namespace says something else by envFrom.
            {"name": _ALLOWED_VARIABLE, "value": ",".join(settings.batch.allowed_uris)},
        ],
        own_env=make_log_env(errors_alone=spec.disable_container_logging),
    )
    container = make_container(
        pod,
        args=["batch"],
        startupProbe=make_probe("/healthz", periodSeconds=2, timeoutSeconds=2, failureThreshold=900),
        livenessProbe=make_probe("/healthz", periodSeconds=10, timeoutSeconds=5, failureThreshold=6),
    )
    claims = _claims(job)
    container["volumeMounts"] += [
        {"name": names.volume(claim), "mountPath": f"{_PVC_FOLDER}/{claim}"} for claim in claims
    ]
    pod_spec = make_pod_spec(pod, container, restartPolicy="Never", terminationGracePeriodSeconds=_GRACE_SECONDS)
    pod_spec["volumes"] += [
        {"name": names.volume(claim), "persistentVolumeClaim": {"claimName": claim}} for claim in claims
    ]
    labels = {**batching.labels, names.LABEL_BATCH_PREDICTION_JOB_UID: job.metadata.uid}
    return {"metadata": make_pod_metadata(spec.pod_overrides, labels), "spec": pod_spec}


def _claims(job: BatchPredictionJob) -> list[str]:
    """The PersistentVolumeClaims that the job's addresses name."""
    uris = [*job.spec.input_config.gcs_source.uris, job.spec.output_config.gcs_destination.output_uri_prefix]
    return sorted({found[1] for uri in uris if (found := _PVC.match(uri))})
