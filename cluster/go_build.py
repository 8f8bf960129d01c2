"""Builds the cluster's binaries from pinned Go modules into the cache.

An entry of the cache is `bin/<name>-<version>-<key>/`; the key covers everything that decides the result, so an entry
that exists is right and is never written again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster import commands, folders, host, locks, settings
from cluster.errors import ClusterError
from cluster.progress import say
from cluster.settings import Paths

GO_FLAGS = ("-trimpath", "-buildvcs=false", "-mod=readonly")
BUILD_TIMEOUT = 3600.0
# Where Go fetches modules from and whom it trusts is the machine's to say; every other GO* variable could change
# the result.
GO_VARIABLES_KEPT = ("GOPROXY", "GONOPROXY", "GOPRIVATE", "GOSUMDB", "GONOSUMDB", "GOINSECURE", "GOAUTH", "GOVCS")


@dataclass(frozen=True)
class Tool:
    """One module under `gomods/` and what is wanted of it."""

    name: str
    version: str
    binaries: Mapping[str, str]  # file name -> Go package
    variables: Mapping[str, str] = field(default_factory=dict)  # Go variable -> value, set by the linker
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # name -> (module, path in it), copied along
    tags: tuple[str, ...] = ()  # of Go's build constraints
    seconds: int = 0  # of a build after those before it, on two cores, as docs/performance.md has it: for estimates

    @property
    def module(self) -> Path:
        return settings.SOURCE / "gomods" / self.name

    @property
    def link_flags(self) -> str:
        return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in self.variables.items())])

    @property
    def tag_flags(self) -> tuple[str, ...]:
        return (f"-tags={','.join(self.tags)}",) if self.tags else ()

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits over the lock files, our own sources and the flags."""
        digest = hashlib.sha256(
            repr([self.version, sorted(self.binaries.items()), sorted(self.files.items())]).encode()
        )
        digest.update(repr([(*GO_FLAGS, *self.tag_flags), self.link_flags]).encode())
        for path in sorted(self.module.iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:12]

    def folder(self, paths: Paths) -> Path:
        return paths.bin / f"{self.name}-{self.version}-{self.key}"

    def binary(self, paths: Paths, name: str) -> Path:
        return self.folder(paths) / name


_KUBERNETES = f"v{settings.KUBERNETES_VERSION}"
_MAJOR, _MINOR, _ = settings.KUBERNETES_VERSION.split(".")

KUBE = Tool(
    name="kube",
    version=settings.KUBERNETES_VERSION,
    seconds=294,
    binaries={
        "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
        "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
        "kubelet": "k8s.io/kubernetes/cmd/kubelet",
        "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
        "kubectl": "k8s.io/kubernetes/cmd/kubectl",
        # In Kubernetes' own module: the apiserver is built against this very version of etcd.
        "etcd": "go.etcd.io/etcd/server/v3",
    },
    variables={
        "k8s.io/component-base/version.gitVersion": _KUBERNETES,
        "k8s.io/component-base/version.gitMajor": _MAJOR,
        "k8s.io/component-base/version.gitMinor": _MINOR,
        "k8s.io/client-go/pkg/version.gitVersion": _KUBERNETES,
    },
    files={"pause.c": ("k8s.io/kubernetes", "build/pause/linux/pause.c")},
)
COREDNS = Tool(
    name="coredns",
    version=settings.COREDNS_VERSION,
    seconds=60,
    binaries={"coredns": "pierhead.dev/cluster/coredns"},
)
HELM = Tool(
    name="helm",
    version=settings.HELM_VERSION,
    seconds=90,
    binaries={"helm": "helm.sh/helm/v4/cmd/helm"},
    variables={"helm.sh/helm/v4/internal/version.version": f"v{settings.HELM_VERSION}"},
)
ENVOY_GATEWAY = Tool(
    name="envoy-gateway",
    version=settings.ENVOY_GATEWAY_VERSION,
    seconds=176,
    binaries={"envoy-gateway": "github.com/envoyproxy/gateway/cmd/envoy-gateway"},
    variables={
        "github.com/envoyproxy/gateway/internal/cmd/version.envoyGatewayVersion": f"v{settings.ENVOY_GATEWAY_VERSION}"
    },
    files={"gateway-helm": ("github.com/envoyproxy/gateway", "charts/gateway-helm")},
)
FAKE_GCS_SERVER = Tool(
    name="fake-gcs-server",
    version=settings.FAKE_GCS_SERVER_VERSION,
    seconds=33,
    binaries={"fake-gcs-server": "github.com/fsouza/fake-gcs-server"},
)
# Enforces NetworkPolicies.
KUBE_ROUTER = Tool(
    name="kube-router",
    version=settings.KUBE_ROUTER_VERSION,
    seconds=94,
    binaries={"kube-router": "pierhead.dev/cluster/kube-router"},
)
METRICS_SERVER = Tool(
    name="metrics-server",
    version=settings.METRICS_SERVER_VERSION,
    binaries={"metrics-server": "sigs.k8s.io/metrics-server/cmd/metrics-server"},
)
# Plays the nodes and their pods where the operator is measured.
KWOK = Tool(
    name="kwok",
    version=settings.KWOK_VERSION,
    binaries={"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
    files={"stages": ("sigs.k8s.io/kwok", "kustomize/stage")},
)
PROMETHEUS = Tool(
    name="prometheus",
    version=settings.PROMETHEUS_VERSION,
    binaries={
        "prometheus": "github.com/prometheus/prometheus/cmd/prometheus",
        "promtool": "github.com/prometheus/prometheus/cmd/promtool",  # tries the alerts
    },
    # It finds its targets in Kubernetes alone: the rest pulls in the SDKs of every cloud.
    tags=("remove_all_sd", "enable_kubernetes_sd"),
)
PROMETHEUS_ADAPTER = Tool(
    name="prometheus-adapter",
    version=settings.PROMETHEUS_ADAPTER_VERSION,
    binaries={"prometheus-adapter": "sigs.k8s.io/prometheus-adapter/cmd/adapter"},
)
# Its CRDs, and what it makes of PodMonitors. The Prometheus operator itself does not run in the cluster.
PROMETHEUS_OPERATOR = Tool(
    name="prometheus-operator",
    version=settings.PROMETHEUS_OPERATOR_VERSION,
    binaries={"make-scrape-config": "pierhead.dev/cluster/prometheus-operator"},
    files={
        "crds": ("github.com/prometheus-operator/prometheus-operator", "example/prometheus-operator-crd"),
    },
)
# What applies the examples of docs/gitops.md in the tests, and what judges Pierhead's statuses there.
FLUX = Tool(
    name="flux",
    version=settings.FLUX_VERSION,
    binaries={
        "source-controller": "github.com/fluxcd/source-controller",
        "kustomize-controller": "github.com/fluxcd/kustomize-controller",
    },
    files={
        "source-crds": ("github.com/fluxcd/source-controller", "config/crd/bases"),
        "kustomize-crds": ("github.com/fluxcd/kustomize-controller", "config/crd/bases"),
    },
)
HEALTH = Tool(
    name="health",
    version=settings.KSTATUS_VERSION,
    binaries={"health": "pierhead.dev/cluster/health"},
)
# No program: what Istio's objects are judged by in the tests. Istio itself does not run in the cluster.
ISTIO = Tool(
    name="istio",
    version=settings.ISTIO_VERSION,
    binaries={},
    files={"crds.yaml": ("istio.io/api", "kubernetes/customresourcedefinitions.gen.yaml")},
)

# What the first prediction goes through. The first compiles most of what the others share with it.
FIRST = (KUBE, COREDNS, ENVOY_GATEWAY, HELM, FAKE_GCS_SERVER)
TOOLS = (*FIRST, KUBE_ROUTER)
METRICS = (METRICS_SERVER, PROMETHEUS, PROMETHEUS_ADAPTER)
TESTS = (FLUX, HEALTH, PROMETHEUS_OPERATOR, ISTIO)  # none of them runs in the cluster


def missing(paths: Paths, tools: Iterable[Tool]) -> list[Tool]:
    """The tools that the cache lacks, in the order given."""
    return [tool for tool in tools if not tool.folder(paths).exists()]


def build(paths: Paths, tools: Iterable[Tool], *, more_to_come: bool = False) -> None:
    """Makes sure that the cache holds each of `tools`; then removes Go's own caches, unless there is `more_to_come`.

    Raises ClusterError if Go is missing or a build fails.
    """
    wanted = missing(paths, tools)
    if wanted:
        go = host.find_go()
        for number, tool in enumerate(wanted, start=1):
            _build_once(paths, tool, go, f"{number} of {len(wanted)}")
    if not more_to_come:
        remove_go_caches(paths)


def remove_go_caches(paths: Paths) -> None:
    """Gives the disk back, unless another process is building right now.

    Hundreds of thousands of files take a minute: a thread removes them, which the program waits for at its end.
    """
    removed = paths.go.with_name("go-removed")
    with locks.exclusive_if_free(paths.locks / "go") as free:
        if free and paths.go.exists() and not removed.exists():
            paths.go.rename(removed)
    if removed.exists():
        threading.Thread(target=shutil.rmtree, args=(removed,), kwargs={"ignore_errors": True}).start()


def go_environment(environment: Mapping[str, str], paths: Paths) -> dict[str, str]:
    """The environment of a build: the caller's, but with nothing in it that could change the result."""
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith(("GO", "CGO_")) or name in GO_VARIABLES_KEPT
    }
    return kept | {
        "CGO_ENABLED": "0",
        "GOFLAGS": " ".join([*GO_FLAGS, "-modcacherw"]),  # writable, so that it can be removed
        "GOMODCACHE": str(paths.go / "mod"),
        "GOCACHE": str(paths.go / "build"),
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }


def _build_once(paths: Paths, tool: Tool, go: str, which: str) -> None:
    # Two programs that want the same tool: the second waits, then finds it made.
    with locks.exclusive(paths.locks / tool.name), locks.shared(paths.locks / "go"):
        if not tool.folder(paths).exists():
            estimate = f"; {describe_seconds(tool.seconds)} on two cores" if tool.seconds else ""
            log = paths.log(f"build-{tool.name}")
            say(f"build {tool.name} {tool.version}, {which}{estimate} … (log: {log})")
            begun = time.monotonic()
            _build(paths, tool, go)
            say(f"build {tool.name} {tool.version}: {time.monotonic() - begun:.0f} s")


def estimate(tools: Iterable[Tool]) -> str:
    """How long the builds of these take, for a reader: `about 6 minutes`."""
    return describe_seconds(sum(tool.seconds for tool in tools))


def describe_seconds(seconds: int) -> str:
    """Roughly: an estimate promises no more than it knows."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return "about a minute" if minutes == 1 else f"about {minutes} minutes"


def _build(paths: Paths, tool: Tool, go: str) -> None:
    log = paths.log(f"build-{tool.name}")
    environment = go_environment(os.environ, paths)
    paths.bin.mkdir(parents=True, exist_ok=True)
    with folders.fresh(paths.bin / f".{tool.name}") as folder:
        made = folder / "made"
        made.mkdir()
        # One invocation: `go` compiles what the packages share once, and links them side by side.
        build = ["build", *tool.tag_flags, "-ldflags", tool.link_flags, "-o", f"{made}/", *tool.binaries.values()]
        commands.run(
            [go, *(build if tool.binaries else ["mod", "download"])],
            log=log,
            env=environment,
            cwd=tool.module,
            timeout=BUILD_TIMEOUT,
        )
        for name, package in tool.binaries.items():
            (made / binary_name(package)).rename(made / name)
        for name, (module, path) in tool.files.items():
            source = commands.output(
                [go, "-C", str(tool.module), "list", "-m", "-f", "{{.Dir}}", module], env=environment, timeout=300
            )
            _copy(Path(source.strip()) / path, made / name)
        made.rename(tool.folder(paths))


def binary_name(package: str) -> str:
    """The file name that `go build` gives a package: its last element that is not a major version."""
    *_, parent, last = package.split("/")
    return parent if last[0] == "v" and last[1:].isdigit() else last


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)  # not the modes: the module cache is read-only
    else:
        shutil.copyfile(source, target)


def main() -> None:
    """Builds what the first predictions need while Python's packages are installed: with Python's own library alone."""
    try:
        build(Paths.from_environment(), FIRST, more_to_come=True)
    except ClusterError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
