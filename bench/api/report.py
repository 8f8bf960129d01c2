"""From figures to a table. Pure."""

from __future__ import annotations

from bench.api.measure import ENDPOINTS, FEW_JOBS, JOBS, Figures
from bench.operator.report import Row
from bench.server.stats import percentile

GET_MS = 20.0
LIST_MS = 250.0
JOBS_RATIO = 1.5
FORWARD_MS = 1.5
_GOAL_SIZE = "1 kB"


def make_rows(figures: Figures) -> list[Row]:
    """What was measured, and the goals."""
    what = f"list of {ENDPOINTS} endpoints ({figures.list_bytes / 1e6:.1f} MB), p50"
    return [
        _make_row(f"get of one of {ENDPOINTS} endpoints, p50", figures.get, 0.5, GET_MS),
        _make_row("the same, p95", figures.get, 0.95),
        _make_row(what, figures.list_all, 0.5, LIST_MS),
        _make_row("the same, p95", figures.list_all, 0.95),
        *_make_job_rows(figures),
        *(row for size in figures.direct for row in _make_forward_rows(figures, size)),
    ]


def _make_job_rows(figures: Figures) -> list[Row]:
    few, many = figures.few_jobs, figures.jobs
    ratio = percentile(many["page"], 0.5) / percentile(few["page"], 0.5)
    return [
        _make_row(f"first 100 of {FEW_JOBS} batch prediction jobs, p50", few["page"], 0.5),
        _make_row(f"first 100 of {JOBS}, p50", many["page"], 0.5),
        Row("the second by the first", f"{ratio:.2f}", f"<= {JOBS_RATIO:g}", ratio <= JOBS_RATIO),
        _make_row(f"filter that none of {JOBS} matches, a call, p50", many["filter"], 0.5),
        _make_row(f"first 100 of {JOBS} by createTime, p50", many["order"], 0.5),
    ]


def _make_forward_rows(figures: Figures, size: str) -> list[Row]:
    direct, forwarded = figures.direct[size], figures.forwarded[size]
    added = (percentile(forwarded, 0.5) - percentile(direct, 0.5)) * 1000
    goal = f"<= {FORWARD_MS:g} ms" if size == _GOAL_SIZE else ""
    return [
        _make_row(f"prediction of {size} straight to the pod, p50", direct, 0.5),
        _make_row("the same forwarded, p50", forwarded, 0.5),
        _make_row("the same forwarded, p95", forwarded, 0.95),
        Row(f"forwarding of {size} adds, p50", f"{added:.2f} ms", goal, added <= FORWARD_MS if goal else None),
    ]


def _make_row(what: str, seconds: list[float], share: float, goal: float | None = None) -> Row:
    taken = percentile(seconds, share) * 1000
    return Row(what, f"{taken:.2f} ms", f"<= {goal:g} ms" if goal else "", taken <= goal if goal else None)
