"""Questions that take long hold nobody but themselves."""

import asyncio

import pytest
from pierhead_operator import looks
from pierhead_operator.looks import Limits, Looks

LONG = 3600.0


class Pods:
    """Answers once it is told to; records who is being asked."""

    def __init__(self):
        self.asked = []
        self.answer = asyncio.Event()
        self.changed = asyncio.Condition()

    def question(self, key):
        async def ask():
            async with self.changed:
                self.asked.append(key)
                self.changed.notify_all()
            await self.answer.wait()
            return f"answer of {key}"

        return ask

    async def wait_for(self, count):
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: len(self.asked) >= count), 10)


@pytest.fixture
async def pods():
    there = Pods()
    yield there
    there.answer.set()


@pytest.fixture
def answered():
    return asyncio.Queue()


@pytest.fixture
def asking(answered):
    return Looks(Limits(in_all=4, of_a_share=2), lambda key: key[0], answered.put_nowait)


async def test_answer_that_comes_soon_is_given_at_once(asking, pods, answered):
    pods.answer.set()
    assert await asking.ask("a1", pods.question("a1"), LONG) == "answer of a1"
    assert answered.empty(), "somebody waited for it"


async def test_answer_that_comes_late_is_told_and_kept_for_the_next_look(asking, pods, answered):
    assert await asking.ask("a1", pods.question("a1"), 0) is None
    await pods.wait_for(1)
    assert asking.is_asking("a1")
    assert await asyncio.wait_for(asking.ask("a1", pods.question("a1"), LONG), 10) is None, "it was waited for before"
    assert pods.asked == ["a1"], "one question at a time"
    pods.answer.set()
    assert await asyncio.wait_for(answered.get(), 10) == "a1"
    assert await asking.ask("a1", pods.question("a1"), 0) == "answer of a1"
    assert await asking.ask("a1", pods.question("a1"), LONG) == "answer of a1"
    assert pods.asked == ["a1", "a1"], "an answer is given once"


async def test_share_whose_pods_hang_leaves_room_for_others(asking, pods):
    for number in range(40):
        assert await asking.ask(f"a{number}", pods.question(f"a{number}"), 0) is None
    await pods.wait_for(2)
    assert await asking.ask("b1", pods.question("b1"), 0) is None
    await pods.wait_for(3)
    assert pods.asked == ["a0", "a1", "b1"]


async def test_question_that_fails_is_asked_again(asking, caplog):
    async def fail():
        raise RuntimeError("a bug")

    async def answer():
        return "well"

    assert await asking.ask("a1", fail, LONG) is None
    assert "a bug" in caplog.text
    assert await asking.ask("a1", answer, LONG) == "well"


async def test_answer_of_long_ago_tells_nothing(asking, pods, answered, monkeypatch):
    assert await asking.ask("a1", pods.question("a1"), 0) is None
    pods.answer.set()
    await asyncio.wait_for(answered.get(), 10)
    pods.answer.clear()
    monkeypatch.setattr(looks, "_FRESH_SECONDS", 0.0)
    assert await asking.ask("a1", pods.question("a1"), 0) is None
