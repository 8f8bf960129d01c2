"""What a watch lost is found by a list."""

import asyncio

import pytest
from pierhead_operator.cluster import ClusterError
from pierhead_operator.resync import Resync


class FakeCluster:
    """Lists what it is given. Fake because the real one asks an API server."""

    def __init__(self, **objects):
        self.objects = objects
        self.fails = 0
        self.asked = []

    async def refresh(self, kind, namespace, labels):
        self.asked.append((kind, namespace, labels))
        if self.fails:
            self.fails -= 1
            raise ClusterError("away")
        for name in self.objects.get(kind, ()):
            yield {"metadata": {"name": name}}


@pytest.fixture
def make():
    def make(cluster, namespaces=()):
        enqueued, counted = [], {}

        def enqueue(kind, live):
            enqueued.append((kind, live["metadata"]["name"]))

        resync = Resync(cluster, {"Model", "Service"}, namespaces, enqueue, counted.__setitem__)
        return resync, enqueued, counted

    return make


async def test_all_that_is_listed_is_looked_after(make):
    cluster = FakeCluster(Model=["m"], Service=["a", "b"])
    resync, enqueued, counted = make(cluster)
    await resync.resync()
    assert enqueued == [("Model", "m"), ("Service", "a"), ("Service", "b")]
    assert counted == {"Model": 1}
    ours = {"app.kubernetes.io/managed-by": "pierhead"}
    assert cluster.asked == [("Model", None, {}), ("Service", None, ours)]


async def test_each_namespace_is_asked_for(make):
    cluster = FakeCluster(Model=["m"])
    resync, _, counted = make(cluster, ["x", "y"])
    await resync.resync()
    assert {namespace for _, namespace, _ in cluster.asked} == {"x", "y"}
    assert counted == {"Model": 2}


async def test_nothing_is_complete_before_all_was_listed(make, monkeypatch):
    monkeypatch.setattr("pierhead_operator.resync._RETRY_SECONDS", 0)
    cluster = FakeCluster(Model=["m"])
    cluster.fails = 2
    resync, enqueued, _ = make(cluster)
    task = asyncio.create_task(resync.run())
    try:
        assert not resync.complete.is_set()
        await asyncio.wait_for(resync.complete.wait(), 10)
        assert enqueued == [("Model", "m")]
        assert resync.age < 10
    finally:
        task.cancel()
