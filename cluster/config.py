"""The configuration files of the components, as plain data; writing them is `write_all`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from cluster import cgroups, settings
from cluster.settings import Paths

CONTAINERD = settings.RUN / "containerd"
CONTAINERD_SOCKET = CONTAINERD / "containerd.sock"
NETWORK_NAME = "pierhead"  # what CNI calls the pods' network
KUBECONFIG_USERS = ("admin", "controller-manager", "scheduler", "kube-proxy", "kube-router", "kubelet")


def make_containerd_config(paths: Paths, pause_image: str) -> str:
    """For Debian's containerd 1.6; its format, version 2, is also read by later ones."""
    return f"""\
version = 2
root = "{paths.containerd}"
state = "{CONTAINERD}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image}"
  # Without CAP_SYS_RESOURCE (many VMs and containers) no process may lower its oom_score_adj, and every sandbox
  # fails with `runc create failed: ... can't get final child's PID from pipe: EOF`.
  restrict_oom_score_adj = true
  # Below a folder of ours, so that `down` can tell our network namespaces from another runtime's.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{paths.config}/registries"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{paths.config}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    # The registry on loopback has the compressed layers; a second copy of torch's is gigabytes.
    discard_unpacked_layers = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "{settings.RUN}/runc"
"""


def make_registry_hosts() -> str:
    """Where containerd looks for images, of whatever registry: on this machine, and nowhere else."""
    url = f"http://{settings.REGISTRY}"
    return f'server = "{url}"\n\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n'


def make_cni_config() -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": settings.POD_BRIDGE,
        "isGateway": True,
        # Pods have no way out of this machine, by design, and so nothing to be masqueraded for.
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(settings.RUN / "cni"),
            "ranges": [[{"subnet": settings.POD_CIDR}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "1.0.0", "name": NETWORK_NAME, "plugins": [bridge]}


def make_kubelet_config(paths: Paths) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": settings.NODE_IP,
        "healthzBindAddress": settings.NODE_IP,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(paths.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(paths.pki / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(paths.pki / "kubelet-server.key"),
        # Works alike with and without systemd; on cgroup v1 only once the kubelet is told that it may.
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "cgroupRoot": f"/{cgroups.NAME}",
        "failSwapOn": False,
        "clusterDNS": [settings.DNS_SERVICE_IP],
        "clusterDomain": settings.CLUSTER_DOMAIN,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "resolvConf": str(paths.config / "resolv.conf"),
        "podLogsDir": str(paths.state / "pod-logs"),
        "volumePluginDir": str(paths.state / "volume-plugins"),
        # kube-proxy is in nftables mode; without this the kubelet leaves iptables chains behind.
        "makeIPTablesUtilChains": False,
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",
        "serializeImagePulls": False,
        "maxParallelImagePulls": 4,
        # The disk is shared with the rest of the machine: look at what is left, never at the share in use, and
        # never collect images, which cost minutes to make.
        "evictionHard": {
            "memory.available": "200Mi",
            "nodefs.available": "1Gi",
            "imagefs.available": "1Gi",
            "nodefs.inodesFree": "1%",
            "imagefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "maxPods": 200,
        # Both would need CAP_SYS_RESOURCE.
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
    }


def make_kube_proxy_config(paths: Paths) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(kubeconfig(paths, "kube-proxy"))},
        "clusterCIDR": settings.POD_CIDR,
        "hostnameOverride": settings.NODE_NAME,
        # Node ports are open on the node's own address only, never on the machine's.
        "nodePortAddresses": [settings.NODE_CIDR],
        "healthzBindAddress": f"{settings.NODE_IP}:10256",
        "metricsBindAddress": f"{settings.NODE_IP}:10249",
        # The machine's connection tracking table is not ours to size.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "oomScoreAdj": 0,
    }


def make_kubeconfig(paths: Paths, user: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "pierhead",
                "cluster": {"server": settings.API_URL, "certificate-authority": str(paths.pki / "ca.crt")},
            }
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate": str(paths.pki / f"{user}.crt"),
                    "client-key": str(paths.pki / f"{user}.key"),
                },
            }
        ],
        "contexts": [{"name": "pierhead", "context": {"cluster": "pierhead", "user": user}}],
        "current-context": "pierhead",
    }


def kubeconfig(paths: Paths, user: str) -> Path:
    return paths.config / f"{user}.kubeconfig"


def make_audit_policy() -> dict[str, Any]:
    """Notes what each service account asks for, and no content: so tests see which rights are used, and which miss."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            # Kubernetes' own controllers and the gateway's ask all the time.
            {
                "level": "None",
                "userGroups": [f"system:serviceaccounts:{name}" for name in ("kube-system", "envoy-gateway-system")],
            },
            {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        ],
    }


def write_all(paths: Paths, pause_image: str) -> None:
    """Writes every component's configuration below `paths.config`."""
    cni = paths.config / "cni"
    cni.mkdir(parents=True, exist_ok=True)
    (paths.config / "containerd.toml").write_text(make_containerd_config(paths, pause_image))
    (cni / "10-pierhead.conflist").write_text(json.dumps(make_cni_config(), indent=2))
    registries = paths.config / "registries" / "_default"
    registries.mkdir(parents=True, exist_ok=True)
    (registries / "hosts.toml").write_text(make_registry_hosts())
    (paths.config / "kubelet.yaml").write_text(yaml.safe_dump(make_kubelet_config(paths)))
    (paths.config / "kube-proxy.yaml").write_text(yaml.safe_dump(make_kube_proxy_config(paths)))
    (paths.config / "audit-policy.yaml").write_text(yaml.safe_dump(make_audit_policy()))
    # Pods that take the node's resolver get one that knows nothing: no query leaves the machine.
    (paths.config / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    for user in KUBECONFIG_USERS:
        kubeconfig(paths, user).write_text(yaml.safe_dump(make_kubeconfig(paths, user)))
