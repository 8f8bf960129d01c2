"""Models and their versions: Vertex AI's messages from and to custom resources. Pure.

Vertex AI has a message for each version, which our Model has in one object. What a version alone has there, such as
its container and when it was made, is kept beside it.
"""

import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from pierhead_operator.resources import Manifest
from pierhead_operator.types import DeployedModel, Model, ModelVersion
from pierhead_operator.versions import find_version
from pydantic import ConfigDict, Field, ValidationError

from pierhead_api import objects
from pierhead_api.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from pierhead_api.names import Place
from pierhead_api.wire import Body, Labels, Message, Whatever, collect, drop_empty, parse_seconds, refuse, require

DEPLOYMENT_TIMEOUT = 1800  # seconds that a deployment may take where its version does not say
_LONGEST_DEPLOYMENT = 7200  # Vertex AI's
DEFAULT = "default"  # the alias of the default version, which moves and never goes
_UNCOUNTED = 10**18  # numbers from here on are names that somebody chose
_ALIAS = re.compile(r"[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]")
# Vertex AI's and AI Platform's own, for all frameworks: their place is taken by our server.
_OUR_IMAGES = re.compile(
    r"([a-z]+-docker\.pkg\.dev/vertex-ai(-restricted)?/prediction|gcr\.io/cloud-aiplatform/prediction)/.+"
)
_DEPLOYMENT_RESOURCES = ["DEDICATED_RESOURCES", "AUTOMATIC_RESOURCES"]
_INPUT_FORMATS = ["jsonl", "csv", "file-list"]
_OUTPUT_FORMATS = ["jsonl", "csv", "parquet"]


class EnvVar(Message):
    name: str
    value: str = ""


class ContainerSpec(Message):
    image_uri: str = ""
    command: list[str] = Field(default_factory=list)
    args: list[str] = Field(default_factory=list)
    env: list[EnvVar] = Field(default_factory=list)
    ports: Whatever = None
    grpc_ports: Whatever = None
    predict_route: str = ""
    health_route: str = ""
    invoke_route_prefix: str = ""
    deployment_timeout: Whatever = None
    shared_memory_size_mb: Whatever = None
    startup_probe: Whatever = None
    health_probe: Whatever = None
    liveness_probe: Whatever = None


class ModelBody(Message):
    """What a client sends of a Model. What only answers have is taken and not read."""

    name: str = ""
    display_name: str = ""
    description: str = ""
    labels: Labels = Field(default_factory=dict)
    etag: str = ""
    artifact_uri: str = ""
    version_aliases: list[str] = Field(default_factory=list)
    version_description: str = ""
    is_default_version: bool = False
    container_spec: ContainerSpec = ContainerSpec()
    explanation_spec: Whatever = None
    predict_schemata: Whatever = None
    metadata_schema_uri: str = ""
    metadata: Whatever = None
    pipeline_job: str = ""
    base_model_source: Whatever = None
    data_stats: Whatever = None
    encryption_spec: Whatever = None
    default_checkpoint_id: str = ""
    version_id: Whatever = None
    version_create_time: Whatever = None
    version_update_time: Whatever = None
    create_time: Whatever = None
    update_time: Whatever = None
    deployed_models: Whatever = None
    checkpoints: Whatever = None
    metadata_artifact: Whatever = None
    model_source_info: Whatever = None
    original_model_info: Whatever = None
    training_pipeline: Whatever = None
    satisfies_pzi: Whatever = None
    satisfies_pzs: Whatever = None
    supported_deployment_resources_types: Whatever = None
    supported_export_formats: Whatever = None
    supported_input_storage_formats: Whatever = None
    supported_output_storage_formats: Whatever = None


class UploadModelBody(Message):
    parent: str = ""
    model: ModelBody
    model_id: str = ""
    parent_model: str = ""
    is_default_version: bool = False
    service_account: str = ""


class MergeVersionAliasesBody(Message):
    name: str = ""
    version_aliases: list[str]


class Kept(Message):
    """What is kept beside a Model: the number that a version was given last, and what versions have of their own."""

    model_config = ConfigDict(extra="ignore")

    last: int = 0
    versions: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def with_version(self, version: str, own: Body) -> "Kept":
        """The same, where a version has this of its own."""
        return self.model_copy(update={"versions": {**self.versions, version: own}})

    def annotate(self) -> dict[str, str]:
        """The annotation; raises InvalidArgumentError where it is too much."""
        return objects.annotate_kept(self.model_dump())


def read_kept(manifest: Manifest) -> Kept:
    """What is kept beside a Model; nothing where somebody wrote something else there."""
    try:
        return Kept.model_validate(objects.read_kept(manifest))
    except ValidationError:
        return Kept()


UPDATABLE = ("display_name", "description", "labels", "version_description")
_REFUSED = {
    "encryption_spec": "is not supported: storage encrypts what it stores as it is told to",
    "default_checkpoint_id": "is not supported: upload the checkpoint as a version of the model",
}
_OWN_SERVER = "is not supported: the model runs in Pierhead's server"
_REFUSED_CONTAINER = {
    "command": _OWN_SERVER,
    "args": _OWN_SERVER,
}
# What Vertex AI has no field for, and a version has: told as a variable of its container.
_ALLOW_CODE, _DIGEST, _RUNTIME = "PIERHEAD_ALLOW_CODE", "PIERHEAD_ARTIFACT_DIGEST", "PIERHEAD_RUNTIME"
_FLAGS = {"true": True, "false": False}
_KEPT = (
    "version_description",
    "explanation_spec",
    "predict_schemata",
    "metadata_schema_uri",
    "metadata",
    "pipeline_job",
    "base_model_source",
    "data_stats",
)
_KEPT_OF_A_VERSION = (*_KEPT, "display_name", "description", "container_spec", "create_time", "update_time")


# --- what is asked of a version ---------------------------------------------------------------------------------------


def resolve_version(model: Model, version: str) -> ModelVersion:
    """The version of a name or an alias, the default one where that is empty; raises NotFoundError."""
    name = model.spec.default_version if version in ("", DEFAULT) else version
    found = find_version(model, name)
    if found is None:
        there = ", ".join(one.name for one in model.spec.versions)
        raise NotFoundError(f"model {model.name} has no version or alias {version}; it has {there}")
    return found


def find_users(manifests: Collection[Manifest], model: str, version: str = "") -> list[str]:
    """The names of those, DeployedModels or jobs, that are of a model, or of this version of it."""
    return sorted(
        manifest["metadata"]["name"]
        for manifest in manifests
        if manifest["spec"]["model"] == model and version in ("", *_versions(manifest))
    )


def _versions(manifest: Manifest) -> list[str]:
    """What a DeployedModel or a job asks for, and what runs."""
    asked, runs = manifest["spec"].get("modelVersion"), manifest.get("status", {}).get("modelVersion")
    return [name for name in (asked, runs) if name]


# --- written ---------------------------------------------------------------------------------------------------------


def make_model(body: ModelBody, place: Place, name: str, now: str, first: str = "1") -> Manifest:
    """The Model to create, with its first version; raises InvalidArgumentError."""
    version = _make_version(body, first)
    spec = {
        "displayName": require(body.display_name, "model.displayName"),
        "description": body.description,
        "defaultVersion": version["name"],
        "versions": [version],
    }
    manifest = objects.make_object(Model, place.namespace, name, drop_empty(spec))
    kept = Kept(last=int(first == "1"), versions={version["name"]: _keep(body, now)})
    return objects.mark(manifest, body.labels, kept.model_dump())


def add_version(body: ModelBody, manifest: Manifest, now: str, asked: str = "") -> tuple[Manifest, str]:
    """The merge patch that adds a version, and its name: the one that is asked for, or a number that none had before.

    Its aliases leave the versions that had them. A display name and a description of its own are kept for it. Raises
    InvalidArgumentError.
    """
    name = asked or str(_find_next(manifest))
    number = _find_last(manifest) if asked else int(name)
    added = _make_version(body, name)
    aliases = set(added.get("aliases", []))
    versions = [_without_aliases(version, aliases) for version in manifest["spec"]["versions"]]
    own = drop_empty({"displayName": body.display_name, "description": body.description})
    kept = read_kept(manifest).with_version(name, {**_keep(body, now), **own}).model_copy(update={"last": number})
    spec: Body = {"versions": [*versions, added]}
    if body.is_default_version or DEFAULT in body.version_aliases:
        spec["defaultVersion"] = name
    labels = objects.patch_labels(manifest, {**objects.read_labels(manifest), **body.labels})
    return {"metadata": {"labels": labels, "annotations": kept.annotate()}, "spec": spec}, name


def _find_next(manifest: Manifest) -> int:
    """The number for a further version: above those that count, and of none that there was."""
    number, taken = _find_last(manifest) + 1, _find_numbers(manifest)
    while number in taken:
        number += 1
    return number


def _find_last(manifest: Manifest) -> int:
    """The highest number that counts: a version may be called by 63 digits, and the next one could not."""
    return max(number for number in (0, read_kept(manifest).last, *_find_numbers(manifest)) if number < _UNCOUNTED)


def _find_numbers(manifest: Manifest) -> set[int]:
    # The operator remembers those that others removed, and refuses another artifact under their names.
    versions = [*manifest["spec"]["versions"], *manifest.get("status", {}).get("versions", [])]
    return {int(version["name"]) for version in versions if version["name"].isdecimal()}


def _make_version(body: ModelBody, name: str) -> Body:
    refuse(body, _REFUSED)
    check_container(body.container_spec)
    aliases = [_check_alias(alias) for alias in dict.fromkeys(body.version_aliases) if alias != DEFAULT]
    artifact = require(body.artifact_uri, "model.artifactUri")
    return drop_empty({"name": name, "aliases": aliases, "artifactUri": artifact, **_read_env(body.container_spec.env)})


def _read_env(variables: Sequence[EnvVar]) -> Body:
    """What variables say of a version; raises InvalidArgumentError."""
    given = {variable.name: variable.value for variable in variables}
    known = (_ALLOW_CODE, _DIGEST, _RUNTIME)
    if unknown := next((name for name in given if name not in known), None):
        raise InvalidArgumentError(
            f"{unknown} is not supported, {', '.join(known)} are; podOverrides.env of a DeployedModel's manifest gives"
            " the server others",
            "containerSpec.env",
        )
    allow_code = _FLAGS.get(given.get(_ALLOW_CODE, "false"))
    if allow_code is None:
        raise InvalidArgumentError(f"{_ALLOW_CODE} must be true or false", "containerSpec.env")
    return {"allowCode": allow_code or None, "digest": given.get(_DIGEST), "runtime": given.get(_RUNTIME)}


def check_container(container: ContainerSpec) -> None:
    """Raises InvalidArgumentError for an image that is not the place of our own server."""
    if container.image_uri and not _OUR_IMAGES.fullmatch(container.image_uri):
        raise InvalidArgumentError(
            "must be one of Vertex AI's prediction images, such as"
            " us-docker.pkg.dev/vertex-ai/prediction/pytorch-cpu.2-4:latest, or left out: the model runs in Pierhead's"
            " server; code of its own goes into the artifact's predictor.py",
            "containerSpec.imageUri",
        )
    refuse(container, _REFUSED_CONTAINER)
    _parse_deployment_timeout(container.deployment_timeout)


def _parse_deployment_timeout(value: object) -> int:
    """Seconds; raises InvalidArgumentError."""
    field = "containerSpec.deploymentTimeout"
    seconds = parse_seconds(value, field)
    if math.isinf(seconds):
        return DEPLOYMENT_TIMEOUT
    if not 1 <= seconds <= _LONGEST_DEPLOYMENT:
        raise InvalidArgumentError(f"must be 1s to {_LONGEST_DEPLOYMENT}s", field)
    return int(seconds)


def find_deployment_timeout(manifest: Manifest, version: str) -> int:
    """The seconds that the deployment of a version may take, which its upload said."""
    container = read_kept(manifest).versions.get(version, {}).get("containerSpec")
    try:
        return _parse_deployment_timeout(container.get("deploymentTimeout") if isinstance(container, dict) else None)
    except InvalidArgumentError:  # somebody wrote something else there
        return DEPLOYMENT_TIMEOUT


def _check_alias(alias: str) -> str:
    if not _ALIAS.fullmatch(alias):
        raise InvalidArgumentError(
            f"{alias!r} must be 2 to 128 of [a-zA-Z0-9-], a small letter first and a small letter or digit last",
            "versionAliases",
        )
    return alias


def _keep(body: ModelBody, now: str) -> Body:
    container = body.container_spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return drop_empty({**collect(body, _KEPT), "containerSpec": container, "createTime": now, "updateTime": now})


def _without_aliases(version: Body, aliases: Collection[str]) -> Body:
    left = [alias for alias in version.get("aliases", []) if alias not in aliases]
    return drop_empty({**version, "aliases": left})


def patch_model(body: ModelBody, manifest: Manifest, version: str, fields: set[str], now: str) -> Manifest:
    """The merge patch that updates these of the UPDATABLE fields; raises InvalidArgumentError.

    A name and a description are those of the Model, or of the version where it has its own.
    """
    kept = read_kept(manifest)
    own: Body = {**kept.versions.get(version, {}), "updateTime": now}
    spec: Body = {}
    for field, name, value in (
        ("display_name", "displayName", body.display_name),
        ("description", "description", body.description or None),
    ):
        if field in fields:
            place = own if name in own else spec
            place[name] = require(value or "", name) if name == "displayName" else value
    if "version_description" in fields:
        own["versionDescription"] = body.version_description
    metadata: Body = {"annotations": kept.with_version(version, drop_empty(own)).annotate()}
    if "labels" in fields:
        metadata["labels"] = objects.patch_labels(manifest, body.labels)
    return {"metadata": metadata, "spec": spec}


def merge_aliases(manifest: Manifest, version: str, aliases: Sequence[str]) -> Manifest:
    """The merge patch that gives a version these aliases, and takes those with a `-` before them from it.

    An alias leaves the version that had it; `default` makes it the default version. Raises InvalidArgumentError.
    """
    removed = {alias[1:] for alias in aliases if alias.startswith("-")}
    added = {alias for alias in aliases if not alias.startswith("-")} - removed
    if DEFAULT in removed:
        raise InvalidArgumentError("default cannot be removed: give it to another version", "versionAliases")
    checked = {_check_alias(alias) for alias in added if alias != DEFAULT}
    versions = []
    for one in manifest["spec"]["versions"]:
        if one["name"] == version:
            left = [alias for alias in one.get("aliases", []) if alias not in removed | checked]
            versions.append(drop_empty({**one, "aliases": [*left, *sorted(checked)]}))
        else:
            versions.append(_without_aliases(one, checked))
    spec: Body = {"versions": versions}
    if DEFAULT in added:
        spec["defaultVersion"] = version
    return {"spec": spec}


def remove_version(manifest: Manifest, version: str) -> Manifest:
    """The merge patch that removes a version; raises FailedPreconditionError for the default, or the only one."""
    versions = manifest["spec"]["versions"]
    if len(versions) == 1:
        raise FailedPreconditionError(f"{version} is the only version: delete the model")
    if manifest["spec"]["defaultVersion"] == version:
        raise FailedPreconditionError(f"{version} is the default version: give the alias default to another first")
    left = {name: own for name, own in read_kept(manifest).versions.items() if name != version}
    # The number of a version that is gone is not given again: clients may take what comes for what was.
    kept = Kept(last=_find_last(manifest), versions=left)
    return {
        "metadata": {"annotations": kept.annotate()},
        "spec": {"versions": [one for one in versions if one["name"] != version]},
    }


# --- read ------------------------------------------------------------------------------------------------------------


def compute_etag(manifest: Manifest, version: str) -> str:
    """A version's etag, which another version does not change: clients send the one that they read long ago."""
    spec = manifest["spec"]
    [found] = [one for one in spec["versions"] if one["name"] == version]
    own = read_kept(manifest).versions.get(version)
    shared = [manifest["metadata"].get("uid"), objects.read_labels(manifest)]
    return objects.hash_content(*shared, spec.get("displayName"), spec.get("description"), found, own)


def describe_model(manifest: Manifest, place: Place) -> Body:
    """Of Vertex AI's Model, its default version, what lists are filtered and ordered by."""
    version = manifest["spec"]["defaultVersion"]
    own = objects.pick_kept(read_kept(manifest).versions.get(version, {}), ("display_name",))
    name = place.model(manifest["metadata"]["name"])
    return {**objects.describe(manifest), **own, "name": name, "versionId": version}


def to_model(manifest: Manifest, version: str, deployed_models: Collection[Manifest], place: Place) -> Body:
    """Vertex AI's Model, which is one version. `deployed_models` may be those of others, too."""
    model = Model.model_validate(manifest)
    found = resolve_version(model, version)
    own = objects.pick_kept(read_kept(manifest).versions.get(found.name, {}), _KEPT_OF_A_VERSION)
    made = objects.create_time(manifest)
    aliases = [alias for alias in found.aliases if alias != DEFAULT]
    return drop_empty(
        {
            **objects.describe(manifest),
            "etag": compute_etag(manifest, found.name),
            "description": model.spec.description,
            **{name: value for name, value in own.items() if name not in ("createTime", "updateTime")},
            "artifactUri": found.artifact_uri,
            "name": place.model(model.name),
            "versionId": found.name,
            "versionAliases": [DEFAULT, *aliases] if found.name == model.spec.default_version else aliases,
            "versionCreateTime": own.get("createTime", made),
            "versionUpdateTime": own.get("updateTime", own.get("createTime", made)),
            "deployedModels": _to_references(deployed_models, model.name, found.name, place),
            "supportedDeploymentResourcesTypes": _DEPLOYMENT_RESOURCES,
            "supportedInputStorageFormats": _INPUT_FORMATS,
            "supportedOutputStorageFormats": _OUTPUT_FORMATS,
        }
    )


def _to_references(manifests: Collection[Manifest], model: str, version: str, place: Place) -> list[Body]:
    users = {
        manifest["metadata"]["name"]: manifest["spec"]["endpoint"]
        for manifest in manifests
        if manifest["kind"] == DeployedModel.KIND and find_users([manifest], model, version)
    }
    return [{"endpoint": place.endpoint(users[name]), "deployedModelId": name} for name in sorted(users)]
