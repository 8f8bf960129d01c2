"""How many waiting requests a worker gets: a table of policies and backlogs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pierhead_server.batching import (
    MOST_PASSES,
    Backlog,
    BatchPolicy,
    Lanes,
    decide_batch,
    decide_lane,
    has_room_for_heavy,
)
from pierhead_server.workers import Pool

ALONE = BatchPolicy()
FULL_ONLY = BatchPolicy(size=4)
AHEAD = BatchPolicy(size=4, depth=2, surplus=4)
PARTIAL = BatchPolicy(size=8, partial=True, depth=2, delay=0.005)


@pytest.mark.parametrize(
    ("policy", "backlog", "in_hand", "count"),
    [
        # Nothing waits: nothing goes.
        (ALONE, Backlog(0, 0.0, 2), 0, 0),
        (FULL_ONLY, Backlog(0, 0.0, 2), 0, 0),
        (PARTIAL, Backlog(0, 1.0, 1), 0, 0),
        # Idle: goes at once, by itself, without waiting for others.
        (ALONE, Backlog(1, 0.0, 1), 0, 1),
        (FULL_ONLY, Backlog(1, 0.0, 2), 0, 1),
        (PARTIAL, Backlog(1, 0.0, 1), 0, 1),
        # One at a time, whatever waits.
        (ALONE, Backlog(9, 9.0, 1), 0, 1),
        (ALONE, Backlog(9, 9.0, 0), 1, 0),
        # On a CPU a size that is not filled gains nothing.
        (FULL_ONLY, Backlog(3, 0.0, 1), 0, 1),
        (FULL_ONLY, Backlog(4, 0.0, 1), 0, 4),
        (FULL_ONLY, Backlog(99, 0.0, 1), 0, 4),
        # A batch for one worker must not leave another one idle.
        (FULL_ONLY, Backlog(4, 0.0, 2), 0, 1),
        (FULL_ONLY, Backlog(7, 0.0, 2), 0, 1),
        (FULL_ONLY, Backlog(8, 0.0, 2), 0, 4),
        (FULL_ONLY, Backlog(99, 9.0, 0), 1, 0),
        # The next batch goes to one that is busy only of what is more than all of them can take at once.
        (AHEAD, Backlog(7, 9.0, 0, 2), 1, 0),
        (AHEAD, Backlog(8, 0.0, 0, 2), 1, 4),
        (AHEAD, Backlog(99, 9.0, 0, 2), 2, 0),
        (AHEAD, Backlog(1, 0.0, 1, 2), 0, 1),
        # On a GPU what is there goes, shared with who is idle beside it.
        (PARTIAL, Backlog(3, 0.0, 1), 0, 3),
        (PARTIAL, Backlog(99, 0.0, 1), 0, 8),
        (PARTIAL, Backlog(3, 0.0, 2), 0, 2),
        (PARTIAL, Backlog(8, 0.0, 4), 0, 2),
        (PARTIAL, Backlog(1, 0.0, 4), 0, 1),
        # While it computes, a second batch waits for more to come, until the first of it has waited long enough.
        (PARTIAL, Backlog(3, 0.004, 0), 1, 0),
        (PARTIAL, Backlog(3, 0.005, 0), 1, 3),
        (PARTIAL, Backlog(8, 0.0, 0), 1, 8),
        (PARTIAL, Backlog(9, 9.0, 0), 2, 0),
    ],
)
def test_batch_is_decided(policy, backlog, in_hand, count):
    assert decide_batch(policy, backlog, in_hand=in_hand) == count


POLICIES = st.builds(
    BatchPolicy,
    size=st.integers(1, 32),
    partial=st.booleans(),
    depth=st.integers(1, 3),
    surplus=st.integers(0, 8),
    delay=st.floats(0, 1),
)
BACKLOGS = st.builds(
    Backlog,
    waiting=st.integers(0, 100),
    oldest=st.floats(0, 10),
    idle_workers=st.integers(0, 8),
    workers=st.integers(1, 8),
)


@given(POLICIES, BACKLOGS, st.integers(0, 3))
def test_a_worker_never_gets_more_than_waits_or_than_it_holds(policy, backlog, in_hand):
    count = decide_batch(policy, backlog, in_hand=in_hand)
    assert 0 <= count <= min(policy.size, backlog.waiting)
    assert count == 0 or in_hand < policy.depth


@given(POLICIES, BACKLOGS)
def test_nobody_waits_while_a_worker_is_idle(policy, backlog):
    assert (decide_batch(policy, backlog, in_hand=0) > 0) == (backlog.waiting > 0)


@pytest.mark.parametrize(
    ("pipelined", "policy"),
    [(False, BatchPolicy(size=4, depth=2, surplus=4)), (True, BatchPolicy(size=4, partial=True, depth=2, delay=0.005))],
)
def test_policy_suits_the_worker(pipelined, policy):
    assert Pool(workers=1, queue_size=1, answer_seconds=1.0).policy(4, pipelined=pipelined) == policy


@pytest.mark.parametrize("pipelined", [False, True])
def test_policy_of_a_batch_job_keeps_the_next_batch_in_each_worker_s_hands(pipelined):
    pool = Pool(workers=1, queue_size=1, answer_seconds=1.0, offline=True, batch=3)
    policy = pool.policy(4, pipelined=pipelined)
    assert (policy.size, policy.depth) == (3, 2)
    for in_hand in (0, 1):
        assert decide_batch(policy, Backlog(waiting=9, oldest=0.0, idle_workers=0), in_hand=in_hand) == 3


@pytest.mark.parametrize(
    ("lanes", "turn"),
    [
        (Lanes(calls=False, pieces=False, passes=0), None),
        (Lanes(calls=False, pieces=False, passes=9), None),
        (Lanes(calls=True, pieces=False, passes=9), "calls"),
        (Lanes(calls=False, pieces=True, passes=0), "pieces"),
        (Lanes(calls=True, pieces=True, passes=0), "calls"),
        (Lanes(calls=True, pieces=True, passes=MOST_PASSES - 1), "calls"),
        (Lanes(calls=True, pieces=True, passes=MOST_PASSES), "pieces"),
    ],
)
def test_calls_go_first_and_pieces_do_not_starve(lanes, turn):
    assert decide_lane(lanes) == turn


@pytest.mark.parametrize(
    ("workers", "heavy", "others_ask", "room"),
    [
        (1, 0, True, True),  # or they would never go
        (1, 1, False, False),
        (2, 0, True, True),
        (2, 1, True, False),
        (2, 1, False, True),
        (16, 14, True, True),
        (16, 15, True, False),
        (16, 15, False, True),
    ],
)
def test_heavy_pieces_leave_a_worker_where_others_ask(workers, heavy, others_ask, room):
    assert has_room_for_heavy(workers=workers, heavy=heavy, others_ask=others_ask) is room
