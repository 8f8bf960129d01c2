"""Other servers as peers: which of their settings are tried, and how they are started. No torch."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from bench.server import forms, tensors
from bench.server.processes import Program, running, wait_until
from bench.server.workshop import Workpiece, Workshop, make_environment

PATH = "/predict"
PLAN_VARIABLE = "BENCH_PEER_PLAN"  # of a peer whose program takes no arguments of ours
READY_SECONDS = 180.0
_TRY_AGAIN_SECONDS = 0.1
_HEALTH = {"litserve": "/health", "bentoml": "/readyz", "triton": "/v2/health/ready"}
_WORKERS = {"litserve": "workers_per_device", "bentoml": "workers", "triton": "instance_group.count"}

PeerName = Literal["litserve", "bentoml", "triton"]
PEERS: Mapping[PeerName, str] = {"litserve": "LitServe", "bentoml": "BentoML", "triton": "Triton"}
CPU_PEERS: Sequence[PeerName] = ("bentoml", "triton")  # that serve OpenVINO's network alone


class PeerPlan(msgspec.Struct, frozen=True):
    """How a peer is started."""

    peer: PeerName
    model: str
    artifact: str
    packages: dict[int, str]
    device: str
    network: str | None = None  # OpenVINO's
    port: int = 0
    form: Literal["eager", "aoti", "openvino"] = "eager"
    workers: int = 1
    threads: int | None = None  # of each worker; None leaves it to torch, which takes all cores
    batch: int = 1
    batch_timeout: float = 0.0
    fast_queue: bool = False  # LitServe's
    http_threads: int | None = None  # Triton's
    log_level: str = "info"  # a line for each request

    @property
    def settings(self) -> str:
        """The settings that are not the peer's defaults, in its own words."""
        parts = [
            f"{_WORKERS[self.peer]}={self.workers}" if self.workers > 1 else "",
            f"OMP_NUM_THREADS={self.threads}" if self.threads else "",
            f"max_batch_size={self.batch}" if self.batch > 1 else "",
            f"batch_timeout={self.batch_timeout}" if self.batch_timeout else "",
            "fast_queue" if self.fast_queue else "",
            f"http-thread-count={self.http_threads}" if self.http_threads else "",
            f"log_level={self.log_level}" if self.log_level != "info" else "",
        ]
        return " ".join(filter(None, parts)) or "defaults"

    @property
    def path(self) -> str:
        """Where requests go."""
        return tensors.PATH if self.takes_tensors else PATH

    @property
    def takes_tensors(self) -> bool:
        """Whether requests are those of KServe's V2 protocol, with the JPEG as it is."""
        return self.peer == "triton"


@dataclass(frozen=True)
class Peer:
    """A peer that runs."""

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


def list_plans(piece: Workpiece, device: str, cores: int, names: Sequence[PeerName]) -> dict[str, list[PeerPlan]]:
    """The plans to try for each contender of these peers; the quickest of a list is the one to be measured."""
    batches = [batch for batch in forms.list_package_batches(device) if batch > 1]
    plans: dict[str, list[PeerPlan]] = {}
    for name in names:
        base = PeerPlan(
            name,
            piece.model,
            str(piece.artifact),
            {batch: str(file) for batch, file in piece.packages.items()},
            device,
            network=str(piece.network) if piece.network else None,
        )
        plans |= _LISTS[name](base, batches, cores)
    return plans


def _list_litserve(base: PeerPlan, batches: Sequence[int], cores: int) -> dict[str, list[PeerPlan]]:
    def plan(**changes: object) -> PeerPlan:
        return msgspec.structs.replace(base, **changes)

    each: dict[str, object] = {"workers": cores, "threads": 1} if base.device == "cpu" else {"workers": 2}
    each["log_level"] = "warning"
    form = "openvino" if base.device == "cpu" else "aoti"
    return {
        "litserve default": [base],
        "litserve eager": [
            plan(**each),
            plan(**each, fast_queue=True),
            *(plan(**each, batch=batch, batch_timeout=0.01) for batch in batches),
            plan(log_level="warning", batch=max(batches), batch_timeout=0.01),
        ],
        f"litserve {form}": [
            plan(**each, form=form),
            plan(**each, form=form, fast_queue=True),
            *(plan(**each, form=form, batch=batch, batch_timeout=0.01) for batch in batches),
        ],
    }


def _list_bentoml(base: PeerPlan, batches: Sequence[int], cores: int) -> dict[str, list[PeerPlan]]:
    """Of a CPU's alone. Its batches adapt themselves: how long a request waits for others, it finds out."""
    each = msgspec.structs.replace(base, form="openvino", workers=cores, threads=1, log_level="warning")
    return {"bentoml openvino": [each, *(msgspec.structs.replace(each, batch=batch) for batch in batches)]}


def _list_triton(base: PeerPlan, batches: Sequence[int], cores: int) -> dict[str, list[PeerPlan]]:
    """Of a CPU's alone. Batches are of what waits when an instance is free: with every core busy there is enough."""
    each = msgspec.structs.replace(base, form="openvino", workers=cores, threads=1, log_level="warning")
    batched = [msgspec.structs.replace(each, batch=batch) for batch in batches]
    return {"triton openvino": [each, *batched, *(msgspec.structs.replace(one, http_threads=cores) for one in batched)]}


_LISTS: Mapping[PeerName, Callable[[PeerPlan, Sequence[int], int], dict[str, list[PeerPlan]]]] = {
    "litserve": _list_litserve,
    "bentoml": _list_bentoml,
    "triton": _list_triton,
}


@contextlib.contextmanager
def start_peer(workshop: Workshop, plan: PeerPlan) -> Iterator[Peer]:
    """Starts a peer, waits until it is ready and ends it at the end."""
    plan = msgspec.structs.replace(plan, port=find_free_port())
    command = [str(workshop.peer_python(plan.peer)), *_make_arguments(plan)]
    more = {"OMP_NUM_THREADS": str(plan.threads)} if plan.threads else {}
    if plan.peer == "bentoml":
        more |= {
            PLAN_VARIABLE: msgspec.json.encode(plan).decode(),
            "BENTOML_HOME": str(workshop.folder / "bentoml-home"),
            "BENTOML_DO_NOT_TRACK": "True",
        }
    with (
        tempfile.TemporaryDirectory(prefix=f"bench-{plan.peer}-") as own,
        running(command, log=workshop.log(plan.peer), environment=make_environment(more | {"TMPDIR": own})) as program,
    ):

        def ready() -> bool:
            program.check_alive()
            time.sleep(_TRY_AGAIN_SECONDS)
            connection = http.client.HTTPConnection("127.0.0.1", plan.port, timeout=10)
            with contextlib.closing(connection):
                try:
                    connection.request("GET", _HEALTH[plan.peer])
                    return connection.getresponse().status == http.client.OK
                except OSError:
                    return False

        wait_until(f"{PEERS[plan.peer]} is ready", ready, READY_SECONDS)
        yield Peer(program, plan.port)


def _make_arguments(plan: PeerPlan) -> list[str]:
    """Python's arguments."""
    if plan.peer != "bentoml":
        return ["-m", f"bench.server.{plan.peer}_app", msgspec.json.encode(plan).decode()]
    return [
        "-m",
        "bentoml",
        "serve",
        "bench.server.bentoml_app:Classifier",
        "--host",
        "127.0.0.1",
        "--port",
        str(plan.port),
    ]


def find_free_port() -> int:
    """A port that nobody listens on now: a peer wants to be told one."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
