"""Builds images with buildah, without any daemon, and pushes them to the registry on loopback."""

from __future__ import annotations

import configparser
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster import commands, settings
from cluster.settings import Paths

BUILD_TIMEOUT = 3600.0
# Level 1 costs half the time of the default and a tenth more room.
COMPRESSION = ("--compression-format", "zstd", "--compression-level", "1")
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Build:
    """What `buildah build` needs to know.

    With a `timestamp`, in seconds since 1970, every file and the image itself are of that time: what is made of the
    same is the same.
    """

    reference: str
    dockerfile: Path
    context: Path
    arguments: Mapping[str, str] = field(default_factory=dict)
    timestamp: int | None = None
    target: str | None = None  # the stage of the Dockerfile; else its last one
    cached: bool = True  # whether layers of an earlier build may be taken


def command(paths: Paths, *arguments: str) -> list[str]:
    """buildah with storage of our own: other images of this machine are neither seen nor touched."""
    return [
        "buildah",
        "--root",
        str(paths.buildah),
        "--runroot",
        str(settings.RUN / "buildah"),
        "--storage-driver",
        "overlay",
        *arguments,
    ]


def build_command(paths: Paths, build: Build, mounts: Sequence[str]) -> list[str]:
    options = [f"--build-arg={name}={value}" for name, value in build.arguments.items()]
    options += [f"--volume={mount}" for mount in mounts]
    if build.timestamp is not None:
        options.append(f"--timestamp={build.timestamp}")
    if build.target is not None:
        options.append(f"--target={build.target}")
    if not build.cached:
        options.append("--no-cache")
    return command(
        paths,
        "build",
        "--isolation=chroot",  # needs no user namespaces, no cgroup and no runtime; RUN uses this machine's network
        "--layers",
        "--pull-never",
        f"--file={build.dockerfile}",
        f"--tag={build.reference}",
        *options,
        str(build.context),
    )


def build(paths: Paths, build: Build, log: Path) -> None:
    """Builds an image. How this machine reaches its package index is mounted into the build, never copied."""
    with _package_configuration() as configuration:
        certificates = os.environ.get("SSL_CERT_FILE", CA_BUNDLE)
        mounts = [f"{certificates}:{CA_BUNDLE}:ro", f"{configuration}:/etc/xdg:ro"]
        commands.run(build_command(paths, build, mounts), log=log, timeout=BUILD_TIMEOUT)


def push(paths: Paths, reference: str, log: Path) -> None:
    """Sends the layers that the registry lacks."""
    argv = command(paths, "push", "--tls-verify=false", *COMPRESSION, reference, f"docker://{reference}")
    commands.run(argv, log=log, timeout=1800)


def find_id(paths: Paths, reference: str) -> str:
    """The digest over all that an image is, in buildah's own storage. Raises ClusterError where it is not there."""
    return commands.output(command(paths, "inspect", "--type=image", "--format={{.FromImageID}}", reference)).strip()


def remove(paths: Paths, reference: str) -> None:
    """Forgets an image, and the layers that only it has."""
    commands.output(command(paths, "rmi", reference))


def has(paths: Paths, reference: str) -> bool:
    """Whether buildah's own storage holds the image."""
    return commands.succeeds(command(paths, "inspect", "--type=image", reference))


@contextmanager
def _package_configuration() -> Iterator[Path]:
    """A folder to mount as `/etc/xdg`: pip and uv find there the index that this machine uses.

    Index addresses may hold passwords, so it exists only while an image is built.
    """
    settings.RUN.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=settings.RUN, prefix="build-"))
    try:
        values = read_pip_settings(
            [Path("/etc/pip.conf"), Path.home() / ".pip/pip.conf", Path.home() / ".config/pip/pip.conf"], os.environ
        )
        for name, text in (("pip/pip.conf", make_pip_config(values)), ("uv/uv.toml", make_uv_config(values))):
            (folder / name).parent.mkdir()
            (folder / name).write_text(text)
        yield folder
    finally:
        shutil.rmtree(folder)


def read_pip_settings(files: Sequence[Path], environment: Mapping[str, str]) -> dict[str, str]:
    """How this machine reaches its package index: pip's files, then pip's variables, which win."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(files)
    values = dict(parser["global"]) if parser.has_section("global") else {}
    for name in ("index-url", "extra-index-url", "trusted-host", "timeout"):
        variable = f"PIP_{name.upper().replace('-', '_')}"
        if environment.get(variable):
            values[name] = environment[variable]
    kept = ("index-url", "extra-index-url", "trusted-host", "timeout")
    return {name: values[name] for name in kept if values.get(name)}


def make_pip_config(values: Mapping[str, str]) -> str:
    lines = [f"{name} = {value}" for name, value in values.items()]
    return "\n".join(["[global]", f"cert = {CA_BUNDLE}", "disable-pip-version-check = true", *lines, ""])


def make_uv_config(values: Mapping[str, str]) -> str:
    lines = ["system-certs = true"]
    if "index-url" in values:
        lines.append(f'index-url = "{values["index-url"]}"')
    if "extra-index-url" in values:
        lines.append(f"extra-index-url = {values['extra-index-url'].split()!r}")
    return "\n".join([*lines, ""])
