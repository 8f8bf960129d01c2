"""LitServe as a peer: which of its settings are tried, and how it is started. No torch."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.server.processes import Program, running, wait_until
from bench.server.workshop import Workpiece, Workshop, make_environment

PATH = "/predict"
READY_SECONDS = 180.0
_TRY_AGAIN_SECONDS = 0.1


class PeerPlan(msgspec.Struct, frozen=True):
    """How LitServe is started."""

    model: str
    artifact: str
    packages: dict[int, str]
    device: str
    port: int = 0
    compiled: bool = False  # or the eager network
    workers: int = 1
    threads: int | None = None  # of each worker; None leaves it to torch, which takes all cores
    batch: int = 1
    batch_timeout: float = 0.0
    fast_queue: bool = False
    log_level: str = "info"  # a line for each request

    @property
    def settings(self) -> str:
        """The settings that are not LitServe's defaults, in its own words."""
        parts = [
            f"workers_per_device={self.workers}" if self.workers > 1 else "",
            f"OMP_NUM_THREADS={self.threads}" if self.threads else "",
            f"max_batch_size={self.batch}" if self.batch > 1 else "",
            f"batch_timeout={self.batch_timeout}" if self.batch_timeout else "",
            "fast_queue" if self.fast_queue else "",
            f"log_level={self.log_level}" if self.log_level != "info" else "",
        ]
        return " ".join(filter(None, parts)) or "defaults"


@dataclass(frozen=True)
class Peer:
    """A LitServe that runs."""

    program: Program
    port: int

    def hold(self) -> None:
        """Makes it stand still: its workers would look for requests all the time."""
        self.program.signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """It runs inside, and stands still afterwards."""
        self.program.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.hold()


def list_plans(piece: Workpiece, device: str, cores: int) -> dict[str, list[PeerPlan]]:
    """The plans to try for each of the three contenders; the quickest of a list is the one to be measured."""
    base = PeerPlan(
        piece.model, str(piece.artifact), {batch: str(file) for batch, file in piece.packages.items()}, device
    )

    def plan(**changes: object) -> PeerPlan:
        return msgspec.structs.replace(base, **changes)

    each: dict[str, object] = {"workers": cores, "threads": 1} if device == "cpu" else {"workers": 2}
    each["log_level"] = "warning"
    batches = sorted(batch for batch in piece.packages if batch > 1)
    return {
        "litserve default": [base],
        "litserve eager": [
            plan(**each),
            plan(**each, fast_queue=True),
            *(plan(**each, batch=batch, batch_timeout=0.01) for batch in batches),
            plan(log_level="warning", batch=max(batches), batch_timeout=0.01),
        ],
        "litserve compiled": [
            plan(**each, compiled=True),
            plan(**each, compiled=True, fast_queue=True),
            *(plan(**each, compiled=True, batch=batch, batch_timeout=0.01) for batch in batches),
        ],
    }


@contextlib.contextmanager
def start_peer(workshop: Workshop, plan: PeerPlan) -> Iterator[Peer]:
    """Starts LitServe, waits until it is ready and ends it at the end."""
    plan = msgspec.structs.replace(plan, port=find_free_port())
    python: Path = workshop.peer_python()
    command = [str(python), "-m", "bench.server.litserve_app", msgspec.json.encode(plan).decode()]
    threads: Mapping[str, str] = {"OMP_NUM_THREADS": str(plan.threads)} if plan.threads else {}
    with running(command, log=workshop.log("litserve"), environment=make_environment(threads)) as program:

        def ready() -> bool:
            program.check_alive()
            time.sleep(_TRY_AGAIN_SECONDS)
            connection = http.client.HTTPConnection("127.0.0.1", plan.port, timeout=10)
            with contextlib.closing(connection):
                try:
                    connection.request("GET", "/health")
                    return connection.getresponse().status == http.client.OK
                except OSError:
                    return False

        wait_until("LitServe is ready", ready, READY_SECONDS)
        yield Peer(program, plan.port)


def find_free_port() -> int:
    """A port that nobody listens on now: LitServe wants to be told one."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
