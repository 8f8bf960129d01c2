"""Medians and percentiles of figures taken in rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` (0..1) of them do not exceed."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class Record(msgspec.Struct, frozen=True):
    """What one contender did in one round of one section."""

    model: str
    section: str
    contender: str
    round: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Spread:
    """The median of the rounds, and the rounds farthest from it."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class View:
    """One contender in one section."""

    records: Records
    model: str
    section: str
    contender: str

    def median(self, figure: str) -> float | None:
        """The median over the rounds; None where it was not measured."""
        return self.records.median(self.model, self.section, self.contender, figure)


class Records:
    """All that was measured, in the order in which it was."""

    def __init__(self) -> None:
        self.all: list[Record] = []

    def add(self, model: str, section: str, contender: str, number: int, figures: Mapping[str, float]) -> None:
        """Keeps one contender's figures of one round."""
        self.all.append(Record(model, section, contender, number, dict(figures)))

    def contenders(self, model: str, section: str) -> list[str]:
        """Who was measured in a section, in the order of its first round."""
        return list(dict.fromkeys(one.contender for one in self.all if (one.model, one.section) == (model, section)))

    def views(self, model: str, section: str) -> list[View]:
        """`contenders`, each to be asked for its figures."""
        return [View(self, model, section, contender) for contender in self.contenders(model, section)]

    def values(self, model: str, section: str, contender: str, figure: str) -> list[float]:
        """One figure, a value for each round that has it."""
        return list(self._by_round(model, section, contender, figure).values())

    def median(self, model: str, section: str, contender: str, figure: str) -> float | None:
        """The median over the rounds; None where it was not measured."""
        values = self.values(model, section, contender, figure)
        return statistics.median(values) if values else None

    def best(self, model: str, section: str, contenders: Sequence[str], figure: str) -> str | None:
        """The contender with the highest median."""
        known = {one: median for one in contenders if (median := self.median(model, section, one, figure)) is not None}
        return max(known, key=known.__getitem__) if known else None

    def ratio(self, model: str, section: str, contender: str, to: str, figure: str) -> Spread | None:
        """`contender` to `to`, round by round: what a busy neighbour does to a round, it does to both."""
        ours = self._by_round(model, section, contender, figure)
        theirs = self._by_round(model, section, to, figure)
        ratios = [ours[number] / theirs[number] for number in ours if theirs.get(number)]
        return Spread.of(ratios) if ratios else None

    def difference(self, model: str, section: str, contender: str, to: str, figure: str) -> Spread | None:
        """`contender` minus `to`, round by round."""
        ours = self._by_round(model, section, contender, figure)
        theirs = self._by_round(model, section, to, figure)
        differences = [ours[number] - theirs[number] for number in ours if number in theirs]
        return Spread.of(differences) if differences else None

    def _by_round(self, model: str, section: str, contender: str, figure: str) -> dict[int, float]:
        return {
            one.round: one.figures[figure]
            for one in self.all
            if (one.model, one.section, one.contender) == (model, section, contender) and figure in one.figures
        }
