"""Batch prediction jobs: Vertex AI's messages from and to custom resources. Pure."""

from typing import Annotated

from pierhead_operator.batch_status import ENDED
from pierhead_operator.resources import Manifest
from pierhead_operator.types import BatchPredictionJob, BatchPredictionJobStatus, CompletionStats
from pydantic import Field

from pierhead_api import objects
from pierhead_api.errors import InvalidArgumentError
from pierhead_api.machines import BatchDedicatedResources, make_batch_resources
from pierhead_api.names import Place
from pierhead_api.wire import (
    BETA_ONLY,
    Body,
    Labels,
    Message,
    Number,
    Whatever,
    collect,
    drop_empty,
    format_time,
    refuse,
    require,
)

_FORMATS = "jsonl, csv and file-list are"
_INPUT_FORMATS = ("", "jsonl", "csv", "file-list")
_OUTPUT_FORMATS = ("", "jsonl", "csv", "parquet")
_INSTANCE_TYPES = ("", "object", "array")


class GcsSource(Message):
    uris: list[str] = Field(default_factory=list)


class GcsDestination(Message):
    output_uri_prefix: str = ""


class InputConfig(Message):
    instances_format: str = ""
    gcs_source: GcsSource = GcsSource()
    bigquery_source: Whatever = None
    vertex_multimodal_dataset_source: Whatever = None


class OutputConfig(Message):
    predictions_format: str = ""
    gcs_destination: GcsDestination = GcsDestination()
    bigquery_destination: Whatever = None
    vertex_multimodal_dataset_destination: Whatever = None


class InstanceConfig(Message):
    instance_type: str = ""
    key_field: str = ""
    included_fields: list[str] = Field(default_factory=list)
    excluded_fields: list[str] = Field(default_factory=list)


class TuningParameters(Message):
    batch_size: Number = None


class JobBody(Message):
    """What a client sends of a BatchPredictionJob. What only answers have is taken and not read."""

    name: str = ""
    display_name: str = ""
    model: str = ""
    model_parameters: Whatever = None
    input_config: InputConfig
    output_config: OutputConfig
    instance_config: InstanceConfig = InstanceConfig()
    dedicated_resources: BatchDedicatedResources | None = None
    manual_batch_tuning_parameters: TuningParameters = TuningParameters()
    service_account: str = ""
    labels: Labels = Field(default_factory=dict)
    generate_explanation: bool = False
    explanation_spec: Whatever = None
    disable_container_logging: bool = False
    unmanaged_container_model: Whatever = None
    endpoint: Annotated[str, BETA_ONLY] = ""
    model_monitoring_config: Annotated[Whatever, BETA_ONLY] = None
    model_monitoring_status: Annotated[Whatever, BETA_ONLY] = None
    model_monitoring_stats_anomalies: Annotated[Whatever, BETA_ONLY] = None
    encryption_spec: Whatever = None
    state: Whatever = None
    model_version_id: Whatever = None
    output_info: Whatever = None
    error: Whatever = None
    partial_failures: Whatever = None
    resources_consumed: Whatever = None
    completion_stats: Whatever = None
    create_time: Whatever = None
    start_time: Whatever = None
    end_time: Whatever = None
    update_time: Whatever = None
    satisfies_pzi: Whatever = None
    satisfies_pzs: Whatever = None


_REFUSED = {
    "unmanaged_container_model": "is not supported: upload the artifact as a model, and name it in model",
    "endpoint": "is not supported: name the model in model",
    "generate_explanation": "is not supported",
    "model_monitoring_config": "is not supported",
    "encryption_spec": "is not supported: storage encrypts what it stores as it is told to",
}
_REFUSED_INPUT = {
    "bigquery_source": "is not supported: give gcsSource",
    "vertex_multimodal_dataset_source": "is not supported: give gcsSource",
}
_REFUSED_OUTPUT = {
    "bigquery_destination": "is not supported: give gcsDestination",
    "vertex_multimodal_dataset_destination": "is not supported: give gcsDestination",
}
_KEPT = ("explanation_spec",)
_LOGGING = ("disable_container_logging",)
_PENDING = "JOB_STATE_PENDING"


def make_job(body: JobBody, place: Place, name: str, model: str, version: str) -> Manifest:
    """The BatchPredictionJob to create; raises InvalidArgumentError."""
    refuse(body, _REFUSED)
    if not isinstance(body.model_parameters or {}, dict):
        raise InvalidArgumentError("must be an object", "modelParameters")
    spec = {
        "displayName": require(body.display_name, "displayName"),
        "model": model,
        "modelVersion": version,
        "modelParameters": body.model_parameters,
        "inputConfig": _make_input(body.input_config),
        "instanceConfig": _make_instance(body.instance_config, body.input_config.instances_format),
        "outputConfig": _make_output(body.output_config),
        "dedicatedResources": make_batch_resources(body.dedicated_resources) if body.dedicated_resources else None,
        "manualBatchTuningParameters": drop_empty({"batchSize": body.manual_batch_tuning_parameters.batch_size}),
        "serviceAccount": body.service_account,
        **collect(body, _LOGGING),
    }
    manifest = objects.make_object(BatchPredictionJob, place.namespace, name, drop_empty(spec))
    return objects.mark(manifest, body.labels, collect(body, _KEPT))


def _make_input(config: InputConfig) -> Body:
    refuse(config, _REFUSED_INPUT)
    if config.instances_format not in _INPUT_FORMATS:
        raise InvalidArgumentError(f"{config.instances_format} is not supported: {_FORMATS}", "instancesFormat")
    if not config.gcs_source.uris:
        raise InvalidArgumentError("must be set", "inputConfig.gcsSource.uris")
    return drop_empty({"instancesFormat": config.instances_format, "gcsSource": {"uris": config.gcs_source.uris}})


def _make_instance(config: InstanceConfig, form: str) -> Body:
    if config.instance_type not in _INSTANCE_TYPES:
        raise InvalidArgumentError(f"{config.instance_type} is not supported: object and array are", "instanceType")
    if config.included_fields and config.excluded_fields:
        raise InvalidArgumentError("must be empty where includedFields is set", "instanceConfig.excludedFields")
    fields = {
        "keyField": config.key_field,
        "includedFields": config.included_fields,
        "excludedFields": config.excluded_fields,
    }
    if form == "file-list" and (config.instance_type == "array" or any(fields.values())):
        raise InvalidArgumentError("a file-list has no fields: take it out", "instanceConfig")
    return drop_empty({"instanceType": config.instance_type, **fields})


def _make_output(config: OutputConfig) -> Body:
    refuse(config, _REFUSED_OUTPUT)
    if config.predictions_format not in _OUTPUT_FORMATS:
        raise InvalidArgumentError(
            f"{config.predictions_format} is not supported: jsonl, csv and parquet are", "predictionsFormat"
        )
    prefix = require(config.gcs_destination.output_uri_prefix, "outputConfig.gcsDestination.outputUriPrefix")
    return drop_empty({"predictionsFormat": config.predictions_format, "gcsDestination": {"outputUriPrefix": prefix}})


def is_ended(manifest: Manifest) -> bool:
    """Whether a job will not predict any more."""
    return manifest.get("status", {}).get("state") in ENDED


def describe_job(manifest: Manifest, model_display_name: str, place: Place) -> Body:
    """Of Vertex AI's BatchPredictionJob what lists are filtered and ordered by."""
    status = manifest.get("status", {})
    told = {name: status[name] for name in ("startTime", "endTime", "updateTime") if status.get(name)}
    return {
        **objects.describe(manifest),
        "name": place.job(manifest["metadata"]["name"]),
        "modelDisplayName": model_display_name,
        "state": status.get("state") or _PENDING,
        **told,
    }


def to_job(manifest: Manifest, model_display_name: str, place: Place) -> Body:
    """Vertex AI's BatchPredictionJob. The model's display name is empty where the model is gone."""
    job = BatchPredictionJob.model_validate(manifest)
    version = job.status.model_version or job.spec.model_version or ""
    return drop_empty(
        {
            **objects.pick_kept(objects.read_kept(manifest), _KEPT),
            **objects.read_flags(manifest, _LOGGING),
            **describe_job(manifest, model_display_name, place),
            "model": place.model(job.spec.model, version),
            "modelVersionId": version,
            "modelParameters": job.spec.model_parameters,
            "inputConfig": job.spec.input_config.dump(),
            "instanceConfig": job.spec.instance_config.dump() if job.spec.instance_config else None,
            "outputConfig": job.spec.output_config.dump(),
            "dedicatedResources": _to_resources(job),
            "manualBatchTuningParameters": job.spec.manual_batch_tuning_parameters.dump(),
            "serviceAccount": job.spec.service_account,
            **_to_progress(job.status),
        }
    )


def _to_resources(job: BatchPredictionJob) -> Body:
    resources = job.spec.dedicated_resources
    machine = resources.machine_spec.model_copy(update={"resource_claims": []}).dump()
    counts = {"startingReplicaCount": resources.starting_replica_count, "maxReplicaCount": resources.max_replicas}
    return drop_empty({"machineSpec": drop_empty(machine), **counts})


def _to_progress(status: BatchPredictionJobStatus) -> Body:
    """What the status tells; `updateTime` is then the status's, which changes last."""
    progress: Body = {
        "error": status.error.dump() if status.error else None,
        "partialFailures": [failure.dump() for failure in status.partial_failures],
        "outputInfo": drop_empty(status.output_info.dump()),
        "resourcesConsumed": status.resources_consumed.dump() if status.start_time else None,
        "completionStats": _to_counts(status.completion_stats) if status.start_time else None,
    }
    for name, moment in (
        ("startTime", status.start_time),
        ("endTime", status.end_time),
        ("updateTime", status.update_time),
    ):
        if moment:
            progress[name] = format_time(moment)
    return drop_empty(progress)


def _to_counts(stats: CompletionStats) -> Body:
    """64-bit integers are strings in JSON."""
    return {name: str(count) for name, count in stats.dump().items()}
