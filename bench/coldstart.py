"""How long a pod of the small image takes from its container's start to its first answer, in this machine's cluster.

`python -m cluster run -- python -m bench.coldstart` converts the example's first model, serves it with runtime
OpenVINO, and has its pod replaced again and again: nothing of it is cached, the artifact comes from the cluster's
storage. A container starts when its first process does, as the kernel tells; an answer is a prediction of a photograph.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import skimage.data
import typer

from bench.program import run_program
from bench.server.processes import BenchError, wait_until
from cluster import commands
from cluster.progress import say, step
from cluster.settings import REPOSITORY, STORAGE_URL

_PICTURE = Path(skimage.data.__file__).parent / "coffee.png"
_NAME = "coldstart"
_PAUSE_SECONDS = 0.01
_DELETE_SECONDS = 120.0


def bench(rounds: Annotated[int, typer.Option(min=1, max=100)] = 10) -> None:
    namespace = f"{_NAME}-{secrets.token_hex(3)}"
    with step("converting the example's model"):
        _convert(destination := f"gs://models/{_NAME}")
    _kubectl("create", "namespace", namespace)
    try:
        _deploy(namespace, destination)
        with httpx.Client(trust_env=False, timeout=30) as client:
            seen = [_replace(client, namespace) for _ in range(rounds)]
    finally:
        _kubectl("delete", "namespace", namespace, "--wait=false")
    least, median, most = min(seen), statistics.median(seen), max(seen)
    say(f"container's start to the first answer: {median:.2f} s ({least:.2f} to {most:.2f}), {rounds} rounds")


def _kubectl(*arguments: str, stdin: str = "") -> str:
    return commands.output(["kubectl", *arguments], stdin=stdin, timeout=300)


def _convert(destination: str) -> None:
    command = [sys.executable, "-m", "pierhead_server", "convert", "gs://models/photos/1", destination]
    environment = {**os.environ, "STORAGE_EMULATOR_HOST": STORAGE_URL, "PYTHONPATH": str(REPOSITORY / "server")}
    commands.output(command, env=environment, timeout=300)


def _deploy(namespace: str, artifact: str) -> None:
    versions = [{"name": "1", "artifactUri": artifact, "runtime": "OpenVINO"}]
    specs: dict[str, dict[str, Any]] = {
        "Model": {"defaultVersion": "1", "versions": versions},
        "Endpoint": {},
        "DeployedModel": {"endpoint": _NAME, "model": _NAME},
    }
    manifests = [
        {"apiVersion": "pierhead.dev/v1", "kind": kind, "metadata": {"name": _NAME}, "spec": spec}
        for kind, spec in specs.items()
    ]
    items = {"apiVersion": "v1", "kind": "List", "items": manifests}
    _kubectl("--namespace", namespace, "apply", "--filename", "-", stdin=json.dumps(items))
    ready = ("--for=condition=Ready", f"deployedmodel/{_NAME}", "--timeout=240s")
    _kubectl("--namespace", namespace, "wait", *ready)


def _replace(client: httpx.Client, namespace: str) -> float:
    """Seconds from the start of a new pod's container to its first answer."""
    [old] = _list_pods(namespace)
    _kubectl("--namespace", namespace, "delete", "pod", old["metadata"]["name"], "--wait=false")
    found: list[dict[str, Any]] = []

    def come() -> bool:
        # The old one has its address until it is gone.
        found[:] = [
            pod
            for pod in _list_pods(namespace)
            if pod["metadata"]["uid"] != old["metadata"]["uid"] and pod["status"].get("podIP")
        ]
        return bool(found)

    wait_until("a new pod has an address", come, _DELETE_SECONDS)
    answered = _wait_answer(client, found[0]["status"]["podIP"])
    started = _find_start(found[0]["metadata"]["uid"])
    say(f"{answered - started:.2f} s")

    def alone() -> bool:
        return len(_list_pods(namespace)) == 1

    wait_until("the old pod is gone", alone, _DELETE_SECONDS)
    return answered - started


def _list_pods(namespace: str) -> list[dict[str, Any]]:
    selector = f"--selector=pierhead.dev/deployed-model={_NAME}"
    pods: list[dict[str, Any]] = json.loads(
        _kubectl("--namespace", namespace, "get", "pods", selector, "--output=json")
    )["items"]
    return pods


def _wait_answer(client: httpx.Client, address: str) -> float:
    """The moment of the first answer, of time.time()."""
    url = f"http://{address}:8080/v1/projects/p/locations/l/endpoints/e:predict"
    instance = {"content": base64.b64encode(_PICTURE.read_bytes()).decode(), "mimeType": "image/png"}
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if client.post(url, json={"instances": [instance]}).status_code == httpx.codes.OK:
                return time.time()
        except httpx.TransportError:
            pass
        time.sleep(_PAUSE_SECONDS)
    raise BenchError("the new pod does not answer")


def _find_start(uid: str) -> float:
    """When the first of a pod's processes that are the server's started, of time.time()."""
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    ticks = os.sysconf("SC_CLK_TCK")
    starts = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            within = uid in (folder / "cgroup").read_text().replace("_", "-")
            if within and b"pierhead" in (folder / "cmdline").read_bytes():
                # The name before may have any characters, and ends with the last parenthesis.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                starts.append(boot + int(fields[19]) / ticks)
        except OSError:
            continue  # it has ended
    if not starts:
        raise BenchError("no process of the new pod is found")
    return min(starts)


if __name__ == "__main__":
    run_program(bench)
