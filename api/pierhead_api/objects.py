"""What Vertex AI knows of every resource, read off a Kubernetes object and written into it. Pure.

What Vertex AI has and our kinds have no place for is kept as JSON in one annotation, so that it reads back.
"""

import base64
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from pierhead_operator import names as operator_names
from pierhead_operator.resources import Manifest
from pierhead_operator.schema import Resource
from pydantic.alias_generators import to_camel
from pydantic_core import from_json, to_json

from pierhead_api.errors import AbortedError
from pierhead_api.wire import Body, Labels, check_labels, dump_kept

_DOMAIN = f"vertex.{operator_names.GROUP}"
ANNOTATION_KEPT = f"{_DOMAIN}/kept"
_ETAG_BYTES = 16
_VALUE_BYTES = 60  # that a value takes in memory beside its text


def make_object(kind: type[Resource], namespace: str, name: str, spec: Body) -> Manifest:
    """A custom resource."""
    return {
        "apiVersion": operator_names.API_VERSION,
        "kind": kind.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def mark(manifest: Manifest, labels: Labels, kept: Body) -> Manifest:
    """`manifest` with a user's labels, and with what is kept; raises InvalidArgumentError."""
    labelled = {**manifest["metadata"], "labels": check_labels(labels)} if labels else manifest["metadata"]
    return annotate({**manifest, "metadata": labelled}, annotate_kept(kept))


def annotate(manifest: Manifest, annotations: Mapping[str, str]) -> Manifest:
    """`manifest` with these annotations beside its own."""
    metadata = manifest["metadata"]
    return {**manifest, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), **annotations}}}


def annotate_kept(kept: Body) -> dict[str, str]:
    """The annotation that keeps this; none where there is nothing. Raises InvalidArgumentError where it is too much."""
    return {ANNOTATION_KEPT: dump_kept(kept)} if kept else {}


def read_kept(manifest: Manifest) -> Body:
    """What was put away; nothing where somebody wrote what is no JSON object."""
    try:
        # Unlike json's, it takes nothing so deep that it cannot be told, and no number that JSON does not have.
        kept = from_json(_annotations(manifest).get(ANNOTATION_KEPT, "{}"), allow_inf_nan=False)
    except ValueError:
        return {}
    return kept if isinstance(kept, dict) else {}


def pick_kept(kept: Body, fields: Collection[str]) -> Body:
    """Of what was put away, these fields of a message: anybody can write others there, and they are not facts."""
    return {name: kept[name] for name in map(to_camel, fields) if name in kept}


def read_flags(manifest: Manifest, fields: Collection[str]) -> Body:
    """Those of a message's fields that are true in the spec; or that were kept, before the spec had them."""
    told = {**pick_kept(read_kept(manifest), fields), **pick_kept(manifest["spec"], fields)}
    return {name: True for name, value in told.items() if value is True}


def drop_unread(live: Manifest) -> Manifest:
    """`live` without what others write on it and nobody here reads: their annotations, and which fields are whose."""
    metadata = live["metadata"]
    annotations = {key: value for key, value in _annotations(live).items() if key.split("/")[0].endswith(_DOMAIN)}
    fields = [
        {key: entry[key] for key in ("time", "subresource") if key in entry}
        for entry in metadata.get("managedFields") or []
    ]
    return {**live, "metadata": {**metadata, "annotations": annotations, "managedFields": fields}}


def _annotations(manifest: Manifest) -> Mapping[str, str]:
    annotations: Mapping[str, str] = manifest["metadata"].get("annotations") or {}
    return annotations


def weigh(manifest: Manifest) -> int:
    """The bytes that an object takes in memory, about."""
    text = to_json(manifest)
    return len(text) + _VALUE_BYTES * sum(text.count(sign) for sign in (b",", b"[", b"{"))


def read_labels(manifest: Manifest) -> Labels:
    """The labels that are a user's: Kubernetes' and Pierhead's own have a / in their key."""
    labels: Mapping[str, str] = manifest["metadata"].get("labels") or {}
    return {key: value for key, value in labels.items() if "/" not in key}


def patch_labels(manifest: Manifest, labels: Labels) -> dict[str, str | None]:
    """The merge patch that makes these the user's labels; raises InvalidArgumentError."""
    return {**dict.fromkeys(read_labels(manifest)), **check_labels(labels)}


def compute_etag(manifest: Manifest) -> str:
    """It changes when what a user writes changes: not with the status, nor with operations."""
    return hash_content(manifest["metadata"].get("uid"), read_labels(manifest), manifest["spec"], read_kept(manifest))


def hash_content(*content: Any) -> str:
    """An etag of this content, which is JSON."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    return base64.b64encode(digest[:_ETAG_BYTES]).decode()


def check_etag(sent: str, current: str) -> None:
    """Raises AbortedError where a client sends one, and the resource is another by now."""
    if sent and sent != current:
        raise AbortedError("etag: the resource changed since it was read: read it again")


def create_time(manifest: Manifest) -> str:
    """When it was made."""
    return str(manifest["metadata"].get("creationTimestamp", ""))


def update_time(manifest: Manifest) -> str:
    """When it was last written, by anybody but who writes its status."""
    entries: list[dict[str, Any]] = manifest["metadata"].get("managedFields") or []
    times = [str(entry.get("time", "")) for entry in entries if not entry.get("subresource")]
    return max([create_time(manifest), *times])


def read_display_name(manifest: Manifest) -> str:
    """The name that people see."""
    return str(manifest["spec"].get("displayName") or manifest["metadata"]["name"])


def describe(manifest: Manifest) -> Body:
    """The fields that every resource has, but for the etag."""
    return {
        "displayName": read_display_name(manifest),
        "labels": read_labels(manifest),
        "createTime": create_time(manifest),
        "updateTime": update_time(manifest),
    }
