"""The building blocks of types.py: what every kind of a Kubernetes API has."""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Rules = dict[str, Any]


def rule(*rules: tuple[str, str]) -> Rules:
    """Kubernetes validation rules in CEL, each with the message that a person sees when it refuses."""
    return {"x-kubernetes-validations": [{"rule": cel, "message": message} for cel, message in rules]}


class ApiObject(BaseModel):
    """A piece of the API: camelCase outside, snake_case inside, immutable.

    Unknown fields are ignored: the API server has pruned them, and an older operator must read what a newer one wrote.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    def dump(self) -> dict[str, Any]:
        """As Kubernetes stores it: camelCase, without what is not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


Generation = Annotated[int, Field(json_schema_extra={"format": "int64"})]


class Metadata(ApiObject):
    """The part of ObjectMeta that Pierhead reads."""

    name: str
    namespace: str
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    deletion_timestamp: str | None = None


class Condition(ApiObject):
    """A condition as Kubernetes defines it (metav1.Condition)."""

    type: str = Field(description="What is judged, such as Ready.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it is so.")
    reason: str = Field(description="The cause in one CamelCase word, for programs.")
    message: str = Field("", description="The cause in a sentence, for people.", max_length=32768)
    last_transition_time: datetime = Field(description="When `status` last changed.")
    observed_generation: Generation = Field(0, description="The generation of the spec that was judged.")


class Status(ApiObject):
    """What every kind's status holds."""

    observed_generation: Generation = Field(0, description="The generation of the spec that this status describes.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="What is judged of it; Ready is the summary.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )

    installation: str | None = Field(
        None,
        description="The installation that looks after it, as NAMESPACE/NAME of the Lease of its operators.",
    )

    def dump(self) -> dict[str, Any]:
        """As Kubernetes stores it, without maps that are empty.

        Where the last entry of a map is taken away, server-side apply makes it null, which the schema refuses.
        """
        return {name: value for name, value in super().dump().items() if value != {}}

    def condition(self, type_: str) -> Condition | None:
        """The condition of that type, if there is one."""
        return next((c for c in self.conditions if c.type == type_), None)

    def is_true(self, type_: str) -> bool:
        """Whether the condition of that type is there and True."""
        found = self.condition(type_)
        return found is not None and found.status == "True"


class Column(ApiObject):
    """A column of `kubectl get` beyond the name."""

    name: str
    type: Literal["string", "integer", "date"]
    json_path: str
    priority: int = 0


AGE = Column(name="Age", type="date", json_path=".metadata.creationTimestamp")
READY = Column(name="Ready", type="string", json_path='.status.conditions[?(@.type=="Ready")].status')
REASON = Column(name="Reason", type="string", json_path='.status.conditions[?(@.type=="Ready")].reason')
MESSAGE = Column(name="Message", type="string", json_path='.status.conditions[?(@.type=="Ready")].message', priority=1)


class Resource(ApiObject):
    """A custom resource: metadata, spec and status, and how kubectl knows it."""

    KIND: ClassVar[str]
    PLURAL: ClassVar[str]
    SHORT_NAME: ClassVar[str]
    COLUMNS: ClassVar[tuple[Column, ...]]
    SELECTABLE: ClassVar[tuple[str, ...]] = ()  # fields that a field selector may name, as JSON paths

    metadata: Metadata

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace
