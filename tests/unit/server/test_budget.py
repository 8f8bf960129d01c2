"""Who goes when bytes are short: tables."""

from dataclasses import dataclass

import pytest
from pierhead_server.budget import (
    MUCH,
    SLOW_AFTER_SECONDS,
    SLOW_PACE,
    SLOW_SECONDS,
    Budget,
    Progress,
    choose_victims,
    is_slow,
)
from pierhead_server.errors import RequestBytesFullError

NOW = 1000.0
OLD = SLOW_AFTER_SECONDS * 10
FAST = int(SLOW_PACE * OLD)


@dataclass(eq=False)
class Moving:
    """A transfer of which this much has moved."""

    begun: float
    moved: int
    held: int = 100
    dropped: bool = False

    def measure(self):
        return Progress(self.moved, None)

    def drop(self):
        self.dropped = True


def make(age, moved, held=100):
    return Moving(NOW - age, moved, held)


@pytest.mark.parametrize(
    ("transfers", "missing", "victims"),
    [
        ([], 1, None),
        ([], 0, []),
        ([make(OLD, 0)], 100, [0]),
        ([make(OLD, 0)], 101, None),  # nobody goes in vain
        ([make(OLD, 50), make(OLD, 0), make(OLD, 100)], 150, [1, 0]),  # the slowest first, and no more than needed
        ([make(OLD, FAST), make(OLD, 0)], 150, None),  # who comes along well is safe
        ([make(OLD, 0), make(SLOW_AFTER_SECONDS / 2, 0)], 150, None),  # and who has only begun
        ([make(OLD, 1), make(OLD / 2, 0)], 1, [1]),
    ],
)
def test_slowest_transfers_make_room(transfers, missing, victims):
    chosen = choose_victims(transfers, missing, missing, NOW)
    assert chosen == (None if victims is None else [transfers[index] for index in victims])


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("pace", "left", "asked", "slow"),
    [
        (SLOW_PACE - 1, 0, MIB, True),
        (SLOW_PACE, None, MIB, False),
        (SLOW_PACE, 9 * MIB, 50_000, True),  # it would hold its bytes for more than two minutes
        (SLOW_PACE, 9 * MIB, 9 * MIB, False),  # of a crowd of large ones on a thin line each comes through
        (SLOW_PACE, int(SLOW_PACE * SLOW_SECONDS), 50_000, False),  # it ends soon
        (4 * SLOW_PACE, 9 * MIB, 50_000, True),
        (MIB, 9 * MIB, 50_000, False),
        (SLOW_PACE, 4 * MIB, 4 * MIB // MUCH, False),
    ],
)
def test_transfer_that_holds_much_for_long_is_slow_for_who_asks_for_little(pace, left, asked, slow):
    assert is_slow(Progress(int(pace * 10), left), 10, asked) == slow


@pytest.mark.parametrize(("seconds", "asked", "slow"), [(9, 50_000, False), (20, 50_000, True), (20, MIB, False)])
def test_of_an_unknown_length_as_much_is_expected_again(seconds, asked, slow):
    assert is_slow(Progress(SLOW_PACE * seconds, None), seconds, asked) == slow


def test_budget_counts_all_that_is_held():
    budget, held = Budget(1000), [500]
    budget.watch(lambda: held[0])
    slow, fast = make(OLD, 0, 300), make(OLD, FAST, 100)
    budget.begin(slow)
    budget.begin(fast)
    assert budget.held == 900
    budget.make_room(100, NOW)
    assert not slow.dropped
    with pytest.raises(RequestBytesFullError, match="requests hold 1000 bytes: try again later"):
        budget.make_room(401, NOW)
    assert not slow.dropped
    assert not budget.is_over
    held[0] = 601
    assert budget.is_over
    held[0] = 500
    budget.make_room(400, NOW)
    assert (slow.dropped, fast.dropped, budget.held) == (True, False, 600)
    budget.resize(slow, 1000)  # it hears of it later
    budget.end(slow)
    budget.resize(fast, 150)
    held[0] = 0
    assert budget.held == 150
    budget.end(fast)
    assert budget.held == 0
