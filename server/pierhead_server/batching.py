"""Which waiting requests go to a worker, and how many at once. Pure: no clock, no queue, no torch.

Nobody waits for a batch while a worker has nothing to do: batches form of what came while it was busy.
Calls wait in one lane and the pieces of large requests in another: calls go first, and yet pieces never starve.
"""

from dataclasses import dataclass
from typing import Literal

# A piece of more is heavy: it keeps its worker for longer than an ordinary request takes. Decoding costs a core 5 to
# 20 ns a pixel.
HEAVY_PIXELS = 4_000_000
MOST_PASSES = 3  # calls that go past a piece that could go, in a row


@dataclass(frozen=True)
class BatchPolicy:
    """What suits a device, and the form that the model has on it."""

    size: int = 1  # requests in a batch at most
    partial: bool = False  # whether fewer than `size` are worth a batch too, as on a GPU
    depth: int = 1  # batches in a worker's hands; with 2 the next one is there when it ends the one before
    surplus: int = 0  # requests that wait for each worker, before one that is busy gets the next batch
    delay: float = 0.0  # seconds that a request waits for others while the worker computes


@dataclass(frozen=True)
class Backlog:
    """What waits."""

    waiting: int  # requests
    oldest: float  # seconds that the first of them has waited
    idle_workers: int  # with nothing in their hands
    workers: int = 1
    missing: int = 0  # of the workers, for the moment


def is_able(policy: BatchPolicy, backlog: Backlog, *, in_hand: int) -> bool:
    """Whether a worker with `in_hand` batches may get one more.

    What is behind a batch waits for that worker alone: where it should go to whoever is free first, only the surplus.
    """
    if in_hand >= policy.depth:
        return False
    if not in_hand or not policy.surplus:
        return True
    return not backlog.missing and backlog.waiting >= policy.surplus * backlog.workers


def decide_batch(policy: BatchPolicy, backlog: Backlog, *, in_hand: int) -> int:
    """How many requests a worker with `in_hand` batches gets now; 0: it is not its turn yet."""
    if not backlog.waiting or not is_able(policy, backlog, in_hand=in_hand):
        return 0
    if not policy.partial:
        # A size that is not filled gains nothing, and others may be idle: a batch only of what all of them leave.
        return policy.size if backlog.waiting >= policy.size * max(1, backlog.idle_workers) else 1
    count = min(backlog.waiting, policy.size)
    if in_hand == 0:
        # Shared with who is idle beside it: two halves at once are done sooner than a whole.
        return -(-count // max(1, backlog.idle_workers))
    # The device is busy: what goes now only waits there, and could take others along.
    return count if count == policy.size or backlog.oldest >= policy.delay else 0


@dataclass(frozen=True)
class Lanes:
    """Who could go to a worker now."""

    calls: bool
    pieces: bool
    passes: int  # calls that went past the pieces, since one of these went


def decide_lane(lanes: Lanes) -> Literal["calls", "pieces"] | None:
    """Whose turn it is; None where nobody waits."""
    if lanes.calls and lanes.pieces:
        return "pieces" if lanes.passes >= MOST_PASSES else "calls"
    if lanes.pieces:
        return "pieces"
    return "calls" if lanes.calls else None


def has_room_for_heavy(*, workers: int, heavy: int, others_ask: bool) -> bool:
    """Whether one more worker may take a heavy piece, while `heavy` of them have some.

    One is kept for everybody else, if anybody else asks.
    """
    return heavy < max(1, workers - others_ask)
