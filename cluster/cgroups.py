"""The cgroup that every pod is below, in each hierarchy that the machine has."""

from __future__ import annotations

import contextlib
from pathlib import Path

from cluster import processes
from cluster.processes import Identity

MOUNT = Path("/sys/fs/cgroup")
NAME = "pierhead"


def make() -> None:
    """Makes our cgroup, which the kubelet wants to find."""
    for root in find_roots():
        if root == MOUNT:  # cgroup v2: controllers are passed on to children only when asked for
            wanted = [f"+{name}" for name in (root / "cgroup.controllers").read_text().split()]
            (root / "cgroup.subtree_control").write_text(" ".join(wanted))
        (root / NAME).mkdir(exist_ok=True)


def remove() -> None:
    """Removes our cgroup and all below it. Nothing may run there any more."""
    for folder in sorted(_find_ours(), key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()


def find_processes() -> list[Identity]:
    """Whoever runs in a pod."""
    pids = {int(pid) for folder in _find_ours() for pid in _read(folder / "cgroup.procs").split()}
    found = [identity for pid in pids if (identity := processes.identify(pid)) is not None]
    # Read after the identity, so that it is this very program that is in there.
    return [one for one in found if f":/{NAME}/" in _read(Path(f"/proc/{one.pid}/cgroup"))]


def find_roots(mount: Path = MOUNT) -> list[Path]:
    """One folder for each hierarchy: with cgroup v2 the mount itself, with v1 one below it for each controller."""
    if (mount / "cgroup.controllers").exists():
        return [mount]
    # Some controllers have a second name, which is a link.
    return [path for path in sorted(mount.iterdir()) if (path / "cgroup.procs").exists() and not path.is_symlink()]


def _find_ours() -> list[Path]:
    tops = [root / NAME for root in find_roots() if (root / NAME).exists()]
    return [folder for top in tops for folder in (top, *top.rglob("*")) if folder.is_dir()]


def _read(path: Path) -> str:
    """A file of the kernel's; empty once what it tells of is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""
