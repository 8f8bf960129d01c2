"""What each precision makes of a model: the table and the advice of `pierhead-server check`. No torch, no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pierhead_server.comparing import measure_rows
from pierhead_server.converted import Array, Precision

ENOUGH_SAMPLES = 30  # fewer tell too little about a top class for an advice
_FASTER = 1.15  # than float32, or a precision that moves answers is worth nothing
_MOST_MOVED = 0.02  # of a number on average
_MOST_CHANGED = 0.01  # of the samples, by their top class


@dataclass
class Agreement:
    """How one form's answers differ from the first form's, sample by sample."""

    has_classes: bool
    drifts: list[float] = field(default_factory=list)  # of each sample, the number that moves most
    same: int = 0  # samples with the same top class

    def add(self, given: Sequence[Array], expected: Sequence[Array], least: float) -> None:
        """What both forms make of a batch; `least` as in converted.Description."""
        outputs = [measure_rows(one, other, least) for one, other in zip(given, expected, strict=True)]
        self.drifts += np.max(outputs, axis=0).tolist()
        if self.has_classes:
            self.same += int((given[0].argmax(axis=1) == expected[0].argmax(axis=1)).sum())

    @property
    def most(self) -> float:
        """Of the sample that moves most."""
        return float(np.max(self.drifts))

    @property
    def mean(self) -> float:
        """Of all samples."""
        return float(np.mean(self.drifts))

    @property
    def changed(self) -> int:
        """Samples with another top class."""
        return len(self.drifts) - self.same if self.has_classes else 0


@dataclass(frozen=True)
class Speed:
    """What one row costs a form."""

    milliseconds: Mapping[int, float]  # of CPU, by the rows in a batch
    batch: int  # the best of these

    @property
    def best(self) -> float:
        """Milliseconds of CPU in the best batch."""
        return self.milliseconds[self.batch]


@dataclass(frozen=True)
class Measured:
    """The compiled form in one precision."""

    agreement: Agreement
    speed: Speed


@dataclass(frozen=True)
class Missing:
    """Why the server does not compute the model in a precision, here."""

    reason: str


@dataclass(frozen=True)
class Checked:
    """All that is known of one model."""

    first: Speed  # of the first form in float32
    rows: Mapping[Precision, Measured | Missing]
    samples: int
    are_own: bool  # or synthetic ones
    has_classes: bool


# --- the table ---


def make_table(checked: Checked) -> list[str]:
    """Lines of text, one a form; where none computes, its reason."""
    head = ["", "moves at most", "on average", *(["same top class"] if checked.has_classes else [])]
    rate = "images/s a core" if checked.has_classes else "rows/s a core"
    cells = [
        [*head, "ms, batch of 1", "ms, best batch", rate],
        ["first form", *[""] * (len(head) - 1), *_tell_speed(checked.first)],
        *(_tell(precision, row) for precision, row in checked.rows.items() if isinstance(row, Measured)),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    missing = [
        f"{precision:<{widths[0]}}  {row.reason}" for precision, row in checked.rows.items() if isinstance(row, Missing)
    ]
    return [*(_align(line, widths) for line in cells), *missing]


def _tell(precision: Precision, row: Measured) -> list[str]:
    agreement = row.agreement
    told = [precision, f"{agreement.most:.4f}", f"{agreement.mean:.4f}"]
    if agreement.has_classes:
        told.append(f"{agreement.same} of {len(agreement.drifts)}")
    return [*told, *_tell_speed(row.speed)]


def _tell_speed(speed: Speed) -> list[str]:
    return [f"{speed.milliseconds[1]:.2f}", f"{speed.best:.2f} ({speed.batch})", f"{1000 / speed.best:.0f}"]


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.ljust(width) if place == 0 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()


# --- the advice ---


def advise(checked: Checked) -> str:
    """One sentence: what to write into model.yaml, and what it costs."""
    exact = checked.rows["float32"]
    if isinstance(exact, Missing):
        return "Use `precision: float32` in model.yaml: only the first form serves this model."
    faster: dict[Precision, Measured] = {
        precision: row
        for precision, row in checked.rows.items()
        if isinstance(row, Measured) and row.speed.best * _FASTER <= exact.speed.best
    }
    if not faster:
        return f"Use `precision: float32` in model.yaml: no other is at least {_FASTER} times as fast on this CPU."
    harmless = {precision: row for precision, row in faster.items() if _is_harmless(row.agreement)}
    enough = checked.are_own and checked.samples >= ENOUGH_SAMPLES
    chosen = harmless if enough and harmless else faster
    precision = min(chosen, key=lambda one: chosen[one].speed.best)
    cost = _tell_cost(precision, chosen[precision], exact)
    exactly = "Use `precision: float32` in model.yaml"
    if not enough:
        return f"{exactly} until you have compared {ENOUGH_SAMPLES} samples of your own: {cost}."
    if not harmless:
        return f"{exactly} unless you accept this: {cost}."
    return f"Use `precision: {precision}` in model.yaml: {cost}."


def _is_harmless(agreement: Agreement) -> bool:
    return agreement.mean <= _MOST_MOVED and agreement.changed <= _MOST_CHANGED * len(agreement.drifts)


def _tell_cost(precision: Precision, row: Measured, exact: Measured) -> str:
    agreement = row.agreement
    faster = f"{precision} is {exact.speed.best / row.speed.best:.1f} times as fast"
    if not agreement.has_classes:
        return f"{faster}, and a number moves by {agreement.mean:.4f} on average"
    changed = f"the top class changes for {agreement.changed} of {len(agreement.drifts)} samples"
    return f"{faster}, a confidence moves by {agreement.mean:.4f} on average, and {changed}"
