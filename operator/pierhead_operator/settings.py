"""How an installation is set up: the one file that the chart writes and the operator reads at its start."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class _Settings(BaseModel):
    # A key that nobody reads is a mistake in the chart's values: say so at the start.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class ServerSettings(_Settings):
    """The pods that serve models."""

    image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    env: list[dict[str, Any]] = Field(default_factory=list, description="Kubernetes EnvVars that every pod is given.")
    resources: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Requests and limits of a replica, beside its accelerators."
    )
    compiled_cache: dict[str, Any] = Field(
        default_factory=dict,
        description="A Kubernetes volume source that all server pods of a namespace share, for compiled forms.",
    )


class GatewayReference(_Settings):
    """The Gateway that routes attach to."""

    namespace: str
    name: str


class RoutingSettings(_Settings):
    """Who carries predictions to the pods."""

    provider: Literal["none", "gateway-api"] = "none"
    gateway: GatewayReference | None = None


class OperatorSettings(_Settings):
    """All of it."""

    location: str = Field("local", description="The location in the paths of predictions.")
    watch_namespaces: list[str] = Field(default_factory=list, description="The namespaces to look after; all if empty.")
    server: ServerSettings
    routing: RoutingSettings = RoutingSettings()


def load(path: Path) -> OperatorSettings:
    """The settings in a YAML file; raises pydantic.ValidationError with the key that is wrong."""
    return OperatorSettings.model_validate(yaml.safe_load(path.read_text()))
