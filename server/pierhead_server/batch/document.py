"""What a worker shall do: the environment's `PIERHEAD_BATCH_JOB` and `JOB_COMPLETION_INDEX`, read once at start."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from pierhead_server.errors import SettingsInvalidError

DOCUMENT_VARIABLE = "PIERHEAD_BATCH_JOB"
INDEX_VARIABLE = "JOB_COMPLETION_INDEX"

_READABLE = r"^((gs|s3|az|https?)://[^/]+/.+|file:///.+|pvc://[^/]+/.+)$"
_WRITABLE = r"^((gs|s3|az)://[^/]+/.+|file:///.+|pvc://[^/]+/.+)$"

InputFormat = Literal["jsonl", "csv", "file-list"]
OutputFormat = Literal["jsonl", "csv", "parquet"]


class InstanceConfig(BaseModel):
    """What of a line the model gets, and by what the output calls it."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)

    instance_type: Literal["array", "object"] | None = None
    key_field: str = ""
    included_fields: list[str] = []
    excluded_fields: list[str] = []

    @model_validator(mode="after")
    def _check(self) -> Self:
        """As the CRD's rules do, for whoever makes a document otherwise."""
        if self.included_fields and self.excluded_fields:
            raise ValueError("give at most one of includedFields and excludedFields")
        if self.key_field and self.key_field in self.excluded_fields:
            raise ValueError("keyField is left out of what the model gets: take it out of excludedFields")
        return self

    @property
    def names_fields(self) -> bool:
        """Whether a line has to be an object."""
        return bool(self.key_field or self.included_fields or self.excluded_fields)


WHOLE = InstanceConfig()  # all of a line


class Document(BaseModel):
    """One BatchPredictionJob, as the operator tells it to every worker."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)

    input_format: InputFormat
    input_uris: list[Annotated[str, Field(pattern=_READABLE)]] = Field(min_length=1)
    instance_config: InstanceConfig = WHOLE
    output_format: OutputFormat
    output_uri: str = Field(pattern=_WRITABLE)  # the job's own folder
    model_parameters: dict[str, Any] = {}
    shards: int = Field(gt=0, le=100_000)
    batch_size: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        """As the operator does."""
        config = self.instance_config
        if self.input_format == "file-list" and (config.names_fields or config.instance_type == "array"):
            raise ValueError("instanceConfig: a file-list has no fields: take it out, or name the files in jsonl")
        return self


@dataclass(frozen=True)
class Task:
    """One worker's part."""

    document: Document
    shard: int

    @property
    def folder(self) -> str:
        """The job's own folder, without a slash at its end."""
        return self.document.output_uri.rstrip("/")


def read_task(environment: Mapping[str, str]) -> Task:
    """Raises SettingsInvalidError that names the variable and the field."""
    try:
        document = Document.model_validate_json(environment.get(DOCUMENT_VARIABLE, ""))
    except ValidationError as error:
        causes = (f"{'.'.join(map(str, cause['loc']))}: {cause['msg']}" for cause in error.errors())
        told = "; ".join(cause.removeprefix(": ") for cause in causes)
        raise SettingsInvalidError(f"{DOCUMENT_VARIABLE}: {told}") from None
    index = environment.get(INDEX_VARIABLE, "")
    if not index.isdecimal() or int(index) >= document.shards:
        raise SettingsInvalidError(f"{INDEX_VARIABLE}: must be a shard's number from 0 to {document.shards - 1}")
    return Task(document, int(index))
