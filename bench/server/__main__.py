"""`python -m bench.server`: the model server's speed beside a raw PyTorch loop, and peers, in the same run.

Contenders take turns, round by round, while all others wait; figures are medians over the rounds, ratios medians of the
rounds' ratios. It takes about eleven minutes a model on two cores, seven more with LitServe,
three more with BentoML, and three more with Triton.
"""

from __future__ import annotations

import enum
import importlib.util
import json
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bench.printing import print_tables
from bench.program import run_program
from bench.server import report
from bench.server.forms import Precision
from bench.server.machine import describe_machine
from bench.server.measure import SECTIONS, Bench, Wanted
from bench.server.peers import CPU_PEERS, PEERS
from bench.server.processes import BenchError
from bench.server.workshop import MODELS, Workshop
from cluster import locks
from cluster.progress import say
from cluster.settings import Paths

Model = enum.StrEnum("Model", [(name, name) for name in MODELS])  # type: ignore[misc]
Peer = enum.StrEnum("Peer", [(name, name) for name in PEERS])  # type: ignore[misc]
Section = enum.StrEnum("Section", [(name, name) for name in SECTIONS])  # type: ignore[misc]


class Device(enum.StrEnum):
    cpu = "cpu"
    cuda = "cuda"


def bench(
    model: Annotated[list[Model] | None, typer.Option(help="One or several; all if not said.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=50)] = 5,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="A round's length.")] = 8.0,
    peer: Annotated[list[Peer] | None, typer.Option(help="One or several peers to measure beside.")] = None,
    only: Annotated[list[Section] | None, typer.Option(help="One or several sections; all if not said.")] = None,
    device: Annotated[Device, typer.Option()] = Device.cpu,
    code: Annotated[Path | None, typer.Option(help="Another checkout's server/, to be measured instead.")] = None,
    before: Annotated[Path | None, typer.Option(help="Another checkout's server/, to be measured beside it.")] = None,
    precision: Annotated[Precision, typer.Option(help="Of the server and the raw loop; --before's is float32.")] = (
        Precision.float32
    ),
    output: Annotated[Path | None, typer.Option("--json", help="Where to write all that was measured.")] = None,
) -> None:
    if device is Device.cuda and not _has_cuda():
        say("there is no CUDA device here")
        raise typer.Exit(2)
    for name in CPU_PEERS:
        if device is Device.cuda and name in (peer or ()):
            say(f"{PEERS[name]} serves OpenVINO's network, and that is a CPU's")
            raise typer.Exit(2)
    sections = tuple(map(str, only or SECTIONS))
    named = [name for name in PEERS if name in (peer or ())]
    wanted = Wanted(
        rounds,
        seconds,
        str(device),
        sections,
        named,
        code.resolve() if code else None,
        before.resolve() if before else None,
        precision,
    )
    paths = Paths.from_environment()
    run = Bench(Workshop(paths), wanted)
    facts = describe_machine(wanted.device)
    models = [str(one) for one in model or MODELS]
    with locks.exclusive_if_free(paths.locks / "bench-run") as alone:
        if not alone:
            raise BenchError("another bench runs: they would measure each other")
        for one in models:
            run.measure(one)
    _print(run, facts, models)
    if output:
        output.write_text(_encode(run, facts, models), encoding="utf-8")
        say(f"all figures are in {output}")


def _print(run: Bench, facts: dict[str, str], models: list[str]) -> None:
    notes = [f"{run.wanted.rounds} rounds of {run.wanted.seconds:g} s; medians (least to most)"]
    notes += [*report.note_doubtful(run.records, run.cores), *run.notes]
    goals = report.tabulate_goals(report.compute_goals(run.records, models, run.wanted.precision))
    print_tables(facts, notes, [*report.make_tables(run.records, models), goals])


def _encode(run: Bench, facts: dict[str, str], models: list[str]) -> str:
    goals = [vars(goal) for goal in report.compute_goals(run.records, models, run.wanted.precision)]
    document = {"machine": facts, "wanted": vars(run.wanted), "notes": run.notes, "records": run.records.all}
    return json.dumps(msgspec.to_builtins(document | {"goals": goals}, enc_hook=str), indent=1)


def _has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch  # imported only here: it must not take memory and time beside what is measured

    return torch.cuda.is_available()


if __name__ == "__main__":
    run_program(bench)
