"""Whether a CRD still takes, and keeps, all that an older one took: what an upgrade with resources in place needs.

An object that the older one stored must be valid, keep every field, and mean the same.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

_UPPER = ("maximum", "maxLength", "maxItems", "maxProperties")
_LOWER = ("minimum", "minLength", "minItems", "minProperties")
# What must stay as it is: another one means something else, or refuses what was taken.
_FIXED = (
    "type",
    "format",
    "pattern",
    "default",
    "additionalProperties",
    "nullable",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
)


def find_breaks(old: Schema, new: Schema) -> list[str]:
    """What the CRD `new` breaks of what `old` promised, each as `PATH: what`; empty where it breaks nothing."""
    breaks = [f"spec.{name}: changed" for name in ("group", "scope", "names") if old["spec"][name] != new["spec"][name]]
    versions = {version["name"]: version for version in new["spec"]["versions"]}
    for before in old["spec"]["versions"]:
        after = versions.get(before["name"])
        if after is None or after["served"] < before["served"]:
            breaks.append(f"version {before['name']}: no longer served")
        else:
            breaks += _compare_versions(before, after)
    return breaks


def _compare_versions(old: Schema, new: Schema) -> Iterator[str]:
    if old.get("subresources") != new.get("subresources"):
        yield "subresources: changed"
    for field in old.get("selectableFields", ()):
        if field not in new.get("selectableFields", ()):
            yield f"selectableFields: lacks {field['jsonPath']}"
    yield from compare_schemas(old["schema"]["openAPIV3Schema"], new["schema"]["openAPIV3Schema"])


def compare_schemas(old: Schema, new: Schema, path: str = "") -> Iterator[str]:
    """The same of two structural schemas."""
    # Nobody but the operator writes a status: what it has at first changes nobody's meaning.
    fixed = [key for key in _FIXED if key != "default" or not path.startswith(".status")]
    yield from (f"{path}: {what}" for what in _compare_node(old, new, fixed))
    for name, before in old.get("properties", {}).items():
        after = new.get("properties", {}).get(name)
        if after is None:
            yield f"{path}.{name}: gone, so that it is pruned from what is stored"
        else:
            yield from compare_schemas(before, after, f"{path}.{name}")
    for nested in ("items", "additionalProperties"):
        before, after = old.get(nested), new.get(nested)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from compare_schemas(before, after, f"{path}[]")


def _compare_node(old: Schema, new: Schema, fixed: Sequence[str]) -> Iterator[str]:
    for key in fixed:
        if _flat(old.get(key)) != _flat(new.get(key)):
            yield f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
    for key in _UPPER:
        if new.get(key, float("inf")) < old.get(key, float("inf")):
            yield f"{key} is lower"
    for key in _LOWER:
        if new.get(key, float("-inf")) > old.get(key, float("-inf")):
            yield f"{key} is higher"
    if missing := sorted(set(new.get("required", ())) - set(old.get("required", ()))):
        yield f"requires {', '.join(missing)}"
    if "enum" in new and (lost := [value for value in old.get("enum", ["any"]) if value not in new["enum"]]):
        yield f"takes no longer {', '.join(map(str, lost))}"
    known = {rule["rule"] for rule in old.get("x-kubernetes-validations", ())}
    for rule in new.get("x-kubernetes-validations", ()):
        if rule["rule"] not in known:
            yield f"has a new rule: {rule['message']}"


def find_failing_rules(old: Schema, new: Schema, path: str = "") -> Iterator[str]:
    """Rules that have an error, each as `PATH: rule`, of what the schema `old` took without a field that they read.

    A rule that says no of what is stored is passed over as long as that stays; one that has an error never is, and each
    status is refused.
    """
    sure = {
        *old.get("required", ()),
        *(name for name, field in new.get("properties", {}).items() if "default" in field),
    }
    for rule in new.get("x-kubernetes-validations", ()):
        read, asked = (set(re.findall(form, rule["rule"])) for form in (r"self\.(\w+)\b(?!\()", r"has\(self\.(\w+)\)"))
        if read - asked - sure:
            yield f"{path}: {rule['rule']}"
    open_content = {"x-kubernetes-preserve-unknown-fields": True}
    rest = open_content if old.get("x-kubernetes-preserve-unknown-fields") else None
    for name, after in new.get("properties", {}).items():
        if (before := old.get("properties", {}).get(name, rest)) is not None:
            yield from find_failing_rules(before, after, f"{path}.{name}")
    for nested in ("items", "additionalProperties"):
        if isinstance(after := new.get(nested), Mapping) and isinstance(before := old.get(nested, rest), Mapping):
            yield from find_failing_rules(before, after, f"{path}[]")


def _flat(value: object) -> object:
    """A schema below this one is compared by itself."""
    return "a schema" if isinstance(value, Mapping) else value
