"""A cluster of a page, and what the API's tests ask of it."""

import asyncio
import copy
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pierhead_api.errors import (
    AbortedError,
    AlreadyExistsError,
    ExpiredError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from pierhead_api.names import Place, Projects
from pierhead_api.pages import Ask, Page, follow
from pierhead_api.services.session import Session

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
PLACE = Place("shop", "local", "team-a")
BETA = Place("shop", "local", "team-a", beta=True)
PARENT = "projects/shop/locations/local"
MADE = "2026-11-22T11:00:00Z"


def merge(live: Any, patch: Any) -> Any:
    """JSON merge patch, RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def _has(values: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(values.get(key) == value for key, value in wanted.items())


def _has_labels(one: dict[str, Any], wanted: Mapping[str, str]) -> bool:
    return _has(one["metadata"].get("labels", {}), wanted)


class FakeCluster:
    """The Kubernetes API of one namespace; `denied` holds the verbs that the caller has no right to."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.denied: set[str] = set()
        self.calls: list[tuple[str, str, str]] = []
        self.before_patch: list[Any] = []  # of each patch, what somebody else does just before
        self.lost_answers: list[str] = []  # verbs that are done once, while the caller is told that nobody answers
        self.refuses: list[str] = []  # verbs that are not done, once each
        self.yields = False  # whether others come in between
        self.snapshots: list[list[dict[str, Any]]] = []  # what tokens of pages go on in, by their numbers
        self.oldest = 0  # of those that are not too old
        self.keeps_rest = True  # whether a token that is too old has one of the rest as it is now

    def add(self, manifest: dict[str, Any]) -> dict[str, Any]:
        metadata = {"uid": str(uuid.uuid4()), "generation": 1, "resourceVersion": "1", "creationTimestamp": MADE}
        made = copy.deepcopy({**manifest, "metadata": {**metadata, **manifest["metadata"]}})
        self.objects[made["kind"], made["metadata"]["name"]] = made
        return made

    def one(self, kind: str, name: str) -> dict[str, Any]:
        return self.objects[kind, name]

    def names(self, kind: str) -> list[str]:
        return [name for one, name in self.objects if one == kind]

    async def _check(self, verb: str, kind: str, name: str) -> None:
        self.calls.append((verb, kind, name))
        if self.yields:
            await asyncio.sleep(0)
        if verb in self.refuses:
            self.refuses.remove(verb)
            raise UnavailableError("nobody answers")
        if verb in self.denied:
            raise PermissionDeniedError(f"you may not {verb}")

    async def get(self, kind: Any, namespace: str, name: str) -> dict[str, Any]:
        await self._check("get", kind.KIND, name)
        if (kind.KIND, name) not in self.objects or namespace != PLACE.namespace:
            raise NotFoundError(f"there is no {kind.KIND} {name}")
        return copy.deepcopy(self.objects[kind.KIND, name])

    async def list(
        self, kind: Any, namespace: str, *, fields: Mapping[str, str] = {}, labels: Mapping[str, str] = {}
    ) -> list[dict[str, Any]]:
        pages = follow(lambda ask: self.list_page(kind, namespace, ask), Ask(fields=fields, labels=labels))
        return [one async for page in pages for one in page]

    async def list_page(self, kind: Any, namespace: str, ask: Ask) -> Page:
        """A token is the number of a snapshot, and the name that it goes on with."""
        await self._check("list", kind.KIND, "")
        number, _, start = ask.token.partition(":")
        if not number:
            number = str(self._take_snapshot(kind, ask))
        elif not number.isdecimal() or int(number) >= len(self.snapshots):
            raise InvalidArgumentError("continue key is not valid")
        elif int(number) < self.oldest:
            if not self.keeps_rest:
                raise ExpiredError("too old")
            number = str(self._take_snapshot(kind, ask))
        left = [one for one in self.snapshots[int(number)] if one["metadata"]["name"] >= start]
        page, rest = left[: ask.limit], left[ask.limit :]
        more = f"{number}:{rest[0]['metadata']['name']}" if rest else ""
        return Page(copy.deepcopy(page), more, ask.limit)

    def _take_snapshot(self, kind: Any, ask: Ask) -> int:
        wanted = {path.removeprefix("spec."): value for path, value in ask.fields.items()}
        assert {f".spec.{key}" for key in wanted} <= set(kind.SELECTABLE)
        found = (one for (known, _), one in sorted(self.objects.items()) if known == kind.KIND)
        self.snapshots.append([one for one in found if _has(one["spec"], wanted) and _has_labels(one, ask.labels)])
        return len(self.snapshots) - 1

    def expire(self, *, keeps_rest: bool = True) -> None:
        """Tokens that were given until now are too old."""
        self.oldest, self.keeps_rest = len(self.snapshots), keeps_rest

    async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        await self._check("create", manifest["kind"], manifest["metadata"]["name"])
        if (manifest["kind"], manifest["metadata"]["name"]) in self.objects:
            raise AlreadyExistsError(f"there is a {manifest['metadata']['name']}")
        made = copy.deepcopy(self.add(manifest))
        self._lose("create")
        return made

    def _lose(self, verb: str) -> None:
        if verb in self.lost_answers:
            self.lost_answers.remove(verb)
            raise UnavailableError("nobody answers")

    async def patch(self, kind: Any, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        await self._check("patch", kind.KIND, name)
        if self.before_patch:
            self.before_patch.pop(0)()
        live = await self.get(kind, namespace, name)
        version = live["metadata"]["resourceVersion"]
        if patch.get("metadata", {}).get("resourceVersion", version) != version:
            raise AbortedError("it changed")
        merged = merge(live, patch)
        merged["metadata"]["resourceVersion"] = str(int(version) + 1)
        merged["metadata"]["generation"] += merged["spec"] != live["spec"]
        self.objects[kind.KIND, name] = merged
        self._lose("patch")
        return copy.deepcopy(merged)

    async def delete(self, kind: Any, namespace: str, name: str, *, uid: str | None = None) -> None:
        await self._check("delete", kind.KIND, name)
        if uid not in (None, (await self.get(kind, namespace, name))["metadata"]["uid"]):
            raise NotFoundError(f"there is another {name}")
        del self.objects[kind.KIND, name]
        self._lose("delete")

    async def may(self, verb: str, resource: str, namespace: str, name: str) -> bool:
        return verb not in self.denied

    def touch(self, kind: str, name: str, **change: Any) -> None:
        """Somebody else writes it."""
        live = self.objects[kind, name]
        version = str(int(live["metadata"]["resourceVersion"]) + 1)
        self.objects[kind, name] = merge(live, {**change, "metadata": {"resourceVersion": version}})

    def judge(self, kind: str, name: str, *, stalled: bool = False, **status: Any) -> None:
        """The operator says of an object's present generation whether it is `ready`, and why."""
        reason, message = status.pop("reason", "Serving"), status.pop("message", "m")
        ready = reason in ("Serving", "TrafficApplied", "Accepted")
        values = {"Ready": ready, "Stalled": stalled, "TrafficApplied": ready}
        conditions = [
            {
                "type": type_,
                "status": str(value),
                "reason": reason,
                "message": message,
                "lastTransitionTime": "2026-11-22T12:01:00Z",
            }
            for type_, value in values.items()
        ]
        live = self.one(kind, name)
        judged = {"observedGeneration": live["metadata"]["generation"], "conditions": conditions, **status}
        live["status"] = {**live.get("status", {}), **judged}

    def finish(self, operation: str, endpoint: str = "7", **finished: Any) -> None:
        """The operator remembers what became of an operation, of this name: it succeeded, if not said otherwise."""
        one = {
            "id": operation.rsplit("/", 1)[-1].partition("~")[0],
            "state": "Succeeded",
            "time": "2026-11-22T12:01:00Z",
            **finished,
        }
        status = self.one("Endpoint", endpoint).get("status", {})
        self.touch("Endpoint", endpoint, status={"operations": [*status.get("operations", []), one]})


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def session(cluster: FakeCluster) -> Session:
    """Ids count up from 1000000001, and a second goes by with each look at the clock."""
    ids = iter(range(1000000001, 1000000100))
    moments = iter(range(1000))
    projects = Projects({"shop": "team-a", "123": "team-a", "bank": "team-b"}, ["local", "us-central1"])
    now, make_id = lambda: NOW + timedelta(seconds=next(moments)), lambda: str(next(ids))
    return Session(cluster, projects, now, make_id, lambda _: asyncio.sleep(0))


def make_manifest(kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """A custom resource as somebody applied it."""
    named = {"name": name, "namespace": PLACE.namespace, "creationTimestamp": MADE, "uid": f"uid-{name}", **metadata}
    return {"apiVersion": "pierhead.dev/v1", "kind": kind, "metadata": named, "spec": spec}


def make_model(name: str = "photos", **spec: Any) -> dict[str, Any]:
    versions = [
        {"name": "1", "artifactUri": "gs://models/photos/1"},
        {"name": "2", "aliases": ["candidate"], "artifactUri": "gs://models/photos/2"},
    ]
    return make_manifest("Model", name, {"displayName": "Photos", "defaultVersion": "1", "versions": versions, **spec})


def make_endpoint(name: str = "7", **spec: Any) -> dict[str, Any]:
    return make_manifest("Endpoint", name, {"displayName": "Photos", **spec})


def make_deployed_model(name: str = "11", **spec: Any) -> dict[str, Any]:
    return make_manifest("DeployedModel", name, {"endpoint": "7", "model": "photos", "modelVersion": "1", **spec})


def make_job(name: str = "21", **spec: Any) -> dict[str, Any]:
    configs = {
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://in/a.jsonl"]}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://out"}},
    }
    return make_manifest("BatchPredictionJob", name, {"model": "photos", "modelVersion": "1", **configs, **spec})
