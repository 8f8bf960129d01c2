"""types.py -> docs/resources.md: every field of every kind, from the same schema that the API server checks."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pierhead_operator import names
from pierhead_operator.crd import Schema, make_crd
from pierhead_operator.schema import Resource
from pierhead_operator.types import KINDS

# Their fields are Kubernetes' own, and its documentation tells them: pod_fields.py.
_KUBERNETES = ("affinity", "env", "resourceClaims", "tolerations")

_HEADER = f"""\
<!-- Made from operator/pierhead_operator/types.py by `make crds`; edit that. -->
# Resources

The kinds of `{names.API_VERSION}`, all of them namespaced; `kubectl get {names.CATEGORY}` shows them all.
"""


def render() -> str:
    """The whole page."""
    return "\n".join([_HEADER, *(_render_kind(kind) for kind in KINDS)])


def _render_kind(kind: type[Resource]) -> str:
    [version] = make_crd(kind)["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    lines = [f"## {kind.KIND}", "", str(schema["description"]), f"Short name: `{kind.SHORT_NAME}`.", ""]
    lines += ["| field | type | meaning |", "|---|---|---|"]
    for part in ("spec", "status"):
        lines += [_render_row(*field) for field in _fields(schema["properties"][part], part)]
    lines += ["", *(f"- {rule}" for rule in _rules(schema)), ""]
    return "\n".join(lines)


def _fields(schema: Schema, path: str) -> Iterator[tuple[str, Schema, bool]]:
    """(path, schema, whether it must be given) of each field below `schema`, depth first."""
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        below = f"{path}.{name}"
        yield below, field, name in required
        if name in _KUBERNETES:
            continue
        yield from _fields(field, below)
        yield from _fields(field.get("items", {}), f"{below}[]")


def _render_row(path: str, field: Schema, required: bool) -> str:
    parts = [_type(field)]
    if required:
        parts.append("required")
    if "default" in field:
        parts.append(f"default `{field['default']}`")
    return f"| `{path}` | {', '.join(parts)} | {field.get('description', '')} |"


def _type(field: Schema) -> str:
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "type" not in field:
        return "any value"
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if isinstance(values := field.get("additionalProperties"), dict):
        return f"map of {_type(values)}"
    kind = str(field["type"])
    if "minimum" in field and "maximum" in field:
        return f"{kind} {field['minimum']} to {field['maximum']}"
    return kind


def _rules(schema: Any) -> Iterator[str]:
    """The messages of the rules anywhere in the schema, in their order, each once."""
    seen: dict[str, None] = {}

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            for rule in node.get("x-kubernetes-validations", []):
                seen.setdefault(str(rule["message"]))
            for value in node.values():
                collect(value)

    collect(schema)
    yield from seen


def main(path: str) -> None:
    Path(path).write_text(render())
    print(path)


if __name__ == "__main__":
    main(sys.argv[1])
