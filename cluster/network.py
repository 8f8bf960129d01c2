"""The node's own network: a bridge that carries its address, and routes that keep the cluster's traffic here."""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster import commands, settings
from cluster.errors import ClusterError

BRIDGES = (settings.POD_BRIDGE, settings.NODE_BRIDGE)
# kube-proxy's, in nftables mode.
TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
# kube-router's: chains in a table that belongs to all of the machine, and sets of addresses.
_FIREWALL_TABLE = ("ip", "filter")
_FIREWALL_CHAIN = re.compile(r"KUBE-(?:ROUTER-(?:INPUT|FORWARD|OUTPUT)|POD-FW-\w+|NWPLCY-\w+)")
_FIREWALL_SETS = ("KUBE-SRC-", "KUBE-DST-")
SYSCTLS = {"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1"}
_SYSCTLS_BEFORE = settings.RUN / "sysctls.json"
_TABLES_BEFORE = settings.RUN / "tables"


def up(log: Path) -> None:
    """Makes the bridge and the routes. Raises ClusterError if the addresses are in use by something else."""
    taken = find_overlaps(json.loads(commands.output(["ip", "-json", "route", "show"])))
    if taken:
        raise ClusterError(f"this machine already uses addresses that the cluster needs: {', '.join(taken)}")
    _TABLES_BEFORE.write_text(commands.output(["nft", "list", "tables"]))
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
    """Removes the bridges, with them every route and veth, and all rules; restores the kernel's settings."""
    for bridge in BRIDGES:
        if Path(f"/sys/class/net/{bridge}").exists():
            commands.run(["ip", "link", "delete", bridge], log=log)
    for table in TABLES:
        _delete_table(table, log)
    _remove_firewall(log)
    if _SYSCTLS_BEFORE.exists():
        _set_sysctls(json.loads(_SYSCTLS_BEFORE.read_text()))
        _SYSCTLS_BEFORE.unlink()


def has_firewall() -> bool:
    """Whether kube-router has begun to make rules."""
    return bool(make_undo(_save_rules()))


def _delete_table(table: tuple[str, str], log: Path) -> None:
    if f"table {' '.join(table)}" in commands.output(["nft", "list", "tables"]).splitlines():
        commands.run(["nft", "delete", "table", *table], log=log)


def _remove_firewall(log: Path) -> None:
    """Takes kube-router's rules out of those of the machine, then the sets that they refer to."""
    if shutil.which("ipset") is None:
        return  # a cluster of before kube-router, or one that was cut off before it had all of Debian
    if undo := make_undo(_save_rules()):
        commands.output(["iptables-restore", "--noflush"], stdin=undo)
    for name in commands.output(["ipset", "list", "-name"]).splitlines():
        if name.startswith(_FIREWALL_SETS):
            commands.run(["ipset", "destroy", name], log=log)
    before = _TABLES_BEFORE.read_text().splitlines() if _TABLES_BEFORE.exists() else []
    if f"table {' '.join(_FIREWALL_TABLE)}" not in before and is_bare(_save_rules()):
        _delete_table(_FIREWALL_TABLE, log)


def _save_rules() -> str:
    return commands.output(["iptables-save", "--table", "filter"])


def make_undo(saved: str) -> str:
    """What iptables-restore takes kube-router's chains away with, and nobody else's; empty where there are none.

    `saved` is what iptables-save says of the table.
    """
    lines = saved.splitlines()
    chains = [name for line in lines if line[:1] == ":" and _FIREWALL_CHAIN.fullmatch(name := line[1:].split()[0])]
    if not chains:
        return ""
    jumps = [line for line in lines if re.match(r"-A (INPUT|FORWARD|OUTPUT) ", line) and _FIREWALL_CHAIN.search(line)]
    undo = [line.replace("-A", "-D", 1) for line in jumps]
    # All are emptied before one goes: they refer to each other.
    undo += [f"{action} {chain}" for action in ("-F", "-X") for chain in chains]
    return "\n".join(["*filter", *undo, "COMMIT", ""])


def is_bare(saved: str) -> bool:
    """Whether a table, as iptables-save tells of it, lets everything through, as one does that was never asked for."""
    return not re.search(r"^-|^:\S+ (?!ACCEPT)", saved, re.MULTILINE)


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
