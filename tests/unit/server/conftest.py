"""Tiny real artifacts, and the real server in a process of its own."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvloop

from tests.unit.server.calls import pictures
from tests.unit.server.pictures import (
    picture,
    write_exported_artifact,
    write_obedient_artifact,
    write_torchvision_artifact,
)

PREDICT = "/v1/projects/p/locations/l/endpoints/photos:predict"
PROGRAM = (sys.executable, "-m", "pierhead_server")
DEADLINE_SECONDS = 60
COMPILER_NICE = 19


def pytest_asyncio_loop_factories(config, item):
    """Where sockets count, the loop that serves."""
    if item.path.name == "test_connection.py":
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="session")
def torchvision_folder(tmp_path_factory):
    return write_torchvision_artifact(tmp_path_factory.mktemp("torchvision"))


@pytest.fixture(scope="session")
def exported_folder(tmp_path_factory):
    return write_exported_artifact(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def obedient_folder(tmp_path_factory):
    """A custom predictor whose instances say what its worker does."""
    return write_obedient_artifact(tmp_path_factory.mktemp("obedient"))


@dataclass
class Compilation:
    """What two servers of one cache were seen to do while one of them compiled and clients went on."""

    entry: Path  # in the cache
    old: Path  # an entry of release 0.1.0's, which was there before
    body: dict  # what clients asked
    codes: list
    quick: list  # predictions before
    compiled: list  # and after
    logs: list
    workers: tuple  # the first server's, before and after
    parents: tuple  # whom they were forked from
    torch: list  # the processes that hold torch afterwards


@pytest.fixture(scope="session")
def compilation(torchvision_folder, tmp_path_factory):
    """The one compilation of a server's, of `torchvision_folder`: it takes its time where others compute beside it."""
    folder = tmp_path_factory.mktemp("compilation")
    old = folder / "cache" / f"{1:032x}"
    write_entry_of_0_1(old)
    settings = {"COMPILE": "true", "COMPILED_DIR": folder / "cache", "WORKERS": 1}
    logs, body, codes = [folder / "first", folder / "second"], pictures(picture(), picture(seed=1)), []
    with (
        running_server(torchvision_folder, logs[0], **settings) as first,
        running_server(torchvision_folder, logs[1], **settings) as second,
    ):
        first.wait_ready(1)
        parent, before, quick = (
            first.fork_server(),
            first.one_worker(),
            first.client.post(PREDICT, json=body).json()["predictions"],
        )
        with clients(first, body, codes):
            wait_until(lambda: first.form() == second.form() == "compiled", first.process, seconds=600)
            so_far = len(codes)
            wait_until(lambda: len(codes) > so_far + 20, first.process)
        wait_until(lambda: first.metric("pierhead_workers") == 1 and not set(before) & set(first.workers()))
        compiled = first.client.post(PREDICT, json=body).json()["predictions"]
        after = first.one_worker()
        parents, torch = (parent, first.fork_server()), first.find_torch()
    (entry,) = [path for path in (folder / "cache").iterdir() if path.is_dir() and path != old]
    logs = [log.read_text() for log in logs]
    return Compilation(entry, old, body, codes, quick, compiled, logs, (before, after), parents, torch)


def write_entry_of_0_1(entry):
    """What release 0.1.0 kept of a model: packages of AOTInductor's, for two sizes of a batch."""
    entry.mkdir(parents=True)
    (entry / "form.json").write_text('{"batches":[1,8],"milliseconds":{"1":5.4,"4":4.1,"8":3.9}}')
    np.save(entry / "check.npy", np.full((9, 5), 0.2, dtype=np.float32))
    for batch in (1, 8):
        (entry / f"batch-{batch}.pt2").write_bytes(b"PK\x03\x04")
    for path in entry.iterdir():
        os.utime(path, (0, 0))  # whoever reads it gives it another time


@contextlib.contextmanager
def clients(server, body, codes, count=2):
    """They ask one request after another meanwhile, leaving time for a compiler; the answers' codes are noted."""
    enough = threading.Event()

    def ask():
        with httpx.Client(base_url=server.address, timeout=DEADLINE_SECONDS) as client:
            while not enough.wait(0.05):
                codes.append(client.post(PREDICT, json=body).status_code)

    with ThreadPoolExecutor(count) as threads:
        asking = [threads.submit(ask) for _ in range(count)]
        try:
            yield
        finally:
            enough.set()
        for call in asking:
            call.result()


@dataclass
class Server:
    """A running `python -m pierhead_server`."""

    process: subprocess.Popen
    log: Path
    client: httpx.Client

    @property
    def address(self):
        return str(self.client.base_url)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait_ready(self, workers=None):
        """Until it is ready; with `workers`, until so many are warm."""
        wait_until(lambda: self.client.get("/readyz").status_code == httpx.codes.OK, self.process)
        if workers is not None:
            wait_until(lambda: self.metric("pierhead_workers") == workers, self.process)

    def metric(self, name, **labels):
        """The sum of a metric's lines with these labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            key, _, value = line.rpartition(" ")
            if key.partition("{")[0] == name and all(f'{label}="{wanted}"' in key for label, wanted in labels.items()):
                total += float(value)
        return total

    def form(self):
        """What computes; None before there is a model."""
        forms = ("quick", "compiled", "cuda")
        return next((form for form in forms if self.metric("pierhead_model_info", form=form)), None)

    def fork_server(self):
        """The pid of the process that holds the model."""

        def find():
            return [pid for pid in children(self.process.pid) if "pierhead_server.forkserver" in command(pid)]

        # While it begins anew, it has no command line for a moment.
        (pid,) = wait_until(find, self.process)
        return pid

    def find_torch(self):
        """The processes that hold it."""
        pids = (self.process.pid, self.fork_server(), *self.workers())
        return [pid for pid in pids if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]

    def workers(self):
        """The pids of those that compute."""
        return sorted(
            pid for pid in children(self.fork_server()) if os.getpriority(os.PRIO_PROCESS, pid) != COMPILER_NICE
        )

    def one_worker(self):
        """The same, once it is one: a process that compiles is among them until it has its priority."""
        wait_until(lambda: len(self.workers()) == 1, self.process)
        return self.workers()

    def family(self):
        """The pids of all its processes."""
        return [self.process.pid, *descendants(self.process.pid)]

    @contextlib.contextmanager
    def held(self):
        """Its workers stand still meanwhile."""
        workers = self.workers()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield workers
        finally:
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def children(pid):
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def descendants(pid):
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in children(pid):
            found += [child, *descendants(child)]
    return found


def command(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def is_alive(pid):
    """Whether a process runs; a zombie does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition, process=None, seconds=DEADLINE_SECONDS):
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert process is None or process.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return value


def make_environment(**settings):
    """Without a compiled form and on a free port of the loopback interface, where `settings` say nothing else."""
    given = {"HOST": "127.0.0.1", "PORT": 0, "DRAIN_SECONDS": 0, "COMPILE": "false"} | settings
    return dict(os.environ) | {f"PIERHEAD_{name}": str(value) for name, value in given.items()}


def run(*arguments, **settings):
    """A command that ends by itself."""
    environment = make_environment(**settings)
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
    )


@contextlib.contextmanager
def running_server(folder: Path, log: Path, **settings: object):
    """Start the server, and wait until it listens."""
    environment = make_environment(ARTIFACT_URI=folder.as_uri(), **settings)
    with log.open("wb") as file:
        process = subprocess.Popen(PROGRAM, env=environment, stderr=file)
    try:
        with httpx.Client(base_url=wait_listening(process, log), timeout=DEADLINE_SECONDS) as client:
            yield Server(process, log, client)
    finally:
        process.kill()
        process.wait()


def wait_listening(process, log):
    """The address that a server listens on, once it does."""
    listening = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
    return f"http://127.0.0.1:{wait_until(lambda: listening.search(log.read_text()), process)[1]}"
