"""The batch worker under test: the real program, started as a pod starts it, and timed by what it has committed."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec
from pierhead_server.batch.parts import decode_header, split_part

from bench.batch.cpus import pin
from bench.server import load, processes
from bench.server.forms import Report
from bench.server.pictures import MAX_PREDICTIONS
from bench.server.processes import BenchError, Program, running, wait_until
from bench.server.workshop import Workshop, make_environment
from cluster import settings

LEAST_CHUNKS = 2  # that a rate is taken of
_CHUNK_SECONDS = 180.0  # that one may take, with the start before the first one

Figures = dict[str, float]


@dataclass(frozen=True)
class Job:
    """What is predicted, and with which settings."""

    artifact: Path
    source: Path  # a list of pictures
    output: Path  # the job's own folder
    shards: int = 1
    parameters: Mapping[str, object] = field(default_factory=lambda: {"maxPredictions": MAX_PREDICTIONS})
    settings: Mapping[str, str] = field(default_factory=dict)

    def make_environment(self, shard: int) -> dict[str, str]:
        """Of the worker of one shard."""
        document = {
            "inputFormat": "file-list",
            "inputUris": [self.source.as_uri()],
            "outputFormat": "jsonl",
            "outputUri": self.output.as_uri(),
            "modelParameters": self.parameters,
            "shards": self.shards,
        }
        return {
            "PYTHONPATH": str(settings.REPOSITORY / "server"),
            "PIERHEAD_ARTIFACT_URI": self.artifact.absolute().as_uri(),
            "PIERHEAD_HOST": "127.0.0.1",
            "PIERHEAD_PORT": "0",
            "PIERHEAD_WORKERS": "1",
            "PIERHEAD_TERMINATION_LOG": str(self.output / f"termination-{shard}"),
            "PIERHEAD_BATCH_JOB": json.dumps(document),
            "PIERHEAD_BATCH_ALLOWED_URIS": "gs://,file://",
            "JOB_COMPLETION_INDEX": str(shard),
            **self.settings,
        }


@dataclass(frozen=True)
class Mark:
    """How far a worker was at a moment, and what it had taken."""

    chunks: int
    listener_cpu: float
    cpu: float  # of all its processes


@dataclass
class Worker:
    """One shard's worker that runs."""

    program: Program
    begun: float  # of time.time(), as files' times are
    folder: Path  # of its committed chunks

    def list_chunks(self) -> list[Path]:
        """The committed chunks, the first one first."""
        # One that is being written has another name.
        return sorted(self.folder.glob("*.jsonl")) if self.folder.is_dir() else []

    def wait_chunks(self, count: int) -> Mark:
        """Returns at the moment at which so many are committed."""
        wait_until(f"{count} chunks are committed", lambda: self._has(count), _CHUNK_SECONDS)
        return self.mark()

    def _has(self, count: int) -> bool:
        self.program.check_alive()
        return len(self.list_chunks()) >= count

    def mark(self) -> Mark:
        """How far it is now."""
        listener = processes.cpu_seconds([self.program.process.pid])
        return Mark(len(self.list_chunks()), listener, processes.cpu_seconds(self.program.pids))

    @property
    def start_seconds(self) -> float:
        """From its start until its first chunk was there."""
        return self.list_chunks()[0].stat().st_mtime - self.begun


@dataclass(frozen=True)
class Stretch:
    """What a worker did between two moments at which a chunk of it was committed."""

    worker: Worker
    first: Mark
    last: Mark

    @cached_property
    def lines(self) -> int:
        """All of them predicted; raises BenchError where one failed."""
        headers = [decode_header(path.read_bytes()) for path in self._chunks[1:]]
        if failed := sum(header.failed for header in headers):
            raise BenchError(f"{failed} lines failed: that is no measurement")
        return sum(header.successful for header in headers)

    @property
    def seconds(self) -> float:
        return self._chunks[-1].stat().st_mtime - self._chunks[0].stat().st_mtime

    @property
    def _chunks(self) -> list[Path]:
        """From the one whose end is the beginning."""
        return self.worker.list_chunks()[self.first.chunks - 1 : self.last.chunks]

    @property
    def listener_cpu(self) -> float:
        return self.last.listener_cpu - self.first.listener_cpu

    @property
    def model_cpu(self) -> float:
        return self.last.cpu - self.first.cpu - self.listener_cpu


@contextlib.contextmanager
def start_worker(workshop: Workshop, job: Job, shard: int, cpus: str) -> Iterator[Worker]:
    """Starts the worker of one shard; ends it at the end."""
    job.output.mkdir(exist_ok=True)
    begun = time.time()
    command = pin([sys.executable, "-m", "pierhead_server", "batch"], cpus)
    environment = make_environment(job.make_environment(shard))
    with running(command, log=workshop.log(f"batch-{shard}"), environment=environment) as program:
        yield Worker(program, begun, job.output / ".pierhead" / "parts" / f"{shard:05d}")


def measure(workers: Sequence[Worker], seconds: float, right: Report) -> Figures:
    """Figures of all workers together, from when each of them had committed something on."""
    for worker in workers:
        worker.wait_chunks(1)
    firsts = [worker.mark() for worker in workers]
    machine, begin = processes.busy_seconds(), time.perf_counter()
    time.sleep(seconds)
    # At the end of a chunk that is written now, so that its time and the CPU's are of the same stretch.
    lasts = [
        worker.wait_chunks(max(first.chunks + LEAST_CHUNKS, len(worker.list_chunks()) + 1))
        for worker, first in zip(workers, firsts, strict=True)
    ]
    machine, elapsed = processes.busy_seconds() - machine, time.perf_counter() - begin
    stretches = [Stretch(*one) for one in zip(workers, firsts, lasts, strict=True)]
    return compute_figures(stretches, machine / elapsed) | compare_chunk(workers[0].list_chunks()[-1], right)


def compute_figures(stretches: Sequence[Stretch], machine_cpu: float) -> Figures:
    """Lines a second of all workers, and what a line cost of the CPU, in milliseconds."""
    lines = sum(one.lines for one in stretches)
    cpu = sum((one.listener_cpu + one.model_cpu) / one.seconds for one in stretches)
    return {
        "rate": sum(one.lines / one.seconds for one in stretches),
        "listener_ms": sum(one.listener_cpu for one in stretches) / lines * 1e3,
        "model_ms": sum(one.model_cpu for one in stretches) / lines * 1e3,
        "start_seconds": max(one.worker.start_seconds for one in stretches),
        "cpu": cpu,
        "others_cpu": max(0.0, machine_cpu - cpu),
    }


class _Instance(msgspec.Struct):
    content: str


class _Line(msgspec.Struct):
    instance: _Instance
    prediction: msgspec.Raw


def compare_chunk(chunk: Path, right: Report) -> Figures:
    """The top classes of a chunk's pictures beside the eager network's."""
    lines = (msgspec.json.decode(line, type=_Line) for line in split_part(chunk.read_bytes())[0])
    answers = {int(Path(line.instance.content).stem): _to_body(line.prediction) for line in lines}
    return load.compare_answers(answers, right)


def _to_body(prediction: msgspec.Raw) -> str:
    return f'{{"predictions": [{bytes(prediction).decode()}]}}'
