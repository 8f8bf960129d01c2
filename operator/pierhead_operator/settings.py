"""How an installation is set up: the one file that the chart writes and the operator reads at its start."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

# As the server's own setting has it (pierhead_server.batch.allowed).
ALLOWED_URI = (
    r"^((gs|s3|az|pvc|file)://|(gs|s3|az|pvc)://[A-Za-z0-9$][A-Za-z0-9._-]*"
    r"|https?://(\*|(\*\.)?[A-Za-z0-9.-]+)(:[0-9]+)?)$"
)


class _Settings(BaseModel):
    # A key that nobody reads is a mistake in the chart's values: say so at the start.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


def _check_variable(variable: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(variable.get("name"), str):
        raise ValueError("a variable's name must be a string")
    return variable


class ServerSettings(_Settings):
    """The pods that serve models."""

    image: str
    openvino_image: str | None = Field(
        None,
        description="For versions with runtime OpenVINO, an image without PyTorch; `image` if left out.",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    env: list[Annotated[dict[str, Any], AfterValidator(_check_variable)]] = Field(
        default_factory=list, description="Kubernetes EnvVars that every pod is given."
    )
    allowed_env: list[Annotated[str, Field(pattern=r"^[-._A-Za-z][-._A-Za-z0-9]*\*?$")]] = Field(
        default_factory=list,
        description="Variables beside those that every author may set; A* is all that begin with A.",
    )
    resources: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Requests and limits of a replica, beside its accelerators."
    )
    arbitrary_user: bool = Field(
        False, description="Whether the cluster chooses the user that pods run as, as OpenShift does."
    )
    compiled_cache: dict[str, Any] = Field(
        default_factory=dict,
        description="A Kubernetes volume source that all server pods of a namespace share, for compiled forms.",
    )
    artifact_cache: dict[str, Any] = Field(
        default_factory=dict,
        description="A Kubernetes volume source that pods of a node share, for artifacts; else each pod has its own.",
    )
    artifact_cache_bytes: int | None = Field(
        None, description="The most that the shared cache keeps beyond what is in use; all that fits if left out."
    )
    env_from: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Kubernetes EnvFromSources that every pod is given, such as storage's secrets.",
    )


class BatchSettings(_Settings):
    """What batch prediction jobs may do."""

    allowed_uris: list[Annotated[str, Field(pattern=ALLOWED_URI)]] = Field(
        default_factory=lambda: ["gs://", "s3://", "az://", "pvc://"],
        description="What jobs and their lines may name: schemes, buckets, and hosts of web servers.",
    )


class MachineClass(_Settings):
    """What a machineType or an acceleratorType of Vertex AI means on this cluster."""

    resources: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Requests and limits of a replica, instead of the server's own."
    )
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels of its nodes.")
    tolerations: list[dict[str, Any]] = Field(default_factory=list, description="Taints of its nodes.")


class AcceleratorClass(_Settings):
    """An accelerator: the resource that a device plugin advertises, and where."""

    resource: str = Field("nvidia.com/gpu", description="Such as nvidia.com/gpu, or nvidia.com/mig-1g.10gb.")
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels of its nodes.")
    tolerations: list[dict[str, Any]] = Field(default_factory=list, description="Taints of its nodes.")


class MachineSettings(_Settings):
    """The machines that DeployedModels may ask for, by Vertex AI's names."""

    machine_types: dict[str, MachineClass] = Field(default_factory=dict)
    accelerator_types: dict[str, AcceleratorClass] = Field(default_factory=dict)


class RolloutSettings(_Settings):
    """How pods are replaced."""

    capacity_wait_seconds: int = Field(
        120,
        ge=0,
        description="How long a new pod waits for room beside the old one, before the old one makes room for it.",
    )


class AutoscalingSettings(_Settings):
    """The names under which the cluster's metrics adapter knows the metrics that are not Kubernetes' own."""

    gpu_duty_cycle_metric: str = Field("DCGM_FI_DEV_GPU_UTIL", description="Of each pod: percent, 0 to 100.")
    requests_in_flight_metric: str = Field("pierhead_predict_requests_in_flight", description="Of each pod.")


class GatewayReference(_Settings):
    """A Gateway that routes attach to."""

    namespace: str
    name: str
    section_name: str | None = Field(None, description="The listener; all of them if left out.")
    hostnames: list[str] = Field(default_factory=list, description="That routes answer; the listener's if left out.")


class IstioSettings(_Settings):
    """What VirtualServices are bound to."""

    gateways: list[str] = Field(min_length=1, description="Istio Gateways as namespace/name, or mesh.")
    hosts: list[str] = Field(default_factory=lambda: ["*"], min_length=1, description="Hosts of the Gateways.")


class RoutingSettings(_Settings):
    """Who carries predictions to the pods."""

    provider: Literal["none", "gateway-api", "istio"] = "none"
    gateway: GatewayReference | None = None
    private_gateway: GatewayReference | None = Field(
        None, description="For Endpoints of access Private: a Gateway that only the cluster reaches."
    )
    envoy_gateway: bool = Field(
        False, description="Whether the Gateways are Envoy Gateway's, so that its policies carry an endpoint's limits."
    )
    api_answers: bool = Field(
        False,
        description="Whether the gateway-api Gateways lead to the API what has no route: it says that nobody serves.",
    )
    open: bool = Field(False, description="Whether the gateway lets predictions pass without asking who may.")
    istio: IstioSettings | None = None
    private_istio: IstioSettings | None = Field(None, description="The same for Endpoints of access Private.")

    @model_validator(mode="after")
    def _check_provider(self) -> Self:
        if self.provider == "gateway-api" and self.gateway is None:
            raise ValueError("gateway: missing: the provider gateway-api needs one")
        if self.provider == "istio" and self.istio is None:
            raise ValueError("istio: missing: the provider istio needs it")
        return self


class NetworkPolicySettings(_Settings):
    """Who reaches the pods that serve models and the batch workers, and whom they reach."""

    gateways: list[dict[str, Any]] = Field(
        default_factory=list, description="NetworkPolicyPeers that send predictions: the gateways and the API."
    )
    monitoring: list[dict[str, Any]] = Field(
        min_length=1, description="NetworkPolicyPeers that ask pods how they are: the operator and Prometheus."
    )
    egress: list[dict[str, Any]] = Field(
        default_factory=list, description="NetworkPolicyEgressRules beside DNS, such as to storage."
    )


class OperatorSettings(_Settings):
    """All of it."""

    location: str = Field("local", description="The location in the paths of predictions.")
    other_locations: list[str] = Field(
        default_factory=list,
        max_length=9,  # with six paths each, a rule's 64 matches have room for ten
        description="Locations that lead to the same endpoints.",
    )
    watch_namespaces: list[str] = Field(default_factory=list, description="The namespaces to look after; all if empty.")
    server: ServerSettings
    batch: BatchSettings = BatchSettings()
    machines: MachineSettings = MachineSettings()
    rollout: RolloutSettings = RolloutSettings()
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    routing: RoutingSettings = RoutingSettings()
    network_policy: NetworkPolicySettings | None = Field(None, description="Without it, no NetworkPolicy is made.")


def load(path: Path, server_image: str | None = None, openvino_image: str | None = None) -> OperatorSettings:
    """The settings in a YAML file; raises pydantic.ValidationError with the key that is wrong.

    `server_image` counts before the file's `server.image`, `openvino_image` before its `server.openvinoImage`.
    """
    data = yaml.safe_load(path.read_text())
    for key, image in (("image", server_image), ("openvinoImage", openvino_image)):
        if image:
            data["server"][key] = image
    return OperatorSettings.model_validate(data)
