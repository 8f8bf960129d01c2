"""The node's own network: a bridge that carries its address, and routes that keep the cluster's traffic here."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster import commands, settings
from cluster.errors import ClusterError

BRIDGES = (settings.POD_BRIDGE, settings.NODE_BRIDGE)
# kube-proxy's, in nftables mode.
TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
SYSCTLS = {"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1"}
_SYSCTLS_BEFORE = settings.RUN / "sysctls.json"


def up(log: Path) -> None:
    """Makes the bridge and the routes. Raises ClusterError if the addresses are in use by something else."""
    taken = find_overlaps(json.loads(commands.output(["ip", "-json", "route", "show"])))
    if taken:
        raise ClusterError(f"this machine already uses addresses that the cluster needs: {', '.join(taken)}")
    for command in up_commands():
        commands.run(command, log=log)
    if not Path("/proc/sys/net/bridge").exists():
        commands.run(["modprobe", "br_netfilter"], log=log)
    _SYSCTLS_BEFORE.write_text(json.dumps({name: _sysctl(name).read_text().strip() for name in SYSCTLS}))
    _set_sysctls(SYSCTLS)


def up_commands() -> list[list[str]]:
    bridge = settings.NODE_BRIDGE
    return [
        ["ip", "link", "add", bridge, "type", "bridge"],
        ["ip", "address", "add", settings.NODE_IP + "/24", "dev", bridge],
        ["ip", "link", "set", bridge, "up"],
        # Nothing meant for a service or a pod may leave this machine, whatever kube-proxy is doing.
        ["ip", "route", "add", settings.SERVICE_CIDR, "dev", bridge],
        ["ip", "route", "add", settings.POD_CIDR, "dev", bridge, "metric", "1000"],
    ]


def down(log: Path) -> None:
    """Removes the bridges, with them every route and veth, and kube-proxy's rules; restores the kernel's settings."""
    for bridge in BRIDGES:
        if Path(f"/sys/class/net/{bridge}").exists():
            commands.run(["ip", "link", "delete", bridge], log=log)
    tables = commands.output(["nft", "list", "tables"]).splitlines()
    for family, name in TABLES:
        if f"table {family} {name}" in tables:
            commands.run(["nft", "delete", "table", family, name], log=log)
    if _SYSCTLS_BEFORE.exists():
        _set_sysctls(json.loads(_SYSCTLS_BEFORE.read_text()))
        _SYSCTLS_BEFORE.unlink()


def find_overlaps(routes: Iterable[Mapping[str, Any]]) -> list[str]:
    """The routes of the machine, as `ip -json route` gives them, that overlap with the cluster's ranges."""
    ours = [ipaddress.ip_network(cidr) for cidr in (settings.NODE_CIDR, settings.SERVICE_CIDR, settings.POD_CIDR)]
    found = []
    for route in routes:
        if route["dst"] != "default":
            network = ipaddress.ip_network(route["dst"], strict=False)
            if any(network.overlaps(own) for own in ours):
                found.append(f"{route['dst']} on {route.get('dev', '?')}")
    return found


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name


def _set_sysctls(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        if _sysctl(name).read_text().strip() != value:
            _sysctl(name).write_text(value)
