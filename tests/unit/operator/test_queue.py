import asyncio

import pytest
from pierhead_operator.queue import RetryLater, WorkQueue, compute_backoff


class Worker:
    """Records the keys that were worked on; a key can be held until it is released, or made to fail."""

    def __init__(self):
        self.seen = []
        self.running = set()
        self.overlaps = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.failures = {}
        self.changed = asyncio.Condition()

    async def __call__(self, key):
        if key in self.running:
            self.overlaps.append(key)
        self.running.add(key)
        async with self.changed:
            self.seen.append(key)
            self.changed.notify_all()
        await self.hold.wait()
        self.running.discard(key)
        if self.failures.get(key, 0):
            self.failures[key] -= 1
            raise RetryLater

    async def wait_for(self, count):
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: len(self.seen) >= count), 10)


@pytest.fixture
async def worker():
    return Worker()


@pytest.fixture
async def queue(worker):
    queue = WorkQueue(worker, concurrency=2)
    task = asyncio.create_task(queue.run())
    yield queue
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_queue_works_once_on_what_waits(queue, worker):
    for _ in range(5):
        queue.add("a")
    await worker.wait_for(1)
    queue.add("b")
    await worker.wait_for(2)
    assert worker.seen == ["a", "b"]


async def test_queue_works_again_on_what_changed_meanwhile_and_never_twice_at_once(queue, worker):
    worker.hold.clear()
    queue.add("a")
    await worker.wait_for(1)
    queue.add("a")
    queue.add("a")
    worker.hold.set()
    await worker.wait_for(2)
    queue.add("end")
    await worker.wait_for(3)
    assert worker.seen == ["a", "a", "end"]
    assert not worker.overlaps


async def test_queue_retries_after_back_off_and_others_go_on(queue, worker):
    worker.failures["a"] = 2
    queue.add("a")
    await worker.wait_for(1)
    queue.add("b")
    await worker.wait_for(4)
    assert sorted(worker.seen) == ["a", "a", "a", "b"]


def test_backoff_grows_and_is_bounded():
    assert 0.125 <= compute_backoff(1) <= 0.25
    assert 1 <= compute_backoff(4) <= 2
    assert 150 <= compute_backoff(10_000) <= 300
