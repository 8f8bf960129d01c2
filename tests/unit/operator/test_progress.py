"""Workers are asked at a pace of their own, and those that do not answer keep nobody waiting."""

import asyncio
import time

import pytest
from pierhead_operator import progress
from pierhead_operator.cluster import Key
from pierhead_operator.progress import PACE_SECONDS, ProgressPoller
from pierhead_operator.types import ShardProgress

JOB = Key("BatchPredictionJob", "default", "nightly")


class Workers:
    """A worker's address is its shard. Fake because there are no pods."""

    def __init__(self):
        self.hanging = set()
        self.asked = []
        self.under_way = 0
        self.most = 0
        self.successful = 1

    async def ask_progress(self, address):
        self.asked.append(address)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(60 if address in self.hanging else 0)
            return ShardProgress(shard=int(address), successful=self.successful)
        finally:
            self.under_way -= 1


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def workers():
    return Workers()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def poller(workers, clock):
    return ProgressPoller(workers, clock)


def _addresses(count):
    return [str(number) for number in range(count)]


async def _let_rounds_end():
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=5)


async def test_workers_are_asked_once_in_a_pace_and_remembered_in_between(poller, workers, clock):
    first = await poller.poll(JOB, "uid", _addresses(3))
    assert (first.due, sorted(one.shard for one in first.progress)) == (True, [0, 1, 2])
    workers.successful = 5
    clock.now += PACE_SECONDS - 1
    second = await poller.poll(JOB, "uid", _addresses(3))
    assert (second.due, second.progress) == (False, first.progress)
    assert poller.seconds_left(JOB) == 1
    clock.now += 1
    third = await poller.poll(JOB, "uid", _addresses(3))
    assert (third.due, {one.successful for one in third.progress}) == (True, {5})
    assert len(workers.asked) == 6


async def test_jobs_keep_to_their_own_pace(poller, workers):
    other = Key(JOB.kind, JOB.namespace, "other")
    assert (await poller.poll(JOB, "uid", ["0"])).due
    poll = await poller.poll(other, "uid-other", ["7"])
    assert (poll.due, [one.shard for one in poll.progress]) == (True, [7])


async def test_another_try_is_asked_at_once_and_knows_nothing_of_the_one_before(poller):
    await poller.poll(JOB, "uid", _addresses(3))
    poll = await poller.poll(JOB, "uid again", [])
    assert (poll.due, poll.progress) == (True, [])


async def test_job_that_is_forgotten_is_known_no_more(poller):
    await poller.poll(JOB, "uid", _addresses(3))
    poller.forget(JOB)
    poller.forget(JOB)
    poll = await poller.poll(JOB, "uid", [])
    assert (poll.due, poll.progress) == (True, [])


async def test_thousand_workers_that_hang_hold_nobody_up(poller, workers, clock):
    workers.hanging = set(_addresses(1000))
    start = time.monotonic()
    for _ in range(3):
        poll = await poller.poll(JOB, "uid", _addresses(1000))
        assert poll.progress == []
        clock.now += PACE_SECONDS
    assert time.monotonic() - start < 2
    assert workers.most <= 16


async def test_answers_that_are_late_count_the_next_time(poller, workers, monkeypatch):
    answer = asyncio.Event()

    async def ask_progress(address):
        await answer.wait()
        return ShardProgress(shard=int(address), successful=1)

    monkeypatch.setattr(workers, "ask_progress", ask_progress)
    assert (await poller.poll(JOB, "uid", ["0"])).progress == []
    answer.set()
    await _let_rounds_end()
    poll = await poller.poll(JOB, "uid", ["0"])
    assert (poll.due, [one.successful for one in poll.progress]) == (False, [1])


async def test_workers_that_hang_keep_no_other_from_being_asked(poller, workers, clock, monkeypatch):
    monkeypatch.setattr(progress, "_ROUND_SECONDS", 0.05)
    workers.hanging = set(_addresses(200))
    heard = set()
    async with asyncio.timeout(10):
        while len(heard) < 100:
            heard = {one.shard for one in (await poller.poll(JOB, "uid", _addresses(300))).progress}
            clock.now += PACE_SECONDS
    assert heard == set(range(200, 300))
    # One that was asked too late in a round to answer within it is among the silent, until it does.
    async with asyncio.timeout(10):
        while {int(address) for address in workers.asked[:100]} != heard:
            workers.asked.clear()
            await poller.poll(JOB, "uid", _addresses(300))
            clock.now += PACE_SECONDS
