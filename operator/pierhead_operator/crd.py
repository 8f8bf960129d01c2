"""types.py -> CustomResourceDefinitions: `python -m pierhead_operator.crd FOLDER` writes one file a kind."""

import sys
from pathlib import Path
from typing import Any

import yaml

from pierhead_operator import names
from pierhead_operator.schema import Column, Resource, rule
from pierhead_operator.types import KINDS

Schema = dict[str, Any]

# What of JSON schema Kubernetes' structural schemas have no use for.
_DROPPED = ("title", "$defs")
_RULES = "x-kubernetes-validations"
# Until the operator has looked: kstatus, and so Flux, takes a resource that has no status at all for done.
_UNSEEN = {"observedGeneration": -1}
# A resource's name becomes part of label values and of the names of Services.
_NAME_RULE = rule(
    (
        "self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')",
        "metadata.name must be at most 63 characters, without dots",
    )
)


def make_structural_schema(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """A JSON schema of pydantic's as a structural schema of Kubernetes: references inlined, no unions with null."""
    schema = _resolve(schema, definitions)
    if "anyOf" in schema:
        [wanted] = [branch for branch in schema["anyOf"] if branch.get("type") != "null"]
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        return make_structural_schema(_overlay(_resolve(wanted, definitions), rest), definitions)
    result = {key: value for key, value in schema.items() if key not in _DROPPED}
    # An empty default says what leaving the field out says, and would only fill every manifest that is read back.
    if not result.get("default") or isinstance(result["default"], dict):
        result.pop("default", None)
    if result.get("x-kubernetes-preserve-unknown-fields") and not isinstance(result.get("additionalProperties"), dict):
        result.pop("additionalProperties", None)
    if "properties" in result:
        result["properties"] = {
            name: make_structural_schema(value, definitions) for name, value in result["properties"].items()
        }
    for nested in ("items", "additionalProperties"):
        if isinstance(result.get(nested), dict):
            result[nested] = make_structural_schema(result[nested], definitions)
    if result.get("type") == "integer":
        result.setdefault("format", "int32")
    if "const" in result:
        result["enum"] = [result.pop("const")]
    return result


def _resolve(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """The schema itself, where there is a reference to it."""
    if "$ref" not in schema:
        return schema
    target = definitions[schema["$ref"].rsplit("/", 1)[1]]
    return _overlay(target, {key: value for key, value in schema.items() if key != "$ref"})


def _overlay(target: Schema, beside: Schema) -> Schema:
    """A type's schema with what is said of a field: its description is more telling, and the rules of both hold."""
    rules = [*target.get(_RULES, []), *beside.get(_RULES, [])]
    return {**target, **beside, **({_RULES: rules} if rules else {})}


def _part(kind: type[Resource], field: str) -> Schema:
    annotation = kind.model_fields[field].annotation
    assert annotation is not None
    schema = annotation.model_json_schema(by_alias=True)
    return make_structural_schema(schema, schema.get("$defs", {}))


def _printer_column(column: Column) -> dict[str, Any]:
    dumped = column.dump()
    if not column.priority:
        del dumped["priority"]
    return dumped


def _selectable_fields(kind: type[Resource]) -> dict[str, Any]:
    fields = [{"jsonPath": path} for path in kind.SELECTABLE]
    return {"selectableFields": fields} if fields else {}


def make_crd(kind: type[Resource]) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    schema = {
        "type": "object",
        "description": (kind.__doc__ or "").strip(),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _part(kind, "spec"),
            "status": {**_part(kind, "status"), "default": _UNSEEN},
        },
        **_NAME_RULE,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.PLURAL}.{names.GROUP}",
            "labels": {names.LABEL_NAME: "pierhead"},
            # Who takes an installation away keeps the definitions: with them, every resource of every team would go.
            "annotations": {
                "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
                "helm.sh/resource-policy": "keep",
                "kustomize.toolkit.fluxcd.io/prune": "disabled",
            },
        },
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.KIND,
                "listKind": f"{kind.KIND}List",
                "plural": kind.PLURAL,
                "singular": kind.KIND.lower(),
                "shortNames": [kind.SHORT_NAME],
                "categories": [names.CATEGORY],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [_printer_column(column) for column in kind.COLUMNS],
                    **_selectable_fields(kind),
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


class _Dumper(yaml.SafeDumper):
    """Writes out what is there twice, instead of a reference that a reader would have to follow."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def render(kind: type[Resource]) -> str:
    """The file of a kind's CustomResourceDefinition."""
    body = yaml.dump(make_crd(kind), Dumper=_Dumper, sort_keys=False, width=120)
    return f"# Made from operator/pierhead_operator/types.py by `make crds`; edit that.\n{body}"


def main(folder: str) -> None:
    for kind in KINDS:
        path = Path(folder) / f"{kind.PLURAL}.yaml"
        path.write_text(render(kind))
        print(path)


if __name__ == "__main__":
    main(sys.argv[1])
