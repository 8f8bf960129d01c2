"""What runs under our containerd, and how all of it is ended without asking Kubernetes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from cluster import commands, config, processes
from cluster.errors import ClusterError
from cluster.processes import Identity
from cluster.settings import Paths

CGROUPS = Path("/sys/fs/cgroup")


def ctr(*arguments: str) -> list[str]:
    return ["ctr", "--address", str(config.CONTAINERD_SOCKET), "--namespace", "k8s.io", *arguments]


def answers() -> bool:
    """Whether containerd takes requests."""
    return config.CONTAINERD_SOCKET.exists() and commands.succeeds(ctr("version"), timeout=5)


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


def end_remains() -> None:
    """Kills what a containerd that is gone has left: its shims, and whatever is in the pods' cgroups."""
    processes.end(find_shims(), grace=2)
    processes.end(find_in_cgroups(), grace=2)


def find_shims() -> list[Identity]:
    """The shims of our containerd: they outlive it, and are told by the socket in their arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        # Ended meanwhile: then there is nothing to end.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            identity = processes.identify(int(folder.name))
            if identity is not None and is_our_shim((folder / "cmdline").read_bytes().decode(errors="replace")):
                found.append(identity)
    return found


def is_our_shim(cmdline: str) -> bool:
    """Whether `/proc/PID/cmdline`, arguments ended by NUL, is that of a shim of our containerd."""
    program, *arguments = cmdline.split("\0")
    return Path(program).name == "containerd-shim-runc-v2" and str(config.CONTAINERD_SOCKET) in arguments


def find_in_cgroups() -> list[Identity]:
    """Whoever runs in a pod's cgroup."""
    pids = {int(pid) for folder in _cgroups() for pid in _read_pids(folder)}
    found = [identity for pid in pids if (identity := processes.identify(pid)) is not None]
    # Read after the identity, so that it is this very program that is in there.
    return [one for one in found if f":/{config.CGROUP_ROOT}/" in _read(Path(f"/proc/{one.pid}/cgroup"))]


def make_cgroups() -> None:
    """Makes the cgroup that the kubelet puts pods below, in every hierarchy that the machine has."""
    for root in cgroup_roots():
        if (root / "cgroup.subtree_control").exists() and not _is_hybrid():
            enable = " ".join(f"+{name}" for name in (root / "cgroup.controllers").read_text().split())
            (root / "cgroup.subtree_control").write_text(enable)
        (root / config.CGROUP_ROOT).mkdir(exist_ok=True)


def remove_cgroups() -> None:
    """Removes our cgroups, the innermost first. Nothing may run in them any more."""
    for folder in sorted(_cgroups(), key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()


def cgroup_roots() -> list[Path]:
    """One folder for each hierarchy: with cgroup v2 the mount itself, with v1 one below it for each controller."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in sorted(CGROUPS.iterdir()) if (path / "cgroup.procs").exists() and not path.is_symlink()]


def unmount_all(folders: Iterable[Path], log: Path) -> None:
    """Unmounts everything at or below `folders`, the last mounted first."""
    mounts = [
        line.split()[1].encode().decode("unicode_escape") for line in Path("/proc/mounts").read_text().splitlines()
    ]
    for mount in reversed(mounts):
        if any(Path(mount).is_relative_to(folder) for folder in folders):
            commands.run(["umount", "--lazy", mount], log=log)


def mounted_folders(paths: Paths) -> list[Path]:
    """Where containers and the kubelet mount things."""
    return [config.CONTAINERD, paths.containerd, paths.state, paths.buildah]


def _is_hybrid() -> bool:
    """cgroup v1 with an unused v2 tree beside it."""
    return not (CGROUPS / "cgroup.controllers").exists()


def _cgroups() -> list[Path]:
    return [
        folder
        for root in cgroup_roots()
        if (root / config.CGROUP_ROOT).exists()
        for folder in [root / config.CGROUP_ROOT, *(root / config.CGROUP_ROOT).rglob("*/")]
        if folder.is_dir()
    ]


def _read_pids(folder: Path) -> list[str]:
    return _read(folder / "cgroup.procs").split()


def _read(path: Path) -> str:
    """A file of the kernel's; empty once what it tells of is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""
