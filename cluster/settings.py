"""Versions, addresses and folders of the cluster: the one place where they are written down."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KUBERNETES_VERSION = "1.36.3"
COREDNS_VERSION = "1.15.0"
HELM_VERSION = "4.3.1"
KUBE_ROUTER_VERSION = "2.10.0"
ENVOY_GATEWAY_VERSION = "1.9.1"
ENVOY_VERSION = "1.40.0"
FAKE_GCS_SERVER_VERSION = "1.56.1"
METRICS_SERVER_VERSION = "0.9.0"
KWOK_VERSION = "0.8.0"  # for the bench of the operator: no cluster has it
PROMETHEUS_VERSION = "0.313.5"  # of its Go module: Prometheus 3.13.5
PROMETHEUS_ADAPTER_VERSION = "0.12.0"
PROMETHEUS_OPERATOR_VERSION = "0.93.1"  # of its CRDs and of how it reads them: it does not run in the cluster
FLUX_VERSION = "1.9.5"  # of kustomize-controller, for the tests: no cluster has it
KSTATUS_VERSION = "1.2.3"  # of Flux's library of it, the one that this kustomize-controller has
ISTIO_VERSION = "1.31.1"  # of its API alone: Istio does not run in the cluster

DEBIAN_SUITE = "bookworm"
GO_NEEDED = (1, 26, 7)  # the highest `go` line in gomods/*/go.mod
DISK_NEEDED_GB = 30  # what a first `up` and the server image take at their peak
DISK_NEEDED_WARM_GB = 5  # once binaries and images are cached
MEMORY_NEEDED_GB = 6

NODE_NAME = "pierhead"
NODE_BRIDGE = "pierhead0"  # carries the node's address, so that it is the same on every machine
POD_BRIDGE = "pierhead-pods"
NODE_IP = "10.99.0.1"
NODE_CIDR = "10.99.0.0/24"
POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/16"
KUBERNETES_SERVICE_IP = "10.96.0.1"
DNS_SERVICE_IP = "10.96.0.10"
CLUSTER_DOMAIN = "cluster.local"

API_PORT = 6443
ETCD_PORT = 12379
ETCD_PEER_PORT = 12380
REGISTRY = "127.0.0.1:15000"
GATEWAY_NODE_PORT = 30080
GATEWAY_TLS_NODE_PORT = 30081
STORAGE_NODE_PORT = 30443
STORAGE_PORT = 4443

API_URL = f"https://{NODE_IP}:{API_PORT}"
GATEWAY_URL = f"http://{NODE_IP}:{GATEWAY_NODE_PORT}"
GATEWAY_TLS_ADDRESS = f"{NODE_IP}:{GATEWAY_TLS_NODE_PORT}"
STORAGE_URL = f"http://{NODE_IP}:{STORAGE_NODE_PORT}"  # from this machine
STORAGE_URL_IN_CLUSTER = f"http://storage.pierhead-storage.svc:{STORAGE_PORT}"

# The state that is the machine's rather than one user's: pids, sockets, the lock. A tmpfs, so a reboot clears it.
RUN = Path("/run/pierhead")
SOURCE = Path(__file__).resolve().parent
REPOSITORY = SOURCE.parent


@dataclass(frozen=True)
class Paths:
    """Where one user's cluster keeps its files. Everything under `cache` is ours to remove."""

    cache: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Paths:
        """`$XDG_CACHE_HOME/pierhead`, or `~/.cache/pierhead`."""
        values = os.environ if environment is None else environment
        base = values.get("XDG_CACHE_HOME") or str(Path(values.get("HOME") or "~").expanduser() / ".cache")
        return cls(Path(base).absolute() / "pierhead")

    # Kept over `down`: they cost minutes to make.
    @property
    def bin(self) -> Path:
        return self.cache / "bin"

    @property
    def go(self) -> Path:
        """Go's module and build caches while binaries are built; gigabytes, so removed afterwards."""
        return self.cache / "go"

    @property
    def images(self) -> Path:
        """Build contexts, while images are made."""
        return self.cache / "images"

    @property
    def buildah(self) -> Path:
        return self.cache / "buildah"

    @property
    def registry(self) -> Path:
        return self.cache / "registry"

    @property
    def containerd(self) -> Path:
        """containerd's content and snapshots: an image is unpacked once, not once a cluster."""
        return self.cache / "containerd"

    @property
    def locks(self) -> Path:
        return self.cache / "locks"

    @property
    def logs(self) -> Path:
        return self.cache / "logs"

    # Thrown away by `down`.
    @property
    def state(self) -> Path:
        """What makes up one cluster: certificates, etcd, the kubelet's folder, component configurations."""
        return self.cache / "state"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def config(self) -> Path:
        return self.state / "config"

    @property
    def audit(self) -> Path:
        """What programs in pods asked of the API server: one JSON object a line, in the format audit.k8s.io/v1."""
        return self.state / "audit.log"

    @property
    def kubeconfig(self) -> Path:
        return self.config / "admin.kubeconfig"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"
