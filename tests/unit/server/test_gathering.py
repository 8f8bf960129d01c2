"""Pieces that are answered in any order, with whatever outcome, and the one answer that they are."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pierhead_server.batching import HEAVY_PIXELS
from pierhead_server.errors import InternalError
from pierhead_server.gathering import Gathering, Pieces
from pierhead_server.joining import join
from pierhead_server.messages import Call, Reply, Split

KNOWN = Reply(200, b"", queue_seconds=0.5, batch=3)


def make_split(*pixels):
    pieces = [Call("kserve", b"%d" % place, first=place) for place in range(len(pixels))]
    return Split(pieces, list(pixels), b"digest", parse_seconds=1.0)


def answer(place):
    return Reply(200, b'{"predictions":[%d]}' % place, instances=1, parse_seconds=0.25)


def refuse(place):
    return Reply(400, b'{"error":"%d"}' % place)


OUTCOMES = {"ok": answer, "refused": refuse, "died": lambda place: InternalError(f"died of {place}")}


async def gather(kinds, order):
    """The outcome, where pieces end in this order."""
    future = asyncio.get_running_loop().create_future()
    gathering = Gathering(make_split(*[0] * len(kinds)), future, KNOWN)
    pieces = [gathering.take() for _ in kinds]
    assert not gathering.left
    for place in order:
        outcome = OUTCOMES[kinds[place]](place)
        if pieces[place].future.done():
            continue  # it was given up
        if isinstance(outcome, Reply):
            pieces[place].future.set_result(outcome)
        else:
            pieces[place].future.set_exception(outcome)
        if place % 2:
            await asyncio.sleep(0)  # or it is told together with the next one
    async with asyncio.timeout(10):
        return await asyncio.gather(future, return_exceptions=True)


@given(st.data())
def test_answer_is_what_one_worker_would_have_said(data):
    kinds = data.draw(st.lists(st.sampled_from(list(OUTCOMES)), min_size=1, max_size=8))
    order = data.draw(st.permutations(range(len(kinds))))
    (outcome,) = asyncio.run(gather(kinds, order))
    first = next((place for place, kind in enumerate(kinds) if kind != "ok"), None)
    if first is None:
        assert msgspec.json.decode(outcome.body) == {"predictions": list(range(len(kinds)))}
        assert (outcome.instances, outcome.queue_seconds, outcome.batch) == (len(kinds), 0.5, 3)
        assert outcome.parse_seconds == 1.0 + 0.25 * len(kinds)
    elif kinds[first] == "refused":
        assert (outcome.code, outcome.body) == (400, refuse(first).body)
    else:
        assert isinstance(outcome, InternalError)
        assert str(outcome) == f"died of {first}"


async def make_lane(*requests):
    """A lane of requests with pieces of so many pixels each."""
    lane, futures = Pieces(), [asyncio.get_running_loop().create_future() for _ in requests]
    for pixels, future in zip(requests, futures, strict=True):
        lane.add(Gathering(make_split(*pixels), future, KNOWN))
    return lane, futures


async def test_requests_take_turns():
    lane, _ = await make_lane([1] * 4, [1], [1] * 2)
    assert [piece.call.body for piece in lane.take(9, heavy=False)] == [b"0", b"0", b"0", b"1", b"1", b"2", b"3"]
    assert (len(lane), lane.pixels) == (0, 7)


async def test_heavy_piece_waits_for_room_and_goes_alone():
    lane, _ = await make_lane([HEAVY_PIXELS + 1, 1], [1, HEAVY_PIXELS + 2])
    assert [piece.pixels for piece in lane.take(9, heavy=False)] == [1]
    assert not lane.can_go(heavy=False)
    assert lane.take(9, heavy=False) == []
    assert [piece.pixels for piece in lane.take(9, heavy=True)] == [HEAVY_PIXELS + 1]
    assert [piece.pixels for piece in lane.take(9, heavy=True)] == [HEAVY_PIXELS + 2]
    assert [piece.pixels for piece in lane.take(9, heavy=True)] == [1]


async def test_request_that_is_given_up_leaves_the_lane():
    lane, (first, second) = await make_lane([1, 1], [5])
    (piece,) = lane.take(1, heavy=False)
    first.cancel()
    await asyncio.sleep(0)
    assert piece.future.cancelled()
    assert (len(lane), lane.pixels) == (1, 5)
    (piece,) = lane.take(9, heavy=False)
    piece.future.set_result(answer(0))
    await second
    assert lane.pixels == 0


async def test_lane_holds_what_waits_and_what_is_answered():
    """Pieces in workers' hands count there."""
    lane, (first, second) = await make_lane([1, 1, 1], [1])
    assert lane.held_bytes == 4
    pieces = lane.take(3, heavy=False)  # by turns: two of the first request
    assert lane.held_bytes == 1
    pieces[0].future.set_result(answer(0))
    await asyncio.sleep(0)
    assert lane.held_bytes == 1 + len(answer(0).body)
    first.cancel()
    pieces[1].future.set_result(answer(0))
    await second
    assert lane.held_bytes == 0


@pytest.mark.parametrize("body", [b"", b"[]", b"{}"])
def test_answers_that_do_not_fit_together_are_the_servers_fault(body):
    for dialect in ("vertex", "oip"):
        with pytest.raises(InternalError, match="do not fit together"):
            join(dialect, [answer(0), Reply(200, body)])
