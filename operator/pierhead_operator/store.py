"""What the watches have told: of each object only what Pierhead reads, packed, found by its name or its labels.

Reading from here costs the API server nothing. What is read may be a moment old; the event that tells so is on its way
and brings the same key again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pierhead_operator import names
from pierhead_operator.resources import Manifest, owns_replicas

# By these objects are looked up: labels of what Pierhead makes, fields of DeployedModels.
INDEXED = (names.LABEL_DEPLOYED_MODEL, names.LABEL_ENDPOINT, names.LABEL_MODEL)
_FIELDS = {names.LABEL_ENDPOINT: "endpoint", names.LABEL_MODEL: "model"}

_KEPT_METADATA = (
    "name",
    "namespace",
    "uid",
    "generation",
    "resourceVersion",
    "labels",
    "ownerReferences",
    "creationTimestamp",
    "deletionTimestamp",
)
_FOREIGN_ANNOTATIONS = "kubectl.kubernetes.io/"  # a copy of the whole manifest


@dataclass(frozen=True, slots=True)
class _Entry:
    version: int
    packed: bytes
    indexed: tuple[tuple[str, str], ...]


class Store:
    """Objects by kind, namespace and name."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[tuple[str, str], _Entry]] = {}
        self._index: dict[tuple[str, str, str, str], set[str]] = {}  # kind, namespace, label, value -> names

    def put(self, kind: str, live: Manifest) -> bool:
        """Keep an object, unless what is there is as new; whether it was taken."""
        metadata = live["metadata"]
        key, version = (metadata["namespace"], metadata["name"]), int(metadata["resourceVersion"])
        objects = self._objects.setdefault(kind, {})
        before = objects.get(key)
        if before and before.version >= version:
            return False
        self._forget(kind, key)
        entry = _Entry(version, _pack(trim(kind, live)), tuple(_indexed(kind, live)))
        objects[key] = entry
        for label, value in entry.indexed:
            self._index.setdefault((kind, key[0], label, value), set()).add(key[1])
        return True

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """An object is gone."""
        self._forget(kind, (namespace, name))

    def replace(self, kind: str, namespace: str | None, listed: Iterable[Manifest]) -> list[tuple[str, str]]:
        """Take a whole list of a kind, of one namespace or of all; (namespace, name) of what it has no longer."""
        there = set()
        for live in listed:
            self.put(kind, live)
            there.add((live["metadata"]["namespace"], live["metadata"]["name"]))
        kept = self._objects.get(kind, {})
        gone = sorted(key for key in kept if key not in there and namespace in (None, key[0]))
        for key in gone:
            self._forget(kind, key)
        return gone

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object, or None where there is none."""
        entry = self._objects.get(kind, {}).get((namespace, name))
        return _unpack(kind, entry) if entry else None

    def select(self, kind: str, namespace: str | None, labels: Mapping[str, str] | None = None) -> list[Manifest]:
        """The objects of a kind with these labels, in one namespace or in all, by name."""
        objects = self._objects.get(kind, {})
        found = (_unpack(kind, objects[key]) for key in sorted(self._keys(kind, namespace, labels or {})))
        wanted = {label: value for label, value in (labels or {}).items() if label not in INDEXED}
        return [live for live in found if wanted.items() <= live["metadata"].get("labels", {}).items()]

    def count(self, kind: str) -> int:
        """How many objects of a kind there are."""
        return len(self._objects.get(kind, {}))

    def _keys(self, kind: str, namespace: str | None, labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        indexed = [(label, value) for label, value in labels.items() if label in INDEXED]
        if namespace is None or not indexed:
            given = set(indexed)
            for key, entry in self._objects.get(kind, {}).items():
                if namespace in (None, key[0]) and given <= set(entry.indexed):
                    yield key
            return
        sets = [self._index.get((kind, namespace, label, value), set()) for label, value in indexed]
        for name in set.intersection(*sets):
            yield namespace, name

    def _forget(self, kind: str, key: tuple[str, str]) -> None:
        entry = self._objects.get(kind, {}).pop(key, None)
        for label, value in entry.indexed if entry else ():
            place = (kind, key[0], label, value)
            self._index[place].discard(key[1])
            if not self._index[place]:
                del self._index[place]


def trim(kind: str, live: Manifest) -> Manifest:
    """What Pierhead reads of an object."""
    metadata = live["metadata"]
    kept = {name: metadata[name] for name in _KEPT_METADATA if name in metadata}
    annotations = {
        name: value
        for name, value in metadata.get("annotations", {}).items()
        if not name.startswith(_FOREIGN_ANNOTATIONS)
    }
    if annotations:
        kept["annotations"] = annotations
    if owns_replicas(live):
        # All that is asked of who manages which field.
        fields: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
        kept["managedFields"] = [{"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields}]
    trimmed: Manifest = {"metadata": kept}
    if kind != "Pod":  # of pods only how they fare
        trimmed["spec"] = live.get("spec", {})
    if "status" in live:
        trimmed["status"] = live["status"]
    return trimmed


def _indexed(kind: str, live: Manifest) -> Iterator[tuple[str, str]]:
    labels = live["metadata"].get("labels", {})
    for label in INDEXED:
        if label in labels:
            yield label, labels[label]
    if kind == "DeployedModel":
        for label, field in _FIELDS.items():
            if label not in labels:
                yield label, live["spec"][field]


def _pack(live: Manifest) -> bytes:
    return json.dumps(live, separators=(",", ":")).encode()


def _unpack(kind: str, entry: _Entry) -> Manifest:
    live: dict[str, Any] = json.loads(entry.packed)
    return {"kind": kind, **live}
