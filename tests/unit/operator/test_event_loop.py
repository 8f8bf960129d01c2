"""No step of the operator's work grows with how much there is: the event loop renews the Lease and answers probes."""

import asyncio
import gc
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from pierhead_operator import names
from pierhead_operator.cluster import Cluster, Key
from pierhead_operator.feed import Feed
from pierhead_operator.queue import WorkQueue
from pierhead_operator.reconcile import Reconciler
from pierhead_operator.store import Store

from tests.unit.operator.conftest import make_deployed_model, make_endpoint, make_model
from tests.unit.operator.fakes import WATCHED, FakeProber

FEW, MANY = 200, 2000


class EchoingCluster(Cluster):
    """Takes every write as an API server would. Fake because one would take most of the time."""

    def __init__(self, store, tell_written):
        super().__init__(None, store=store, tell_written=tell_written)
        self._version = 1_000_000

    async def _request(self, request, missing_ok=False):
        await asyncio.sleep(0)
        if request.verb == "list":
            return {"apiVersion": "v1", "metadata": {"resourceVersion": "0"}, "items": []}
        if request.verb != "patch":
            return request.body
        body, self._version = request.body, self._version + 1
        metadata = body["metadata"]
        live = self._store.get(body["kind"], metadata["namespace"], metadata["name"]) or {"metadata": {}}
        given = {"uid": f"uid-{metadata['name']}", "generation": 1, "resourceVersion": str(self._version)}
        return {**live, **body, "metadata": {**live["metadata"], **metadata, **given}}


class Gaps:
    """The longest turn of the event loop, in seconds of this thread's CPU: others on the machine do not count."""

    def __init__(self):
        self.longest = 0.0

    async def watch(self):
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest, before = max(self.longest, now - before), now


def _with(live, namespace="default", version=1):
    live["metadata"] |= {"namespace": namespace, "resourceVersion": str(version)}
    return live


def _make_left(number):
    """Of a DeployedModel that is gone: its Service, and a route that still leads there."""
    name = names.server(f"gone-{number}")
    labels = {**names.OURS, names.LABEL_DEPLOYED_MODEL: f"gone-{number}"}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}, "spec": {}}
    spec = {"rules": [{"backendRefs": [{"name": name, "weight": 1}]}]}
    route = {"apiVersion": "v1", "kind": "HTTPRoute", "metadata": {"name": f"r-{number}", "labels": names.OURS}}
    return _with(service), _with({**route, "spec": spec})


async def _work(settings, count: int, change: Callable[[Feed, int], list[Key]]) -> float:
    """The longest turn of the loop while all that `change` told is worked on."""
    store, done = Store(WATCHED), asyncio.Event()
    left: set[Key] = set()

    async def work(key):
        again = await reconciler.reconcile(key)
        left.discard(key)
        if not left:
            done.set()
        return again

    queue = WorkQueue[Key](work, 16, share_of=lambda key: key.namespace)
    feed = Feed(store, queue, lambda: None)
    cluster = EchoingCluster(store, feed.tell_written)
    reconciler = Reconciler(cluster, FakeProber(), settings, lambda: datetime.now(UTC))
    left |= set(change(feed, count))
    begin, gaps = asyncio.Event(), Gaps()
    tasks = [asyncio.create_task(queue.run(begin)), asyncio.create_task(gaps.watch())]
    gc.disable()  # it comes when it likes, and is not what is measured
    try:
        begin.set()
        await asyncio.wait_for(done.wait(), 120)
    finally:
        gc.enable()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return gaps.longest


def _remove(feed, count):
    for number in range(count):
        for live in _make_left(number):
            feed.tell(live["kind"], live)
    return [Key("DeployedModel", "default", f"gone-{number}") for number in range(count)]


def _deploy(feed, count):
    """All of one Model, each on an Endpoint of its own."""
    feed.tell("Model", _with(make_model()))
    for number in range(count):
        endpoint = _with(make_endpoint())
        endpoint["metadata"]["name"] = f"e-{number}"
        live = _with(make_deployed_model(f"d-{number}", available=True, endpoint=f"e-{number}"))
        feed.tell("Endpoint", endpoint)
        feed.tell("DeployedModel", live)
    return [Key("DeployedModel", "default", f"d-{number}") for number in range(count)]


@pytest.mark.parametrize("change", [_remove, _deploy], ids=["removals", "deployments"])
async def test_turns_of_the_loop_do_not_grow_with_what_there_is(settings, change):
    few, many = [min([await _work(settings, count, change) for _ in range(2)]) for count in (FEW, MANY)]
    print(f"longest turn: {few * 1000:.1f} ms of {FEW}, {many * 1000:.1f} ms of {MANY}")
    assert many < 5 * few  # by objects it would be ten times as long
