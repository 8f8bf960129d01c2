"""ALL Kubernetes I/O of Pierhead: get, list, server-side apply, status, delete and events, in one narrow class."""

import asyncio
import json
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from pydantic import ValidationError
from pydantic_core import from_json

from pierhead_operator import names
from pierhead_operator.facts import DeployedModelFacts, EndpointFacts, Facts, explain_unreadable
from pierhead_operator.resources import Manifest, owns_replicas
from pierhead_operator.routing import Server
from pierhead_operator.schema import Resource, Status
from pierhead_operator.status import Event
from pierhead_operator.store import BACKEND, Store
from pierhead_operator.types import KINDS, DeployedModel, Endpoint

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)

_TIMEOUT_SECONDS = 30.0
_PAGE = 100
_AT_ONE_TURN = 20  # objects that are taken up before the event loop may go on
_NO_ANSWER = "none"
# No object has this version: an apply with it creates, and is refused where there is one of that name.
_NO_VERSION = "1"
# How the API server's message begins, with code 500, where an apply has a field of another type than the kind.
_UNTYPED = "failed to create typed patch object ("
# The same of an apply to an object that has such a field already, from an older CRD; the first until an apply wrote it.
_UNTYPED_LIVE = ("failed to create typed live object (", "failed to create manager for existing fields: ")
# How it begins where a webhook refuses or an admission policy, which may take the object another time. Further behind,
# a message has the words of whoever wrote the object.
_ADMISSION = re.compile(r'admission webhook "|[a-z0-9.-]+( "[^"]*")? is forbidden: ')

# What is told of each request, for the metrics: Kubernetes' verb, the kind, HTTP's code or `none`, and the seconds.
ObserveRequest = Callable[[str, str, str, float], None]

# HTTP's methods of Kubernetes' verbs, as RBAC and the metrics name them.
_METHODS = {"get": "GET", "list": "GET", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}
_READING_VERBS = ("get", "list")
_APPLY_PATCH = "application/apply-patch+yaml"
_MERGE_PATCH = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"

# Where each kind lives that Pierhead reads or writes: its API's path and its plural.
_PATHS: dict[str, tuple[str, str]] = {
    "BackendTrafficPolicy": ("/apis/gateway.envoyproxy.io/v1alpha1", "backendtrafficpolicies"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "DestinationRule": ("/apis/networking.istio.io/v1", "destinationrules"),
    "Event": ("/apis/events.k8s.io/v1", "events"),
    "HorizontalPodAutoscaler": ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
    "HTTPRoute": ("/apis/gateway.networking.k8s.io/v1", "httproutes"),
    "Job": ("/apis/batch/v1", "jobs"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Pod": ("/api/v1", "pods"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "Service": ("/api/v1", "services"),
    "VirtualService": ("/apis/networking.istio.io/v1", "virtualservices"),
    **{kind.KIND: (f"/apis/{names.API_VERSION}", kind.PLURAL) for kind in KINDS},
}


class ClusterError(Exception):
    """The environment's: the API server cannot be reached, is overloaded or broken. Worth another try."""


class Rejected(Exception):  # noqa: N818
    """The API server refuses an object: forbidden, over a quota, a webhook. The message is its own."""


class Conflict(Rejected):
    """There is an object of that name, or it has changed since it was read."""


class Invalid(Rejected):
    """The API server cannot take an object as it is, today or later: its spec has to change."""


class UnreadableError(Exception):
    """A resource that this operator cannot parse, such as one of a later release."""

    def __init__(self, kind: str, live: Manifest, problem: str) -> None:
        super().__init__(f"{kind} {live['metadata']['name']} cannot be read by this version of the operator: {problem}")
        self.live = live


async def load_configuration() -> Configuration:
    """How to reach the API server: as the pod's own service account; outside a cluster as the kubeconfig says."""
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        await load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    return configuration


@dataclass(frozen=True)
class Key:
    """A resource to look after."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True)
class Listed:
    """An object that a list has, or no longer has; what was known of it before and is now, where that is another."""

    live: Manifest
    is_news: bool = False
    before: Facts | None = None
    after: Facts | None = None


def find_resource(kind: str) -> tuple[str, str, str]:
    """The group, version and plural of a kind; the core's group is empty."""
    api, plural = _PATHS[kind]
    group, version = api.split("/")[-2:]
    return ("" if group == "api" else group), version, plural


def _path(kind: str, namespace: str | None, name: str = "", subresource: str = "") -> str:
    api, plural = _PATHS[kind]
    parts = [api]
    if namespace:
        parts += ["namespaces", namespace]
    parts += [plural, name, subresource]
    return "/".join(part for part in parts if part)


@dataclass(frozen=True)
class _Request:
    verb: str
    kind: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Manifest | list[Manifest] | None = None  # a JSON patch is a list
    patch: str = _APPLY_PATCH

    def __str__(self) -> str:
        return f"{self.verb} {self.path}"


def _unlimited() -> float:
    return math.inf


def _unobserved(_verb: str, _kind: str, _code: str, _seconds: float) -> None:
    pass


def parse(kind: type[R], live: Manifest) -> R:
    """One of Pierhead's own resources; raises UnreadableError."""
    try:
        return kind.model_validate(live)
    except ValidationError as error:
        raise UnreadableError(kind.KIND, live, explain_unreadable(error)) from error


def parse_neighbour(live: Manifest) -> DeployedModel | None:
    """A DeployedModel, as far as its Endpoint has to know it: one of a later release goes on serving.

    None where not even that can be read.
    """
    known = {
        "spec": _keep(live.get("spec"), ("endpoint", "model")),
        "status": _keep(live.get("status"), ("modelVersion", "availableReplicaCount", "conditions")),
    }
    for one in (live, {**live, "spec": known["spec"]}, {**live, "status": known["status"]}, {**live, **known}):
        try:
            return DeployedModel.model_validate(one)
        except ValidationError:
            continue
    return None


class Cluster:
    """The Kubernetes API, as far as Pierhead needs it.

    Every method raises ClusterError where another try may help. `seconds_to_write` says for how long from now this
    process may write: a write that takes longer is given up, and none is begun where that is 0. What `store` keeps is
    read from there, and what a write is answered with goes there, by `tell_written` (feed.Feed.tell_written): this
    process sees its own writes at once.
    """

    def __init__(
        self,
        api: ApiClient,
        seconds_to_write: Callable[[], float] = _unlimited,
        observe: ObserveRequest = _unobserved,
        timeout: float = _TIMEOUT_SECONDS,
        store: Store | None = None,
        tell_written: Callable[[str, Manifest], object] | None = None,
    ) -> None:
        self._api = api
        self._seconds_to_write = seconds_to_write
        self._observe = observe
        self._timeout = timeout
        self._store = store or Store()
        self._tell_written = tell_written or self._store.put

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object, or None where there is none."""
        if kind in self._store.kinds:
            return self._store.get(kind, namespace, name)
        return await self.fetch(kind, namespace, name)

    async def fetch(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object as the API server has it now, or None where there is none.

        Only this tells of objects that are not Pierhead's: watches do not. What is watched is listed by its name, since
        the right to list it is there, and none to get it is needed.
        """
        if kind not in self._store.kinds:
            return await self._request(_Request("get", kind, _path(kind, namespace, name)), missing_ok=True)
        query = {"fieldSelector": f"metadata.name={name}"}
        page = await self._request(_Request("list", kind, _path(kind, namespace), query), missing_ok=True)
        return (
            next(({"apiVersion": page["apiVersion"], "kind": kind, **item} for item in page["items"]), None)
            if page
            else None
        )

    async def list_objects(
        self, kind: str, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """The objects of a kind with these labels, in one namespace or in all; none of a kind that is not installed."""
        if kind in self._store.kinds:
            return self._store.select(kind, namespace, labels)
        return [item async for page in self._list_pages(kind, namespace, labels) for item in page["items"]]

    async def refresh(
        self, kind: str, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Listed]:
        """Lists a kind that the store keeps, to correct what that knows; gives what is there and what is there no more.

        `labels` are those of the kind's watch.
        """
        there, version = set(), -1
        async for page in self._list_pages(kind, namespace, labels):
            version = int(page["metadata"]["resourceVersion"])
            for number, live in enumerate(page["items"]):
                if number % _AT_ONE_TURN == 0:
                    await asyncio.sleep(0)
                change = self._store.put(kind, live)
                there.add((live["metadata"]["namespace"], live["metadata"]["name"]))
                yield Listed(live, True, change.before, change.after) if change else Listed(live)
        for number, (live, before) in enumerate(self._store.remove_missing(kind, namespace, there, version)):
            if number % _AT_ONE_TURN == 0:
                await asyncio.sleep(0)
            yield Listed(live, is_news=True, before=before)

    async def _list_pages(
        self, kind: str, namespace: str | None, labels: Mapping[str, str] | None
    ) -> AsyncIterator[Manifest]:
        """A list, page by page; no page of a kind that is not installed."""
        query = {"limit": str(_PAGE)}
        if labels:
            query["labelSelector"] = ",".join(f"{key}={value}" for key, value in labels.items())
        while True:
            page = await self._request(_Request("list", kind, _path(kind, namespace), query), missing_ok=True)
            if page is None:
                return
            # The items of a list do not say what they are.
            page["items"] = [{"apiVersion": page["apiVersion"], "kind": kind, **item} for item in page["items"]]
            yield page
            token = page["metadata"].get("continue")
            if not token:
                return
            query["continue"] = token

    async def get_resource(self, kind: type[R], namespace: str, name: str) -> R | None:
        """One of Pierhead's own resources, parsed; None where there is none. Raises UnreadableError."""
        found = await self.get(kind.KIND, namespace, name)
        return parse(kind, found) if found else None

    async def list_deployed_models(self, namespace: str, label: str, name: str) -> list[DeployedModel]:
        """The DeployedModels whose spec names this Endpoint or this Model; `label` says which of the two."""
        found = self._store.select("DeployedModel", namespace, {label: name})
        return [dm for live in found if (dm := parse_neighbour(live))]

    def find_public_servers(self, namespace: str, model: str) -> tuple[dict[str, Server], set[str]]:
        """The DeployedModels of a Model by name, and of their Endpoints those that are public.

        What cannot be read is in neither: it cannot be shown to be public.
        """
        its = self._store.names(DeployedModel.KIND, namespace, names.LABEL_MODEL, model)
        facts = {name: self._store.find_facts(DeployedModel.KIND, namespace, name) for name in its}
        servers = {name: one.server for name, one in facts.items() if isinstance(one, DeployedModelFacts)}
        endpoints = {server.endpoint for server in servers.values()}
        return servers, {name for name in endpoints if self._is_public(namespace, name)}

    def _is_public(self, namespace: str, endpoint: str) -> bool:
        facts = self._store.find_facts(Endpoint.KIND, namespace, endpoint)
        return isinstance(facts, EndpointFacts) and facts.is_public

    def is_routed(self, kinds: Iterable[str], namespace: str, service: str) -> bool:
        """Whether a route of one of these kinds leads to a Service, as far as watches told."""
        return any(self._store.names(kind, namespace, BACKEND, service) for kind in kinds)

    async def create(self, manifest: Manifest) -> Manifest:
        """Creates an object; raises Rejected, also where there is one of that name."""
        return await self._write("create", manifest, name="")

    async def update(self, manifest: Manifest) -> Manifest:
        """Replaces an object as it was read; raises Rejected, also where it has changed since or is gone."""
        return await self._write("update", manifest, name=manifest["metadata"]["name"])

    async def apply(self, manifest: Manifest, live: Manifest | None = None) -> Manifest:
        """Server-side apply as field manager `pierhead`; raises Rejected.

        Without `live` it creates, and raises Conflict where there is an object of that name. A Deployment that is given
        without replicas, while they are still ours in `live`, keeps its number: another manager takes the field first,
        as Kubernetes' documentation has it for the hand-over to an autoscaler.
        """
        if live is None:
            return await self._apply(_with_version(manifest, _NO_VERSION), names.FIELD_MANAGER)
        if manifest["kind"] == "Deployment" and "replicas" not in manifest["spec"] and owns_replicas(live):
            handover = {
                "apiVersion": manifest["apiVersion"],
                "kind": manifest["kind"],
                "metadata": {key: manifest["metadata"][key] for key in ("name", "namespace")},
                "spec": {"replicas": live["spec"]["replicas"]},
            }
            await self._apply(handover, names.HANDOVER_FIELD_MANAGER)
        return await self._apply(manifest, names.FIELD_MANAGER)

    async def patch(self, live: Manifest, changes: Manifest) -> Manifest | None:
        """Changes these fields of this very object; None takes one away. Raises Rejected. None where it is gone.

        A merge patch: an apply would leave what was set when the object was made, under another manager.
        """
        metadata = live["metadata"]
        path = _path(live["kind"], metadata["namespace"], metadata["name"])
        body = {**changes, "metadata": {**changes.get("metadata", {}), "uid": metadata["uid"]}}
        query = {"fieldManager": names.CONTROL_FIELD_MANAGER}
        request = _Request("patch", live["kind"], path, query, body, _MERGE_PATCH)
        if written := await self._request(request, missing_ok=True):
            self._keep(written)
        return written

    async def apply_status(self, resource: Resource, status: Status) -> bool:
        """Writes a whole status; whether it did. Not where the resource is gone, or is another one of that name by now.

        Neither where the API server can never take it: a schema that is older than this operator, or an object of an
        older one. Raises Rejected where another try may help.

        The first of an installation is for the resource as it was read; raises Conflict where it has changed since:
        another installation may have been first.
        """
        key = Key(resource.KIND, resource.namespace, resource.name)
        metadata = {"uid": resource.metadata.uid}
        before: Status = resource.status  # type: ignore[attr-defined]  # every kind has one
        if before.installation != status.installation and resource.metadata.resource_version:
            metadata["resourceVersion"] = resource.metadata.resource_version
        return await self._apply_status(key, metadata, status.dump())

    async def apply_raw_status(self, key: Key, uid: str, status: Manifest) -> bool:
        """The same of a resource that cannot be parsed: `status` is as Kubernetes stores it."""
        return await self._apply_status(key, {"uid": uid}, status)

    async def _apply_status(self, key: Key, about: dict[str, str], status: Manifest) -> bool:
        path = _path(key.kind, key.namespace, key.name, "status")
        body = {
            "apiVersion": names.API_VERSION,
            "kind": key.kind,
            "metadata": {"name": key.name, "namespace": key.namespace, **about},
            "status": status,
        }
        request = _Request("patch", key.kind, path, _apply_query(names.FIELD_MANAGER), body)
        try:
            written = await self._apply_or_replace(request)
        except Conflict:
            if "resourceVersion" in about:
                raise
            return False  # a namesake, whose own event brings it here
        except Invalid as error:
            logger.warning("%s %s/%s: status refused: %s", key.kind, key.namespace, key.name, error)
            return False
        if written:
            self._keep(written)
        return written is not None

    async def _apply_or_replace(self, request: _Request) -> Manifest | None:
        """Applies a status; replaces that of an object to which nothing can be applied (_UNTYPED_LIVE)."""
        try:
            return await self._request(request, missing_ok=True)
        except Invalid as error:
            if not str(error).startswith(_UNTYPED_LIVE):
                raise
        assert isinstance(request.body, dict)
        about = {name: value for name, value in request.body["metadata"].items() if name in ("uid", "resourceVersion")}
        body = [
            *({"op": "test", "path": f"/metadata/{name}", "value": value} for name, value in about.items()),
            {"op": "add", "path": "/status", "value": request.body["status"]},
        ]
        query = {"fieldManager": request.query["fieldManager"]}
        return await self._request(replace(request, query=query, body=body, patch=_JSON_PATCH), missing_ok=True)

    async def delete(self, live: Manifest) -> None:
        """Deletes this very object, not a namesake that came after it; its pods and other children go with it."""
        metadata = live["metadata"]
        body = {"preconditions": {"uid": metadata["uid"]}, "propagationPolicy": "Background"}
        path = _path(live["kind"], metadata["namespace"], metadata["name"])
        await self._request(_Request("delete", live["kind"], path, body=body), missing_ok=True)

    async def create_event(self, resource: Resource, event: Event) -> None:
        """Tells an event about a resource, in the log too; one that the cluster does not take is dropped."""
        logger.info("%s %s/%s: %s: %s", resource.KIND, resource.namespace, resource.name, event.reason, event.message)
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{names.shorten(resource.name, 57)}-", "namespace": resource.namespace},
            "type": event.type,
            "reason": event.reason,
            "note": event.message[:1024],
            "action": "Reconcile",
            "eventTime": format_micro_time(datetime.now(UTC)),
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
            await self.create(body)
        except (ClusterError, Rejected) as error:
            logger.warning("event %s of %s %s dropped: %s", event.reason, resource.KIND, resource.name, error)

    async def _apply(self, manifest: Manifest, manager: str) -> Manifest:
        metadata = manifest["metadata"]
        path = _path(manifest["kind"], metadata["namespace"], metadata["name"])
        written = await self._request(_Request("patch", manifest["kind"], path, _apply_query(manager), manifest))
        assert written is not None  # for nothing may be missing
        self._keep(written)
        return written

    def _keep(self, written: Manifest) -> None:
        if written["kind"] in self._store.kinds:
            self._tell_written(written["kind"], written)

    async def _write(self, verb: str, manifest: Manifest, name: str) -> Manifest:
        path = _path(manifest["kind"], manifest["metadata"]["namespace"], name)
        written = await self._request(_Request(verb, manifest["kind"], path, body=manifest))
        assert written is not None  # for nothing may be missing
        return written

    async def _request(self, request: _Request, missing_ok: bool = False) -> Manifest | None:
        headers = await self._make_headers(request)
        timeout, query = self._timeout, dict(request.query)
        if request.verb not in _READING_VERBS:
            timeout = min(timeout, self._seconds_to_write())
            if timeout <= 0:
                raise ClusterError(f"{request}: not written: this process is not the leader")
            # The API server gives up by then, too: else what it is late with lands after another has taken over.
            query["timeout"] = f"{math.ceil(timeout * 1000)}ms"
        code, start = _NO_ANSWER, time.monotonic()
        try:
            status, data = await self._send(request, query, headers, timeout)
            code = str(status)
        finally:
            self._observe(request.verb, request.kind, code, time.monotonic() - start)
        if status == 404 and missing_ok:
            return None
        return _parse(request, status, data)

    async def _make_headers(self, request: _Request) -> dict[str, str]:
        method = _METHODS[request.verb]
        headers = {"Accept": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = request.patch
        await self._api.update_params_for_auth(headers, None, ["BearerToken"], request.path, method, request.body)
        return headers

    async def _send(
        self, request: _Request, query: Mapping[str, str], headers: Mapping[str, str], seconds: float
    ) -> tuple[int, bytes]:
        url = f"{self._api.configuration.host}{request.path}" + (f"?{urlencode(query)}" if query else "")
        limit = aiohttp.ClientTimeout(total=seconds)
        try:
            response = await self._api.call_api(
                _METHODS[request.verb], url, headers, request.body, _request_timeout=limit
            )
            data: bytes = await response.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterError(f"{request}: {type(error).__name__}: {error}") from error
        return response.status, data


def format_micro_time(moment: datetime) -> str:
    """A moment in UTC as Kubernetes' MicroTime wants it."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _apply_query(manager: str) -> dict[str, str]:
    # The children are ours (is_owned was asked before): what somebody else wrote into our fields is taken back.
    return {"fieldManager": manager, "force": "true"}


def _keep(part: Any, fields: Collection[str]) -> Manifest:
    return {name: part[name] for name in fields if name in part} if isinstance(part, dict) else {}


def _with_version(manifest: Manifest, version: str) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": version}}


def _parse(request: _Request, status: int, data: bytes) -> Manifest:
    if 200 <= status < 300:
        try:
            parsed: Manifest = from_json(data)
        except ValueError as error:
            raise ClusterError(f"{request}: {status}: the answer is no JSON: {error}") from error
        return parsed
    message = _error_message(data)
    if status == 409:
        raise Conflict(message)
    # Whatever code a webhook answers.
    if (status in (400, 413, 422) and not _ADMISSION.match(message)) or (
        status == 500 and message.startswith((_UNTYPED, *_UNTYPED_LIVE))
    ):
        raise Invalid(message)
    if status in (400, 403, 404, 422):
        raise Rejected(message)
    raise ClusterError(f"{request}: {status}: {message}")


def _error_message(data: bytes) -> str:
    try:
        body: Any = json.loads(data)
    except ValueError:
        body = None
    if isinstance(body, dict) and "message" in body:
        return str(body["message"])
    return data[:200].decode(errors="replace")
