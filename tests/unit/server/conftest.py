"""Tiny real artifacts, and the real server in a process of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.unit.server.pictures import write_exported_artifact, write_torchvision_artifact

PREDICT = "/v1/projects/p/locations/l/endpoints/photos:predict"
DEADLINE_SECONDS = 60


@pytest.fixture(scope="session")
def torchvision_folder(tmp_path_factory):
    return write_torchvision_artifact(tmp_path_factory.mktemp("torchvision"))


@pytest.fixture(scope="session")
def exported_folder(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own exporter
        return write_exported_artifact(tmp_path_factory.mktemp("exported"))


@dataclass
class Server:
    """A running `python -m pierhead_server`."""

    process: subprocess.Popen
    log: Path
    client: httpx.Client

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait_ready(self):
        wait_until(lambda: self.client.get("/readyz").status_code == httpx.codes.OK, self.process)

    def metric(self, name):
        """The value of a metric's line, by its whole name and labels."""
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), 0.0)

    def model_process(self):
        """The pid of the model's process."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = [int(pid) for task in tasks for pid in task.read_text().split()]
        return next(
            pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        )


def wait_until(condition, process=None):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert process is None or process.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@contextlib.contextmanager
def running_server(folder: Path, log: Path, **settings: object):
    """Start the server on a free port of the loopback interface and wait until it listens."""
    variables = {"ARTIFACT_URI": folder.as_uri(), "HOST": "127.0.0.1", "PORT": 0, "DRAIN_SECONDS": 0} | settings
    environment = dict(os.environ) | {f"PIERHEAD_{name}": str(value) for name, value in variables.items()}
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "pierhead_server"], env=environment, stderr=file)
    try:
        listening = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
        wait_until(lambda: listening.search(log.read_text()), process)
        address = f"http://127.0.0.1:{listening.search(log.read_text())[1]}"
        with httpx.Client(base_url=address, timeout=DEADLINE_SECONDS) as client:
            yield Server(process, log, client)
    finally:
        process.kill()
        process.wait()
