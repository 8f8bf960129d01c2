"""Keeps the route table as the cluster is: lists a kind, then watches it, with this process' own rights."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection

from pierhead_operator import names
from pierhead_operator.resources import Manifest
from pierhead_operator.schema import Resource

from pierhead_api.errors import ApiError
from pierhead_api.kubernetes_api import Call, Kubernetes, read_pages
from pierhead_api.route_table import WATCHED, RouteTable

logger = logging.getLogger(__name__)

# The API server ends a watch after as long; the next one goes on where it was.
_WATCH_SECONDS = 300
# It sends a bookmark about every minute: longer without a word, and nobody is there.
_SILENCE_SECONDS = 150.0
_MOST_WAIT_SECONDS = 30.0


class _EndedError(Exception):
    """The watch cannot go on where it was, or ended without a word."""


class Watch:
    """One kind, in one namespace or in all."""

    def __init__(
        self,
        kubernetes: Kubernetes,
        table: RouteTable,
        kind: type[Resource],
        namespace: str | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kubernetes = kubernetes
        self._table = table
        self._kind = kind
        self._namespace = namespace
        self._sleep = sleep
        self._failures = 0
        self.is_complete = False  # whether all that is there has been told once

    async def run(self) -> None:
        """Follows the cluster, without an end."""
        while True:
            try:
                version = await self._list()
                while True:
                    version = await self._watch(version)
            except (ApiError, _EndedError) as error:
                logger.warning("%s are watched again later: %s", self._kind.PLURAL, error)
                await self._sleep(self._next_wait())

    def _next_wait(self) -> float:
        self._failures += 1
        most = min(_MOST_WAIT_SECONDS, 2.0 ** min(self._failures, 10))
        return most * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing

    async def _list(self) -> str:
        """Tells the table all that is there; gives the version to watch from."""
        there: set[tuple[str, str]] = set()
        version = ""
        async for page in read_pages(self._kubernetes.request_as_self, self._path):
            version = page["metadata"]["resourceVersion"]
            for live in page["items"]:
                self._table.put(self._kind.KIND, live)
                there.add(_key(live))
        self._table.remove_missing(self._kind.KIND, self._namespace, there)
        self.is_complete = True
        return version

    async def _watch(self, version: str) -> str:
        """Tells the table what happens from `version` on; gives the version to go on from."""
        before = version
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        async with self._kubernetes.watch_as_self(Call("GET", self._path, query), _SILENCE_SECONDS) as events:
            async for event in events:
                live = event["object"]
                if event["type"] == "ERROR":
                    raise _EndedError(live.get("message", "the watch ended with an error"))
                version = live["metadata"]["resourceVersion"]
                self._tell(event["type"], live)
                self._failures = 0
        if version == before:
            raise _EndedError("a watch ended without a word")
        return version

    def _tell(self, type_: str, live: Manifest) -> None:
        if type_ in ("ADDED", "MODIFIED"):
            self._table.put(self._kind.KIND, live)
        elif type_ == "DELETED":
            self._table.remove(self._kind.KIND, _key(live))

    @property
    def _path(self) -> str:
        within = f"/namespaces/{self._namespace}" if self._namespace else ""
        return f"/apis/{names.API_VERSION}{within}/{self._kind.PLURAL}"


def _key(live: Manifest) -> tuple[str, str]:
    return live["metadata"]["namespace"], live["metadata"]["name"]


def make_watches(kubernetes: Kubernetes, table: RouteTable, namespaces: Collection[str]) -> list[Watch]:
    """A watch for each kind that the table knows, in these namespaces, or in all where none is named."""
    places: list[str | None] = [*sorted(namespaces)] or [None]
    return [Watch(kubernetes, table, kind, place) for kind in WATCHED for place in places]
