"""Endpoints and deployed models: Vertex AI's messages from and to custom resources. Pure."""

import re
from collections.abc import Collection, Sequence
from typing import Annotated

from pierhead_operator.resources import Manifest
from pierhead_operator.routing import keep_split, wanted_split
from pierhead_operator.schema import Status
from pierhead_operator.status import READY
from pierhead_operator.types import DeployedModel, Endpoint
from pydantic import Field
from pydantic.alias_generators import to_camel

from pierhead_api import objects
from pierhead_api.errors import InvalidArgumentError
from pierhead_api.machines import (
    AutomaticResources,
    DedicatedResources,
    make_automatic_resources,
    make_dedicated_resources,
)
from pierhead_api.names import Place
from pierhead_api.wire import (
    BETA_ONLY,
    Body,
    Labels,
    Message,
    Percents,
    Whatever,
    collect,
    drop_empty,
    format_time,
    refuse,
    require,
)

_SERVICE_ACCOUNT = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class ClientConnectionConfig(Message):
    inference_timeout: str = ""


class LoggingConfig(Message):
    enabled: bool = False
    sampling_rate: float = 0.0
    bigquery_destination: Whatever = None
    error_sampling_rate: Annotated[float, BETA_ONLY] = 0.0
    request_response_logging_schema_version: Annotated[str, BETA_ONLY] = ""
    enable_otel_logging: Annotated[bool, BETA_ONLY] = False


class EndpointBody(Message):
    """What a client sends of an Endpoint. What only answers have is taken and not read."""

    name: str = ""
    display_name: str = ""
    description: str = ""
    labels: Labels = Field(default_factory=dict)
    etag: str = ""
    traffic_split: Percents = Field(default_factory=dict)
    client_connection_config: ClientConnectionConfig = ClientConnectionConfig()
    dedicated_endpoint_enabled: bool = False
    encryption_spec: Whatever = None
    network: str = ""
    enable_private_service_connect: bool = False
    private_service_connect_config: Whatever = None
    gdc_config: Whatever = None
    gen_ai_advanced_features_config: Whatever = None
    predict_request_response_logging_config: LoggingConfig = LoggingConfig()
    publisher_model_config: Annotated[Whatever, BETA_ONLY] = None
    deployed_models: Whatever = None
    create_time: Whatever = None
    update_time: Whatever = None
    dedicated_endpoint_dns: Whatever = None
    model_deployment_monitoring_job: Whatever = None
    satisfies_pzi: Whatever = None
    satisfies_pzs: Whatever = None


UPDATABLE = ("display_name", "description", "labels", "traffic_split", "client_connection_config")
_INSIDE = "is not supported: an Endpoint of access Private is made by its manifest"
_REFUSED = {
    "network": _INSIDE,
    "enable_private_service_connect": _INSIDE,
    "private_service_connect_config": _INSIDE,
    "encryption_spec": "is not supported: Kubernetes encrypts what it stores as its configuration says",
    "gdc_config": "is not supported",
    "gen_ai_advanced_features_config": "is not supported",
    "publisher_model_config": "is not supported",
    "traffic_split": "nothing is deployed yet: deployModel sets it",
}


class RolloutOptions(Message):
    """Of v1beta1 alone. A number that is 0 was given, as the oneofs that they are have it."""

    max_surge_replicas: int | None = None
    max_surge_percentage: int | None = None
    max_unavailable_replicas: int | None = None
    max_unavailable_percentage: int | None = None
    previous_deployed_model: str = ""
    revision_number: Whatever = None


class DeployedModelBody(Message):
    """What a client sends of a DeployedModel. What only answers have is taken and not read."""

    id: str = ""
    model: str = ""
    display_name: str = ""
    dedicated_resources: DedicatedResources | None = None
    automatic_resources: AutomaticResources | None = None
    rollout_options: Annotated[RolloutOptions | None, BETA_ONLY] = None
    service_account: str = ""
    shared_resources: str = ""
    full_fine_tuned_resources: Annotated[Whatever, BETA_ONLY] = None
    explanation_spec: Whatever = None
    disable_explanations: bool = False
    disable_container_logging: bool = False
    enable_container_logging: Annotated[bool, BETA_ONLY] = False  # says what is so anyway
    enable_access_logging: bool = False
    system_labels: Whatever = None
    faster_deployment_config: Whatever = None
    checkpoint_id: str = ""
    gdc_connected_model: str = ""
    speculative_decoding_spec: Whatever = None
    create_time: Whatever = None
    model_version_id: Whatever = None
    private_endpoints: Whatever = None
    status: Whatever = None


_GIVE_RESOURCES = "is not supported: give dedicatedResources or automaticResources"
_REFUSED_DEPLOYED = {
    "shared_resources": _GIVE_RESOURCES,
    "full_fine_tuned_resources": _GIVE_RESOURCES,
    "checkpoint_id": "is not supported: upload the checkpoint as a version of the model",
    "gdc_connected_model": "is not supported",
    "speculative_decoding_spec": "is not supported",
}
_KEPT_DEPLOYED = ("explanation_spec", "disable_explanations", "system_labels", "faster_deployment_config")
_LOGGING = ("enable_access_logging", "disable_container_logging")


_MUTABLE_LEAVES = ("min_replica_count", "max_replica_count", "autoscaling_metric_specs")
_MUTABLE_ROOTS = ("dedicated_resources", "automatic_resources")
MUTABLE = (
    *_MUTABLE_ROOTS,
    *(f"{root}.{leaf}" for root in _MUTABLE_ROOTS for leaf in _MUTABLE_LEAVES),
    "disable_container_logging",
)
MUTABLE_BETA = (*MUTABLE, "enable_container_logging")


class DeployModelBody(Message):
    endpoint: str = ""
    deployed_model: DeployedModelBody
    traffic_split: Percents = Field(default_factory=dict)


class UndeployModelBody(Message):
    endpoint: str = ""
    deployed_model_id: str
    traffic_split: Percents = Field(default_factory=dict)


class MutateDeployedModelBody(Message):
    endpoint: str = ""
    deployed_model: DeployedModelBody
    update_mask: str = ""


# --- Endpoint --------------------------------------------------------------------------------------------------------


def make_endpoint(body: EndpointBody, place: Place, name: str) -> Manifest:
    """The Endpoint to create; raises InvalidArgumentError."""
    refuse(body, _REFUSED)
    refuse(
        body.predict_request_response_logging_config,
        {"enabled": "predictRequestResponseLoggingConfig is not supported: the gateway can log requests"},
    )
    spec = drop_empty(
        {
            "displayName": require(body.display_name, "displayName"),
            "description": body.description,
            "clientConnectionConfig": make_connection_config(body.client_connection_config),
        }
    )
    manifest = objects.make_object(Endpoint, place.namespace, name, spec)
    return objects.mark(manifest, body.labels, collect(body, ("dedicated_endpoint_enabled",)))


def make_connection_config(config: ClientConnectionConfig) -> Body:
    """The spec's clientConnectionConfig."""
    return drop_empty({"inferenceTimeout": config.inference_timeout})


def patch_endpoint(body: EndpointBody, manifest: Manifest, fields: set[str]) -> Manifest:
    """The merge patch that updates these of the UPDATABLE fields, but the split; raises InvalidArgumentError."""
    spec: Body = {}
    if "display_name" in fields:
        spec["displayName"] = require(body.display_name, "displayName")
    if "description" in fields:
        spec["description"] = body.description or None
    if "client_connection_config" in fields:
        spec["clientConnectionConfig"] = make_connection_config(body.client_connection_config) or None
    metadata = {"labels": objects.patch_labels(manifest, body.labels)} if "labels" in fields else {}
    return {"metadata": metadata, "spec": spec}


def patch_split(manifest: Manifest, split: dict[str, int] | None) -> Body:
    """The merge patch of a spec whose trafficSplit becomes `split`, and names nobody else."""
    before = manifest["spec"].get("trafficSplit")
    return {"trafficSplit": None if split is None else {**dict.fromkeys(before or {}), **split}}


def describe_endpoint(manifest: Manifest, place: Place) -> Body:
    """Of Vertex AI's Endpoint what lists are filtered and ordered by."""
    return {"name": place.endpoint(manifest["metadata"]["name"]), **objects.describe(manifest)}


def to_endpoint(manifest: Manifest, deployed_models: Sequence[Manifest], place: Place, dns: str = "") -> Body:
    """Vertex AI's Endpoint, with the wanted split. `dns`: where a client reaches it that asked for an own address."""
    endpoint = Endpoint.model_validate(manifest)
    deployed = sorted(deployed_models, key=lambda one: (objects.create_time(one), one["metadata"]["name"]))
    dedicated = bool(objects.read_kept(manifest).get("dedicatedEndpointEnabled")) and bool(dns)
    return drop_empty(
        {
            **describe_endpoint(manifest, place),
            "etag": objects.compute_etag(manifest),
            "description": endpoint.spec.description,
            "deployedModels": [to_deployed_model(one, place) for one in deployed],
            "trafficSplit": _find_split(endpoint, [one["metadata"]["name"] for one in deployed]),
            "clientConnectionConfig": manifest["spec"].get("clientConnectionConfig"),
            "dedicatedEndpointEnabled": dedicated or None,
            "dedicatedEndpointDns": dns if dedicated else "",
        }
    )


def _find_split(endpoint: Endpoint, deployed: Collection[str]) -> dict[str, int]:
    """The wanted split, or the one that is in force where none is told, with everybody who is deployed.

    Google's SDK undeploys those whom it finds here.
    """
    wanted = wanted_split(endpoint, deployed)
    split = keep_split(endpoint.status.traffic_split, deployed) if wanted is None else wanted
    return {**dict.fromkeys(deployed, 0), **split}


# --- DeployedModel ---------------------------------------------------------------------------------------------------


def make_deployed_model(body: DeployedModelBody, place: Place, name: str, target: Body) -> Manifest:
    """The DeployedModel to create; `target` has the spec's names: endpoint, model, modelVersion, displayName.

    Raises InvalidArgumentError.
    """
    refuse(body, _REFUSED_DEPLOYED)
    if body.dedicated_resources and body.automatic_resources:
        raise InvalidArgumentError("give one of dedicatedResources and automaticResources", "deployedModel")
    if body.service_account and not _SERVICE_ACCOUNT.fullmatch(body.service_account):
        raise InvalidArgumentError("must be the name of a ServiceAccount of the namespace", "serviceAccount")
    if body.enable_container_logging and body.disable_container_logging:
        raise InvalidArgumentError("disableContainerLogging says otherwise: give one of them", "enableContainerLogging")
    spec = drop_empty({**target, "serviceAccount": body.service_account, **collect(body, _LOGGING)})
    if body.rollout_options:
        spec["rolloutOptions"] = make_rollout_options(body.rollout_options)
    if body.dedicated_resources:
        spec["dedicatedResources"] = make_dedicated_resources(body.dedicated_resources)
    if body.automatic_resources:
        spec["automaticResources"] = make_automatic_resources(body.automatic_resources)
    manifest = objects.make_object(DeployedModel, place.namespace, name, spec)
    return objects.mark(manifest, {}, collect(body, _KEPT_DEPLOYED))


def make_rollout_options(options: RolloutOptions) -> Body:
    """The spec's rolloutOptions; raises InvalidArgumentError."""
    refuse(
        options,
        {"previous_deployed_model": "is not supported: the endpoint's trafficSplit moves from one to the other"},
    )
    return options.model_dump(by_alias=True, exclude_none=True, exclude={"previous_deployed_model", "revision_number"})


def patch_deployed_model(body: DeployedModelBody, manifest: Manifest, fields: set[str]) -> Body:
    """The merge patch of a spec that updates these of the MUTABLE_BETA fields; raises InvalidArgumentError."""
    dedicated = make_dedicated_resources(body.dedicated_resources) if body.dedicated_resources else None
    automatic = make_automatic_resources(body.automatic_resources) if body.automatic_resources else None
    has_dedicated = "dedicatedResources" in manifest["spec"]
    spec: Body = {}
    if "disable_container_logging" in fields:
        spec["disableContainerLogging"] = body.disable_container_logging
    elif "enable_container_logging" in fields:
        spec["disableContainerLogging"] = not body.enable_container_logging
    for name, made, fits in (
        ("dedicated_resources", dedicated, has_dedicated),
        ("automatic_resources", automatic, not has_dedicated),
    ):
        leaves = [leaf for leaf in _MUTABLE_LEAVES if f"{name}.{leaf}" in fields or name in fields]
        if leaves and (made is None or not fits):
            kind = "dedicatedResources" if has_dedicated else "automaticResources"
            raise InvalidArgumentError(f"must have {kind}, as what is deployed has", "deployedModel")
        if made is not None and leaves:
            given = {to_camel(leaf): made.get(to_camel(leaf)) for leaf in leaves}
            spec[to_camel(name)] = given if name not in fields else drop_empty(given)
    return spec


def to_deployed_model(manifest: Manifest, place: Place) -> Body:
    """Vertex AI's DeployedModel, of v1 or of v1beta1."""
    dm = DeployedModel.model_validate(manifest)
    logging = objects.read_flags(manifest, _LOGGING)
    beta = {
        "rolloutOptions": dm.spec.rollout_options.dump(),
        "enableContainerLogging": "disableContainerLogging" not in logging or None,
    }
    return drop_empty(
        {
            **objects.pick_kept(objects.read_kept(manifest), _KEPT_DEPLOYED),
            **logging,
            "id": dm.name,
            "model": place.model(dm.spec.model),
            "modelVersionId": dm.spec.model_version or dm.status.model_version,
            "displayName": dm.spec.display_name or dm.name,
            "createTime": objects.create_time(manifest),
            "serviceAccount": dm.spec.service_account,
            **(beta if place.beta else {}),
            **_to_resources(dm),
            "status": _to_status(dm.status, dm.status.available_replica_count),
        }
    )


def _to_resources(dm: DeployedModel) -> Body:
    counts = {"minReplicaCount": dm.spec.resources.min_replica_count, "maxReplicaCount": dm.spec.resources.max_replicas}
    dedicated = dm.spec.dedicated_resources
    if dedicated is None:
        return {"automaticResources": counts}
    metrics = [metric.dump() for metric in dedicated.autoscaling_metric_specs]
    machine = dedicated.machine_spec.model_copy(update={"resource_claims": []}).dump()
    return {
        "dedicatedResources": drop_empty(
            {"machineSpec": drop_empty(machine), **counts, "autoscalingMetricSpecs": metrics}
        )
    }


def _to_status(status: Status, available: int) -> Body:
    ready = status.condition(READY)
    if ready is None:
        return {}
    message = "" if ready.status == "True" else f"{ready.reason}: {ready.message}"
    answer = {"message": message, "lastUpdateTime": format_time(ready.last_transition_time)}
    return drop_empty({**answer, "availableReplicaCount": available})
