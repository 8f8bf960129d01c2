"""`python -m bench.operator`: the operator's scale and speed on a real API server, with nodes and pods that kwok plays.

It starts a control plane of its own, and refuses where a cluster is up.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.operator import control_plane, report
from bench.operator.fleet import Fleet
from bench.operator.measure import Figures, measure, measure_alone
from bench.printing import print_tables
from bench.program import run_program
from bench.server.machine import describe_machine
from bench.server.processes import BenchError
from cluster import locks
from cluster.progress import say
from cluster.settings import Paths


def bench(
    endpoints: Annotated[int, typer.Option(min=10)] = 2500,
    models_per_endpoint: Annotated[int, typer.Option(min=1, max=8)] = 2,
    output: Annotated[Path | None, typer.Option("--json", help="Where to write all that was measured.")] = None,
) -> None:
    paths = Paths.from_environment()
    with locks.exclusive_if_free(paths.locks / "bench-run") as alone:
        if not alone:
            raise BenchError("another bench runs: they would measure each other")
        facts = describe_machine("cpu")
        fleet = Fleet(endpoints, models_per_endpoint)
        with control_plane.running(paths):
            alone_seconds = asyncio.run(measure_alone(paths, fleet))
        with control_plane.running(paths):
            figures = asyncio.run(measure(paths, fleet))
            figures.alone_seconds = alone_seconds
    print_tables(facts, [], report.make_tables(figures))
    if output:
        output.write_text(json.dumps(_encode(figures, facts), indent=1), encoding="utf-8")
        say(f"all figures are in {output}")


def _encode(figures: Figures, facts: dict[str, str]) -> dict[str, Any]:
    measured = {
        name: {" ".join(key): count for key, count in value.items()} if name.endswith("_requests") else value
        for name, value in vars(figures).items()
    }
    goals = [vars(row) for row in report.make_rows(figures)]
    return {"machine": facts, **measured, "fleet": vars(figures.fleet), "goals": goals}


if __name__ == "__main__":
    run_program(bench)
