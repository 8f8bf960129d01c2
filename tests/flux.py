"""Flux's own controllers for sources and Kustomizations, as programs of this machine against the cluster."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster import go_build
from cluster.settings import Paths
from tests import crds
from tests.kube import Kubectl, Manifest, find_port

FLUX_SYSTEM = Kubectl("flux-system")
KUSTOMIZATION = "kustomization.kustomize.toolkit.fluxcd.io"
GIT_REPOSITORY = "gitrepository.source.toolkit.fluxcd.io"
_COMMON = ("--metrics-addr=0", "--health-addr=127.0.0.1:0", "--events-addr=")


@dataclass(frozen=True)
class Flux:
    """Controllers that run."""

    log: Path  # of the one for Kustomizations

    def changes(self, kubectl: Kubectl, name: str) -> list[dict[str, str]]:
        """What became of each object in each application of a Kustomization, the first one first."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [
            line["output"]
            for line in lines
            if line["msg"] == "server-side apply completed"
            and (line["namespace"], line["name"]) == (kubectl.namespace, name)
        ]


def make_source(name: str, url: str) -> Manifest:
    spec = {"interval": "1h", "url": url, "ref": {"branch": "main"}}
    return _object("source.toolkit.fluxcd.io/v1", "GitRepository", name, spec)


def make_kustomization(name: str, **spec: object) -> Manifest:
    """One that waits for what it applies; what its objects name is in its own namespace."""
    given = {"interval": "1h", "retryInterval": "2s", "timeout": "3m", "wait": True, "prune": True, "path": "./"}
    source = {"kind": "GitRepository", "name": name}
    return _object("kustomize.toolkit.fluxcd.io/v1", "Kustomization", name, {**given, "sourceRef": source, **spec})


def _object(api_version: str, kind: str, name: str, spec: Manifest) -> Manifest:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def ask_again(kubectl: Kubectl, kind: str, name: str) -> None:
    """What `flux reconcile` does: the interval of tests is an hour."""
    kubectl("annotate", kind, name, f"reconcile.fluxcd.io/requestedAt={os.urandom(4).hex()}", "--overwrite")


@contextmanager
def running_flux(folder: Path) -> Iterator[Flux]:
    """With its CRDs in the cluster, and with all that is Flux's gone afterwards."""
    paths = Paths.from_environment()
    go_build.build(paths, [go_build.FLUX])
    with crds.installed(*_read_crds(paths)), ExitStack() as stack:
        storage = folder / "storage"
        storage.mkdir()
        address = f"127.0.0.1:{find_port()}"
        where = (f"--storage-path={storage}", f"--storage-addr={address}", f"--storage-adv-addr={address}")
        stack.enter_context(_running(paths, "source-controller", where, folder))
        stack.enter_context(_running(paths, "kustomize-controller", ("--requeue-dependency=1s",), folder))
        # Their finalizers need the controllers, and what a Kustomization applied goes with it.
        stack.callback(FLUX_SYSTEM.in_any_namespace, "delete", GIT_REPOSITORY, "--all", "--all-namespaces")
        stack.callback(FLUX_SYSTEM.in_any_namespace, "delete", KUSTOMIZATION, "--all", "--all-namespaces")
        yield Flux(folder / "kustomize-controller.log")


def _read_crds(paths: Paths) -> list[Manifest]:
    folder = go_build.FLUX.folder(paths)
    files = sorted([*folder.glob("source-crds/*.yaml"), *folder.glob("kustomize-crds/*.yaml")])
    return [document for file in files for document in yaml.safe_load_all(file.read_text()) if document]


@contextmanager
def _running(paths: Paths, name: str, arguments: Sequence[str], folder: Path) -> Iterator[None]:
    environment = {**os.environ, "RUNTIME_NAMESPACE": FLUX_SYSTEM.namespace, "TMPDIR": str(folder)}
    argv = [go_build.FLUX.binary(paths, name), *_COMMON, *arguments]
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=environment)
    try:
        yield
        assert process.poll() is None, f"{name} ended: {(folder / f'{name}.log').read_text()[-2000:]}"
    finally:
        process.terminate()
        process.wait()
