"""The sections of the bench: who is measured at what, round by round, in turn."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from bench.batch import raw
from bench.batch.cpus import list_cpus
from bench.batch.report import (
    DELAYED,
    LENGTHS,
    NOT_DELAYED,
    RAW_EACH,
    WORKER,
    WORKER_COMPILED,
    WORKER_FREE,
    WORKERS_COMPILED,
    WORKERS_EACH,
)
from bench.batch.storage import start_storage
from bench.batch.worker import Job, Worker, measure, start_worker
from bench.server import processes
from bench.server.forms import Report
from bench.server.measure import Contender, Figures, run_rounds
from bench.server.pierhead import Plan, start_server
from bench.server.processes import BenchError
from bench.server.raw import RawLoop
from bench.server.stats import Records
from bench.server.workshop import Workpiece, Workshop
from cluster.progress import step

SECTIONS = ("rate", "scale", "latency", "memory")
DELAY_SECONDS = 0.05
MANY_LINES = 200_000  # more than anybody predicts in a round
LEAST_LINES, FEW_LINES = 10_000, 300_000
_CALIBRATION_ROUNDS = 2
_MEMORY_POLL_SECONDS = 0.25
_MEMORY_SECONDS = 3600.0
_SMALL = (32, 32)  # pixels
_PREDICTOR = """\
class Predictor:
    @classmethod
    def from_path(cls, model_dir):
        return cls()

    def predict(self, instances, **parameters):
        return [len(instance["content"]) for instance in instances]
"""
_QUICK = {"PIERHEAD_COMPILE": "false"}


@dataclass(frozen=True)
class Wanted:
    """What the caller asked for."""

    rounds: int = 5
    seconds: float = 8.0
    sections: Sequence[str] = SECTIONS
    lines: int = 1_000_000  # of the longest input whose memory is measured


@dataclass(frozen=True)
class Ground:
    """One model, ready to be measured."""

    piece: Workpiece
    raw: RawLoop
    right: Report  # the eager network's classes


@dataclass
class Bench:
    """One run: where things are, what is wanted, and what was measured so far."""

    workshop: Workshop
    wanted: Wanted
    records: Records = field(default_factory=Records)
    cpus: Sequence[str] = field(default_factory=list_cpus)

    def measure(self, model: str) -> None:
        """All sections that are wanted, of one model, but for memory."""
        piece = self.workshop.prepare(model, "cpu")
        with raw.start_raw_loop(self.workshop, piece, self.cpus) as loop:
            ground = Ground(piece, loop, loop.rank())
            best = self._calibrate(ground) if {"rate", "scale"} & set(self.wanted.sections) else {}
            if best:
                self._make_compiled(piece)
            if "rate" in self.wanted.sections:
                self._rounds(model, "rate", self._list_rate(ground, best))
            if "scale" in self.wanted.sections:
                self._rounds(model, "scale", self._list_scale(ground, best["eager"]))
            if "latency" in self.wanted.sections:
                self._measure_latency(ground)

    def _calibrate(self, ground: Ground) -> dict[str, str]:
        """The quickest form of each kind on one core; the others are let go of."""
        model, seconds = ground.piece.model, self.wanted.seconds / 2
        ground.raw.load(raw.FORMS, 1)
        contenders = [Contender(form, partial(ground.raw.run, form, seconds, 1)) for form in raw.FORMS]
        run_rounds(self.records, model, "forms", contenders, _CALIBRATION_ROUNDS)
        best = {kind: self.records.best(model, "forms", raw.list_kind(kind), "rate") or "" for kind in raw.KINDS}
        ground.raw.keep(list(best.values()))
        ground.raw.load([best["eager"]], len(self.cpus))
        return best

    def _make_compiled(self, piece: Workpiece) -> None:
        """So that the worker finds its compiled form: who makes it meanwhile has no time to compute."""
        with (
            step(f"{piece.model}: its compiled form is made, or found"),
            start_server(self.workshop, Plan(piece.artifact)) as server,
        ):
            server.wait_ready()
            server.wait_compiled()

    def _list_rate(self, ground: Ground, best: Mapping[str, str]) -> list[Contender]:
        seconds, one, every = self.wanted.seconds, self.cpus[0], ",".join(self.cpus)
        compiled, files = self._compiled(), _files(ground.piece)
        return [
            *(Contender(f"raw {form}", partial(ground.raw.run, form, seconds, 1)) for form in best.values()),
            Contender(WORKER, partial(self._predict, ground, files, [one], _QUICK)),
            Contender(WORKER_FREE, partial(self._predict, ground, files, [every], _QUICK)),
            Contender(WORKER_COMPILED, partial(self._predict, ground, files, [one], compiled)),
        ]

    def _list_scale(self, ground: Ground, form: str) -> list[Contender]:
        seconds, compiled, files = self.wanted.seconds, self._compiled(), _files(ground.piece)
        return [
            Contender(f"raw {form}", partial(ground.raw.run, form, seconds, 1)),
            Contender(f"raw {form}{RAW_EACH}", partial(ground.raw.run, form, seconds)),
            Contender(WORKER, partial(self._predict, ground, files, self.cpus[:1], _QUICK)),
            Contender(WORKERS_EACH, partial(self._predict, ground, files, self.cpus, _QUICK)),
            Contender(WORKER_COMPILED, partial(self._predict, ground, files, self.cpus[:1], compiled)),
            Contender(WORKERS_COMPILED, partial(self._predict, ground, files, self.cpus, compiled)),
        ]

    def _compiled(self) -> dict[str, str]:
        """What has a worker take the form that `_make_compiled` made."""
        return {"PIERHEAD_COMPILED_DIR": str(self.workshop.folder / "compiled")}

    def _measure_latency(self, ground: Ground) -> None:
        folder, cpus = ground.piece.jpegs[0].parent, self.cpus
        with (
            start_storage(self.workshop, folder, 0, cpus[-1]) as near,
            start_storage(self.workshop, folder, DELAY_SECONDS, cpus[-1]) as far,
        ):
            contenders = []
            for name, storage in ((NOT_DELAYED, near), (DELAYED, far)):
                uris = [f"{storage.address}/{path.name}" for path in ground.piece.jpegs]
                allowed = {**_QUICK, "PIERHEAD_BATCH_ALLOWED_URIS": f"file://,{storage.address}"}
                contenders.append(Contender(name, partial(self._predict, ground, uris, cpus[:1], allowed)))
            self._rounds(ground.piece.model, "latency", contenders)

    def _predict(
        self, ground: Ground, uris: Sequence[str], cpus: Sequence[str], settings: Mapping[str, str]
    ) -> Figures:
        """A round of as many workers as there are entries of `cpus`, each with a shard of its own."""
        with self._folder() as folder, contextlib.ExitStack() as stack:
            source = write_list(folder, uris, MANY_LINES)
            job = Job(ground.piece.artifact, source, folder / "out", shards=len(cpus), settings=settings)
            workers = [
                stack.enter_context(start_worker(self.workshop, job, shard, cpu)) for shard, cpu in enumerate(cpus)
            ]
            return measure(workers, self.wanted.seconds, ground.right)

    # --- memory ---

    def measure_memory(self) -> None:
        """Of a worker with inputs of several lengths."""
        contenders = [
            Contender(name, partial(self._fill, lines))
            for name, lines in zip(LENGTHS, (LEAST_LINES, FEW_LINES, self.wanted.lines), strict=True)
        ]
        run_rounds(self.records, "predictor", "memory", contenders, 1)

    def _fill(self, lines: int) -> Figures:
        """The most that a worker held from its start to its end, in megabytes."""
        with self._folder() as folder:
            pictures = write_small(folder)
            (folder / "model.yaml").write_text("format: predictor\n")
            (folder / "predictor.py").write_text(_PREDICTOR)
            source = write_list(folder, [path.as_uri() for path in pictures], lines)
            job = Job(folder, source, folder / "out", parameters={}, settings={"PIERHEAD_ALLOW_CODE": "true"})
            with start_worker(self.workshop, job, 0, ",".join(self.cpus)) as worker:
                begin = time.perf_counter()
                peak = _watch(worker)
                seconds = time.perf_counter() - begin
            written = sum(1 for _ in (folder / "out" / "predictions_00001.jsonl").open())
            if written != lines:
                raise BenchError(f"of {lines} lines {written} were predicted")
            return peak | {"lines": lines, "seconds": seconds, "rate": lines / seconds}

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        self.workshop.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.workshop.folder, prefix=".batch-") as folder:
            yield Path(folder)

    def _rounds(self, model: str, section: str, contenders: Sequence[Contender]) -> None:
        run_rounds(self.records, model, section, contenders, self.wanted.rounds)


def _files(piece: Workpiece) -> list[str]:
    return [path.absolute().as_uri() for path in piece.jpegs]


def write_list(folder: Path, uris: Sequence[str], lines: int) -> Path:
    """The pictures again and again, a line each."""
    path = folder / "list.txt"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{uri}\n" for uri in islice(cycle(uris), lines))
    return path


def write_small(folder: Path) -> list[Path]:
    """Some small pictures."""
    paths = []
    for number in range(8):
        target = io.BytesIO()
        Image.new("RGB", _SMALL, (number * 30, 128, 255 - number * 30)).save(target, "JPEG")
        paths.append(folder / f"{number}.jpg")
        paths[-1].write_bytes(target.getvalue())
    return paths


def _watch(worker: Worker) -> Figures:
    """The most memory until it ends, of its listener (who reads, keeps and writes) and of all its processes."""
    peak: Figures = {}
    deadline = time.monotonic() + _MEMORY_SECONDS
    while worker.program.process.poll() is None:
        if time.monotonic() > deadline:
            raise BenchError(f"the worker did not end within {_MEMORY_SECONDS:.0f} s")
        for name, size in _measure_memory(worker).items():
            peak[name] = max(size / 1e6, peak.get(name, 0.0))
        time.sleep(_MEMORY_POLL_SECONDS)
    if worker.program.process.returncode != os.EX_OK:
        worker.program.check_alive()
    return peak


def _measure_memory(worker: Worker) -> dict[str, int]:
    held = processes.memory(worker.program.pids)
    own = [one for one in held if one.pid == worker.program.process.pid]
    return {
        "listener_rss": sum(one.rss for one in own),
        "listener_pss": sum(one.pss for one in own),
        "rss": sum(one.rss for one in held),
        "pss": sum(one.pss for one in held),
    }
