"""The cluster's own life on this machine: up, up again, broken, up, down, and nothing left."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from cluster import processes, settings, up
from cluster.settings import Paths

PATHS = Paths.from_environment()


def _cluster(command):
    """As a user runs it."""
    subprocess.run([sys.executable, "-m", "cluster", command], cwd=settings.REPOSITORY, check=True, timeout=3600)


def _lines(*argv):
    if shutil.which(argv[0]) is None:
        return set()  # Debian's, which the first `up` installs
    return set(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines())


def _processes():
    """The command lines that name the cluster's folders."""
    marks = [f"{folder}/" for folder in (settings.RUN, PATHS.cache)]
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if path.parent.name != str(os.getpid()) and any(mark in command for mark in marks):
            found.add(command)
    return found


def _observe_machine():
    """All of this machine that a cluster touches, by name."""
    return {
        "processes": _processes(),
        "mounts": {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()},
        "interfaces": {path.name for path in Path("/sys/class/net").iterdir()},
        "routes": _lines("ip", "route", "show", "table", "all"),
        "tables": _lines("nft", "list", "tables"),
        "rules": {line.split(" [")[0] for line in _lines("iptables-save") if not line.startswith("#")},
        "sets": _lines("ipset", "list", "-name"),
        "namespaces": _lines("ip", "netns", "list"),
        "cgroups": {str(path) for path in Path("/sys/fs/cgroup").glob("**/kubepods*")},
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "run": settings.RUN.exists(),
    }


@pytest.fixture(scope="module")
def before():
    """The machine without a cluster; a cluster that somebody uses is not ended for this."""
    if up.is_up(PATHS):
        pytest.skip("a cluster is up: `make cluster-down` has this run")
    _cluster("down")  # what a cluster that was killed has left
    yield _observe_machine()
    _cluster("down")


def _identities():
    return {name: identity for name, identity in processes.recorded().items() if name in up.COMPONENTS}


def test_up_again_changes_nothing(before):
    _cluster("up")
    first = _identities()
    assert set(first) == set(up.COMPONENTS)
    _cluster("up")
    assert _identities() == first
    # The gateway answers: there is no route yet.
    assert httpx.get(settings.GATEWAY_URL, trust_env=False).status_code == httpx.codes.NOT_FOUND


@pytest.mark.parametrize("victims", [["kubelet"], list(up.COMPONENTS)], ids=["one", "all"])
def test_up_recovers_from_killed_programs(before, victims):
    _cluster("up")
    first = _identities()
    for name in victims:
        os.kill(first[name].pid, signal.SIGKILL)
    processes.wait_until("the victims are gone", lambda: not any(first[name].alive for name in victims), 20)
    _cluster("up")
    assert up.is_up(PATHS)
    assert not set(_identities().values()) & {first[name] for name in victims}


def test_down_leaves_nothing_behind(before):
    _cluster("up")
    _cluster("down")
    assert _observe_machine() == before
    _cluster("down")
    assert _observe_machine() == before
