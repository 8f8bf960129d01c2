"""Whether the cluster can work on this machine, and what of Debian it still needs."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from cluster import commands, settings
from cluster.errors import ClusterError
from cluster.progress import step
from cluster.settings import Paths

PACKAGES = (
    "buildah",
    "ca-certificates",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "debootstrap",
    "docker-registry",
    "gcc",
    "iproute2",
    "ipset",
    "iptables",
    "libc6-dev",
    "nftables",
    "openssl",
    "runc",
)
# Packages that bring a service which a machine with systemd starts on its own; the cluster starts its own copy.
SERVICES = ("containerd", "docker-registry")
GIGABYTE = 10**9


def check_kind() -> None:
    """Raises ClusterError, saying what to do, if this is not a machine, or a user, that the cluster works on."""
    release = read_os_release()
    if not sys.platform.startswith("linux") or release.get("ID") != "debian":
        name = release.get("PRETTY_NAME", sys.platform)
        raise ClusterError(f"the cluster needs Debian 12 or newer, and this is {name}")
    if os.geteuid() != 0:
        raise ClusterError("the cluster makes network interfaces, mounts and cgroups: run it as root")


def check_room(paths: Paths, *, cached: bool) -> None:
    """Raises ClusterError, saying how much is needed and where, if there is too little for starting the cluster.

    `cached`: binaries and images are there already, so much less of the machine is needed.
    """
    _check_memory()
    _check_disk(paths, settings.DISK_NEEDED_WARM_GB if cached else settings.DISK_NEEDED_GB)
    if not cached:
        find_go()


def _check_memory() -> None:
    total = int(re.findall(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)[0]) * 1024
    if total < settings.MEMORY_NEEDED_GB * GIGABYTE:
        needed = settings.MEMORY_NEEDED_GB
        raise ClusterError(f"the cluster needs {needed} GB of memory, and this machine has {total / GIGABYTE:.1f}")


def _check_disk(paths: Paths, needed: int) -> None:
    folder = next(parent for parent in (paths.cache, *paths.cache.parents) if parent.exists())
    free = shutil.disk_usage(folder).free / GIGABYTE
    if free < needed:
        raise ClusterError(
            f"{needed} GB of disk are needed in {paths.cache}, and {free:.0f} are free; "
            "make room, or set XDG_CACHE_HOME to a folder with more"
        )


def install_packages() -> None:
    """Installs what is missing of Debian. Raises ClusterError, with a log, if that fails."""
    listing = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\\n"]
    missing = find_missing(PACKAGES, commands.output(listing))
    if not missing:
        return
    log = Paths.from_environment().log("apt")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with step(f"install {' '.join(missing)}"):
        commands.run(["apt-get", "update"], log=log, env=environment, timeout=600)
        install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
        commands.run(install, log=log, env=environment, timeout=1200)
        started = [service for service in SERVICES if service in missing]
        if started and Path("/run/systemd/system").exists():
            commands.run(["systemctl", "disable", "--now", *started], log=log)


def find_missing(packages: Iterable[str], listing: str) -> list[str]:
    """Those of `packages` that the listing, `name status` on each line, does not give as installed."""
    installed = {line.split()[0] for line in listing.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def find_go() -> str:
    """The path of a Go that is new enough. Raises ClusterError if there is none."""
    needed = ".".join(map(str, settings.GO_NEEDED))
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        raise ClusterError(f"no Go found on PATH or in /usr/local/go: install Go {needed} or newer")
    version = commands.output([go, "env", "GOVERSION"]).strip()
    if parse_go_version(version) < settings.GO_NEEDED:
        raise ClusterError(f"{go} is {version}: install Go {needed} or newer")
    return go


def parse_go_version(text: str) -> tuple[int, ...]:
    """`go1.26.8` -> (1, 26, 8); what follows the numbers (`rc1`, `-custom`) does not count."""
    match = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in match.groups()) if match else ()


def read_os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """What the machine says that it runs; empty where it does not say."""
    if not path.exists():
        return {}
    return {name: value.strip('"') for name, value in re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE)}


def find_debian_mirror(release: Mapping[str, str], apt: Path = Path("/etc/apt")) -> str:
    """The address that this machine fetches Debian's packages from. Raises ClusterError if none is configured."""
    suite = release.get("VERSION_CODENAME", settings.DEBIAN_SUITE)
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        mirror = parse_mirror(path.read_text(), suite) if path.is_file() else None
        if mirror is not None:
            return mirror
    raise ClusterError(f"no source of Debian's `{suite}` in {apt}/sources.list or sources.list.d")


def parse_mirror(text: str, suite: str) -> str | None:
    """The first source of the suite's main packages, in either form that apt's source files have."""
    one_line = re.search(rf"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+{suite}\s+(?:.*\s)?main\b", text, re.MULTILINE)
    if one_line:
        return str(one_line[1])
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, list[str]] = {
            name.lower(): value.split() for name, value in re.findall(r"^([\w-]+):(.*)$", stanza, re.MULTILINE)
        }
        if "deb" in fields.get("types", []) and suite in fields["suites"] and "main" in fields["components"]:
            return fields["uris"][0]
    return None


def main() -> None:
    """Says at once, with Python's own library alone, what would fail only after minutes of installing."""
    paths = Paths.from_environment()
    try:
        check_kind()
        check_room(paths, cached=paths.bin.exists())
    except ClusterError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
