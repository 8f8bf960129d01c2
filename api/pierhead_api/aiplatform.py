"""AI Platform Prediction's models and versions (`ml` v1), as far as a life cycle needs them. Pure.

A model of AI Platform serves each of its versions. Here it is a Model, and an Endpoint of the same name on which each
version is deployed; an Endpoint alone, as long as it has no version.

Names are Kubernetes' wherever nothing else is said. What clients send and are told are AI Platform's.
"""

from collections.abc import Collection
from typing import Any

from pierhead_operator import names as operator_names
from pierhead_operator.resources import Manifest
from pierhead_operator.status import READY, STALLED
from pierhead_operator.types import DeployedModel, Model, ModelVersion
from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from pierhead_api import models, objects
from pierhead_api.errors import InvalidArgumentError, NotFoundError
from pierhead_api.machines import DedicatedResources, MachineSpec
from pierhead_api.models import ModelBody, find_users, read_kept, resolve_version
from pierhead_api.names import Place, check_id
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
    etag: str = ""
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
    etag: str = ""
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
_MIN, _MAX = "minReplicaCount", "maxReplicaCount"
# The replica counts that a field is. As many nodes as somebody says are neither more nor fewer.
_SCALING = {
    "auto_scaling.min_nodes": (_MIN,),
    "auto_scaling.max_nodes": (_MAX,),
    "manual_scaling.nodes": (_MIN, _MAX),
}
UPDATABLE_VERSION = ("description", "auto_scaling", "manual_scaling", *_SCALING)
_TOLD_BACK = ("framework", "runtime_version", "python_version")


# --- names -----------------------------------------------------------------------------------------------------------


def is_name(name: str) -> bool:
    """Whether AI Platform could have made a model of this name."""
    return bool(operator_names.AI_PLATFORM_NAME.fullmatch(operator_names.ai_platform(name)))


def make_name(name: str) -> str:
    """The name of the model or the version that a client wants to be called so; raises InvalidArgumentError."""
    if not operator_names.AI_PLATFORM_NAME.fullmatch(name):
        raise InvalidArgumentError("must be up to 128 letters, digits and _, a letter first", "name")
    made = operator_names.of_ai_platform(name)
    if len(made) > operator_names.MAX_NAME:
        most = operator_names.MAX_NAME
        raise InvalidArgumentError(f"is {made} in Kubernetes, which takes {most} characters, not {len(made)}", "name")
    return made


def find_name(model: str) -> str:
    """The name of the model that a client calls so; raises NotFoundError where there can be none."""
    return check_id(operator_names.of_ai_platform(model))


def find_version(manifest: Manifest, version: str) -> str:
    """The name of a Model's version that a client calls so, or by an alias; raises NotFoundError."""
    model = Model.model_validate(manifest)
    own = model.spec.version(operator_names.of_ai_platform(version))
    try:
        return own.name if own else resolve_version(model, version).name
    except NotFoundError:
        there = ", ".join(operator_names.ai_platform(one.name) for one in model.spec.versions)
        told = operator_names.ai_platform(model.name)
        raise NotFoundError(f"model {told} has no version {version}; it has {there}") from None


def find_own(manifests: Collection[Manifest], model: str, version: str) -> list[Manifest]:
    """The DeployedModels that a version is: those of it on the model's own Endpoint."""
    return [one for one in manifests if one["spec"]["endpoint"] == model and find_users([one], model, version)]


def _tell_name(place: Place, model: str, version: str = "") -> str:
    """AI Platform's resource name."""
    told = f"projects/{place.project}/models/{operator_names.ai_platform(model)}"
    return f"{told}/versions/{operator_names.ai_platform(version)}" if version else told


# --- written ---------------------------------------------------------------------------------------------------------


def patch_model(body: AiPlatformModelBody, manifest: Manifest, fields: set[str]) -> Manifest:
    """The merge patch that updates these of the UPDATABLE_MODEL fields, of a Model or the Endpoint that stands for it.

    Raises InvalidArgumentError, and NotFoundError for a default version that there is not.
    """
    spec: Body = {}
    if "description" in fields:
        spec["description"] = body.description or None
    if fields & {"default_version", "default_version.name"}:
        spec["defaultVersion"] = _find_default(body, manifest)
    metadata = {"labels": objects.patch_labels(manifest, body.labels)} if "labels" in fields else {}
    return {"metadata": metadata, "spec": spec}


def _find_default(body: AiPlatformModelBody, manifest: Manifest) -> str:
    wanted = body.default_version.name.rsplit("/", 1)[-1] if body.default_version else ""
    if not wanted:
        raise InvalidArgumentError("must be set", "defaultVersion.name")
    if manifest["kind"] != Model.KIND:
        raise NotFoundError(f"model {operator_names.ai_platform(manifest['metadata']['name'])} has no versions")
    return find_version(manifest, wanted)


def make_version(body: AiPlatformVersionBody, model: Manifest) -> ModelBody:
    """What is uploaded for a version, as the first one of a Model if need be; raises InvalidArgumentError."""
    refuse(body, _REFUSED)
    if not body.deployment_uri:
        raise InvalidArgumentError("must be set", "deploymentUri")
    return ModelBody(
        display_name=operator_names.ai_platform(model["metadata"]["name"]),
        artifact_uri=body.deployment_uri,
        version_description=body.description,
        metadata=collect(body, _TOLD_BACK),
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


def make_counts(body: AiPlatformVersionBody, fields: set[str]) -> Body:
    """The replica counts that these of the UPDATABLE_VERSION fields ask for; none where they ask for none.

    Raises InvalidArgumentError.
    """
    counts: Body = {}
    everything = set(_SCALING) <= fields  # a mask of *: what is not told is not meant
    for path, kinds in _SCALING.items():
        scaling, leaf = path.split(".")
        value = getattr(getattr(body, scaling), leaf)
        if value is None and (everything or path not in fields):
            continue
        if fields & {scaling, path}:
            if value is None or value < 1:
                raise InvalidArgumentError("must be at least 1", f"{to_camel(scaling)}.{to_camel(leaf)}")
            counts |= dict.fromkeys(kinds, value)
    return counts


def patch_counts(manifest: Manifest, counts: Body) -> Body:
    """Vertex AI's DeployedModel with these counts, to mutate this one by; raises InvalidArgumentError.

    One is checked here that Kubernetes would refuse, when something else was written already.
    """
    kind = "dedicatedResources" if "dedicatedResources" in manifest["spec"] else "automaticResources"
    both = {_MIN: 1, **manifest["spec"].get(kind, {}), **counts}
    if both.get(_MAX, both[_MIN]) < both[_MIN]:
        raise InvalidArgumentError(f"must be at least minNodes, {both[_MIN]}", "autoScaling.maxNodes")
    return {"id": manifest["metadata"]["name"], kind: counts}


# --- read ------------------------------------------------------------------------------------------------------------


def compute_version_etag(manifest: Manifest, version: str, deployed: Collection[Manifest]) -> str:
    """A version's etag: it changes with what is written of it, and with what is written of what it is deployed as."""
    own = sorted(objects.compute_etag(one) for one in deployed)
    return objects.hash_content(models.compute_etag(manifest, version), own)


def to_ai_platform_model(manifest: Manifest, deployed_models: Collection[Manifest], place: Place) -> Body:
    """AI Platform's Model of a Model, or of the Endpoint that stands for it while it has no version."""
    name = manifest["metadata"]["name"]
    default = manifest["spec"].get("defaultVersion")
    return drop_empty(
        {
            "name": _tell_name(place, name),
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
            "name": _tell_name(place, model.name, version),
            "etag": compute_version_etag(manifest, version, find_own(deployed_models, model.name, version)),
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
    """AI Platform's Operation of one of Vertex AI's. Its id tells the Endpoint, which AI Platform's names do not."""
    parent, _, id_ = operation["name"].rpartition("/operations/")
    _, _, endpoint = parent.partition("/endpoints/")
    generic = operation["metadata"]["genericMetadata"]
    metadata = {
        "@type": f"{TYPE}OperationMetadata",
        "createTime": generic["createTime"],
        "startTime": generic["createTime"],
        "endTime": generic["updateTime"] if operation.get("done") else None,
        "operationType": _OPERATION_TYPES.get(parse_operation(id_).type),
        "modelName": _tell_name(place, model) if model else None,
    }
    name = f"projects/{place.project}/operations/{id_}" + (f"~{endpoint}" if endpoint else "")
    answer = {**operation, "name": name, "metadata": drop_empty(metadata)}
    if "response" in operation:
        answer["response"] = {"@type": EMPTY}
    return answer
