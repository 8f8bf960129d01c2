"""The image that every other with a Python or a C library stands on: Debian with its own Python, by debootstrap.

A stand-in for `python:3.11-slim-bookworm`, which no machine without a container registry can pull.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from cluster import buildah, commands, host, settings
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
    if not buildah.has(paths, reference()):
        with step(f"image base ({settings.DEBIAN_SUITE} with Python)"):
            _make(paths, paths.log("image-base"))
    return reference()


def _make(paths: Paths, log: Path) -> None:
    paths.images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.images, prefix=".base-") as folder:
        context, root = Path(folder) / "context", Path(folder) / "root"
        context.mkdir()
        commands.run(debootstrap_command(root, host.find_debian_mirror(host.read_os_release())), log=log, timeout=1200)
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
