"""Figures as the tables show them."""

from __future__ import annotations

from collections.abc import Callable

from bench.server.stats import Spread, View


def _optional(text: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: "" if value is None else text(value)


number = _optional(lambda value: f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.3g}")
milliseconds = _optional(lambda value: f"{value:.2f}" if value < 10 else f"{value:.1f}")
seconds = _optional(lambda value: f"{value:.2f}")
percent = _optional(lambda value: f"{value:.0%}")


def ratio(value: float | None, to: float | None) -> str:
    """Nothing where one of them was not measured."""
    return "" if value is None or not to else f"{value / to:.2f}"


def spread(given: Spread | None) -> str:
    """The median, and the rounds farthest from it."""
    return "" if given is None else f"{given.median:.2f} ({given.least:.2f} to {given.most:.2f})"


def cores(one: View) -> str:
    """Who took how many of the cores."""
    shares = (one.median(figure) for figure in ("cpu", "client_cpu", "others_cpu"))
    return " / ".join("-" if share is None else f"{share:.2f}" for share in shares)


def agreement(one: View) -> str:
    """How many pictures got the top class that they should."""
    same, pictures, differences = (
        one.records.values(one.model, one.section, one.contender, figure)
        for figure in ("same_top", "pictures", "largest_difference")
    )
    return f"{sum(same):.0f} of {sum(pictures):.0f}, within {max(differences):.4f}" if same else ""
