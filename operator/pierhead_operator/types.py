"""The four kinds of `pierhead.dev/v1`: THE source of the CRDs, of the parser and of the REST schemas.

Field names are Vertex AI's in camelCase. Defaults live here and nowhere else; what the schema cannot say, CEL rules
say with a message for a person (`rule`). `crd.py` turns these classes into CustomResourceDefinitions.
"""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from pierhead_operator import names
from pierhead_operator.pod_fields import Affinity, As, EnvVar, PodResourceClaim, Toleration
from pierhead_operator.schema import AGE, MESSAGE, READY, REASON, ApiObject, Column, Resource, Status, rule

IMMUTABLE = "{field} is immutable: create another {kind} and delete this one"

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Alias = Annotated[str, Field(min_length=2, max_length=128, pattern=r"^[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]$")]
DisplayName = Annotated[str, Field(max_length=128)]
Percent = Annotated[int, Field(ge=0, le=100)]
Runtime = Literal["PyTorch", "OpenVINO"]


# --- Model -----------------------------------------------------------------------------------------------------------


class ModelVersion(ApiObject):
    """One version of a Model: an artifact, which never changes once written."""

    model_config = ConfigDict(
        json_schema_extra=rule(
            (
                "self.artifactUri == oldSelf.artifactUri && has(self.digest) == has(oldSelf.digest)"
                " && (!has(self.digest) || self.digest == oldSelf.digest)"
                " && (has(self.allowCode) && self.allowCode) == (has(oldSelf.allowCode) && oldSelf.allowCode)"
                " && (has(self.runtime) && self.runtime == 'OpenVINO')"
                " == (has(oldSelf.runtime) && oldSelf.runtime == 'OpenVINO')",
                "a written version never changes: add a new version with this artifact",
            )
        )
    )

    name: Name = Field(description="The version's id, such as 1.")
    aliases: list[Alias] = Field(
        default_factory=list,
        max_length=8,
        description="Other names of this version; an alias belongs to one version at a time.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    artifact_uri: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^(gs|s3|az|file)://.+",
        description="The folder that holds model.yaml and its files, such as gs://bucket/folder.",
    )
    digest: str | None = Field(
        None,
        max_length=71,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="The artifact's digest; a server refuses an artifact that differs.",
    )
    allow_code: bool = Field(
        False,
        description=(
            "Whether code inside the artifact may run in the server's pod: a custom predictor (predictor.py), or"
            " a compiled form beside the program."
        ),
    )
    runtime: Runtime | None = Field(
        None,
        description=(
            "What computes the artifact: PyTorch, where it is left out, serves every format, on CPUs and GPUs; OpenVINO"
            " serves artifacts of format openvino on CPUs, from an image without PyTorch."
        ),
        json_schema_extra={"maxLength": 8},  # of which the API server sees what its rule costs
    )


class ModelSpec(ApiObject):
    """A trained model: named versions, and the one that is meant where none is named."""

    model_config = ConfigDict(
        json_schema_extra=rule(
            (
                "self.versions.exists(v, v.name == self.defaultVersion)",
                "defaultVersion must be the name of one of versions",
            ),
            (
                "self.versions.all(v, !has(v.aliases) || v.aliases.all(a,"
                " self.versions.exists_one(w, w.name == a || (has(w.aliases) && a in w.aliases))))",
                "an alias must belong to one version, and must not be the name of another",
            ),
        )
    )

    display_name: DisplayName = Field("", description="The name that people see; the object's name where left out.")
    description: str = Field("", max_length=4096, description="What the model is for.")
    default_version: Name = Field(description="The version that is meant where none is named.")
    versions: list[ModelVersion] = Field(
        min_length=1,
        max_length=64,
        description="The versions; entries never change once written, new ones are added.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )

    def version(self, name: str) -> ModelVersion | None:
        """The version of that name, if there is one."""
        return next((v for v in self.versions if v.name == name), None)


class VersionRecord(ApiObject):
    """What a version was when it was first seen."""

    name: str = Field(description="The version's id.")
    artifact_uri: str = Field(description="Its artifact.")
    digest: str | None = Field(None, description="The artifact's digest, if it had one.")
    allow_code: bool = Field(False, description="Whether code inside the artifact might run.")
    runtime: Runtime | None = Field(None, description="What computed it, if it was not PyTorch.")


class ModelStatus(Status):
    """What is known of a Model."""

    versions: list[VersionRecord] = Field(
        default_factory=list,
        description="What each version was when it was first seen, also of those removed: no other one takes its name.",
    )


class Model(Resource):
    """A trained model: named versions, each an artifact, and a default version."""

    KIND: ClassVar[str] = "Model"
    PLURAL: ClassVar[str] = "models"
    SHORT_NAME: ClassVar[str] = "mdl"
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column(name="Default", type="string", json_path=".spec.defaultVersion"),
        READY,
        MESSAGE,
        AGE,
    )

    spec: ModelSpec
    status: ModelStatus = Field(default_factory=ModelStatus)

    @property
    def display_name(self) -> str:
        return self.spec.display_name or self.name


# --- Endpoint --------------------------------------------------------------------------------------------------------


class Mirror(ApiObject):
    """A copy of an endpoint's requests, to a DeployedModel whose answers nobody sees."""

    deployed_model: Name = Field(description="The DeployedModel of this endpoint that gets the copies.")
    percent: int = Field(100, ge=1, le=100, description="Percent of the requests that are copied.")


class ClientConnectionConfig(ApiObject):
    """How long a client may wait."""

    inference_timeout: str = Field(
        "60s",
        max_length=8,
        pattern=r"^[1-9][0-9]{0,3}s$",
        description="After which a prediction that is not answered fails with 504.",
        json_schema_extra=rule(("duration(self) <= duration('3600s')", "inferenceTimeout must be at most 3600s")),
    )

    @property
    def inference_timeout_seconds(self) -> int:
        return int(self.inference_timeout.removesuffix("s"))


class EndpointSpec(ApiObject):
    """An address that clients predict against, and how its traffic is split."""

    display_name: DisplayName = Field("", description="The name that people see; the object's name where left out.")
    description: str = Field("", max_length=4096, description="What the endpoint is for.")
    traffic_split: dict[str, Percent] | None = Field(
        None,
        description="Percent of the traffic by DeployedModel; all of it to the only one where left out.",
        json_schema_extra={
            "maxProperties": 64,
            **rule(
                (
                    "self.map(name, self[name]).sum() == 100",
                    "trafficSplit must sum to 100, or be left out",
                )
            ),
        },
    )
    access: Literal["Standard", "Private"] = Field(
        "Standard", description="Whether clients outside the cluster reach it, or only those inside."
    )
    mirror: Mirror | None = Field(None, description="Where copies of the requests go, if anywhere.")
    client_connection_config: ClientConnectionConfig = Field(
        default_factory=ClientConnectionConfig, description="How long a client may wait."
    )
    max_request_bytes: int | None = Field(
        None,
        ge=1024,
        le=1024**3,
        description="The largest request that is taken; the server's default, 10 MiB, where left out.",
        json_schema_extra={"format": "int64"},
    )


class FinishedOperation(ApiObject):
    """What became of an operation of the REST API; it is written once."""

    id: str = Field(max_length=253, description="The operation's id.")
    state: Literal["Succeeded", "Failed"] = Field(description="Whether it did what it was to do.")
    reason: str = Field("", description="Why it failed, in one CamelCase word.")
    message: str = Field("", max_length=1200, description="Why it failed, in a sentence.")
    time: datetime = Field(description="When that was.")
    undone: bool | None = Field(None, description="Whether what it had made is deleted, since nothing of it answered.")


class EndpointStatus(Status):
    """What is known of an Endpoint."""

    predict_path: str = Field("", description="Where predictions are posted to, below the gateway's address.")
    traffic_split: dict[str, Percent] = Field(
        default_factory=dict,
        description="The effective split: what the gateway has taken, which is the wanted one once every part serves.",
    )
    operations: list[FinishedOperation] | None = Field(
        None,
        description="What became of the REST API's last deployModel and mutateDeployedModel here.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"]},
    )


class Endpoint(Resource):
    """An address that clients predict against; owns the traffic split."""

    KIND: ClassVar[str] = "Endpoint"
    PLURAL: ClassVar[str] = "endpoints"
    SHORT_NAME: ClassVar[str] = "pep"
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        READY,
        REASON,
        Column(name="Traffic", type="string", json_path=".status.trafficSplit"),
        Column(name="Path", type="string", json_path=".status.predictPath", priority=1),
        MESSAGE,
        AGE,
    )

    spec: EndpointSpec
    status: EndpointStatus = Field(default_factory=EndpointStatus)


# --- DeployedModel ---------------------------------------------------------------------------------------------------


# A value of any type that holds no further value.
_FLAT: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True, "maxProperties": 0, "maxItems": 0}


def _hold(value: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value of any type whose items and fields are each of this one."""
    some = {"maxProperties": 64, "maxItems": 256}
    return {"x-kubernetes-preserve-unknown-fields": True, **some, "additionalProperties": value, "items": value}


# What is nested thousands deep, which JSON may be, would end whoever reads it.
Parameters = Annotated[
    dict[str, Any],
    Field(json_schema_extra={"type": "object", "maxProperties": 64, "additionalProperties": _hold(_hold(_FLAT))}),
]
# Of any content, since a rule refuses it whatever that is: rules see no field whose values have no type.
RefusedObject = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
LabelMap = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(json_schema_extra={"maxProperties": 64})]


class MachineSpec(ApiObject):
    """The machine that one replica needs."""

    model_config = ConfigDict(
        json_schema_extra=rule(
            (
                "has(self.acceleratorType) == has(self.acceleratorCount)",
                "acceleratorType and acceleratorCount go together: give both or neither",
            )
        )
    )

    machine_type: str | None = Field(
        None,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="A machine of the installation's list (the chart's machines.machineTypes), such as n1-standard-4.",
    )
    accelerator_type: str | None = Field(
        None,
        max_length=63,
        pattern=r"^[A-Z][A-Z0-9_]*$",
        description="An accelerator of the installation's list (machines.acceleratorTypes), such as NVIDIA_L4.",
    )
    accelerator_count: int | None = Field(None, ge=1, le=16, description="Accelerators for one replica.")
    resource_claims: list[Annotated[dict[str, Any], As(PodResourceClaim)]] = Field(
        default_factory=list,
        max_length=8,
        description="Devices by dynamic resource allocation: a pod's resourceClaims, all of them given to the server.",
        json_schema_extra=rule(
            ("self.all(c, self.exists_one(d, d.name == c.name))", "a resource claim's name must be there once")
        ),
    )


class AutoscalingMetricSpec(ApiObject):
    """A metric that replicas are added and removed by."""

    metric_name: Literal[
        "cpu/utilization",
        "gpu/dutyCycle",
        "requests/inFlight",
        "aiplatform.googleapis.com/prediction/online/cpu/utilization",
        "aiplatform.googleapis.com/prediction/online/accelerator/duty_cycle",
    ] = Field(
        description=(
            "The metric: percent of the requested CPU in use, percent of the time that the accelerators compute, or"
            " the requests that one replica holds."
        )
    )
    target: int = Field(60, ge=1, le=1000, description="What is aimed at, as a mean over the replicas.")


_MAX_OVER_MIN = rule(
    (
        "!has(self.maxReplicaCount) || self.maxReplicaCount >= self.minReplicaCount",
        "maxReplicaCount must be at least minReplicaCount",
    )
)


class Resources(ApiObject):
    """Between how many replicas a DeployedModel is scaled."""

    min_replica_count: int = Field(
        1,
        ge=0,
        le=1000,
        description="Replicas that always run.",
        json_schema_extra=rule(("self >= 1", "minReplicaCount must be at least 1: scaling to zero is not supported")),
    )
    max_replica_count: int | None = Field(
        None, ge=1, le=1000, description="Replicas under load; minReplicaCount where left out."
    )

    @property
    def max_replicas(self) -> int:
        return self.max_replica_count or self.min_replica_count


class AutomaticResources(Resources):
    """Replicas on machines of the installation's choice."""

    model_config = ConfigDict(json_schema_extra=_MAX_OVER_MIN)


class DedicatedResources(Resources):
    """Replicas on machines of a given kind."""

    model_config = ConfigDict(json_schema_extra=_MAX_OVER_MIN)

    machine_spec: MachineSpec = Field(default_factory=MachineSpec, description="The machine that one replica needs.")
    autoscaling_metric_specs: list[AutoscalingMetricSpec] = Field(
        default_factory=list,
        max_length=3,
        description="What replicas are scaled by; 60 % of the requested CPU where left out.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["metricName"]},
    )


# What runs is for the Model's version to say, which others may write than a DeployedModel.
VERSION_VARIABLES = ("PIERHEAD_ARTIFACT_URI", "PIERHEAD_ARTIFACT_DIGEST", "PIERHEAD_ALLOW_CODE")
# Of the dynamic linker and of Python: by these, a pod runs other code than the server's.
CODE_VARIABLE_PREFIXES = ("LD_", "PYTHON")
# By these labels and annotations Pierhead and Kubernetes' controllers know whose a pod is, and by the last of them the
# runtime how it is confined.
RESERVED_PREFIXES = (f"{names.GROUP}/", "batch.kubernetes.io/", "container.apparmor.security.beta.kubernetes.io/")
RESERVED_KEYS = (names.LABEL_MANAGED_BY, names.LABEL_NAME, "pod-template-hash", "controller-uid", "job-name")
SYSTEM_PRIORITY = "system-"  # how the priority classes are called that Kubernetes keeps for the cluster's own pods


def _any_of(value: str, prefixes: tuple[str, ...], keys: tuple[str, ...]) -> str:
    """CEL that asks whether a string begins with one of these prefixes, or is one of these keys."""
    begins = [f"{value}.startsWith({prefix!r})" for prefix in prefixes]
    return " || ".join([*begins, *([f"{value} in {list(keys)}"] if keys else [])])


_NO_RESERVED_KEYS = rule(
    (
        f"self.all(key, !({_any_of('key', RESERVED_PREFIXES, RESERVED_KEYS)}))",
        "labels and annotations by which Pierhead and Kubernetes know whose a pod is are not for podOverrides",
    )
)


class PodOverrides(ApiObject):
    """What the pods of a DeployedModel have beside, or instead of, the installation's own."""

    labels: LabelMap = Field(
        default_factory=dict,
        description="Labels beside Pierhead's own.",
        json_schema_extra={"maxProperties": 64, **_NO_RESERVED_KEYS},
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations.", json_schema_extra={"maxProperties": 64, **_NO_RESERVED_KEYS}
    )
    env: list[Annotated[dict[str, Any], As(EnvVar)]] = Field(
        default_factory=list,
        max_length=64,
        description=(
            "Kubernetes EnvVars of the server; they count before the installation's. Their names must be among those"
            " that the installation allows (the chart's server.allowedEnv)."
        ),
        json_schema_extra=rule(
            (
                f"self.all(v, !(v.name.upperAscii() in {list(VERSION_VARIABLES)}))",
                "the artifact, its digest and whether it is code are the Model version's to say",
            ),
            (
                f"self.all(v, !({_any_of('v.name.upperAscii()', CODE_VARIABLE_PREFIXES, ())}))",
                "variables by which a pod would run other code, LD_* and PYTHON*, are not for podOverrides",
            ),
        ),
    )
    node_selector: LabelMap = Field(default_factory=dict, description="Labels of the nodes that they run on.")
    tolerations: list[Annotated[dict[str, Any], As(Toleration)]] = Field(
        default_factory=list, max_length=32, description="Taints of nodes that they tolerate."
    )
    affinity: Annotated[dict[str, Any], As(Affinity)] | None = Field(None, description="Kubernetes' affinity.")
    priority_class_name: Name | None = Field(
        None,
        description="Their PriorityClass.",
        json_schema_extra=rule(
            (
                f"!self.startsWith({SYSTEM_PRIORITY!r})",
                "priority classes that begin with system- are for the cluster's own pods",
            )
        ),
    )
    image_pull_secrets: list[Name] = Field(
        default_factory=list, max_length=8, description="Secrets of this namespace that images are pulled with."
    )


_SURGE = (
    "(has(self.maxSurgeReplicas) ? self.maxSurgeReplicas : has(self.maxSurgePercentage) ? self.maxSurgePercentage : 1)"
)
_UNAVAILABLE = (
    "(has(self.maxUnavailableReplicas) ? self.maxUnavailableReplicas :"
    " has(self.maxUnavailablePercentage) ? self.maxUnavailablePercentage : 0)"
)


class RolloutOptions(ApiObject):
    """How many replicas are replaced at a time when what they run changes; percentages are of those that are wanted."""

    model_config = ConfigDict(
        json_schema_extra=rule(
            (
                "!(has(self.maxSurgeReplicas) && has(self.maxSurgePercentage))",
                "give at most one of maxSurgeReplicas and maxSurgePercentage",
            ),
            (
                "!(has(self.maxUnavailableReplicas) && has(self.maxUnavailablePercentage))",
                "give at most one of maxUnavailableReplicas and maxUnavailablePercentage",
            ),
            (
                f"{_SURGE} + {_UNAVAILABLE} > 0",
                "without a surge, maxUnavailableReplicas or maxUnavailablePercentage must be above 0",
            ),
        )
    )

    max_surge_replicas: int | None = Field(
        None, ge=0, le=1000, description="New replicas that may be there beside the wanted number of replicas."
    )
    max_surge_percentage: int | None = Field(
        None,
        ge=0,
        le=100,
        description="The same as a percentage, rounded up; 25 where neither is given.",
    )
    max_unavailable_replicas: int | None = Field(
        None, ge=0, le=1000, description="Replicas that may be missing meanwhile; 0 where neither is given."
    )
    max_unavailable_percentage: int | None = Field(
        None, ge=0, le=100, description="The same as a percentage, rounded down."
    )

    @property
    def surges(self) -> bool:
        """Whether new replicas come before old ones leave."""
        return 0 not in (self.max_surge_replicas, self.max_surge_percentage)


class DeployedModelSpec(ApiObject):
    """One version of a Model, put on an Endpoint with resources."""

    model_config = ConfigDict(
        json_schema_extra=rule(
            (
                "!(has(self.dedicatedResources) && has(self.automaticResources))",
                "give at most one of dedicatedResources and automaticResources",
            )
        )
    )

    display_name: DisplayName = Field("", description="The name that people see; the object's name where left out.")
    endpoint: Name = Field(
        description="The Endpoint in this namespace.",
        json_schema_extra=rule(("self == oldSelf", IMMUTABLE.format(field="endpoint", kind="DeployedModel"))),
    )
    model: Name = Field(
        description="The Model in this namespace.",
        json_schema_extra=rule(("self == oldSelf", IMMUTABLE.format(field="model", kind="DeployedModel"))),
    )
    model_version: Name | None = Field(
        None, description="The version; the Model's default version at that moment, pinned in status, where left out."
    )
    dedicated_resources: DedicatedResources | None = Field(None, description="Machines of a given kind.")
    automatic_resources: AutomaticResources | None = Field(
        None, description="Machines of the installation's choice; one replica where neither is given."
    )
    rollout_options: RolloutOptions = Field(
        default_factory=RolloutOptions, description="How many replicas are replaced at a time."
    )
    enable_access_logging: bool = Field(
        False, description="Whether each prediction has a line in the pods' log: when, how long, how large, which code."
    )
    disable_container_logging: bool = Field(
        False, description="Whether the pods log errors alone, beside the lines of enableAccessLogging."
    )
    service_account: Name | None = Field(
        None, description="The ServiceAccount of the pods, such as one that storage knows by workload identity."
    )
    pod_overrides: PodOverrides = Field(
        default_factory=PodOverrides, description="What the pods have beside the installation's own."
    )

    @property
    def resources(self) -> Resources:
        """The resources that were given; automatic ones with one replica where none were."""
        return self.dedicated_resources or self.automatic_resources or AutomaticResources()

    @property
    def machine_spec(self) -> MachineSpec:
        """The machine that is asked for; an empty one where the choice is the installation's."""
        return self.dedicated_resources.machine_spec if self.dedicated_resources else MachineSpec()


class DeployedModelStatus(Status):
    """What is known of a DeployedModel."""

    model_version: str = Field("", description="The version that runs, or is on its way.")
    versions: list[VersionRecord] = Field(
        default_factory=list,
        description="What each version that ran is, the present one last: another one of its name is refused.",
    )
    pins: list[str] | None = Field(
        None,
        description="Digests of the settings that its pods may be made with: others in its Deployment are ignored.",
    )
    replicas: int = Field(0, description="Replicas that there are.")
    ready_replicas: int = Field(0, description="Replicas that are ready.")
    available_replica_count: int = Field(0, description="Replicas that answer predictions.")
    url: str = Field("", description="Where the pods answer inside the cluster, past the endpoint and its split.")


class DeployedModel(Resource):
    """One model version put on one endpoint with physical resources."""

    KIND: ClassVar[str] = "DeployedModel"
    PLURAL: ClassVar[str] = "deployedmodels"
    SHORT_NAME: ClassVar[str] = "dm"
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column(name="Endpoint", type="string", json_path=".spec.endpoint"),
        Column(name="Model", type="string", json_path=".spec.model"),
        Column(name="Version", type="string", json_path=".status.modelVersion"),
        READY,
        REASON,
        Column(name="Replicas", type="integer", json_path=".status.availableReplicaCount"),
        MESSAGE,
        AGE,
    )
    SELECTABLE: ClassVar[tuple[str, ...]] = (".spec.endpoint", ".spec.model")

    spec: DeployedModelSpec
    status: DeployedModelStatus = Field(default_factory=DeployedModelStatus)


# --- BatchPredictionJob ----------------------------------------------------------------------------------------------


def _fixed(field: str) -> dict[str, Any]:
    return rule(("self == oldSelf", IMMUTABLE.format(field=field, kind="BatchPredictionJob")))


class GcsSource(ApiObject):
    """Where instances are read from."""

    uris: list[Annotated[str, Field(max_length=2048, pattern=r"^(gs|s3|az|https?|file|pvc)://.+")]] = Field(
        min_length=1,
        max_length=1024,
        description="Files with instances, such as gs://bucket/instances.jsonl; * stands for any characters of a name.",
    )


class GcsDestination(ApiObject):
    """Where predictions are written to."""

    output_uri_prefix: str = Field(
        min_length=1,
        max_length=2048,
        pattern=r"^(gs|s3|az|file|pvc)://.+",
        description="The folder that the job makes its own folder in.",
    )


class InputConfig(ApiObject):
    """The instances of a BatchPredictionJob."""

    instances_format: Literal["jsonl", "csv", "file-list"] = Field(
        "jsonl",
        description="How instances are stored: JSON, one a line; CSV with a header; or the URI of a picture a line.",
    )
    gcs_source: GcsSource


FieldName = Annotated[str, Field(min_length=1, max_length=256)]


class InstanceConfig(ApiObject):
    """What of a line the model gets, and what the output calls it by."""

    model_config = ConfigDict(
        json_schema_extra=rule(
            (
                "!(has(self.includedFields) && size(self.includedFields) > 0"
                " && has(self.excludedFields) && size(self.excludedFields) > 0)",
                "give at most one of includedFields and excludedFields",
            ),
            (
                "!(has(self.keyField) && has(self.excludedFields) && self.keyField in self.excludedFields)",
                "keyField is left out of what the model gets: take it out of excludedFields",
            ),
        )
    )

    instance_type: Literal["object", "array"] | None = Field(
        None,
        description=(
            "What the model gets: the line, which must be an object, or an array of its values. A line as it is where"
            " left out; a CSV row is then an object."
        ),
    )
    key_field: FieldName | None = Field(
        None,
        description="The field that the model does not get, and whose value stands in the output as key, for instance.",
    )
    included_fields: list[FieldName] = Field(
        default_factory=list,
        max_length=256,
        description="The fields that the model gets, of an array in this order; all others where left out.",
    )
    excluded_fields: list[FieldName] = Field(
        default_factory=list, max_length=256, description="The fields that the model does not get."
    )

    def dump(self) -> dict[str, Any]:
        """As Kubernetes stores it, without lists that are empty."""
        return {name: value for name, value in super().dump().items() if value != []}


class OutputConfig(ApiObject):
    """The predictions of a BatchPredictionJob."""

    predictions_format: Literal["jsonl", "csv", "parquet"] = Field("jsonl", description="How predictions are stored.")
    gcs_destination: GcsDestination


class BatchDedicatedResources(ApiObject):
    """The workers of a BatchPredictionJob."""

    model_config = ConfigDict(
        json_schema_extra=rule(
            (
                "!has(self.maxReplicaCount) || self.maxReplicaCount >= self.startingReplicaCount",
                "maxReplicaCount must be at least startingReplicaCount",
            )
        )
    )

    machine_spec: MachineSpec = Field(default_factory=MachineSpec, description="The machine that one worker needs.")
    starting_replica_count: int = Field(
        1, ge=1, le=1000, description="Workers at the start; more follow, up to maxReplicaCount, while all of them run."
    )
    max_replica_count: int | None = Field(
        None, ge=1, le=1000, description="Workers at most, and parts of the input; startingReplicaCount where left out."
    )

    @property
    def max_replicas(self) -> int:
        """Workers at most."""
        return self.max_replica_count or self.starting_replica_count


class ManualBatchTuningParameters(ApiObject):
    """How instances are put together."""

    batch_size: int | None = Field(
        None, ge=1, le=1024, description="Instances that the model computes at once; what suits it where left out."
    )


class BatchPredictionJobSpec(ApiObject):
    """An asynchronous prediction over stored instances, straight from a Model."""

    model_config = ConfigDict(
        json_schema_extra=rule(
            (
                "!has(self.unmanagedContainerModel)",
                "unmanagedContainerModel is not supported: make a Model of the artifact, and name it in model",
            ),
            (
                "!(has(oldSelf.cancel) && oldSelf.cancel) || (has(self.cancel) && self.cancel)",
                "a job that was cancelled stays so: create another one",
            ),
        )
    )

    display_name: DisplayName = Field("", description="The name that people see; the object's name where left out.")
    model: Name = Field(description="The Model in this namespace.", json_schema_extra=_fixed("model"))
    model_version: str | None = Field(
        None,
        max_length=128,
        pattern=r"^[a-z0-9][a-zA-Z0-9-]*$",
        description="The version, or an alias of it; the Model's default version at the start where left out.",
    )
    model_parameters: Parameters = Field(
        default_factory=dict,
        description=(
            "The parameters of each prediction, such as confidenceThreshold and maxPredictions; lists and maps in it"
            " may hold others, which hold no more."
        ),
    )
    unmanaged_container_model: RefusedObject | None = Field(None, description="Vertex AI's; refused here.")
    input_config: InputConfig = Field(json_schema_extra=_fixed("inputConfig"))
    instance_config: InstanceConfig | None = Field(
        None,
        description="What of a line the model gets; all of it where left out.",
        json_schema_extra=_fixed("instanceConfig"),
    )
    output_config: OutputConfig = Field(json_schema_extra=_fixed("outputConfig"))
    dedicated_resources: BatchDedicatedResources = Field(
        default_factory=BatchDedicatedResources, description="The workers; one where left out."
    )
    manual_batch_tuning_parameters: ManualBatchTuningParameters = Field(
        default_factory=ManualBatchTuningParameters, description="How instances are put together."
    )
    disable_container_logging: bool = Field(False, description="Whether the workers log errors alone.")
    service_account: Name | None = Field(
        None, description="The ServiceAccount of the workers, such as one that storage knows by workload identity."
    )
    pod_overrides: PodOverrides = Field(
        default_factory=PodOverrides, description="What the workers have beside the installation's own."
    )
    cancel: bool = Field(False, description="Ends the job for good; what was predicted by then stays.")
    suspend: bool = Field(False, description="Takes the workers away until it is false again; what they did stays.")
    active_deadline_seconds: int | None = Field(
        None, ge=1, description="The job fails where it is not done so long after its start."
    )
    ttl_seconds_after_finished: int | None = Field(
        None, ge=0, description="The job deletes itself so long after its end; never where left out."
    )


Count = Annotated[int, Field(json_schema_extra={"format": "int64"})]


class CompletionStats(ApiObject):
    """How many instances were predicted."""

    successful_count: Count = Field(0, description="Instances with a prediction.")
    failed_count: Count = Field(0, description="Instances with an error.")
    incomplete_count: Count = Field(-1, description="Instances without either; -1 while that is not known.")


class OutputInfo(ApiObject):
    """Where the predictions are."""

    gcs_output_directory: str = Field("", description="The job's own folder.")


class ResourcesConsumed(ApiObject):
    """What the workers took."""

    replica_hours: float = Field(0.0, description="Hours of all workers together.")


class JobError(ApiObject):
    """Why a job, or a part of it, failed."""

    code: int = Field(description="The code of google.rpc.Status.")
    message: str = Field("", max_length=4096, description="The cause in a sentence.")


class ShardProgress(ApiObject):
    """How far one worker's part is."""

    shard: int = Field(description="The part, from 0.")
    successful: Count = 0
    failed: Count = 0
    bytes_done: Count = 0
    bytes_total: Count = 0
    done: bool = False

    @model_serializer(mode="wrap")
    def _leave_out_nothings(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """There may be a thousand in one status."""
        return {name: value for name, value in serialize(self).items() if value or name == "shard"}


JobState = Literal[
    "JOB_STATE_PENDING",
    "JOB_STATE_QUEUED",
    "JOB_STATE_RUNNING",
    "JOB_STATE_SUCCEEDED",
    "JOB_STATE_PARTIALLY_SUCCEEDED",
    "JOB_STATE_FAILED",
    "JOB_STATE_CANCELLING",
    "JOB_STATE_CANCELLED",
]


class BatchPredictionJobStatus(Status):
    """What is known of a BatchPredictionJob."""

    state: JobState | None = Field(None, description="Vertex AI's state of the job.")
    progress: str = Field("", description="How much of the input is done, in percent.")
    model_version: str = Field("", description="The version that predicts, fixed at the start.")
    artifact: VersionRecord | None = Field(
        None, description="What that version is: another one of its name is refused."
    )
    create_time: datetime | None = Field(None, description="When the job was made.")
    start_time: datetime | None = Field(None, description="When the first worker started.")
    end_time: datetime | None = Field(None, description="When the job ended.")
    update_time: datetime | None = Field(None, description="When this status last changed.")
    estimated_end_time: datetime | None = Field(None, description="When the job ends if it goes on as it did so far.")
    completion_stats: CompletionStats = Field(
        default_factory=CompletionStats, description="How many instances were predicted."
    )
    output_info: OutputInfo = Field(default_factory=OutputInfo, description="Where the predictions are.")
    partial_failures: list[JobError] = Field(default_factory=list, description="Parts that failed.")
    error: JobError | None = Field(None, description="Why the job failed.")
    resources_consumed: ResourcesConsumed = Field(
        default_factory=ResourcesConsumed, description="What the workers took."
    )
    shards: list[ShardProgress] = Field(
        default_factory=list,
        description="How far each part is that was begun; once the job has succeeded, manifest.json tells it.",
    )
    renewed: str = Field("", description="The value of the annotation pierhead.dev/renew that was acted on.")


class BatchPredictionJob(Resource):
    """An asynchronous prediction over stored instances, straight from a Model."""

    KIND: ClassVar[str] = "BatchPredictionJob"
    PLURAL: ClassVar[str] = "batchpredictionjobs"
    SHORT_NAME: ClassVar[str] = "bpj"
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column(name="Model", type="string", json_path=".spec.model"),
        Column(name="State", type="string", json_path=".status.state"),
        Column(name="Progress", type="string", json_path=".status.progress"),
        READY,
        REASON,
        MESSAGE,
        AGE,
    )
    SELECTABLE: ClassVar[tuple[str, ...]] = (".spec.model",)

    spec: BatchPredictionJobSpec
    status: BatchPredictionJobStatus = Field(default_factory=BatchPredictionJobStatus)


KINDS: tuple[type[Resource], ...] = (Model, Endpoint, DeployedModel, BatchPredictionJob)
