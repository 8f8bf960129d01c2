"""From records to tables, and to which of the goals hold. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench import texts
from bench.server.report import Goal, Table
from bench.server.stats import Records, Spread

RATE_GOAL = 0.95
SCALE_GOAL = 1.9
LOST_GOAL = 0.1
MEMORY_GOAL = 1.1

WORKER = "worker, one core"
WORKER_FREE = "worker, both cores"  # of which its model process takes one
WORKER_COMPILED = "worker, one core, compiled"
WORKERS_EACH = "a worker a core"
WORKERS_COMPILED = "a worker a core, compiled"
RAW_EACH = ", a process a core"  # behind the form of the raw loop
NOT_DELAYED, DELAYED = "storage answers at once", "storage answers after 50 ms"
LENGTHS = SHORT, MIDDLE, LONG = ("short input", "input", "long input")

_EAGER = ("raw eager", "raw channels-last")
_ONE_OF = {WORKERS_EACH: WORKER, WORKERS_COMPILED: WORKER_COMPILED}
_CORES = "cores: it / others"


def make_tables(records: Records, models: Sequence[str]) -> list[Table]:
    """Every table that has rows."""
    makers = (_tabulate_forms, _tabulate_rate, _tabulate_scale, _tabulate_latency)
    tables = [maker(records, models) for maker in makers]
    return [table for table in (*tables, _tabulate_memory(records)) if table.rows]


def find_raw(records: Records, model: str, section: str) -> str:
    """The raw loop of torch as it is, on one core, by its contender's name."""
    names = (one for one in records.contenders(model, section) if one.startswith(_EAGER))
    return next((one for one in names if not one.endswith(RAW_EACH)), "")


def find_compiled(records: Records, model: str) -> str:
    """The raw loop of the network that the worker's compiled form is."""
    return next((one for one in records.contenders(model, "rate") if one.startswith("raw openvino")), "")


# --- tables ---


def _tabulate_forms(records: Records, models: Sequence[str]) -> Table:
    rows = [
        [model, one.contender, texts.number(one.median("rate"))]
        for model in models
        for one in records.views(model, "forms")
    ]
    return Table("Forms of the raw loop on one core (calibration)", ("model", "form", "pictures/s"), rows)


def _tabulate_rate(records: Records, models: Sequence[str]) -> Table:
    rows = [
        [
            model,
            one.contender,
            texts.number(one.median("rate")),
            texts.spread(records.ratio(model, "rate", one.contender, find_raw(records, model, "rate"), "rate")),
            texts.spread(records.ratio(model, "rate", one.contender, find_compiled(records, model), "rate")),
            texts.milliseconds(one.median("listener_ms")),
            texts.milliseconds(one.median("model_ms")),
            texts.seconds(one.median("start_seconds")),
            texts.cores(one),
            texts.agreement(one),
        ]
        for model in models
        for one in records.views(model, "rate")
    ]
    columns = (
        *("model", "who", "pictures/s", "to the raw eager loop", "to the raw openvino loop"),
        *("listener, CPU ms a picture", "model, CPU ms a picture", "first chunk after, s"),
        *(_CORES, "top classes as eager's"),
    )
    return Table("One worker beside one process of the raw loop", columns, rows)


def _tabulate_scale(records: Records, models: Sequence[str]) -> Table:
    rows = [
        [
            model,
            one.contender,
            texts.number(one.median("rate")),
            texts.spread(_scale(records, model, one.contender)),
            texts.cores(one),
        ]
        for model in models
        for one in records.views(model, "scale")
    ]
    columns = ("model", "who", "pictures/s", "to the same on one core", _CORES)
    return Table("Two shards on two cores", columns, rows)


def _scale(records: Records, model: str, contender: str) -> Spread | None:
    """How many times as fast it is on all cores."""
    if contender in _ONE_OF:
        return records.ratio(model, "scale", contender, _ONE_OF[contender], "rate")
    if contender.endswith(RAW_EACH):
        return records.ratio(model, "scale", contender, find_raw(records, model, "scale"), "rate")
    return None


def _tabulate_latency(records: Records, models: Sequence[str]) -> Table:
    rows = [
        [
            model,
            one.contender,
            texts.number(one.median("rate")),
            texts.spread(records.ratio(model, "latency", one.contender, NOT_DELAYED, "rate")),
            texts.milliseconds(one.median("listener_ms")),
            texts.milliseconds(one.median("model_ms")),
            texts.cores(one),
        ]
        for model in models
        for one in records.views(model, "latency")
    ]
    columns = (
        *("model", "pictures over HTTP", "pictures/s", "to no delay"),
        *("listener, CPU ms a picture", "model, CPU ms a picture", _CORES),
    )
    return Table("Storage that is far away", columns, rows)


def _tabulate_memory(records: Records) -> Table:
    rows = [
        [texts.number(one.median(figure)) for figure in ("lines", "rate", *_MEMORIES)]
        for one in records.views("predictor", "memory")
    ]
    columns = ("lines", "lines/s, start and end included", *_MEMORIES.values())
    return Table("The most memory, MB", columns, rows)


_MEMORIES = {
    "listener_pss": "listener, PSS",
    "listener_rss": "listener, RSS",
    "pss": "all processes, PSS",
    "rss": "all processes, sum of RSS",
}


# --- goals ---


def compute_goals(records: Records, models: Sequence[str]) -> list[Goal]:
    """Every goal whose figures were measured."""
    goals: list[Goal] = []
    for model in models:
        for judge in (_judge_rate, _judge_scale, _judge_latency, _judge_classes):
            goals += judge(records, model)
    return goals + _judge_memory(records)


def _judge_rate(records: Records, model: str) -> list[Goal]:
    raw = find_raw(records, model, "rate")
    what = f"{WORKER}, to the raw loop ({raw.removeprefix('raw ')})"
    return _judge_least(model, what, records.ratio(model, "rate", WORKER, raw, "rate"), RATE_GOAL)


def _judge_scale(records: Records, model: str) -> list[Goal]:
    goals: list[Goal] = []
    for each in _ONE_OF:
        goals += _judge_least(model, f"{each}, to one on one core", _scale(records, model, each), SCALE_GOAL)
    return goals


def _judge_latency(records: Records, model: str) -> list[Goal]:
    ratio = records.ratio(model, "latency", DELAYED, NOT_DELAYED, "rate")
    return _judge_least(model, f"{DELAYED}, to no delay", ratio, 1 - LOST_GOAL)


def _judge_least(model: str, what: str, ratio: Spread | None, least: float) -> list[Goal]:
    if ratio is None:
        return []
    return [Goal(model, what, f">= {least:.2f}", texts.spread(ratio), ratio.median >= least)]


def _judge_classes(records: Records, model: str) -> list[Goal]:
    seen = [one.figures for one in records.all if one.model == model and "same_top" in one.figures]
    if not seen:
        return []
    same, pictures = (sum(figures[name] for figures in seen) for name in ("same_top", "pictures"))
    what = "pictures whose top class is the eager network's"
    return [Goal(model, what, "all", f"{same:.0f} of {pictures:.0f}", same == pictures)]


def _judge_memory(records: Records) -> list[Goal]:
    # A short input's output is smaller than the buffers that a long one's goes through, which are the listener's.
    judged = (("pss", SHORT), ("rss", SHORT), ("listener_pss", MIDDLE), ("listener_rss", MIDDLE))
    goals = []
    for figure, to in judged:
        if grown := _grow(records, figure, to):
            lines, fewer = (records.median("predictor", "memory", name, "lines") for name in (LONG, to))
            what = f"{_MEMORIES[figure]}: {texts.number(lines)} lines, to {texts.number(fewer)}"
            goals.append(Goal("predictor", what, f"<= {MEMORY_GOAL}", f"{grown:.2f}", grown <= MEMORY_GOAL))
    return goals


def _grow(records: Records, figure: str, to: str) -> float | None:
    """How many times as much the longest input takes."""
    more, less = (records.median("predictor", "memory", name, figure) for name in (LONG, to))
    return more / less if more and less else None
