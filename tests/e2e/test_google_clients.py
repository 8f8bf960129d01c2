"""Google's own clients, unchanged, against the REST API: each lives a life, side by side with the others.

The gateway asks who may predict, as an installation has it that says nothing else.
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import skimage.data

from cluster.settings import STORAGE_URL
from tests.batch import Storage, make_picture
from tests.chart import upgraded
from tests.e2e.conftest import make_owner
from tests.kube import Kubectl, scratch_namespace

# The gateway asks about everybody's predictions meanwhile.
pytestmark = pytest.mark.exclusive

CLIENTS = Path(__file__).parent / "clients"
PICTURE = Path(skimage.data.__file__).parent / "coffee.png"
COMMANDS = {
    "sdk": [sys.executable, str(CLIENTS / "vertex_sdk.py")],
    "beta": [sys.executable, str(CLIENTS / "vertex_beta.py")],
    "ml": [sys.executable, str(CLIENTS / "aiplatform_v1.py")],
    "node": ["node", str(CLIENTS / "node" / "life.js")],
}


@dataclass
class Life:
    """A client's program that runs."""

    kubectl: Kubectl
    process: subprocess.Popen[str]

    def end(self):
        """What it saw."""
        out, err = self.process.communicate(timeout=400)
        assert self.process.returncode == 0, f"{err[-4000:]}\n{self.kubectl('get', 'pierhead')}"
        return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def lives(cluster):
    """The programs of all clients by name, each in a project of its own."""
    with ExitStack() as stack:
        stack.enter_context(upgraded("api.authorization=gateway"))
        storage = stack.enter_context(Storage.connected())
        line = json.dumps({"content": "gs://{}/coffee.jpg"})
        for name in ("sdk", "node"):
            storage.make_bucket(name)
            storage.put(name, "coffee.jpg", make_picture())
            storage.put(name, "lines.jsonl", line.replace("{}", name).encode())
        yield {name: _begin(stack, name, command) for name, command in COMMANDS.items()}


def _begin(stack, name, command):
    kubectl = stack.enter_context(scratch_namespace(f"client-{name}"))
    kubectl.apply(*make_owner())
    url = os.environ["PIERHEAD_URL"]
    address = url.removeprefix("http://") if name == "node" else url
    environment = {
        **os.environ,
        "TOKEN": kubectl("create", "token", "owner").strip(),
        "STORAGE_EMULATOR_HOST": STORAGE_URL,
        "REQUESTS_CA_BUNDLE": os.environ["PIERHEAD_CA"],
    }
    process = subprocess.Popen(
        [*command, address, kubectl.namespace, str(PICTURE)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return Life(kubectl, process)


def test_python_sdk(lives):
    seen = lives["sdk"].end()
    assert seen["versions"] == ["1", "2"]
    assert seen["candidate"] == "2"
    assert seen["prediction"] == ["espresso"]
    assert seen["answered_by_version"] == "1"
    assert seen["raw"] == ["https", 200, 1]
    assert seen["access_logs"] == [True, False]
    assert seen["split"] == [80, 20]
    assert seen["listed"] == [seen["endpoint"]]
    assert seen["refused"] == 400
    assert seen["left"]
    assert [code for code, _ in seen["failed"]] == ["NOT_FOUND", "RESOURCE_EXHAUSTED"], seen["failed"]
    assert "gs://models/nothing" in seen["failed"][0][1]
    assert "not done within 15 s" in seen["failed"][1][1]
    assert seen["left_by_failures"] == [True, 1]
    assert seen["job"] == ["JOB_STATE_SUCCEEDED", 1, 0]
    assert seen["output"] == [["espresso"]]
    assert seen["rest"] == []


def test_client_of_v1beta1(lives):
    assert lives["beta"].end() == {
        "refused": True,
        "answered": True,
        "read": [2, 10, True],
        "in_v1": [True, True, False],
    }


def test_ai_platforms_client(lives):
    seen = {"default": "models/Legacy_photos/versions/v1_2", "listed": True, "stale": 409}
    assert lives["ml"].end() == {**seen, "predictions": 1, "by_version": 1}


def test_node_client(lives):
    seen = lives["node"].end()
    assert seen == {"split": 100, "updated": [100, "a"], "prediction": ["espresso"], "job": seen["job"], "left": 0}
    assert seen["job"] in ("JOB_STATE_CANCELLED", "JOB_STATE_SUCCEEDED")
