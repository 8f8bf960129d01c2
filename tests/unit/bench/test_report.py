"""From figures to tables and to the goals that hold."""

import pytest

from bench.server import report
from bench.server.forms import Precision
from bench.server.stats import Record, Records, Spread, percentile

MODEL = "mobilenet_v3_small"


def make_records(model=MODEL, **sections):
    """section=[(contender, figures of each round, ...)]"""
    records = Records()
    for section, contenders in sections.items():
        for name, *rounds in contenders:
            for number, figures in enumerate(rounds):
                records.add(model, section, name, number, figures)
    return records


def rates(name, *values):
    return (name, *({"rate": value} for value in values))


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (0.99, 4), (0.25, 1), (1.0, 4), (0.0, 1)])
def test_percentile_is_a_value_that_occurred(share, expected):
    assert percentile([4, 1, 3, 2], share) == expected


def test_ratio_is_taken_round_by_round():
    # The machine was three times as fast in the last round, for both.
    records = make_records(saturation=[rates("raw a b1", 100, 100, 300), rates("server", 90, 95, 297)])
    assert records.ratio(MODEL, "saturation", "server", "raw a b1", "rate") == Spread(0.95, 0.9, 0.99)
    assert records.median(MODEL, "saturation", "server", "rate") == 95


def test_rounds_that_only_one_has_are_left_out():
    records = make_records(latency=[("a", {"p50": 1.0}), ("b", {"p50": 3.0}, {"p50": 9.0})])
    assert records.difference(MODEL, "latency", "b", "a", "p50") == Spread(2, 2, 2)
    assert records.ratio(MODEL, "latency", "b", "nobody", "p50") is None


def test_best_raw_form_is_what_the_server_is_compared_with():
    records = make_records(saturation=[rates("raw a b1", 100), rates("raw a b8", 120), rates("server", 101)])
    (goal,) = report.compute_goals(records, [MODEL])
    assert goal.what == "saturated, to the raw loop (a b8)"
    assert not goal.held
    assert goal.wanted == ">= 0.85"


def test_each_of_litserves_forms_has_a_goal():
    peers = [rates("litserve default", 30), rates("litserve eager", 60), rates("litserve openvino", 100)]
    others = [rates(f"{name} openvino", 100) for name in ("bentoml", "triton")]  # that no goal is about
    records = make_records(saturation=[rates("server", 125), *peers, *others])
    held = {goal.what: goal.held for goal in report.compute_goals(records, [MODEL])}
    assert held == {
        "saturated, to litserve default": True,
        "saturated, to litserve eager": False,
        "saturated, to litserve openvino": False,
    }


@pytest.mark.parametrize(("precision", "held"), [(Precision.float32, True), (Precision.bfloat16, False)])
def test_server_of_before_has_a_goal_for_each_precision(precision, held):
    records = make_records(
        saturation=[rates("server", 130), rates(report.BEFORE, 100)],
        latency=[("server", {"p50": 4.0}), (report.BEFORE, {"p50": 6.0})],
    )
    before, latency = report.compute_goals(records, [MODEL], precision)
    assert (before.what, before.held) == ("saturated, to the server of before", held)
    assert (latency.wanted, latency.held) == ("<= 0.65", False)


def test_a_wrong_answer_fails_the_goal():
    figures = {"rate": 1.0, "same_top": 7, "pictures": 8, "largest_difference": 0.5}
    records = make_records(saturation=[("server", figures)])
    assert [(goal.seen, goal.held) for goal in report.compute_goals(records, [MODEL])] == [("7 of 8", False)]
    assert not report.compute_goals(records, [MODEL], Precision.bfloat16)  # which moves some


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, [True, True]),
        ({"rate": 80.0}, [False, True]),
        ({"retry_after_share": 0.99}, [True, False]),
        ({"other_codes": 1}, [True, False]),
        ({"broken": 1}, [True, False]),
    ],
)
def test_overload(changes, held):
    figures = {"rate": 95.0, "other_codes": 0, "broken": 0, "retry_after_share": 1.0, **changes}
    records = make_records(overload=[rates("peak", 100), ("overload", figures)])
    assert [goal.held for goal in report.compute_goals(records, [MODEL])] == held


@pytest.mark.parametrize(("pss", "held"), [(600.0, True), (601.0, False)])
def test_memory_of_two_workers(pss, held):
    one, two = {"workers": 1, "pss": 700.0, "rss": 1000.0}, {"workers": 2, "pss": pss, "rss": 1600.0}
    records = make_records(model="resnet50", memory=[("1 workers", one), ("2 workers", two)])
    (goal,) = report.compute_goals(records, ["resnet50"])
    assert (goal.wanted, goal.held) == ("<= 600 MB", held)


def test_start_and_latency():
    records = make_records(
        start=[
            (report.READY_COMPILED, {"seconds": 0.9}),
            (report.READY_QUICK, {"seconds": 5.5}),
            (report.WEIGHTS_READ, {"seconds": 4.0}),
        ],
        latency=[("raw a b1", {"p50": 10.0}), ("server", {"p50": 11.5})],
        load=[("evenly", {"p50": 10.0, "p99": 29.0}), ("at random", {"p50": 10.0, "p99": 90.0})],
    )
    goals = {goal.what: goal.held for goal in report.compute_goals(records, [MODEL])}
    assert goals[report.READY_COMPILED]
    assert not goals[f"{report.READY_QUICK}, to `{report.WEIGHTS_READ}`"]
    assert not goals["one client, p50 over raw"]
    assert goals["p99 / p50 at 80 % load"]


def test_every_section_has_its_table():
    figures = {"rate": 1.0, "p50": 1.0, "p99": 2.0, "seconds": 1.0, "workers": 1, "pss": 1.0, "rss": 1.0}
    sections = ("forms", "peers", "saturation", "latency", "load", "overload", "start", "memory")
    contenders = [("raw a b1", figures), ("server", figures), ("overload", figures)]
    tables = report.make_tables(make_records(**dict.fromkeys(sections, contenders)), [MODEL, "resnet50"])
    assert len(tables) == len(sections)
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert report.make_tables(Records(), [MODEL]) == []


def test_doubtful_rounds_are_told():
    records = Records()
    records.all = [Record(MODEL, "load", "evenly", 0, {"others_cpu": share}) for share in (0.01, 0.05, 0.5)]
    assert report.find_doubtful(records, cores=2) == (1, 3)
