"""kubectl and the gateway, as the tests use them: real ones, against the cluster of $KUBECONFIG and $PIERHEAD_URL."""

import json
import os
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from cluster import rollout

T = TypeVar("T")
Manifest = dict[str, Any]


class KubectlError(AssertionError):
    """kubectl ended with an error; the message is what it printed."""


def wait_until(what: str, probe: Callable[[], T], seconds: float = 120, interval: float = 0.2) -> T:
    """The first true value of `probe`; fails with what was waited for and the last value when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}; last seen: {value!r}")
        time.sleep(interval)


def make_list(manifests: Iterable[Manifest]) -> str:
    """What kubectl takes for one manifest after the other."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})


@dataclass(frozen=True)
class Kubectl:
    """kubectl in one namespace."""

    namespace: str

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        return self.in_any_namespace("--namespace", self.namespace, *arguments, stdin=stdin, timeout=timeout)

    def in_any_namespace(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """For manifests that name their own."""
        done = subprocess.run(
            ["kubectl", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise KubectlError(done.stderr.strip())
        return done.stdout

    def apply(self, *manifests: Manifest) -> None:
        self("apply", "--server-side", "--filename", "-", stdin=make_list(manifests))

    def patch(self, kind: str, name: str, patch: Manifest) -> None:
        self("patch", kind, name, "--type", "merge", "--patch", json.dumps(patch))

    def get(self, kind: str, name: str) -> Manifest | None:
        text = self("get", kind, name, "--ignore-not-found", "--output", "json")
        return json.loads(text) if text else None

    def items(self, kinds: str, selector: str = "") -> list[Manifest]:
        arguments = ["--selector", selector] if selector else []
        return json.loads(self("get", kinds, *arguments, "--output", "json"))["items"]

    def condition(self, kind: str, name: str, type_: str = "Ready") -> Manifest:
        """The condition of a resource; an empty one where there is none."""
        found = self.get(kind, name) or {}
        conditions = found.get("status", {}).get("conditions") or []  # a CRD has null at first
        return next((condition for condition in conditions if condition["type"] == type_), {})

    def wait_ready(self, kind: str, *names: str, seconds: float = 240) -> None:
        for name in names:
            wait_until(
                f"{kind} {name} is Ready",
                lambda name=name: (
                    (condition := self.condition(kind, name)).get("status") == "True"
                    and condition["observedGeneration"] == self.get(kind, name)["metadata"]["generation"]
                ),
                seconds,
            )

    def pods(self, deployed_model: str) -> list[Manifest]:
        return self.items("pods", f"pierhead.dev/deployed-model={deployed_model}")


@contextmanager
def scratch_namespace(name: str) -> Iterator[Kubectl]:
    """A namespace that is there for one test, and is being deleted afterwards."""
    kubectl = Kubectl(f"{name[:40]}-{os.urandom(3).hex()}")
    kubectl("create", "namespace", kubectl.namespace)
    try:
        yield kubectl
    finally:
        kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


def describe(kubectl: Kubectl) -> str:
    """What there is in a namespace, and what became of it, for who reads of a failure later: some 60 lines."""
    asked = [
        (kubectl, "get", "models,endpoints,deployedmodels,batchpredictionjobs,pods", "--output=wide"),
        (kubectl, "get", "events", "--sort-by=.lastTimestamp", "--no-headers"),
        (SYSTEM, "logs", f"deployment/{OPERATOR}", "--tail=2000"),
    ]
    return "\n".join(_describe_one(by, *arguments, about=kubectl.namespace) for by, *arguments in asked)


def _describe_one(by: Kubectl, *arguments: str, about: str) -> str:
    try:
        lines = by(*arguments).splitlines()
    except (KubectlError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(arguments)}: {error}"
    told = [line for line in lines if by.namespace == about or about in line]
    return "\n".join(line[:300] for line in told[-25:])


@contextmanager
def forwarded(kubectl: Kubectl, service: str, port: int) -> Iterator[str]:
    """The URL on this machine at which a port of a Service answers meanwhile."""
    argv = ["kubectl", "--namespace", kubectl.namespace, "port-forward", f"service/{service}", f":{port}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            # "Forwarding from 127.0.0.1:34567 -> 8080"; its end of the pipe is closed where it fails.
            yield f"http://{process.stdout.readline().split()[2]}"
        finally:
            process.terminate()


def find_port() -> int:
    """One of this machine's own that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


SYSTEM = Kubectl("pierhead-system")
OPERATOR = "pierhead-operator"


def scale_operator(replicas: int) -> None:
    """Stops the installed operator, or starts it; waits until that is so."""
    SYSTEM("scale", "deployment", OPERATOR, f"--replicas={replicas}")
    SYSTEM("rollout", "status", f"deployment/{OPERATOR}", "--timeout=60s")
    wait_until(
        f"{replicas} operators run",
        lambda: len(SYSTEM.items("pods", "app.kubernetes.io/name=pierhead-operator")) == replicas,
    )


def wait_operator(kubectl: Kubectl = SYSTEM, name: str = OPERATOR) -> None:
    """Until the operator leads that an installation asks for now: after an upgrade the one before may lead on a while.

    What is made before may be made with the settings before.
    """
    rollout.wait_operator(kubectl.in_any_namespace, kubectl.namespace, name)


def predict_url(namespace: str, endpoint: str, gateway: str | None = None) -> str:
    """Where an Endpoint is predicted against, at this gateway's URL or at that of $PIERHEAD_URL."""
    base = gateway or os.environ["PIERHEAD_URL"]
    return f"{base}/v1/projects/{namespace}/locations/local/endpoints/{endpoint}:predict"


def predict(client: httpx.Client, url: str, body: bytes) -> str:
    """One prediction; the DeployedModel that answered, or what went wrong."""
    try:
        response = client.post(url, content=body, headers={"content-type": "application/json"})
    except httpx.HTTPError as error:
        return f"failed: {error!r}"
    if response.status_code != 200:
        return f"failed: {response.status_code} {response.text[:200]}"
    return str(response.json()["deployedModelId"])


def predict_many(url: str, body: bytes, count: int) -> Counter[str]:
    """How many predictions each DeployedModel answered; failures under 'failed: ...'."""
    with httpx.Client(timeout=60) as client:
        return Counter(predict(client, url, body) for _ in range(count))


def wait_answered(url: str, body: bytes, *deployed_models: str) -> None:
    """Until the gateway has followed: predictions are answered, by each of these DeployedModels, and none fails."""
    wanted = set(deployed_models)
    wait_until(f"{', '.join(deployed_models)} answer", lambda: set(predict_many(url, body, 20)) == wanted)
