"""Those of Kubernetes' own types that a pod's author writes through Pierhead: their schemas in the CRDs are of these.

They say what Kubernetes' validation says, so that a typo is refused where it is written, and not once pods are to be
made of it. The operator hands such a field on as it was written (`As`): what a newer Kubernetes knows is not lost here,
and what an older CRD took and this one would not does not keep the operator from reading the rest.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pierhead_operator.schema import ApiObject, rule

# Of lists that rules look into: the API server counts what a rule costs at most.
_MOST = 32

_Reference = Annotated[str, Field(min_length=1, max_length=253)]
_KEY = r"([^/]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_LabelKey = Annotated[str, Field(max_length=317, pattern=rf"^{_KEY}$")]
_LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
_Weight = Annotated[int, Field(ge=1, le=100)]
_Quantity = Annotated[Any, WithJsonSchema({"x-kubernetes-int-or-string": True})]
_Seconds = Annotated[int, Field(json_schema_extra={"format": "int64"})]


@dataclass(frozen=True)
class As:
    """A field of any content here, whose schema in the CRD is that of `model`."""

    model: type[ApiObject]

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(self.model.__pydantic_core_schema__)


def _one_of(*fields: str) -> dict[str, Any]:
    given = ", ".join(f"has(self.{field})" for field in fields)
    return rule((f"[{given}].exists_one(given, given)", f"give one of {', '.join(fields)}"))


# --- EnvVar ----------------------------------------------------------------------------------------------------------


class KeySelector(ApiObject):
    """A key of a Secret or a ConfigMap of the namespace."""

    name: _Reference
    key: _Reference
    optional: bool | None = None


class ObjectFieldSelector(ApiObject):
    """A field of the pod."""

    api_version: Literal["v1"] | None = None
    field_path: str = Field(
        max_length=512,
        pattern=(
            r"^(metadata\.(name|namespace|uid|(labels|annotations)\['[^']+'\])"
            r"|spec\.(nodeName|serviceAccountName)|status\.(hostIPs?|podIPs?))$"
        ),
    )


class ResourceFieldSelector(ApiObject):
    """A request or a limit of the container."""

    container_name: str | None = Field(None, max_length=63)
    resource: str = Field(
        max_length=63, pattern=r"^(limits|requests)\.(cpu|memory|ephemeral-storage|hugepages-[A-Za-z0-9]+)$"
    )
    divisor: _Quantity = None


class FileKeySelector(ApiObject):
    """A key of a file in a volume of the pod."""

    volume_name: _Reference
    path: str = Field(min_length=1, max_length=4096)
    key: str = Field(min_length=1, max_length=128)
    optional: bool | None = None


class EnvVarSource(ApiObject):
    """Where a variable's value comes from."""

    model_config = ConfigDict(
        json_schema_extra=_one_of("configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef", "fileKeyRef")
    )

    config_map_key_ref: KeySelector | None = None
    secret_key_ref: KeySelector | None = None
    field_ref: ObjectFieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    file_key_ref: FileKeySelector | None = None


class EnvVar(ApiObject):
    """A variable of the server's environment."""

    model_config = ConfigDict(
        json_schema_extra=rule(
            (
                "!has(self.valueFrom) || !has(self.value) || self.value == ''",
                "give a variable a value or a valueFrom, not both",
            )
        )
    )

    name: str = Field(min_length=1, max_length=256, pattern=r"^[-._A-Za-z][-._A-Za-z0-9]*$")
    value: str | None = Field(None, max_length=128 * 1024)  # what Linux passes on at most
    value_from: EnvVarSource | None = None


# --- Toleration ------------------------------------------------------------------------------------------------------


class Toleration(ApiObject):
    """Taints that a pod tolerates."""

    model_config = ConfigDict(
        json_schema_extra=rule(
            (
                "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
                "operator must be Exists where key is left out, which tolerates every taint",
            ),
            (
                "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
                "value must be left out where operator is Exists",
            ),
            (
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "effect must be NoExecute where tolerationSeconds is given",
            ),
        )
    )

    key: str | None = Field(None, max_length=317, pattern=rf"^({_KEY})?$")
    operator: Literal["Exists", "Equal", "Lt", "Gt"] | None = None
    value: _LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: _Seconds | None = None


# --- Affinity --------------------------------------------------------------------------------------------------------


def _where(operators: str, values: str) -> str:
    """CEL that asks this of the values where the operator is one of those.

    An older CRD took a requirement without an operator. A rule that fails of one which is stored is passed over as long
    as the requirement stays; a rule that has an error has each status refused.
    """
    return f"has(self.operator) && self.operator in [{operators}] ? {values} : true"


_VALUES = (
    _where("'In', 'NotIn'", "has(self.values) && size(self.values) > 0"),
    "values must be given where operator is In or NotIn",
)
_NO_VALUES = (
    _where("'Exists', 'DoesNotExist'", "!has(self.values) || size(self.values) == 0"),
    "values must be left out where operator is Exists or DoesNotExist",
)


class NodeSelectorRequirement(ApiObject):
    """What a label of a node must be."""

    model_config = ConfigDict(
        json_schema_extra=rule(
            _VALUES,
            _NO_VALUES,
            (
                _where("'Gt', 'Lt'", "has(self.values) && size(self.values) == 1"),
                "values must be one number where operator is Gt or Lt",
            ),
        )
    )

    key: _LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[_LabelValue] | None = None


class NodeFieldRequirement(ApiObject):
    """What a node must be called."""

    key: Literal["metadata.name"]
    operator: Literal["In", "NotIn"]
    values: list[_Reference] = Field(min_length=1, max_length=1)


class NodeSelectorTerm(ApiObject):
    """Nodes that meet all of this."""

    match_expressions: list[NodeSelectorRequirement] | None = Field(None, max_length=_MOST)
    match_fields: list[NodeFieldRequirement] | None = Field(None, max_length=_MOST)


class NodeSelector(ApiObject):
    """Nodes that meet one of the terms."""

    node_selector_terms: list[NodeSelectorTerm] = Field(min_length=1, max_length=_MOST)


class PreferredSchedulingTerm(ApiObject):
    """Nodes that are preferred, and how much."""

    weight: _Weight
    preference: NodeSelectorTerm


class NodeAffinity(ApiObject):
    """On which nodes pods run."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: list[PreferredSchedulingTerm] | None = Field(
        None, max_length=_MOST
    )


class LabelSelectorRequirement(ApiObject):
    """What a label must be."""

    model_config = ConfigDict(json_schema_extra=rule(_VALUES, _NO_VALUES))

    key: _LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[_LabelValue] | None = None


class LabelSelector(ApiObject):
    """Objects with these labels."""

    match_labels: dict[str, _LabelValue] | None = None
    match_expressions: list[LabelSelectorRequirement] | None = Field(None, max_length=_MOST)


class PodAffinityTerm(ApiObject):
    """Beside which pods."""

    model_config = ConfigDict(
        json_schema_extra=rule(
            (
                "has(self.labelSelector) || !(has(self.matchLabelKeys) || has(self.mismatchLabelKeys))",
                "labelSelector must be given where matchLabelKeys or mismatchLabelKeys is",
            )
        )
    )

    topology_key: _LabelKey
    label_selector: LabelSelector | None = None
    namespaces: list[_Reference] | None = None
    namespace_selector: LabelSelector | None = None
    match_label_keys: list[_LabelKey] | None = None
    mismatch_label_keys: list[_LabelKey] | None = None


class WeightedPodAffinityTerm(ApiObject):
    """Beside which pods preferably, and how much."""

    weight: _Weight
    pod_affinity_term: PodAffinityTerm


class PodAffinity(ApiObject):
    """Beside which pods, or away from which pods, pods run."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] | None = Field(None, max_length=_MOST)
    preferred_during_scheduling_ignored_during_execution: list[WeightedPodAffinityTerm] | None = Field(
        None, max_length=_MOST
    )


class Affinity(ApiObject):
    """Where pods run."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


# --- PodResourceClaim ------------------------------------------------------------------------------------------------


class PodResourceClaim(ApiObject):
    """A device by dynamic resource allocation."""

    model_config = ConfigDict(json_schema_extra=_one_of("resourceClaimName", "resourceClaimTemplateName"))

    name: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    resource_claim_name: _Reference | None = None
    resource_claim_template_name: _Reference | None = None
