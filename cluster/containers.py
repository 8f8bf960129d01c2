"""Our containerd, asked through its own client."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

from cluster import commands, config, processes
from cluster.errors import ClusterError


def ctr(*arguments: str) -> list[str]:
    return ["ctr", "--address", str(config.CONTAINERD_SOCKET), "--namespace", "k8s.io", *arguments]


def answers() -> bool:
    """Whether containerd takes requests."""
    return config.CONTAINERD_SOCKET.exists() and commands.succeeds(ctr("version"), timeout=5)


def forget_image(reference: str) -> None:
    """Lets the kubelet pull an image anew whose tag now stands for another one; its layers stay."""
    if answers():
        commands.output(ctr("images", "remove", reference))


def remove_all(log: Path) -> None:
    """Kills every container and forgets it; images stay. Needs containerd to answer."""
    processes.wait_until("containers are gone", partial(_remove_some, log), 60)


def _remove_some(log: Path) -> bool:
    """One attempt; whether nothing is left. containerd removes what was killed as well, and the slower one fails."""
    tasks = commands.output(ctr("tasks", "list", "--quiet")).split()
    containers = commands.output(ctr("containers", "list", "--quiet")).split()
    for left, kind, options in ((tasks, "tasks", ["--force"]), (containers, "containers", [])):
        if left:
            with contextlib.suppress(ClusterError):
                commands.run(ctr(kind, "delete", *options, *left), log=log)
    return not tasks and not containers
