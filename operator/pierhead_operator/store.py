"""What the watches have told: of each object only what Pierhead reads, packed, found by its name or its labels.

Reading from here costs the API server nothing. What is read may be a moment old; the event that tells so is on its way
and brings the same key again.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from pierhead_operator import names
from pierhead_operator.facts import Facts, read_facts
from pierhead_operator.records import keep_records
from pierhead_operator.resources import Manifest, owns_replicas
from pierhead_operator.routing.backends import find_backends
from pierhead_operator.types import KINDS

# The Services that a route leads to: no label, but found like one.
BACKEND = f"{names.GROUP}/backend"
# By these objects are looked up: labels of what Pierhead makes, fields of its own kinds.
INDEXED = (
    names.LABEL_DEPLOYED_MODEL,
    names.LABEL_ENDPOINT,
    names.LABEL_MODEL,
    names.LABEL_BATCH_PREDICTION_JOB,
    BACKEND,
)
# Of Pierhead's own kinds the spec alone says who belongs to whom: anybody can write a label.
_OWN_KINDS = frozenset(kind.KIND for kind in KINDS)
_FIELDS = {
    "DeployedModel": {names.LABEL_ENDPOINT: "endpoint", names.LABEL_MODEL: "model"},
    "BatchPredictionJob": {names.LABEL_MODEL: "model"},
}

_KEPT_METADATA = (
    "name",
    "namespace",
    "uid",
    "generation",
    "resourceVersion",
    "ownerReferences",
    "creationTimestamp",
    "deletionTimestamp",
)
_KEPT_OF_PODS = ("affinity", "nodeSelector", "resourceClaims", "tolerations")
# Those that are read, or written by Pierhead and compared. Anybody may write others, 256 KiB of them to an object.
_KEPT_ANNOTATIONS = frozenset(
    {
        names.ANNOTATION_APPLIED,
        names.ANNOTATION_DEADLINE,
        names.ANNOTATION_INDEX_FAILURES,
        names.ANNOTATION_INDEX_IGNORED,
        names.ANNOTATION_INSTALLATION,
        names.KUEUE_MIN_PARALLELISM,
        names.ANNOTATION_PINNED,
        names.ANNOTATION_RENEW,
    }
)
_KEPT_LABELS = frozenset(
    {
        names.LABEL_MANAGED_BY,
        names.LABEL_NAME,
        "pod-template-hash",
        "batch.kubernetes.io/job-completion-index",
    }
)
_KEPT_LABEL_PREFIXES = (f"{names.GROUP}/", names.KUEUE)


@dataclass(frozen=True, slots=True)
class _Entry:
    version: int
    packed: bytes
    indexed: tuple[tuple[str, str], ...]
    facts: Facts


@dataclass(frozen=True, slots=True)
class Change:
    """What an object was, None where it was not there, and what it is, by its facts."""

    before: Facts | None
    after: Facts


class Store:
    """Objects of some kinds, by namespace and name; complete once every kind was listed."""

    def __init__(self, kinds: Collection[str] = ()) -> None:
        self._objects: dict[str, dict[str, dict[str, _Entry]]] = {kind: {} for kind in kinds}
        # The last that is known of what is gone: the answer to a write may come after the event of its end.
        self._gone: dict[str, dict[tuple[str, str], int]] = {kind: {} for kind in kinds}
        self._index: dict[tuple[str, str, str, str], set[str]] = {}  # kind, namespace, label, value -> names

    @property
    def kinds(self) -> Collection[str]:
        """The kinds that are kept; nothing is known of others."""
        return self._objects.keys()

    def put(self, kind: str, live: Manifest) -> Change | None:
        """Keep an object and tell what changed; None where what is known is as new."""
        key, version = _key(live), _version(live)
        before = self._find(kind, *key)
        if version <= (before.version if before else self._gone[kind].get(key, -1)):
            return None
        entry = _Entry(version, _pack(trim(kind, live)), tuple(_indexed(kind, live)), read_facts(kind, live))
        self._forget(kind, key)
        self._objects[kind].setdefault(key[0], {})[key[1]] = entry
        for label, value in entry.indexed:
            self._index.setdefault((kind, key[0], label, value), set()).add(key[1])
        return Change(before.facts if before else None, entry.facts)

    def remove(self, kind: str, live: Manifest) -> bool:
        """An object is gone, as its last state tells; whether it was there, and no other one came after it."""
        key, version = _key(live), _version(live)
        before = self._find(kind, *key)
        if before and before.version > version:
            return False
        self._gone[kind][key] = version
        self._forget(kind, key)
        return before is not None

    def remove_missing(
        self, kind: str, namespace: str | None, there: Collection[tuple[str, str]], version: int
    ) -> list[tuple[Manifest, Facts]]:
        """Take a list's word, of one namespace or of all: what it does not have, as of `version`, is gone; gives that.

        `there` has what it has, as (namespace, name).
        """
        self._gone[kind].clear()
        missing = [
            (place, name)
            for place, entries in self._shelves(kind, namespace)
            for name, entry in entries.items()
            if (place, name) not in there and entry.version <= version
        ]
        entries = [self._objects[kind][place][name] for place, name in sorted(missing)]
        removed = [(_unpack(entry), entry.facts) for entry in entries]
        for key in missing:
            self._forget(kind, key)
        return removed

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object, or None where there is none."""
        entry = self._find(kind, namespace, name)
        return _unpack(entry) if entry else None

    def select(self, kind: str, namespace: str | None, labels: Mapping[str, str] | None = None) -> list[Manifest]:
        """The objects of a kind with these labels, in one namespace or in all, by name."""
        objects = self._objects[kind]
        found = (_unpack(objects[place][name]) for place, name in sorted(self._keys(kind, namespace, labels or {})))
        wanted = {label: value for label, value in (labels or {}).items() if label not in INDEXED}
        return [live for live in found if wanted.items() <= live["metadata"].get("labels", {}).items()]

    def facts(self, kind: str) -> Iterator[tuple[str, str, Facts]]:
        """The namespace, the name and the facts of all objects of a kind, by their names.

        Safe in another thread: what is there is copied at once.
        """
        there = {namespace: dict(entries) for namespace, entries in list(self._objects[kind].items())}
        for namespace, entries in sorted(there.items()):
            for name, entry in sorted(entries.items()):
                yield namespace, name, entry.facts

    def find_facts(self, kind: str, namespace: str, name: str) -> Facts | None:
        """The facts of an object; None where it is not there."""
        entry = self._find(kind, namespace, name)
        return entry.facts if entry else None

    def names(self, kind: str, namespace: str, label: str, value: str) -> list[str]:
        """The names of the objects of a kind with this label, which is one of INDEXED."""
        return sorted(self._index.get((kind, namespace, label, value), ()))

    def _find(self, kind: str, namespace: str, name: str) -> _Entry | None:
        return self._objects[kind].get(namespace, {}).get(name)

    def _shelves(self, kind: str, namespace: str | None) -> list[tuple[str, dict[str, _Entry]]]:
        """The objects of a kind by name, of one namespace or of each."""
        shelves = self._objects[kind]
        return [*shelves.items()] if namespace is None else [(namespace, shelves.get(namespace, {}))]

    def _keys(self, kind: str, namespace: str | None, labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        indexed = [(label, value) for label, value in labels.items() if label in INDEXED]
        for place, entries in self._shelves(kind, namespace):
            if indexed:
                found = set.intersection(
                    *(self._index.get((kind, place, label, value), set()) for label, value in indexed)
                )
            else:
                found = set(entries)
            yield from ((place, name) for name in found)

    def _forget(self, kind: str, key: tuple[str, str]) -> None:
        namespace, name = key
        shelf = self._objects[kind].get(namespace, {})
        entry = shelf.pop(name, None)
        if entry and not shelf:
            del self._objects[kind][namespace]
        for label, value in entry.indexed if entry else ():
            place = (kind, namespace, label, value)
            self._index[place].discard(name)
            if not self._index[place]:
                del self._index[place]


def trim(kind: str, live: Manifest) -> Manifest:
    """What Pierhead reads of an object."""
    metadata = live["metadata"]
    kept = {name: metadata[name] for name in _KEPT_METADATA if name in metadata}
    if labels := {name: value for name, value in metadata.get("labels", {}).items() if _is_read(name)}:
        kept["labels"] = labels
    annotations = metadata.get("annotations", {})
    read = {name: annotations[name] for name in sorted(_KEPT_ANNOTATIONS) if name in annotations}
    if read := read | keep_records(annotations):
        kept["annotations"] = read
    if owns_replicas(live):
        # All that is asked of who manages which field.
        fields: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
        kept["managedFields"] = [{"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields}]
    trimmed: Manifest = {"apiVersion": live["apiVersion"], "kind": kind, "metadata": kept}
    spec = live.get("spec", {})
    trimmed["spec"] = _trim_pod_spec(spec) if kind == "Pod" else spec
    if "status" in live:
        trimmed["status"] = live["status"]
    return trimmed


def _is_read(label: str) -> bool:
    return label in _KEPT_LABELS or label.startswith(_KEPT_LABEL_PREFIXES)


def _trim_pod_spec(spec: Manifest) -> Manifest:
    """Of a pod only what decides where it can run."""
    kept = {name: spec[name] for name in _KEPT_OF_PODS if name in spec}
    containers = [
        {name: container[name] for name in ("name", "resources") if name in container}
        for container in spec.get("containers", [])
    ]
    return {**kept, "containers": containers}


def _key(live: Manifest) -> tuple[str, str]:
    return live["metadata"]["namespace"], live["metadata"]["name"]


def _version(live: Manifest) -> int:
    return int(live["metadata"]["resourceVersion"])


def _indexed(kind: str, live: Manifest) -> Iterator[tuple[str, str]]:
    if kind in _OWN_KINDS:
        for label, field in _FIELDS.get(kind, {}).items():
            spec = live.get("spec")
            if isinstance(spec, dict) and isinstance(value := spec.get(field), str):
                yield label, value
        return
    labels = live["metadata"].get("labels", {})
    for label in INDEXED:
        if label in labels:
            yield label, labels[label]
    for service in find_backends(kind, live):
        yield BACKEND, service


def _pack(live: Manifest) -> bytes:
    return to_json(live)


def _unpack(entry: _Entry) -> Manifest:
    live: Manifest = from_json(entry.packed)
    return live
