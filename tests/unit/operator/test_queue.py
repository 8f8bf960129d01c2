import asyncio
from types import SimpleNamespace

import pytest
from pierhead_operator.queue import FairLine, RetryLater, WorkQueue, compute_backoff


class Worker:
    """Records the keys that were worked on; a key can be held until it is released, or made to fail."""

    def __init__(self):
        self.seen = []
        self.running = set()
        self.overlaps = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.failures = {}
        self.again = {}
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
        return self.again.pop(key, None)

    async def wait_for(self, count):
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: len(self.seen) >= count), 10)


@pytest.fixture
async def worker():
    return Worker()


@pytest.fixture
def waits():
    """How long each key waited for a worker."""
    return []


@pytest.fixture
def begin():
    return asyncio.Event()


@pytest.fixture
async def idle_queue(worker, waits, begin):
    """One whose work has not begun."""
    queue = WorkQueue(worker, concurrency=2, observe_wait=waits.append)
    task = asyncio.create_task(queue.run(begin))
    yield queue
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
def queue(idle_queue, begin):
    begin.set()
    return idle_queue


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


async def test_queue_works_again_when_the_work_asks_for_it(queue, worker):
    worker.again["a"] = 0.01
    queue.add("a")
    await worker.wait_for(2)
    queue.add("end")
    await worker.wait_for(3)
    assert worker.seen == ["a", "a", "end"]


async def test_queue_forgets_what_the_work_asked_for_when_an_event_comes_first(queue, worker):
    worker.again["a"] = 3600
    queue.add("a")
    await worker.wait_for(1)
    queue.add("a")
    await worker.wait_for(2)
    assert worker.seen == ["a", "a"]
    assert queue.length == 0


async def test_queue_collects_keys_before_it_begins_and_then_works_on_each_once(idle_queue, worker, begin):
    for key in ("a", "b", "a", "b"):
        idle_queue.add(key)
    for _ in range(10):  # turns of the loop, in which a worker that does not wait would have begun
        await asyncio.sleep(0)
    assert idle_queue.length == 2
    assert worker.seen == []
    begin.set()
    await worker.wait_for(2)
    idle_queue.add("end")
    await worker.wait_for(3)
    assert worker.seen == ["a", "b", "end"]


async def test_queue_tells_its_length_and_how_long_keys_waited(queue, worker, waits):
    worker.hold.clear()
    for key in ("a", "b", "c"):
        queue.add(key)
    await worker.wait_for(2)
    assert queue.length == 1
    assert len(waits) == 2
    worker.hold.set()
    await worker.wait_for(3)
    assert queue.length == 0
    assert len(waits) == 3
    assert all(0 <= seconds < 10 for seconds in waits)


async def test_time_before_the_beginning_is_no_wait_for_a_worker(idle_queue, worker, waits, begin, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("pierhead_operator.queue.time", SimpleNamespace(monotonic=lambda: now))
    idle_queue.add("a")
    now += 3600
    begin.set()
    await worker.wait_for(1)
    assert waits == [0]


def test_backoff_grows_and_is_bounded():
    assert 0.125 <= compute_backoff(1) <= 0.25
    assert 1 <= compute_backoff(4) <= 2
    assert 150 <= compute_backoff(10_000) <= 300


# Fair


@pytest.fixture
async def shared_queue(worker, begin):
    """Four workers for keys such as `tenant/name`, of which each tenant's are a share."""
    queue = WorkQueue(worker, concurrency=4, share_of=lambda key: key.partition("/")[0])
    task = asyncio.create_task(queue.run(begin))
    yield queue
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_share_that_is_slow_leaves_a_worker_to_others(shared_queue, worker, begin):
    worker.hold.clear()
    for number in range(10):
        shared_queue.add(f"slow/{number}")
    begin.set()
    await worker.wait_for(3)
    shared_queue.add("other/a")
    await worker.wait_for(4)
    assert worker.seen == ["slow/0", "slow/1", "slow/2", "other/a"]


async def test_shares_take_turns(shared_queue, worker, begin):
    for tenant in ("many", "few"):
        for number in range(20 if tenant == "many" else 2):
            shared_queue.add(f"{tenant}/{number}")
    begin.set()
    await worker.wait_for(22)
    assert {"few/0", "few/1"} <= set(worker.seen[:6])


async def test_events_come_before_a_resync(idle_queue, worker, begin):
    for number in range(5):
        idle_queue.add(f"resync-{number}", urgent=False)
    idle_queue.add("event")
    idle_queue.add("resync-4")
    begin.set()
    await worker.wait_for(6)
    assert worker.seen == ["event", "resync-4", "resync-0", "resync-1", "resync-2", "resync-3"]


async def test_resync_gets_its_turn_beside_endless_events(idle_queue, worker, begin):
    idle_queue.add("resync", urgent=False)
    for number in range(100):
        idle_queue.add(f"event-{number}")
    begin.set()
    await worker.wait_for(101)
    assert worker.seen.index("resync") < 20


async def test_many_events_within_a_while_are_worked_on_once(queue, worker):
    for _ in range(5):
        queue.add_within("a", 0.02)
    await worker.wait_for(1)
    queue.add("end")
    await worker.wait_for(2)
    assert worker.seen == ["a", "end"]


async def test_sooner_of_two_times_counts(queue, worker):
    queue.add_within("a", 0.01)
    queue.add_within("a", 3600)
    await worker.wait_for(1)
    queue.add_after("b", 3600)
    queue.add_within("b", 0.01)
    await worker.wait_for(2)
    assert worker.seen == ["a", "b"]


def test_line_without_its_keys_is_empty():
    line = FairLine(lambda key: key[0])
    line.push("a1")
    line.discard("a1")
    line.discard("b1")
    assert line.pop(lambda _: True) is None
