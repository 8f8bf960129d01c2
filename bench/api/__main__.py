"""`python -m bench.api`: the API beside a real API server, and between a client and a pod.

It starts a control plane of its own, and refuses where a cluster is up.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from bench.api import report
from bench.api.measure import measure
from bench.operator import control_plane
from bench.printing import print_tables
from bench.program import run_program
from bench.server.machine import describe_machine
from bench.server.processes import BenchError
from bench.server.report import Table
from cluster import locks
from cluster.progress import say
from cluster.settings import Paths


def bench(
    output: Annotated[Path | None, typer.Option("--json", help="Where to write all that was measured.")] = None,
) -> None:
    paths = Paths.from_environment()
    with locks.exclusive_if_free(paths.locks / "bench-run") as alone:
        if not alone:
            raise BenchError("another bench runs: they would measure each other")
        with control_plane.running(paths):
            figures = asyncio.run(measure(paths))
    rows = report.make_rows(figures)
    table = Table("The REST API", ("what", "measured", "goal", "met"), [row.texts for row in rows])
    print_tables(describe_machine("cpu"), (), [table])
    if output:
        output.write_text(
            json.dumps({"goals": [vars(row) for row in rows], **vars(figures)}, indent=1), encoding="utf-8"
        )
        say(f"all figures are in {output}")


if __name__ == "__main__":
    run_program(bench)
