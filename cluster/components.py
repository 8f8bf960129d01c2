"""The cluster's programs: their command lines, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import config, settings
from cluster.go_build import KUBE, KUBE_ROUTER
from cluster.settings import Paths

ETCD_URL = f"http://127.0.0.1:{settings.ETCD_PORT}"
ETCD_PEER_URL = f"http://127.0.0.1:{settings.ETCD_PEER_PORT}"


@dataclass(frozen=True)
class Component:
    name: str
    argv: Sequence[str]

    def log(self, paths: Paths) -> Path:
        return paths.log(self.name)


def make_containerd(paths: Paths) -> Component:
    return Component("containerd", ["containerd", "--config", str(paths.config / "containerd.toml")])


def make_etcd(paths: Paths) -> Component:
    return _make_kube(
        paths,
        "etcd",
        "--name=pierhead",
        f"--data-dir={paths.state / 'etcd'}",
        "--unsafe-no-fsync",  # the data does not outlive the cluster, and a busy disk must not slow it down
        f"--listen-client-urls={ETCD_URL}",
        f"--advertise-client-urls={ETCD_URL}",
        f"--listen-peer-urls={ETCD_PEER_URL}",
        f"--initial-advertise-peer-urls={ETCD_PEER_URL}",
        f"--initial-cluster=pierhead={ETCD_PEER_URL}",
        "--log-level=warn",
    )


def make_apiserver(paths: Paths) -> Component:
    pki = paths.pki
    return _make_kube(
        paths,
        "kube-apiserver",
        f"--etcd-servers={ETCD_URL}",
        f"--bind-address={settings.NODE_IP}",
        f"--advertise-address={settings.NODE_IP}",
        f"--secure-port={settings.API_PORT}",
        f"--service-cluster-ip-range={settings.SERVICE_CIDR}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--audit-policy-file={paths.config / 'audit-policy.yaml'}",
        f"--audit-log-path={paths.audit}",
        f"--service-account-key-file={pki / 'sa.pub'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        f"--service-account-issuer=https://kubernetes.default.svc.{settings.CLUSTER_DOMAIN}",
        f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki / 'front-proxy-client.crt'}",
        f"--proxy-client-key-file={pki / 'front-proxy-client.key'}",
        "--enable-aggregator-routing=true",
    )


def make_controller_manager(paths: Paths) -> Component:
    own = config.kubeconfig(paths, "controller-manager")
    return _make_kube(
        paths,
        "kube-controller-manager",
        f"--kubeconfig={own}",
        f"--authentication-kubeconfig={own}",
        f"--authorization-kubeconfig={own}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={paths.pki / 'sa.key'}",
        f"--root-ca-file={paths.pki / 'ca.crt'}",
        f"--cluster-signing-cert-file={paths.pki / 'ca.crt'}",
        f"--cluster-signing-key-file={paths.pki / 'ca.key'}",
        "--allocate-node-cidrs=true",
        f"--cluster-cidr={settings.POD_CIDR}",
        "--node-cidr-mask-size=24",
        f"--service-cluster-ip-range={settings.SERVICE_CIDR}",
        # Autoscaling that can be watched: seconds where the defaults are minutes.
        "--horizontal-pod-autoscaler-sync-period=5s",
        "--horizontal-pod-autoscaler-initial-readiness-delay=10s",
        "--horizontal-pod-autoscaler-cpu-initialization-period=20s",
        "--horizontal-pod-autoscaler-downscale-stabilization=20s",
    )


def make_scheduler(paths: Paths) -> Component:
    own = config.kubeconfig(paths, "scheduler")
    return _make_kube(
        paths,
        "kube-scheduler",
        f"--kubeconfig={own}",
        f"--authentication-kubeconfig={own}",
        f"--authorization-kubeconfig={own}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
    )


def make_kubelet(paths: Paths) -> Component:
    return _make_kube(
        paths,
        "kubelet",
        f"--config={paths.config / 'kubelet.yaml'}",
        f"--kubeconfig={config.kubeconfig(paths, 'kubelet')}",
        f"--root-dir={paths.state / 'kubelet'}",
        f"--cert-dir={paths.state / 'kubelet/pki'}",
        f"--hostname-override={settings.NODE_NAME}",
        f"--node-ip={settings.NODE_IP}",
        "--v=2",
    )


def make_kube_proxy(paths: Paths) -> Component:
    return _make_kube(paths, "kube-proxy", f"--config={paths.config / 'kube-proxy.yaml'}")


def make_kube_router(paths: Paths) -> Component:
    """Its firewall, which asks for the node at its start: that has to be there."""
    name = "kube-router"
    flags = [
        f"--kubeconfig={config.kubeconfig(paths, name)}",
        f"--hostname-override={settings.NODE_NAME}",
        f"--service-cluster-ip-range={settings.SERVICE_CIDR}",
    ]
    return Component(name, [str(KUBE_ROUTER.binary(paths, name)), *flags])


def _make_kube(paths: Paths, name: str, *flags: str) -> Component:
    return Component(name, [str(KUBE.binary(paths, name)), *flags])
