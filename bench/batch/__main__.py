"""`python -m bench.batch`: the batch worker's speed and memory, beside a raw PyTorch loop in the same run.

Contenders take turns, round by round, while all others wait; figures are medians over the rounds, ratios medians of the
rounds' ratios.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bench.batch import report
from bench.batch.measure import SECTIONS, Bench, Wanted
from bench.printing import print_tables
from bench.program import run_program
from bench.server.machine import describe_machine
from bench.server.processes import BenchError
from bench.server.report import note_doubtful, tabulate_goals
from bench.server.workshop import MODELS, Workshop
from cluster import locks
from cluster.progress import say
from cluster.settings import Paths

Model = enum.StrEnum("Model", [(name, name) for name in MODELS])  # type: ignore[misc]
Section = enum.StrEnum("Section", [(name, name) for name in SECTIONS])  # type: ignore[misc]
DEFAULT_MODELS = ("mobilenet_v3_small", "resnet50")


def bench(
    model: Annotated[
        list[Model] | None, typer.Option(help="One or several; a small and a large one if not said.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=50)] = 5,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="A round's length, at least.")] = 8.0,
    only: Annotated[list[Section] | None, typer.Option(help="One or several sections; all if not said.")] = None,
    lines: Annotated[int, typer.Option(min=300_000, help="Of the longest input whose memory is measured.")] = 1_000_000,
    output: Annotated[Path | None, typer.Option("--json", help="Where to write all that was measured.")] = None,
) -> None:
    sections = tuple(map(str, only or SECTIONS))
    paths = Paths.from_environment()
    run = Bench(Workshop(paths), Wanted(rounds, seconds, sections, lines))
    facts = describe_machine("cpu")
    models = [str(one) for one in model or DEFAULT_MODELS]
    with locks.exclusive_if_free(paths.locks / "bench-run") as alone:
        if not alone:
            raise BenchError("another bench runs: they would measure each other")
        for one in models if set(sections) - {"memory"} else ():
            run.measure(one)
        if "memory" in sections:
            run.measure_memory()
    _print(run, facts, models)
    if output:
        output.write_text(_encode(run, facts, models), encoding="utf-8")
        say(f"all figures are in {output}")


def _print(run: Bench, facts: dict[str, str], models: list[str]) -> None:
    notes = [f"{run.wanted.rounds} rounds of at least {run.wanted.seconds:g} s; medians (least to most)"]
    notes += note_doubtful(run.records, len(run.cpus))
    goals = tabulate_goals(report.compute_goals(run.records, models))
    print_tables(facts, notes, [*report.make_tables(run.records, models), goals])


def _encode(run: Bench, facts: dict[str, str], models: list[str]) -> str:
    goals = [vars(goal) for goal in report.compute_goals(run.records, models)]
    document = {"machine": facts, "wanted": vars(run.wanted), "records": run.records.all, "goals": goals}
    return json.dumps(msgspec.to_builtins(document, enc_hook=str), indent=1)


if __name__ == "__main__":
    run_program(bench)
