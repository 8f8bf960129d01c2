"""The server's settings: environment variables, read once at start."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pierhead_server.errors import SettingsInvalidError

TERMINATION_LOG = Path("/dev/termination-log")  # where Kubernetes looks by default


def _with_scheme(host: str) -> str:
    """Google's clients take the emulator's address with and without a scheme; so do we."""
    return (host if "://" in host else f"http://{host}").rstrip("/")


class Settings(BaseSettings):
    """`PIERHEAD_<NAME>` sets each; `docs/model-server.md` lists them."""

    model_config = SettingsConfigDict(env_prefix="PIERHEAD_", env_ignore_empty=True, frozen=True)

    artifact_uri: str = Field(pattern=r"^(gs://[^/]+(/.*)?|file:///.*)$")
    artifact_digest: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")
    model_dir: Path = Path("/models")
    max_artifact_bytes: int | None = Field(default=None, gt=0)
    storage_emulator_host: Annotated[str, AfterValidator(_with_scheme)] | None = Field(
        default=None, validation_alias="STORAGE_EMULATOR_HOST"
    )

    # Echoed in every answer; the operator knows them.
    deployed_model_id: str = ""
    model: str = ""
    model_display_name: str = ""
    model_version_id: str = ""

    host: str = "0.0.0.0"  # noqa: S104 - a pod's server is there to be reached
    port: int = Field(default=8080, ge=0, le=65535)
    drain_seconds: float = Field(default=5.0, ge=0)
    termination_log: Path = TERMINATION_LOG

    queue_size: int = Field(default=64, gt=0)
    max_request_bytes: int = Field(default=10 * 1024 * 1024, gt=0)
    max_instances: int = Field(default=128, gt=0)
    max_image_pixels: int = Field(default=89_478_485, gt=0)  # Pillow's own limit: a quarter GiB as RGB


def load_settings() -> Settings:
    """Read the environment; raises SettingsInvalidError that names the variables."""
    try:
        return Settings()
    except ValidationError as error:
        causes = (f"{_variable(str(cause['loc'][0]))}: {cause['msg']}" for cause in error.errors())
        raise SettingsInvalidError("; ".join(causes)) from None


def _variable(field: str) -> str:
    return field if field.isupper() else f"PIERHEAD_{field.upper()}"
