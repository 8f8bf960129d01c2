"""The raw loop: a process a core, each with one thread, that do what a server's users want and nothing else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from bench.server.forms import Order, Report
from bench.server.processes import BenchError, Program, busy_seconds, running
from bench.server.stats import percentile
from bench.server.workshop import Workpiece, Workshop, make_environment

# Warms up caches and lets every process reach the start.
_LEAD_SECONDS = 0.5


@dataclass(frozen=True)
class RawLoop:
    """The processes, all alive from the first round to the last; between rounds they wait for a line."""

    programs: Sequence[Program]

    def load(self, forms: Sequence[str], processes: int) -> None:
        """Loads forms beforehand, one process after another."""
        for program in self.programs[:processes]:
            for form in forms:
                _order(program, Order("load", [form]))
                _report(program)

    def keep(self, forms: Sequence[str]) -> None:
        """Lets go of all other forms."""
        for program in self.programs:
            _order(program, Order("forget", list(forms)))
            _report(program)

    def rank(self) -> Report:
        """Top classes by the eager network: what every other form and server must give."""
        _order(self.programs[0], Order("rank"))
        return _report(self.programs[0])

    def run(self, form: str, seconds: float, processes: int | None = None) -> dict[str, float]:
        """Figures of one form in so many processes at once, all of them if not said."""
        taking_part = self.programs[:processes]
        start = time.perf_counter() + _LEAD_SECONDS
        for program in taking_part:
            _order(program, Order("run", [form], start, seconds))
        time.sleep(max(0.0, start - time.perf_counter()))
        machine, begin = busy_seconds(), time.perf_counter()
        reports = [_report(program) for program in taking_part]
        elapsed = time.perf_counter() - begin
        return compute_figures(reports, (busy_seconds() - machine) / elapsed)


def compute_figures(reports: Sequence[Report], machine_cpu: float) -> dict[str, float]:
    """Pictures a second of all processes together, and the latency of a batch in milliseconds."""
    latencies = [latency * 1e3 for report in reports for latency in report.latencies]
    cpu = sum(report.cpu_seconds / report.seconds for report in reports)
    return {
        "rate": sum(report.pictures / report.seconds for report in reports),
        "p50": percentile(latencies, 0.5),
        "p99": percentile(latencies, 0.99),
        "cpu": cpu,
        "others_cpu": max(0.0, machine_cpu - cpu),
    }


@contextlib.contextmanager
def start_raw_loop(workshop: Workshop, piece: Workpiece, *, device: str, processes: int) -> Iterator[RawLoop]:
    """Starts the processes; on a GPU one, which takes all cores for decoding."""
    command = make_command(piece, device, "memory")
    environment = make_environment({} if device == "cuda" else {"OMP_NUM_THREADS": "1"})
    with contextlib.ExitStack() as stack:
        yield RawLoop(
            [
                stack.enter_context(
                    running(command, log=workshop.log(f"raw-{number}"), environment=environment, piped=True)
                )
                for number in range(processes)
            ]
        )


def make_command(piece: Workpiece, device: str, source: Literal["memory", "disk"]) -> list[str]:
    """What starts one process, whose pictures come from there."""
    return [
        *(sys.executable, "-m", "bench.server.raw_process", piece.model, str(piece.artifact), device, source),
        *map(str, piece.packages.values()),
        "--",
        *map(str, piece.jpegs),
    ]


def _order(program: Program, order: Order) -> None:
    program.check_alive()
    assert program.process.stdin is not None
    program.process.stdin.write(msgspec.json.encode(order) + b"\n")
    program.process.stdin.flush()


def _report(program: Program) -> Report:
    assert program.process.stdout is not None
    line = program.process.stdout.readline()
    if not line:
        program.process.wait(10)
        program.check_alive()
        raise BenchError("the raw loop's process closed its output")
    return msgspec.json.decode(line, type=Report)
