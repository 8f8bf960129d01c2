"""What containers and the kubelet leave on the machine when they are killed, and how it is removed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from cluster import cgroups, commands, config, processes
from cluster.processes import Identity

# Fixed folders of the kubelet and of CNI, whatever the configuration says.
POD_LOG_LINKS = Path("/var/log/containers")
CNI_RESULTS = Path("/var/lib/cni/results")
DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")


def end_processes() -> None:
    """Kills what a containerd that is gone has left: what runs in the pods' cgroups, and its shims."""
    # Without a grace: shims do not heed SIGTERM, and what is in the pods has had its chance.
    processes.end(cgroups.find_processes(), grace=0)
    processes.end(find_shims(), grace=0)


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


def unmount(folders: Iterable[Path], log: Path) -> None:
    """Unmounts everything at or below `folders`."""
    for mount in find_mounts(Path("/proc/mounts").read_text(), folders):
        commands.run(["umount", "--lazy", str(mount)], log=log)


def find_mounts(mounts: str, folders: Iterable[Path]) -> list[Path]:
    """The mount points of `/proc/mounts` at or below `folders`, the last mounted first."""
    wanted = list(folders)
    points = [Path(line.split()[1].encode().decode("unicode_escape")) for line in mounts.splitlines()]
    return [point for point in reversed(points) if any(point.is_relative_to(folder) for folder in wanted)]


def remove_files(state: Path) -> None:
    """Removes our files from the folders that the kubelet and CNI share with everyone else."""
    for link in POD_LOG_LINKS.glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(state):
            link.unlink()
    for result in CNI_RESULTS.glob(f"{config.NETWORK_NAME}-*-eth0"):
        sandbox = result.name.removeprefix(f"{config.NETWORK_NAME}-").removesuffix("-eth0")
        result.unlink()
        (CNI_RESULTS / f"cni-loopback-{sandbox}-lo").unlink(missing_ok=True)
    # A shim that is killed leaves its socket, in a folder that containerd does not let us choose.
    for address in (config.CONTAINERD / "io.containerd.runtime.v2.task").glob("*/*/address"):
        Path(address.read_text().removeprefix("unix://")).unlink(missing_ok=True)
    (DEVICE_PLUGINS / "kubelet.sock").unlink(missing_ok=True)
