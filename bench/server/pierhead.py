"""The model server under test: the real program, started as its users start it."""

from __future__ import annotations

import contextlib
import http.client
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.server.processes import BenchError, Program, cpu_seconds, running, wait_until
from bench.server.workshop import Workshop, make_environment
from cluster import settings

PATH = "/v1/projects/bench/locations/local/endpoints/bench:predict"
READY_SECONDS = 180.0
COMPILED_SECONDS = 900.0
FASTEST = ("compiled", "cuda")
_QUIET_CORES = 0.05
_IDLE_SECONDS = 1.0
_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
_FORM = re.compile(r'^pierhead_model_info\{[^}]*\bform="([^"]*)"[^}]*\} 1(?:\.0)?$', re.M)


@dataclass(frozen=True)
class Plan:
    """How the server is started."""

    artifact: Path
    workers: int | None = None  # as many as the server thinks right
    code: Path | None = None  # another checkout's server/, instead of this one's
    compiled: Path | None = None  # where compiled forms are kept, instead of the bench's own folder
    device: str = "auto"
    compile: bool = True


@dataclass
class Server:
    """A server that runs."""

    program: Program
    begun: float  # of time.perf_counter
    port: int = 0

    def wait_ready(self) -> float:
        """Seconds from its start until it is ready."""
        wait_until("the server listens", self._listens, READY_SECONDS)
        wait_until("the server is ready", self._ready, READY_SECONDS)
        return time.perf_counter() - self.begun

    def wait_compiled(self) -> float | None:
        """Seconds from its start until it computes in its fastest form; None if it knows no forms."""
        if parse_form(self.get("/metrics")[1]) is None:
            return None
        wait_until("the server has its fastest form", lambda: self.form() in FASTEST, COMPILED_SECONDS)
        return time.perf_counter() - self.begun

    def wait_quiet(self) -> float:
        """Returns once nobody of the server's family computes any more; how many cores it takes even so."""
        deadline = time.monotonic() + COMPILED_SECONDS
        while (share := self._measure_idle()) > _QUIET_CORES:
            if time.monotonic() > deadline:
                raise BenchError(f"the idle server takes {share:.2f} cores")
        return share

    def _measure_idle(self) -> float:
        self.program.check_alive()
        before, begin = cpu_seconds(self.program.pids), time.monotonic()
        time.sleep(_IDLE_SECONDS)
        # Of a process that ended meanwhile the time is gone, too: then this one second says nothing.
        return abs(cpu_seconds(self.program.pids) - before) / (time.monotonic() - begin)

    def form(self) -> str | None:
        """The form that the model is computed in, as the server's metrics tell it."""
        self.program.check_alive()
        time.sleep(0.2)  # this is asked while it may be compiling
        return parse_form(self.get("/metrics")[1])

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; raises OSError where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def _listens(self) -> bool:
        self.program.check_alive()
        found = _LISTENING.search(self.program.log.read_text(errors="replace"))
        self.port = int(found[1]) if found else 0
        return found is not None

    def _ready(self) -> bool:
        self.program.check_alive()
        try:
            return self.get("/readyz")[0] == http.client.OK
        except OSError:
            return False


def parse_form(metrics: str) -> str | None:
    """The label `form` of pierhead_model_info; None if there is none."""
    found = _FORM.search(metrics)
    return found[1] if found else None


@contextlib.contextmanager
def start_server(workshop: Workshop, plan: Plan) -> Iterator[Server]:
    """Starts the server, which is not ready yet; ends it at the end."""
    code = plan.code or settings.REPOSITORY / "server"
    environment = {
        "PYTHONPATH": str(code),
        "PIERHEAD_ARTIFACT_URI": plan.artifact.absolute().as_uri(),
        "PIERHEAD_HOST": "127.0.0.1",
        "PIERHEAD_PORT": "0",
        "PIERHEAD_DRAIN_SECONDS": "0",
        "PIERHEAD_DEVICE": plan.device,
        "PIERHEAD_COMPILE": str(plan.compile).lower(),
        "PIERHEAD_COMPILED_DIR": str(plan.compiled or workshop.folder / "compiled"),
    }
    if plan.workers is not None:
        environment["PIERHEAD_WORKERS"] = str(plan.workers)
    begun = time.perf_counter()
    command = [sys.executable, "-m", "pierhead_server"]
    with running(command, log=workshop.log("server"), environment=make_environment(environment)) as program:
        yield Server(program, begun)
