"""The server's settings: environment variables, read once at start."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasGenerator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pierhead_server.batch.allowed import DEFAULT, Allowed
from pierhead_server.errors import SettingsInvalidError

TERMINATION_LOG = Path("/dev/termination-log")  # where Kubernetes looks by default


def _with_scheme(host: str) -> str:
    """Google's clients take the emulator's address with and without a scheme; so do we."""
    return (host if "://" in host else f"http://{host}").rstrip("/")


def _parse_allowed(entries: object) -> object:
    return Allowed.parse(entries.split(",")) if isinstance(entries, str) else entries


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pierhead" / "compiled"


def _variable(field: str) -> str:
    return f"PIERHEAD_{field.upper()}"


# obstore reads it by itself and makes a part of a host's name of it: any other character would lead elsewhere.
_Region = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class Settings(BaseSettings):
    """`PIERHEAD_<NAME>` sets each; `docs/model-server.md` lists them.

    Names count as they are written, as the shell and Kubernetes take them: who filters them must see all that is read.
    """

    # Aliases alone: by a field's own name, pydantic-settings would read another spelling of its variable.
    model_config = SettingsConfigDict(
        alias_generator=AliasGenerator(validation_alias=_variable),
        case_sensitive=True,
        env_ignore_empty=True,
        frozen=True,
    )

    artifact_uri: str = Field(pattern=r"^((gs|s3|az)://[^/]+(/.*)?|file:///.*)$")
    artifact_digest: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")
    model_dir: Path = Path("/models")
    model_cache_bytes: int | None = Field(default=None, ge=0)  # of copies there that nobody uses
    max_artifact_bytes: int | None = Field(default=None, gt=0)
    storage_emulator_host: Annotated[str, AfterValidator(_with_scheme)] | None = Field(
        default=None, validation_alias="STORAGE_EMULATOR_HOST"
    )
    aws_region: _Region | None = Field(default=None, validation_alias="AWS_REGION")
    aws_default_region: _Region | None = Field(default=None, validation_alias="AWS_DEFAULT_REGION")

    allow_code: bool = False  # whether the artifact may bring code: a custom predictor, a compiled form
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int | None = Field(default=None, gt=0)  # processes that compute; else one a CPU, or one a GPU
    compile: bool = True
    compiled_dir: Path = Field(default_factory=_cache_folder)  # it is computed with: nobody else may write there

    # Echoed in every answer; the operator knows them.
    deployed_model_id: str = ""
    model: str = ""
    model_display_name: str = ""
    model_version_id: str = ""

    host: str = "0.0.0.0"  # noqa: S104 - a pod's server is there to be reached
    port: int = Field(default=8080, ge=0, le=65535)
    drain_seconds: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    termination_log: Path = TERMINATION_LOG

    # Of a batch job and of its lines: schemes, buckets and hosts, with commas between.
    batch_allowed_uris: Annotated[Allowed, NoDecode, BeforeValidator(_parse_allowed)] = Allowed(DEFAULT)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    log_sample: float = Field(default=0.01, ge=0, le=1)  # of the requests, that get a line
    access_log: bool = False  # whether each prediction gets one, whatever the level is

    queue_size: int = Field(default=64, gt=0)
    max_batch_delay_seconds: float = Field(default=0.005, ge=0, le=10)  # while a GPU is busy anyway
    predict_timeout_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    max_request_bytes: int = Field(default=10 * 1024 * 1024, gt=0)
    max_requests_bytes: int = Field(default=256 * 1024 * 1024, gt=0)  # of all, from the first byte read to the answer
    head_timeout_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    min_upload_rate: float = Field(default=8 * 1024, gt=0, allow_inf_nan=False)  # bytes a second
    upload_grace_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    max_instances: int = Field(default=128, gt=0)
    max_image_pixels: int = Field(default=40_000_000, gt=0)
    max_request_pixels: int = Field(default=400_000_000, gt=0)
    max_pixels_in_flight: int = Field(default=1_600_000_000, gt=0)
    worker_memory_bytes: int | None = Field(default=None, gt=0)


def load_settings(**given: object) -> Settings:
    """Read the environment, which `given` goes before; raises SettingsInvalidError that names the variables.

    `given` has settings by their own names, such as `port`.
    """
    try:
        by_variable = {str(Settings.model_fields[name].validation_alias): value for name, value in given.items()}
        return Settings(**by_variable)  # type: ignore[arg-type]  # validated there
    except ValidationError as error:
        causes = (f"{cause['loc'][0]}: {cause['msg']}" for cause in error.errors())
        raise SettingsInvalidError("; ".join(causes)) from None
