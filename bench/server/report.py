"""From records to tables, and to which of the goals hold. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import texts
from bench.server.forms import Precision
from bench.server.stats import Records, Spread

SATURATED_GOALS = {"mobilenet_v3_small": 0.85}
SATURATED_GOAL = 0.95
PEER_GOALS = {"litserve default": 4.0, "litserve eager": 2.5, "litserve openvino": 1.4, "litserve aoti": 1.0}
# To what another checkout's server does in float32, which is --before's.
BEFORE_GOALS: Mapping[Precision, Mapping[str, float]] = {
    Precision.float32: {"mobilenet_v3_small": 1.25, "lite0": 1.2, "resnet50": 1.05},
    Precision.bfloat16: {"mobilenet_v3_small": 1.5, "resnet50": 4.0},
}
BEFORE_LATENCY_GOALS = {"mobilenet_v3_small": 0.65, "lite0": 0.75, "resnet50": 0.75}
LATENCY_GOAL_MS = 1.0
TAIL_GOAL = 3.0
COMPILED_START_GOALS_S, COMPILED_START_GOAL_S = {"resnet50": 1.1}, 0.9
QUICK_START_GOAL = 1.3
MEMORY_GOALS_MB = {"mobilenet_v3_small": 300.0, "resnet50": 600.0}  # PSS
MEMORY_WORKERS = 2
OVERLOAD_GOAL = 0.9
BUSY_CORES = 0.05  # more than this share of the cores taken by others makes a round doubtful

BEFORE = "server of before"
READY_COMPILED = "server ready, its compiled form is there"
READY_QUICK = "server ready, nothing compiled yet"
WEIGHTS_READ = "import torch, read the weights"
PROGRAM_READ = "import torch, load the torch.export program"  # where the artifact is one: its weights lie inside
_CORES = "cores: it / client / others"


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Goal:
    """One sentence of the goals, for one model."""

    model: str
    what: str
    wanted: str
    seen: str
    held: bool


def make_tables(records: Records, models: Sequence[str]) -> list[Table]:
    """Every table that has rows."""
    makers = (
        _tabulate_forms,
        _tabulate_peers,
        _tabulate_saturation,
        _tabulate_latency,
        _tabulate_load,
        _tabulate_overload,
        _tabulate_start,
        _tabulate_memory,
    )
    return [table for maker in makers if (table := maker(records, models)).rows]


def find_raw(records: Records, model: str) -> str | None:
    """The form of the raw loop that was quickest over the rounds, by its contender's name."""
    raw = [one for one in records.contenders(model, "saturation") if one.startswith("raw ")]
    return records.best(model, "saturation", raw, "rate")


def _find_raw_alone(records: Records, model: str) -> str:
    """The raw loop with one picture at a time, by its contender's name; nothing if it was not measured."""
    return next((one for one in records.contenders(model, "latency") if one.startswith("raw ")), "")


def find_doubtful(records: Records, cores: int) -> tuple[int, int]:
    """How many rounds others took more than BUSY_CORES of the cores in, and of how many."""
    others = [one.figures["others_cpu"] for one in records.all if "others_cpu" in one.figures]
    return sum(share > BUSY_CORES * cores for share in others), len(others)


def note_doubtful(records: Records, cores: int) -> list[str]:
    """What is to be said of such rounds, if there are any."""
    doubtful, of = find_doubtful(records, cores)
    return (
        [f"In {doubtful} of {of} rounds other programs took more than {BUSY_CORES:.0%} of the cores."]
        if doubtful
        else []
    )


def tabulate_goals(goals: Sequence[Goal]) -> Table:
    """What was wanted, what was seen."""
    rows = [[goal.model, goal.what, goal.wanted, goal.seen, "yes" if goal.held else "NO"] for goal in goals]
    return Table("Goals", ("model", "goal", "wanted", "seen", "held"), rows)


def compute_goals(records: Records, models: Sequence[str], precision: Precision = Precision.float32) -> list[Goal]:
    """Every goal whose figures were measured."""
    judges = [_judge_throughput, _judge_latency, _judge_overload, _judge_start, _judge_memory]
    if precision is Precision.float32:
        judges.append(_judge_answers)  # a lower precision moves some
    goals: list[Goal] = []
    for model in models:
        goals += _judge_before(records, model, precision)
        for judge in judges:
            goals += judge(records, model)
    return goals


# --- tables ---


def _tabulate_forms(records: Records, models: Sequence[str]) -> Table:
    rows = []
    for model in models:
        names = records.contenders(model, "forms")
        best = records.best(model, "forms", names, "rate")
        most = records.median(model, "forms", best, "rate") if best else None
        for name in names:
            rate = records.median(model, "forms", name, "rate")
            alone = records.median(model, "forms alone", name, "p50")
            rows.append([model, name, texts.number(rate), texts.ratio(rate, most), texts.milliseconds(alone)])
        rows += [
            [model, name, "", "", texts.milliseconds(records.median(model, "forms alone", name, "p50"))]
            for name in records.contenders(model, "forms alone")
            if name not in names
        ]
    columns = ("model", "form", "pictures/s, all cores", "to the best", "one picture, one core, ms")
    return Table("Forms of the raw loop: decoding, preprocessing, network, top 5 (calibration)", columns, rows)


def _tabulate_peers(records: Records, models: Sequence[str]) -> Table:
    rows = [
        [model, name, texts.number(records.median(model, "peers", name, "rate"))]
        for model in models
        for name in records.contenders(model, "peers")
    ]
    return Table("The peers' settings (calibration)", ("model", "settings", "pictures/s"), rows)


def _tabulate_saturation(records: Records, models: Sequence[str]) -> Table:
    rows = []
    for model in models:
        raw = find_raw(records, model)
        rows += [
            [
                model,
                one.contender,
                texts.number(one.median("rate")),
                texts.spread(records.ratio(model, "saturation", one.contender, raw, "rate") if raw else None),
                texts.spread(records.ratio(model, "saturation", "server", one.contender, "rate")),
                texts.milliseconds(one.median("p50")),
                texts.cores(one),
                texts.agreement(one),
            ]
            for one in records.views(model, "saturation")
        ]
    columns = (
        *("model", "who", "pictures/s", "to the raw loop", "server to it", "p50 ms"),
        *(_CORES, "top classes as eager's"),
    )
    return Table("Saturated: 32 connections, or all cores for the raw loop", columns, rows)


def _tabulate_latency(records: Records, models: Sequence[str]) -> Table:
    rows = []
    for model in models:
        raw = _find_raw_alone(records, model)
        rows += [
            [
                model,
                one.contender,
                texts.milliseconds(one.median("p50")),
                texts.spread(records.difference(model, "latency", one.contender, raw, "p50"))
                if one.contender != raw
                else "",
                texts.milliseconds(one.median("p99")),
                texts.number(one.median("rate")),
                texts.cores(one),
            ]
            for one in records.views(model, "latency")
        ]
    columns = ("model", "who", "p50 ms", "over raw, ms", "p99 ms", "pictures/s", _CORES)
    return Table("One client, one connection; the raw loop with one process of one thread", columns, rows)


def _tabulate_load(records: Records, models: Sequence[str]) -> Table:
    rows = [
        [
            model,
            one.contender,
            texts.number(one.median("offered")),
            texts.number(one.median("rate")),
            texts.milliseconds(one.median("p50")),
            texts.milliseconds(one.median("p99")),
            texts.spread(_tail(records, model, one.contender)),
            texts.percent(one.median("refused_share")),
            texts.milliseconds(one.median("late_p99")),
            texts.cores(one),
        ]
        for model in models
        for one in records.views(model, "load")
    ]
    columns = (
        *("model", "requests come", "offered/s", "answered/s", "p50 ms", "p99 ms", "p99 / p50"),
        *("refused", "client late, p99 ms", _CORES),
    )
    return Table("At 80 % of the saturated rate; latencies count from when a request was due", columns, rows)


def _tabulate_overload(records: Records, models: Sequence[str]) -> Table:
    rows = [
        [
            model,
            texts.number(records.median(model, "overload", "peak", "rate")),
            texts.number(one.median("offered")),
            texts.number(one.median("rate")),
            texts.spread(records.ratio(model, "overload", "overload", "peak", "rate")),
            texts.percent(one.median("refused_share")),
            texts.percent(one.median("retry_after_share")),
            texts.milliseconds(one.median("refused_p50")),
            " / ".join(texts.number(one.median(figure)) for figure in ("other_codes", "broken")),
            " / ".join(texts.number(one.median(figure)) for figure in ("rss_before", "rss_most", "rss_after")),
            texts.cores(one),
        ]
        for model in models
        for one in records.views(model, "overload")
        if one.contender == "overload"
    ]
    columns = (
        *("model", "peak/s", "offered/s", "accepted/s", "to the peak", "429", "with Retry-After", "429 p50 ms"),
        *("other codes / broken", "RSS MB before / most / after", _CORES),
    )
    return Table("Overload: four times the peak, whatever comes back", columns, rows)


def _tabulate_start(records: Records, models: Sequence[str]) -> Table:
    rows = [
        [
            model,
            one.contender,
            texts.seconds(one.median("seconds")),
            *(
                texts.spread(records.ratio(model, "start", one.contender, to, "seconds"))
                for to in (WEIGHTS_READ, PROGRAM_READ)
            ),
            texts.seconds(one.median("compiled_seconds")),
        ]
        for model in models
        for one in records.views(model, "start")
    ]
    columns = ("model", "what", "seconds", f"to `{WEIGHTS_READ}`", f"to `{PROGRAM_READ}`", "compiled form after, s")
    return Table("Start", columns, rows)


def _tabulate_memory(records: Records, models: Sequence[str]) -> Table:
    rows = [
        [
            model,
            texts.number(one.median("workers")),
            texts.number(one.median("processes")),
            texts.number(one.median("pss")),
            texts.number(one.median("rss")),
        ]
        for model in models
        for one in records.views(model, "memory")
    ]
    columns = ("model", "workers", "processes", "PSS MB", "sum of RSS MB")
    return Table("Memory of all processes, after load, in the compiled form", columns, rows)


# --- goals ---


def _judge_throughput(records: Records, model: str) -> list[Goal]:
    goals = []
    raw = find_raw(records, model)
    wanted = SATURATED_GOALS.get(model, SATURATED_GOAL)
    if raw and (ratio := records.ratio(model, "saturation", "server", raw, "rate")):
        what = f"saturated, to the raw loop ({raw.removeprefix('raw ')})"
        goals.append(Goal(model, what, f">= {wanted:.2f}", texts.spread(ratio), ratio.median >= wanted))
    for peer, factor in PEER_GOALS.items():
        if ratio := records.ratio(model, "saturation", "server", peer, "rate"):
            goals.append(
                Goal(model, f"saturated, to {peer}", f">= {factor:.2f}", texts.spread(ratio), ratio.median >= factor)
            )
    return goals


def _judge_before(records: Records, model: str, precision: Precision) -> list[Goal]:
    goals = []
    wanted = BEFORE_GOALS[precision].get(model)
    if wanted and (ratio := records.ratio(model, "saturation", "server", BEFORE, "rate")):
        what = f"saturated, to the {BEFORE}"
        goals.append(Goal(model, what, f">= {wanted:.2f}", texts.spread(ratio), ratio.median >= wanted))
    most = BEFORE_LATENCY_GOALS.get(model)
    if most and (ratio := records.ratio(model, "latency", "server", BEFORE, "p50")):
        goals.append(
            Goal(model, f"one client, p50 to the {BEFORE}", f"<= {most:.2f}", texts.spread(ratio), ratio.median <= most)
        )
    return goals


def _judge_answers(records: Records, model: str) -> list[Goal]:
    shares = [
        (one.figures["same_top"], one.figures["pictures"])
        for one in records.all
        if one.model == model and one.contender in ("server", "evenly", "at random", "peak", "overload")
        if "same_top" in one.figures
    ]
    if not shares:
        return []
    same, pictures = (sum(column) for column in zip(*shares, strict=True))
    seen = f"{same:.0f} of {pictures:.0f}"
    return [Goal(model, "pictures whose top class is the eager network's", "all", seen, same == pictures)]


def _judge_latency(records: Records, model: str) -> list[Goal]:
    goals = []
    raw = _find_raw_alone(records, model)
    if raw and (over := records.difference(model, "latency", "server", raw, "p50")):
        wanted, held = f"<= {LATENCY_GOAL_MS:.0f} ms", over.median <= LATENCY_GOAL_MS
        goals.append(Goal(model, "one client, p50 over raw", wanted, f"{texts.spread(over)} ms", held))
    if tail := _tail(records, model, "evenly"):
        held = tail.median <= TAIL_GOAL
        goals.append(Goal(model, "p99 / p50 at 80 % load", f"<= {TAIL_GOAL:.0f}", texts.spread(tail), held))
    return goals


def _judge_overload(records: Records, model: str) -> list[Goal]:
    ratio = records.ratio(model, "overload", "overload", "peak", "rate")
    if ratio is None:
        return []
    figures = [one.figures for one in records.all if (one.model, one.contender) == (model, "overload")]
    clean = all(not one["other_codes"] and not one["broken"] and one["retry_after_share"] == 1 for one in figures)
    seen = (
        f"{sum(one['other_codes'] for one in figures):.0f} others, {sum(one['broken'] for one in figures):.0f} broken"
    )
    return [
        Goal(model, "overload, to the peak", f">= {OVERLOAD_GOAL}", texts.spread(ratio), ratio.median >= OVERLOAD_GOAL),
        Goal(model, "overload: nothing but 200, and 429 with Retry-After", "always", seen, clean),
    ]


def _judge_start(records: Records, model: str) -> list[Goal]:
    goals = []
    if seconds := records.values(model, "start", READY_COMPILED, "seconds"):
        wanted, seen = COMPILED_START_GOALS_S.get(model, COMPILED_START_GOAL_S), Spread.of(seconds)
        goals.append(Goal(model, READY_COMPILED, f"<= {wanted} s", f"{texts.spread(seen)} s", seen.median <= wanted))
    for to in (WEIGHTS_READ, PROGRAM_READ):
        if ratio := records.ratio(model, "start", READY_QUICK, to, "seconds"):
            held = ratio.median <= QUICK_START_GOAL
            goals.append(Goal(model, f"{READY_QUICK}, to `{to}`", f"<= {QUICK_START_GOAL}", texts.spread(ratio), held))
    return goals


def _judge_memory(records: Records, model: str) -> list[Goal]:
    wanted, held = MEMORY_GOALS_MB.get(model), records.median(model, "memory", f"{MEMORY_WORKERS} workers", "pss")
    if wanted is None or held is None:
        return []
    what = f"memory of {MEMORY_WORKERS} workers, PSS"
    return [Goal(model, what, f"<= {wanted:.0f} MB", f"{held:.0f} MB", held <= wanted)]


def _tail(records: Records, model: str, name: str) -> Spread | None:
    p50, p99 = (records.values(model, "load", name, figure) for figure in ("p50", "p99"))
    return Spread.of([high / low for low, high in zip(p50, p99, strict=True)]) if p50 else None
