"""AI Platform Prediction's models and versions (`ml` v1), as far as a life cycle needs them. Pure.

A model of AI Platform serves each of its versions. Here it is a Model, and an Endpoint of the same name on which each
version is deployed; an Endpoint alone, as long as it has no version.
"""

import re
from collections.abc import Collection
from typing import Any

from pierhead_operator.resources import Manifest
from pierhead_operator.status import READY, STALLED
from pierhead_operator.types import DeployedModel, Model, ModelVersion
from pydantic import ConfigDict, Field

from pierhead_api import objects
from pierhead_api.errors import InvalidArgumentError
from pierhead_api.machines import DedicatedResources, MachineSpec
from pierhead_api.models import ModelBody, read_kept
from pierhead_api.names import Place
from pierhead_api.operations import parse_operation
from pierhead_api.wire import (
    EMPTY,
    AcceleratorType,
    Body,
    Labels,
    Message,
    Number,
    Whatever,
    collect,
    drop_empty,
    refuse,
)

TYPE = "type.googleapis.com/google.cloud.ml.v1."
_NAME = re.compile(r"[a-z][a-z0-9]*")
_OPERATION_TYPES = {
    "DeployModel": "CREATE_VERSION",
    "DeleteModel": "DELETE_VERSION",  # the last one
    "DeleteModelVersion": "DELETE_VERSION",
    "DeleteEndpoint": "DELETE_MODEL",
    "UpdateEndpoint": "UPDATE_MODEL",
    "UpdateModel": "UPDATE_MODEL",
    "MutateDeployedModel": "UPDATE_VERSION",
}


class DefaultVersion(Message):
    """As it is told in answers: nothing but the name is read."""

    model_config = ConfigDict(extra="ignore")

    name: str = ""


class AiPlatformModelBody(Message):
    name: str = ""
    description: str = ""
    labels: Labels = Field(default_factory=dict)
    regions: list[str] = Field(default_factory=list)
    default_version: DefaultVersion | None = None
    etag: Whatever = None
    online_prediction_logging: bool = False
    online_prediction_console_logging: bool = False


class AcceleratorConfig(Message):
    count: Number = None
    type: AcceleratorType = None


class AutoScaling(Message):
    min_nodes: Number = None
    max_nodes: Number = None
    metrics: list[Any] = Field(default_factory=list)


class ManualScaling(Message):
    nodes: Number = None


class AiPlatformVersionBody(Message):
    name: str = ""
    deployment_uri: str = ""
    description: str = ""
    machine_type: str = ""
    accelerator_config: AcceleratorConfig = AcceleratorConfig()
    auto_scaling: AutoScaling = AutoScaling()
    manual_scaling: ManualScaling = ManualScaling()
    framework: str = ""
    runtime_version: str = ""
    python_version: str = ""
    service_account: str = ""
    labels: Whatever = None
    container: Whatever = None
    routes: Whatever = None
    package_uris: list[str] = Field(default_factory=list)
    prediction_class: str = ""
    explanation_config: Whatever = None
    request_logging_config: Whatever = None
    create_time: Whatever = None
    error_message: Whatever = None
    etag: Whatever = None
    is_default: Whatever = None
    last_migration_model_id: Whatever = None
    last_migration_time: Whatever = None
    last_use_time: Whatever = None
    state: Whatever = None


_OWN_CODE = "is not supported: code of its own goes into the artifact's predictor.py"
_REFUSED = {
    "container": "is not supported: the model runs in Pierhead's server",
    "routes": "is not supported: the model runs in Pierhead's server",
    "package_uris": _OWN_CODE,
    "prediction_class": _OWN_CODE,
    "explanation_config": "is not supported",
    "request_logging_config": "is not supported: the gateway can log requests",
}
UPDATABLE_MODEL = ("description", "labels", "default_version", "default_version.name")
_SCALING = (
    "auto_scaling",
    "auto_scaling.min_nodes",
    "auto_scaling.max_nodes",
    "manual_scaling",
    "manual_scaling.nodes",
)
UPDATABLE_VERSION = ("description", *_SCALING)
_TOLD_BACK = ("framework", "runtime_version", "python_version")


def is_name(name: str) -> bool:
    """Whether a model or a version of AI Platform may be called so here."""
    return bool(_NAME.fullmatch(name)) and len(name) <= 63


def check_name(name: str) -> str:
    """`name`, if a model or a version of AI Platform may be called so here; raises InvalidArgumentError."""
    if not is_name(name):
        raise InvalidArgumentError("must be up to 63 of [a-z0-9], a letter first: Kubernetes' names have no _", "name")
    return name


def make_version(body: AiPlatformVersionBody, name: str) -> ModelBody:
    """What is uploaded for a version; raises InvalidArgumentError."""
    refuse(body, _REFUSED)
    if not body.deployment_uri:
        raise InvalidArgumentError("must be set", "deploymentUri")
    told = collect(body, _TOLD_BACK)
    return ModelBody(
        display_name=name, artifact_uri=body.deployment_uri, version_description=body.description, metadata=told
    )


def make_resources(body: AiPlatformVersionBody) -> DedicatedResources:
    """The machines of a version."""
    machine = MachineSpec(
        machine_type=body.machine_type,
        accelerator_type=body.accelerator_config.type,
        accelerator_count=body.accelerator_config.count,
    )
    scaling = body.auto_scaling
    return DedicatedResources(
        machine_spec=machine,
        min_replica_count=body.manual_scaling.nodes or scaling.min_nodes,
        max_replica_count=scaling.max_nodes,
    )


def scales(fields: set[str]) -> bool:
    """Whether of the UPDATABLE_VERSION fields these are about the machines."""
    return bool(fields & set(_SCALING))


def to_ai_platform_model(manifest: Manifest, deployed_models: Collection[Manifest], place: Place) -> Body:
    """AI Platform's Model of a Model, or of the Endpoint that stands for it while it has no version."""
    name = manifest["metadata"]["name"]
    default = manifest["spec"].get("defaultVersion")
    return drop_empty(
        {
            "name": f"projects/{place.project}/models/{name}",
            "description": manifest["spec"].get("description"),
            "labels": objects.read_labels(manifest),
            "etag": objects.compute_etag(manifest),
            "regions": [place.location],
            "defaultVersion": to_ai_platform_version(manifest, default, deployed_models, place) if default else None,
        }
    )


def to_ai_platform_version(
    manifest: Manifest, version: str, deployed_models: Collection[Manifest], place: Place
) -> Body:
    """AI Platform's Version, of which `deployed_models` serve some."""
    model = Model.model_validate(manifest)
    [found] = [one for one in model.spec.versions if one.name == version]
    own = read_kept(manifest).versions.get(version, {})
    metadata = own.get("metadata")
    told = objects.pick_kept(metadata if isinstance(metadata, dict) else {}, _TOLD_BACK)
    return drop_empty(
        {
            **{name: value for name, value in told.items() if isinstance(value, str)},
            "name": f"projects/{place.project}/models/{model.name}/versions/{version}",
            "deploymentUri": found.artifact_uri,
            "description": own.get("versionDescription"),
            "isDefault": version == model.spec.default_version or None,
            "createTime": own.get("createTime", objects.create_time(manifest)),
            **_judge(found, deployed_models),
        }
    )


def _judge(version: ModelVersion, manifests: Collection[Manifest]) -> Body:
    """The state that most matters to who asks for predictions: one that serves is enough."""
    deployed = [DeployedModel.model_validate(manifest) for manifest in manifests]
    serving = [dm for dm in deployed if version.name in (dm.spec.model_version, dm.status.model_version)]
    if not serving:
        return {"state": "UNKNOWN"}
    if any(dm.status.is_true(READY) for dm in serving):
        return {"state": "READY"}
    stalled = [dm.status.condition(STALLED) for dm in serving if dm.status.is_true(STALLED)]
    if len(stalled) < len(serving):
        return {"state": "CREATING"}
    return {"state": "FAILED", "errorMessage": "; ".join(f"{one.reason}: {one.message}" for one in stalled if one)}


def to_ai_platform_operation(operation: Body, place: Place, model: str = "") -> Body:
    """AI Platform's Operation of one of Vertex AI's."""
    id_ = operation["name"].rsplit("/", 1)[1]
    generic = operation["metadata"]["genericMetadata"]
    metadata = {
        "@type": f"{TYPE}OperationMetadata",
        "createTime": generic["createTime"],
        "startTime": generic["createTime"],
        "endTime": generic["updateTime"] if operation.get("done") else None,
        "operationType": _OPERATION_TYPES.get(parse_operation(id_).type),
        "modelName": f"projects/{place.project}/models/{model}" if model else None,
    }
    answer = {**operation, "name": f"projects/{place.project}/operations/{id_}", "metadata": drop_empty(metadata)}
    if "response" in operation:
        answer["response"] = {"@type": EMPTY}
    return answer
