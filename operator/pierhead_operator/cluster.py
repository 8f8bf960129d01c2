"""ALL Kubernetes I/O of Pierhead: get, list, server-side apply, status, delete and events, in one narrow class."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient

from pierhead_operator import names
from pierhead_operator.resources import Manifest, owns_replicas
from pierhead_operator.schema import Resource, Status
from pierhead_operator.status import Event
from pierhead_operator.types import KINDS

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)

_TIMEOUT_SECONDS = 30
_PAGE = 500

# Where each kind lives that Pierhead reads or writes: its API's path and its plural.
_PATHS: dict[str, tuple[str, str]] = {
    "Deployment": ("/apis/apps/v1", "deployments"),
    "Event": ("/apis/events.k8s.io/v1", "events"),
    "HorizontalPodAutoscaler": ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
    "HTTPRoute": ("/apis/gateway.networking.k8s.io/v1", "httproutes"),
    "Pod": ("/api/v1", "pods"),
    "Service": ("/api/v1", "services"),
    **{kind.KIND: (f"/apis/{names.API_VERSION}", kind.PLURAL) for kind in KINDS},
}


class ClusterError(Exception):
    """The environment's: the API server cannot be reached, is overloaded or broken. Worth another try."""


class Rejected(Exception):  # noqa: N818
    """The API server refuses an object: forbidden, invalid, over a quota. The message is its own."""


@dataclass(frozen=True)
class Key:
    """A resource to look after."""

    kind: str
    namespace: str
    name: str


def _path(kind: str, namespace: str | None, name: str = "", subresource: str = "") -> str:
    api, plural = _PATHS[kind]
    parts = [api]
    if namespace:
        parts += ["namespaces", namespace]
    parts += [plural, name, subresource]
    return "/".join(part for part in parts if part)


class Cluster:
    """The Kubernetes API, as far as Pierhead needs it.

    Every method raises ClusterError where another try may help.
    """

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object, or None where there is none."""
        return await self._request("GET", _path(kind, namespace, name), missing_ok=True)

    async def list_objects(
        self, kind: str, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """The objects of a kind with these labels, in one namespace or in all."""
        query = {"limit": str(_PAGE)}
        if labels:
            query["labelSelector"] = ",".join(f"{key}={value}" for key, value in labels.items())
        items: list[Manifest] = []
        while True:
            page = await self._request("GET", _path(kind, namespace), query)
            assert page is not None
            items += page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return items
            query["continue"] = token

    async def get_resource(self, kind: type[R], namespace: str, name: str) -> R | None:
        """One of Pierhead's own resources, parsed; None where there is none."""
        found = await self.get(kind.KIND, namespace, name)
        return kind.model_validate(found) if found else None

    async def list_resources(self, kind: type[R], namespace: str | None) -> list[R]:
        """Pierhead's own resources of a kind, parsed."""
        return [kind.model_validate(item) for item in await self.list_objects(kind.KIND, namespace)]

    async def apply(self, manifest: Manifest, live: Manifest | None = None) -> None:
        """Server-side apply as field manager `pierhead`; raises Rejected.

        A Deployment that is given without replicas, while they are still ours in `live`, keeps its number: another
        manager takes the field first, as Kubernetes' documentation has it for the hand-over to an autoscaler.
        """
        if live and manifest["kind"] == "Deployment" and "replicas" not in manifest["spec"] and owns_replicas(live):
            handover = {
                "apiVersion": manifest["apiVersion"],
                "kind": manifest["kind"],
                "metadata": {key: manifest["metadata"][key] for key in ("name", "namespace")},
                "spec": {"replicas": live["spec"]["replicas"]},
            }
            await self._apply(handover, names.HANDOVER_FIELD_MANAGER)
        await self._apply(manifest, names.FIELD_MANAGER)

    async def apply_status(self, resource: Resource, status: Status) -> None:
        """Writes a whole status; nothing where the resource is gone, or is another one of that name by now."""
        path = _path(resource.KIND, resource.namespace, resource.name, "status")
        body = {
            "apiVersion": names.API_VERSION,
            "kind": resource.KIND,
            "metadata": {"name": resource.name, "namespace": resource.namespace, "uid": resource.metadata.uid},
            "status": status.dump(),
        }
        try:
            await self._request("PATCH", path, _apply_query(names.FIELD_MANAGER), body, missing_ok=True)
        except Rejected as error:
            logger.info("%s %s/%s: status not written: %s", resource.KIND, resource.namespace, resource.name, error)

    async def delete(self, live: Manifest) -> None:
        """Deletes this very object, not a namesake that came after it; its pods and other children go with it."""
        metadata = live["metadata"]
        body = {"preconditions": {"uid": metadata["uid"]}, "propagationPolicy": "Background"}
        path = _path(live["kind"], metadata["namespace"], metadata["name"])
        await self._request("DELETE", path, body=body, missing_ok=True)

    async def create_event(self, resource: Resource, event: Event) -> None:
        """Tells an event about a resource, in the log too; one that the cluster does not take is dropped."""
        logger.info("%s %s/%s: %s: %s", resource.KIND, resource.namespace, resource.name, event.reason, event.message)
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{names.shorten(resource.name, 57)}-", "namespace": resource.namespace},
            "type": event.type,
            "reason": event.reason,
            "note": event.message[:1024],
            "action": "Reconcile",
            "eventTime": now,
            "reportingController": "pierhead.dev/operator",
            "reportingInstance": "pierhead-operator",
            "regarding": {
                "apiVersion": names.API_VERSION,
                "kind": resource.KIND,
                "namespace": resource.namespace,
                "name": resource.name,
                "uid": resource.metadata.uid,
            },
        }
        try:
            await self._request("POST", _path("Event", resource.namespace), body=body)
        except (ClusterError, Rejected) as error:
            logger.warning("event %s of %s %s dropped: %s", event.reason, resource.KIND, resource.name, error)

    async def _apply(self, manifest: Manifest, manager: str) -> None:
        metadata = manifest["metadata"]
        path = _path(manifest["kind"], metadata["namespace"], metadata["name"])
        await self._request("PATCH", path, _apply_query(manager), manifest)

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        missing_ok: bool = False,
    ) -> Manifest | None:
        headers: dict[str, str] = {"Accept": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = "application/apply-patch+yaml"
        await self._api.update_params_for_auth(headers, None, ["BearerToken"], path, method, body)
        url = f"{self._api.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            response = await self._api.call_api(
                method, url, headers, body, _request_timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
            )
            data = await response.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterError(f"{method} {path}: {type(error).__name__}: {error}") from error
        if response.status == 404 and missing_ok:
            return None
        return _parse(method, path, response.status, data)


def _apply_query(manager: str) -> dict[str, str]:
    # The children are ours (is_owned was asked before): what somebody else wrote into our fields is taken back.
    return {"fieldManager": manager, "force": "true"}


def _parse(method: str, path: str, status: int, data: bytes) -> Manifest:
    if 200 <= status < 300:
        parsed: Manifest = json.loads(data)
        return parsed
    message = _error_message(data)
    if status in (400, 403, 404, 409, 413, 422):
        raise Rejected(message)
    raise ClusterError(f"{method} {path}: {status}: {message}")


def _error_message(data: bytes) -> str:
    try:
        body: Any = json.loads(data)
    except ValueError:
        body = None
    if isinstance(body, dict) and "message" in body:
        return str(body["message"])
    return data[:200].decode(errors="replace")
