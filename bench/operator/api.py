"""The API server as the bench uses it: creating many objects, and watching."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from pierhead_operator import names

from bench.server.processes import BenchError
from cluster import settings
from cluster.settings import Paths

Manifest = dict[str, Any]
Key = tuple[str, str]  # namespace, name

DEPLOYED_MODELS = f"/apis/{names.API_VERSION}/deployedmodels"
DEPLOYMENTS = "/apis/apps/v1/deployments"
_EVENTS = "/apis/events.k8s.io/v1/events"
_PAGE = 1000
_OURS = f"/apis/{names.API_VERSION}"
_PATHS = {
    "Model": (_OURS, "models"),
    "Endpoint": (_OURS, "endpoints"),
    "DeployedModel": (_OURS, "deployedmodels"),
    "BatchPredictionJob": (_OURS, "batchpredictionjobs"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "Service": ("/api/v1", "services"),
}
_CONCURRENCY = 16
_REQUEST_SECONDS = 60
_WATCH_SECONDS = 7200  # longer than any bench


def key_of(manifest: Manifest) -> Key:
    return manifest["metadata"]["namespace"], manifest["metadata"]["name"]


class Api:
    """The API server, with the admin's rights."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def create(self, manifest: Manifest) -> None:
        """Creates an object; raises BenchError with what the API server says against it."""
        api, plural = _PATHS[manifest["kind"]]
        path = f"{api}/namespaces/{key_of(manifest)[0]}/{plural}"
        async with self._session.post(path, json=manifest) as response:
            if response.status != 201:
                raise BenchError(f"{manifest['kind']} {key_of(manifest)}: {await response.text()}")

    async def send(self, method: str, path: str, body: Manifest, content_type: str = "application/json") -> Manifest:
        """The answer to any request that writes; raises BenchError with what the API server says against it."""
        headers = {"Content-Type": content_type}
        async with self._session.request(method, path, data=json.dumps(body), headers=headers) as response:
            if response.status >= 300:
                raise BenchError(f"{method} {path}: {await response.text()}")
            answer: Manifest = await response.json()
            return answer

    async def create_all(self, manifests: Sequence[Manifest]) -> None:
        """Creates these as fast as the API server takes them, over a few connections."""
        left = iter(manifests)

        async def create_some() -> None:
            for manifest in left:
                await self.create(manifest)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_CONCURRENCY):
                tasks.create_task(create_some())

    async def count_events(self) -> Counter[str]:
        """How many Events there are, by the kind that they tell about."""
        found: Counter[str] = Counter()
        query = {"limit": str(_PAGE)}
        while True:
            async with self._session.get(_EVENTS, params=query) as response:
                page = await response.json()
            found.update(event["regarding"]["kind"] for event in page["items"])
            if not page["metadata"].get("continue"):
                return found
            query["continue"] = page["metadata"]["continue"]

    async def watch(self, path: str, started: Callable[[], None]) -> AsyncIterator[tuple[str, Manifest]]:
        """What happens to the objects of a kind from now on, as (event's type, object), without an end."""
        async with self._session.get(path, params={"limit": "1"}) as response:
            version = (await response.json())["metadata"]["resourceVersion"]
        query = {"watch": "1", "resourceVersion": version, "timeoutSeconds": str(_WATCH_SECONDS)}
        unlimited = aiohttp.ClientTimeout(total=None)
        async with self._session.get(path, params=query, timeout=unlimited) as response:
            started()
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise BenchError(f"the watch of {path} broke: {event['object'].get('message')}")
                yield event["type"], event["object"]
        raise BenchError(f"the watch of {path} ended")


@asynccontextmanager
async def connect(paths: Paths) -> AsyncIterator[Api]:
    context = ssl.create_default_context(cafile=str(paths.pki / "ca.crt"))
    context.load_cert_chain(paths.pki / "admin.crt", paths.pki / "admin.key")
    async with aiohttp.ClientSession(
        settings.API_URL,
        connector=aiohttp.TCPConnector(ssl=context),
        timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS),
        read_bufsize=2**20,  # an event is a line, and no line may be longer than twice this
    ) as session:
        yield Api(session)


class Watched:
    """For which objects of a kind something holds now, and since when the watch has told so."""

    def __init__(self, api: Api, path: str, holds: Callable[[Manifest], bool]) -> None:
        self.since: dict[Key, float] = {}  # time.monotonic()
        self._api = api
        self._path = path
        self._holds = holds
        self._changed = asyncio.Event()
        self._started = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watches within; what fails there, fails here."""
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._run())
            await self._started.wait()
            yield
            watching.cancel()

    async def wait_until(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Looks at each event whether `condition` holds; raises BenchError when the time is over."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise BenchError(f"{what}: not so after {seconds:.0f} s") from None

    async def _run(self) -> None:
        async for type_, live in self._api.watch(self._path, self._started.set):
            if type_ == "DELETED" or not self._holds(live):
                self.since.pop(key_of(live), None)
            else:
                self.since.setdefault(key_of(live), time.monotonic())
            self._changed.set()


def is_available(live: Manifest) -> bool:
    """Whether a Deployment of one replica has it."""
    return bool(live.get("status", {}).get("availableReplicas"))


def is_ready(live: Manifest) -> bool:
    """Whether a resource of Pierhead's says that it is Ready, of its present spec."""
    return any(
        condition["type"] == "Ready"
        and condition["status"] == "True"
        and condition["observedGeneration"] == live["metadata"]["generation"]
        for condition in live.get("status", {}).get("conditions", [])
    )
