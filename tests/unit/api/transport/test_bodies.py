"""What bodies of management calls may take, and of whom."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from pierhead_api import errors
from pierhead_api.bodies import Bodies, BodyLimits, parse_object
from pierhead_api.transport import CallerGoneError

LIMITS = BodyLimits(body=100, of_a_caller=150, of_all=250)
ALICE, BOB, EVE = "alice", "bob", "eve"


def declare(length):
    return {b"content-length": b"%d" % length}


def send(*pieces):
    """What is received: these pieces, and then nothing more, whoever waits."""
    left = [*pieces]

    async def receive():
        if not left:
            await asyncio.Event().wait()
        piece = left.pop(0)
        return piece if isinstance(piece, dict) else {"type": "http.request", "body": piece, "more_body": bool(left)}

    return receive


async def test_bytes_are_held_until_the_answer():
    bodies = Bodies(LIMITS)
    async with bodies.read(ALICE, declare(90), send(b" " * 90)) as body:
        assert body == {}
        with pytest.raises(errors.ResourceExhaustedError, match="your calls"):
            async with bodies.read(ALICE, declare(90), send(b" " * 90)):
                pass
        async with bodies.read(BOB, declare(90), send(b" " * 90)):
            with pytest.raises(errors.ResourceExhaustedError, match="too many large requests"):
                async with bodies.read(EVE, declare(90), send(b" " * 90)):
                    pass
            async with bodies.read(EVE, declare(2), send(b"{}")):  # small ones go on
                pass
    async with bodies.read(ALICE, declare(90), send(b" " * 90)):
        assert list(bodies._held) == [ALICE]
    assert not bodies._held


CHUNKED = {b"transfer-encoding": b"chunked"}
SLOW = {"type": "http.request", "body": b"{", "more_body": True}


async def test_body_that_declares_no_length_takes_the_most_until_it_is_there():
    bodies = Bodies(BodyLimits(body=100, of_a_caller=150, seconds=5))
    slow = asyncio.create_task(_enter(AsyncExitStack(), bodies.read(ALICE, CHUNKED, send(SLOW))))
    await asyncio.sleep(0)
    with pytest.raises(errors.ResourceExhaustedError):
        async with bodies.read(ALICE, CHUNKED, send(b"{}")):
            pass
    slow.cancel()
    await asyncio.wait({slow})
    async with AsyncExitStack() as stack:
        for _ in range(20):  # of two bytes each
            await stack.enter_async_context(bodies.read(ALICE, CHUNKED, send(b"{}")))


async def test_call_without_a_body_takes_nothing():
    bodies = Bodies(LIMITS)
    async with AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(bodies.read(ALICE, {}, send(b"")))


async def test_body_that_is_slow_is_given_up():
    bodies = Bodies(BodyLimits(seconds=0.01))
    with pytest.raises(errors.RequestTimeoutError, match=r"within 0\.01 s"):
        async with bodies.read(ALICE, declare(3), send({"type": "http.request", "body": b"{", "more_body": True})):
            pass
    assert not bodies._held


async def test_call_itself_may_take_longer():
    async with Bodies(BodyLimits(seconds=0.01)).read(ALICE, declare(2), send(b"{}")):
        await asyncio.sleep(0.02)


async def test_caller_who_is_gone_holds_nothing():
    bodies = Bodies(LIMITS)
    with pytest.raises(CallerGoneError):
        async with bodies.read(ALICE, declare(50), send({"type": "http.disconnect"})):
            pass
    assert not bodies._held


@pytest.mark.parametrize("headers", [declare(101), {}])
async def test_body_that_is_too_large_is_refused(headers):
    with pytest.raises(errors.BodyTooLargeError, match="over 100 bytes"):
        async with Bodies(LIMITS).read(ALICE, headers, send(b" " * 60, b" " * 60)):
            pass


@pytest.mark.parametrize("data", [b"[" * 500, b'{"a":' * 500, b"[" + b"{}," * 10_001])
def test_body_that_is_deep_or_of_many_values_is_refused(data):
    with pytest.raises(errors.InvalidArgumentError, match=r"recursion|more than 10000 values"):
        parse_object(data, 10_000)


async def test_slow_bodies_of_one_caller_keep_nobody_else_out():
    bodies, refused = Bodies(BodyLimits()), 0
    async with AsyncExitStack() as stack:
        tasks = [asyncio.create_task(_enter(stack, bodies.read(ALICE, CHUNKED, send(SLOW)))) for _ in range(40)]
        done, waiting = await asyncio.wait(tasks, timeout=0.05)
        refused = len([task for task in done if isinstance(task.exception(), errors.ResourceExhaustedError)])
        async with bodies.read(BOB, declare(2), send(b"{}")) as body:
            assert body == {}
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    assert (refused, len(waiting)) == (32, 8)


async def _enter(stack, reading):
    await stack.enter_async_context(reading)
