"""How the API is set up: the one file that the chart writes and the API reads at its start."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class ApiSettings(BaseModel):
    """All of it; `docs/api.md` lists the chart's values that it comes from."""

    # A key that nobody reads is a mistake in the chart's values: say so at the start.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    locations: list[str] = Field(["local"], min_length=1, description="The locations that paths may name.")
    projects: dict[str, str] = Field(
        default_factory=dict, description="Namespaces by project id or number; a namespace is its own project."
    )
    anonymous: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-.a-z0-9]*[a-z0-9])?$",
        description="NAMESPACE/NAME of the ServiceAccount that callers without a token act as; else they are refused.",
    )
    watch_namespaces: list[str] = Field(
        default_factory=list, description="The namespaces whose predictions are forwarded; all if empty."
    )
    provider: Literal["none", "gateway-api", "istio"] = Field(
        "none", description="Who carries predictions: behind a gateway, Private endpoints are not forwarded to."
    )
    authorization: Literal["none", "gateway"] = Field(
        "none", description="Whether the gateway asks about each prediction; where not, it lets all of them pass."
    )
    audience: str = Field(
        "", description="The audience of tokens that are for predictions alone; none are taken where it is empty."
    )
    management: str = Field(
        "",
        pattern=r"^(https?://[^/]+)?$",
        description="Where management calls are answered, for processes that serve predictions alone.",
    )
    dedicated_endpoint_dns: str = Field(
        "", description="HOST:PORT where clients find an endpoint that asked for an address of its own."
    )
    host: str = "0.0.0.0"  # noqa: S104  # a pod's server is there to be reached
    port: int = Field(8080, ge=0, le=65535)
    drain_seconds: float = Field(5.0, ge=0, description="How long requests are taken after SIGTERM.")


def load(path: Path) -> ApiSettings:
    """The settings in a YAML file; raises pydantic.ValidationError with the key that is wrong."""
    return ApiSettings.model_validate(yaml.safe_load(path.read_text()) or {})
