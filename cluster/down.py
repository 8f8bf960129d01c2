"""Ends the cluster and removes every trace of it from the machine: by pid, by our own names and folders only."""

from __future__ import annotations

import shutil
from pathlib import Path

from cluster import (
    buildah,
    cgroups,
    commands,
    containers,
    host,
    locks,
    network,
    processes,
    registry,
    remains,
    settings,
)
from cluster.progress import step
from cluster.settings import Paths

LOCK = Path("/run/pierhead.lock")  # beside the folder, which `down` removes
OWNER = settings.RUN / "owner"  # the cache folder of the cluster that is up


def down(*, purge: bool = False, paths: Paths | None = None) -> None:
    """Ends the cluster that runs on this machine, if any. Harmless when there is none.

    Binaries and images stay for the next `up`, unless `purge`.
    """
    host.check_kind()
    paths = paths or Paths.from_environment()
    with locks.exclusive(LOCK):
        if settings.RUN.exists() or paths.state.exists():
            with step("end the cluster"):
                clean(read_owner() or paths)
        if purge and paths.cache.exists():
            with step(f"remove {paths.cache}"):
                shutil.rmtree(paths.cache)


def read_owner() -> Paths | None:
    """Whose cluster is up, or was when it was cut off."""
    return Paths(Path(OWNER.read_text())) if OWNER.exists() else None


def clean(paths: Paths) -> None:
    """Removes whatever is there of a cluster, however it ended. The caller holds the lock."""
    log = paths.log("down")
    names = set(processes.recorded())
    # Before the containers, or they are started again. Their state is thrown away: no need for a long goodbye.
    processes.stop(names - {"containerd", registry.NAME}, grace=1)
    if processes.alive("containerd") and containers.answers():
        containers.remove_all(log)
    processes.stop(["containerd", registry.NAME])
    remains.end_processes()
    if paths.buildah.exists():
        # What a build that was cut off was working on.
        commands.run(buildah.command(paths, "rm", "--all"), log=log)
    remains.unmount([settings.RUN, paths.containerd, paths.state, paths.buildah], log)
    remains.remove_files(paths.state)
    cgroups.remove()
    network.down(log)
    shutil.rmtree(paths.state, ignore_errors=True)
    shutil.rmtree(settings.RUN, ignore_errors=True)
