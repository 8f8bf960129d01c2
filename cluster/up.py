"""Brings the cluster up, from whatever state the machine is in."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from cluster import (
    addons,
    cgroups,
    commands,
    components,
    config,
    containers,
    go_build,
    host,
    images,
    kube,
    locks,
    network,
    parallel,
    pki,
    processes,
    registry,
    settings,
)
from cluster.components import Component
from cluster.down import LOCK, OWNER, clean, read_owner
from cluster.errors import ClusterError
from cluster.progress import say, step
from cluster.settings import Paths

READY = settings.RUN / "ready"  # written last: without it what runs is an `up` that was cut off
COMPONENTS = (
    "etcd",
    "containerd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kube-router",
    registry.NAME,
)
ENFORCER = "kube-router"  # of NetworkPolicies: a cluster may do without it for a while
NODE_PATH = f"/api/v1/nodes/{settings.NODE_NAME}"
# A proxy, or anything else of the caller's environment, has no say in how the cluster works.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"}


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up, and how to reach it from this machine."""

    kubeconfig: Path
    gateway_url: str
    certificate_authority: Path  # of who answers over TLS
    storage_url: str
    kubectl: Path
    helm: Path

    def make_variables(self, path: str) -> dict[str, str]:
        """The environment variables that a user of the cluster needs; `path` is what PATH holds now."""
        folders = [str(self.kubectl.parent), str(self.helm.parent), path]
        return {
            "KUBECONFIG": str(self.kubeconfig),
            "PIERHEAD_URL": self.gateway_url,
            "PIERHEAD_CA": str(self.certificate_authority),
            "PATH": os.pathsep.join(filter(None, folders)),
        }


def up(
    *,
    metrics: bool = False,
    bare: bool = False,
    enforced: bool = True,
    beside: Sequence[images.Image] = (),
    paths: Paths | None = None,
) -> Cluster:
    """Returns once the cluster serves; quick and harmless when it does already.

    A bare one has no gateway, and nothing of the Gateway API. One that is not `enforced` may let through what
    NetworkPolicies forbid; a later `up` changes that. `beside` are images that are made meanwhile. Raises ClusterError
    if this machine cannot run it, or something failed: the message names a log.
    """
    paths = paths or Paths.from_environment()
    tools = [
        *go_build.FIRST,
        *([go_build.KUBE_ROUTER] if enforced else []),
        *(go_build.METRICS if metrics else []),
    ]
    host.check_kind()
    with locks.exclusive(LOCK):
        _refuse_another(paths)
        if not is_up(paths):
            _start_afresh(paths, tools, beside, bare=bare)
        if not bare and not _has_gateway(paths):
            with step("start the gateway"):
                _bring_up_gateway(paths)
        if enforced and not processes.alive(ENFORCER):
            go_build.build(paths, [go_build.KUBE_ROUTER])
            with step("enforce NetworkPolicies"):
                _bring_up_enforcer(paths)
        if metrics and not _has_metrics(paths):
            go_build.build(paths, tools)
            _make_images(paths, _served(tools))
            with step("start metrics-server and Prometheus"):
                _bring_up_metrics(paths)
    _make_images(paths, beside)
    return describe(paths)


def up_control_plane(paths: Paths, tools: Sequence[go_build.Tool], programs: Sequence[Component]) -> None:
    """Starts etcd and the API server, then `programs`: a cluster without a node of its own, which `down` ends, too.

    `tools` are what is built for it beside Kubernetes. Raises ClusterError where a cluster is up: it is not to be lost.
    """
    host.check_kind()
    with locks.exclusive(LOCK):
        _refuse_another(paths)
        if is_up(paths):
            raise ClusterError("a cluster is up: end it first with `python -m cluster down`")
        _make_room(paths, cached=not go_build.missing(paths, [go_build.KUBE]))
        go_build.build(paths, [go_build.KUBE, *tools])
        with step("start the control plane"):
            _configure(paths)
            _start_apiserver(paths)
            for program in programs:
                _start(paths, program)


def describe(paths: Paths) -> Cluster:
    """How to reach the cluster of these paths, whether it is up or not."""
    return Cluster(
        kubeconfig=paths.kubeconfig,
        gateway_url=settings.GATEWAY_URL,
        certificate_authority=paths.pki / "ca.crt",
        storage_url=settings.STORAGE_URL,
        kubectl=go_build.KUBE.binary(paths, "kubectl"),
        helm=go_build.HELM.binary(paths, "helm"),
    )


def is_up(paths: Paths) -> bool:
    """Whether the cluster of these paths came up, and every part of it still runs, but for the enforcer."""
    needed = [name for name in COMPONENTS if name != ENFORCER]
    if not READY.exists() or read_owner() != paths or not all(map(processes.alive, needed)):
        return False
    with kube.Api(paths) as api:
        return api.is_ready()


def _has_metrics(paths: Paths) -> bool:
    with kube.Api(paths) as api:
        return all(api.has_condition(path, "Available") for path in addons.METRICS_PATHS.values())


def _has_gateway(paths: Paths) -> bool:
    with kube.Api(paths) as api:
        return api.has_condition(addons.GATEWAY_PATH, "Programmed")


def _refuse_another(paths: Paths) -> None:
    owner = read_owner()
    if owner is not None and owner != paths and any(one.alive for one in processes.recorded().values()):
        raise ClusterError(
            f"another cluster is up on this machine, with its files in {owner.cache}; "
            "end it first with `python -m cluster down`"
        )


def _start_afresh(paths: Paths, tools: list[go_build.Tool], beside: Sequence[images.Image], *, bare: bool) -> None:
    # Where Go builds already, there was room when it began.
    _make_room(paths, cached=paths.go.exists() or (paths.registry.exists() and not go_build.missing(paths, tools)))
    enforced = go_build.KUBE_ROUTER in tools
    # Go computes, and waits for downloads; images are downloads for the most part.
    parallel.run_together(
        partial(go_build.build, paths, tools, more_to_come=not enforced),
        partial(_make_images, paths, [images.make_envoy_image(), *beside]),
    )
    _make_images(paths, [images.make_pause_image(), *_served(tools)])
    begun = time.monotonic()
    _start_control_plane(paths)
    _start_node(paths)
    with step("start the storage emulator and DNS" if bare else "start the gateway, the storage emulator and DNS"):
        parallel.run_together(
            partial(_bring_up_node, paths, enforced=enforced),
            partial(_bring_up_basics, paths),
            *([] if bare else [partial(_bring_up_gateway, paths)]),
            *([partial(_bring_up_metrics, paths)] if go_build.METRICS_SERVER in tools else []),
        )
    READY.touch()
    say(f"the cluster is ready (started in {time.monotonic() - begun:.0f} s)")
    if not enforced:
        say("NetworkPolicies are not enforced yet: what does that is built after the first predictions")


def _make_room(paths: Paths, *, cached: bool) -> None:
    """Leaves the machine with nothing of an earlier cluster, and with all of Debian that one needs."""
    host.check_room(paths, cached=cached)
    if OWNER.exists() or paths.state.exists():
        with step("clear what is left of an earlier cluster"):
            clean(read_owner() or paths)
    settings.RUN.mkdir(exist_ok=True)
    OWNER.write_text(str(paths.cache))
    host.install_packages()


def _make_images(paths: Paths, wanted: Iterable[images.Image]) -> None:
    for image in wanted:
        images.ensure(paths, image)


def _served(tools: Iterable[go_build.Tool]) -> list[images.Image]:
    """The images of those that run in pods."""
    served = (go_build.COREDNS, go_build.ENVOY_GATEWAY, go_build.FAKE_GCS_SERVER, *go_build.METRICS)
    return [images.make_go_image(tool) for tool in served if tool in tools]


def _start_control_plane(paths: Paths) -> None:
    with step("start the control plane"):
        _configure(paths)
        cgroups.make()
        _start(paths, components.make_containerd(paths))
        _start_apiserver(paths)


def _configure(paths: Paths) -> None:
    config.write_all(paths, images.make_pause_image().reference)
    pki.make_all(paths.pki, paths.log("pki"))
    network.up(paths.log("network"))


def _start_apiserver(paths: Paths) -> None:
    etcd = components.make_etcd(paths)
    _start(paths, etcd)
    _wait(paths, "etcd is healthy", _etcd_is_healthy, 30, etcd)
    apiserver = components.make_apiserver(paths)
    _start(paths, apiserver)
    with kube.Api(paths) as api:
        _wait(paths, "the API server is ready", api.is_ready, 60, apiserver, etcd)


def _start_node(paths: Paths) -> None:
    _wait(paths, "containerd answers", containers.answers, 30, components.make_containerd(paths))
    # After a reboot or a crash containerd still knows the containers of the cluster that was.
    containers.remove_all(paths.log("containerd-clean"))
    for make in (
        components.make_controller_manager,
        components.make_scheduler,
        components.make_kubelet,
        components.make_kube_proxy,
    ):
        _start(paths, make(paths))


def _bring_up_node(paths: Paths, *, enforced: bool) -> None:
    _bring_up(paths, "node", NODE_PATH, "Ready")
    if enforced:
        _bring_up_enforcer(paths)


def _bring_up_enforcer(paths: Paths) -> None:
    addons.apply(paths, ENFORCER)
    kube_router = components.make_kube_router(paths)
    _start(paths, kube_router)
    _wait(paths, "the firewall is there", network.has_firewall, 30, kube_router)


def _bring_up_basics(paths: Paths) -> None:
    addons.apply(paths, "coredns", "storage")
    _bring_up(paths, "DNS", addons.DNS_PATH, "Available")
    _bring_up(paths, "storage emulator", addons.STORAGE_PATH, "Available")


def _bring_up_gateway(paths: Paths) -> None:
    parallel.run_together(
        partial(addons.install_gateway, paths, paths.log("gateway")), partial(_bring_up_gateway_itself, paths)
    )


def _bring_up_gateway_itself(paths: Paths) -> None:
    with kube.Api(paths) as api:
        # Helm installs these first, then waits for a job that makes certificates: the Gateway need not wait for it.
        established = [partial(api.has_condition, path, "Established") for path in addons.CRD_PATHS]
        _wait(paths, "the gateway's CRDs", lambda: all(crd() for crd in established), 120)
    addons.apply_gateway(paths)
    _bring_up(paths, "gateway", addons.GATEWAY_PATH, "Programmed")
    # By then its pods are ready, and the node's rules that lead there may come a moment later.
    ports = (settings.GATEWAY_NODE_PORT, settings.GATEWAY_TLS_NODE_PORT)
    _wait(paths, "the gateway answers", lambda: all(map(_is_listening, ports)), 60)


def _is_listening(port: int) -> bool:
    try:
        socket.create_connection((settings.NODE_IP, port), timeout=1).close()
    except OSError:
        return False
    return True


def _bring_up_metrics(paths: Paths) -> None:
    addons.apply(paths, "metrics-server", "prometheus", "prometheus-adapter")
    for what, path in addons.METRICS_PATHS.items():
        _bring_up(paths, what, path, "Available")


def _bring_up(paths: Paths, what: str, path: str, condition: str) -> None:
    """Waits until the object at `path` has the condition, and says so."""
    try:
        with kube.Api(paths) as api:
            _wait(paths, what, partial(api.has_condition, path, condition), 240, components.make_kubelet(paths))
    except ClusterError as error:
        pods = commands.output(kube.kubectl(paths, "get", "pods", "--all-namespaces", "--output=wide"))
        raise ClusterError(f"{error}\n{pods}") from None
    say(f"{what}: {condition}")


def _start(paths: Paths, component: Component) -> None:
    processes.start(component.name, component.argv, component.log(paths), ENVIRONMENT)


def _wait(paths: Paths, what: str, condition: Callable[[], bool], timeout: float, *needs: Component) -> None:
    processes.wait_until(what, condition, timeout, {one.name: one.log(paths) for one in needs})


def _etcd_is_healthy() -> bool:
    try:
        return httpx.get(f"{components.ETCD_URL}/health", timeout=2, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
