"""The image that every other with a Python or a C library stands on: Debian with its own Python, by debootstrap.

A stand-in for `python:3.11-slim-bookworm`, which no machine without a container registry can pull.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from cluster import buildah, commands, folders, host, locks, settings
from cluster.progress import step
from cluster.settings import Paths

PACKAGES = ("ca-certificates", "python3", "python3-venv")
# Nothing that runs in a pod reads these.
REMOVED = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt/archives",
    "var/lib/apt/lists",
    "var/log",
)
# ADD unpacks the archive with owners and modes as they are, which COPY of a folder does not.
DOCKERFILE = """\
FROM scratch
ADD root.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
CMD ["python3"]
"""


def key() -> str:
    inputs = repr([settings.DEBIAN_SUITE, PACKAGES, REMOVED, DOCKERFILE])
    return hashlib.sha256(inputs.encode()).hexdigest()[:12]


def reference() -> str:
    return f"localhost/pierhead/base:{key()}"


def ensure(paths: Paths) -> str:
    """Makes the base image unless buildah has it; returns its reference."""
    with locks.exclusive(paths.locks / "image-base"):
        if not buildah.has(paths, reference()):
            what = f"image base ({settings.DEBIAN_SUITE} with Python)"
            with step(what), folders.fresh(paths.images / "base") as folder:
                _make(paths, folder, paths.log("image-base"))
    return reference()


def _make(paths: Paths, folder: Path, log: Path) -> None:
    context, root = folder / "context", folder / "root"
    context.mkdir()
    mirror = host.find_debian_mirror(host.read_os_release())
    commands.run(debootstrap_command(root, mirror), log=log, timeout=1200)
    for name in REMOVED:
        _empty(root / name)
    commands.run(["tar", "-C", str(root), "-cf", str(context / "root.tar"), "."], log=log)
    (context / "Dockerfile").write_text(DOCKERFILE)
    buildah.build(paths, buildah.Build(reference(), context / "Dockerfile", context), log)


def debootstrap_command(root: Path, mirror: str) -> list[str]:
    packages = f"--include={','.join(PACKAGES)}"
    return ["debootstrap", "--variant=minbase", packages, settings.DEBIAN_SUITE, str(root), mirror]


def _empty(folder: Path) -> None:
    """Removes what is in the folder but keeps the folder, with its owner and mode: programs expect it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
