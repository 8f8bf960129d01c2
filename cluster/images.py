"""The images that run in the cluster: which there are, what decides each one's content, and how it is made.

The tag of an image is a key over everything that goes into it. An image whose tag the registry has is never made
again, and a changed one never hides behind an old tag.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cluster import base_image, buildah, commands, folders, host, locks, registry, settings
from cluster.buildah import Build
from cluster.errors import ClusterError
from cluster.go_build import KUBE, Tool
from cluster.progress import step
from cluster.settings import Paths

NONROOT = 65532
# Which packages run from which of Pierhead's images, by the folders that hold them.
PACKAGES = {"operator": ("operator", "api"), "server": ("server",), "server-openvino": ("server",)}
# Those that are made of a stage of another one's Dockerfile.
TARGETS = {"server-openvino": ("server", "openvino")}
PAUSE_FLAGS = ("-Os", "-static", f"-DVERSION=v{settings.KUBERNETES_VERSION}")


@dataclass(frozen=True)
class Image:
    """An image of the registry on loopback. `build` makes it, given an empty folder that it may fill."""

    name: str
    key: str
    build: Callable[[Paths, Image, Path], Build]

    @property
    def reference(self) -> str:
        return f"{settings.REGISTRY}/pierhead/{self.name}:{self.key}"


def ensure(paths: Paths, image: Image) -> str:
    """Makes the image and pushes it unless the registry has it; returns its reference.

    Raises ClusterError if it cannot be built.
    """
    registry.ensure_running(paths)
    with locks.exclusive(paths.locks / f"image-{image.name}"):
        if not registry.has(image.reference):
            log = paths.log(f"image-{image.name}")
            with step(f"image {image.name}"), folders.fresh(paths.images / image.name) as folder:
                buildah.build(paths, image.build(paths, image, folder), log)
                buildah.push(paths, image.reference, log)
    return image.reference


def build_operator(paths: Paths | None = None) -> str:
    """Builds and pushes the image of the operator and the API from the working tree; returns its reference."""
    return _build_pierhead_image(paths, "operator")


def build_server(paths: Paths | None = None) -> str:
    """Builds and pushes the model server's image from the working tree; returns its reference."""
    return _build_pierhead_image(paths, "server")


def build_server_openvino(paths: Paths | None = None) -> str:
    """Builds and pushes the model server's image without PyTorch from the working tree; returns its reference."""
    return _build_pierhead_image(paths, "server-openvino")


def verify_operator(paths: Paths | None = None) -> str:
    """Builds the image of the operator and the API once more, from nothing, and returns its digest.

    Raises ClusterError if it is not the same as the one that was built before.
    """
    paths = paths or Paths.from_environment()
    image = make_pierhead_image("operator")
    ensure(paths, image)
    again = f"localhost/pierhead/operator-again:{image.key}"
    with step("image operator, once more"), folders.fresh(paths.images / "operator-again") as folder:
        build = replace(image.build(paths, image, folder), reference=again, cached=False)
        buildah.build(paths, build, paths.log("image-operator-again"))
    digests = [buildah.find_id(paths, reference) for reference in (image.reference, again)]
    buildah.remove(paths, again)
    if digests[0] != digests[1]:
        raise ClusterError(f"the operator's image is not the same once more: {digests[0]}, then {digests[1]}")
    return digests[0]


def _build_pierhead_image(paths: Paths | None, name: str) -> str:
    host.check_kind()
    host.install_packages()
    return ensure(paths or Paths.from_environment(), make_pierhead_image(name))


def make_pause_image() -> Image:
    """The container that holds a pod's namespaces."""
    return Image("pause", _key(KUBE.key, PAUSE_FLAGS, _scratch_dockerfile("pause")), _build_pause)


def make_go_image(tool: Tool) -> Image:
    """An image of nothing but one static Go program, which has the tool's name."""
    return Image(tool.name, _key(tool.key, _scratch_dockerfile(tool.name)), partial(_build_go, tool))


def make_envoy_image() -> Image:
    files = [settings.SOURCE / "envoy" / name for name in ("Dockerfile", "requirements.txt")]
    return Image("envoy", _key(base_image.key(), hash_files(files, settings.SOURCE)), _build_envoy)


def make_pierhead_image(name: str, repository: Path = settings.REPOSITORY) -> Image:
    """`operator`, `server` or `server-openvino`: the dependencies of its lock file and the code of the working tree."""
    dockerfile, _ = TARGETS.get(name, (name, None))
    files = [
        repository / f"Dockerfile.{dockerfile}",
        repository / ".dockerignore",
        repository / "LICENSE",
        # A release before this one has fewer.
        *filter(Path.exists, (repository / f"requirements/{lock}.txt" for lock in ("uv", "sbom", name))),
        *(
            source
            for package in PACKAGES[name]
            for source in find_sources(repository / package / f"pierhead_{package}")
        ),
    ]
    return Image(name, _key(base_image.key(), hash_files(files, repository)), partial(_build_pierhead, repository))


def find_sources(folder: Path) -> list[Path]:
    """Every file below the folder that an image of it holds, tracked or not."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    )


def hash_files(files: Iterable[Path], root: Path) -> str:
    """One hash over names, contents and whether a file is executable."""
    digest = hashlib.sha256()
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root)} {path.stat().st_mode & 0o111:o} {content}\n".encode())
    return digest.hexdigest()


def _key(*inputs: object) -> str:
    return hashlib.sha256(repr(inputs).encode()).hexdigest()[:12]


def _scratch_dockerfile(program: str) -> str:
    # One folder is copied to `/`: the modes of what is in it survive, and /tmp must be writable for all, or
    # Envoy's shutdown-manager cannot leave its mark there and every Envoy pod hangs in Terminating.
    return (
        "FROM scratch\nCOPY root /\nENV PATH=/usr/local/bin\n"
        f'USER {NONROOT}:{NONROOT}\nENTRYPOINT ["/usr/local/bin/{program}"]\n'
    )


def _make_scratch_context(folder: Path, program: str) -> Path:
    """Lays out the context of a scratch image; returns where its program belongs."""
    root = folder / "root"
    for name in ("etc", "tmp", "usr/local/bin"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text(f"nonroot:x:{NONROOT}:{NONROOT}:nonroot:/tmp:/sbin/nologin\n")
    (root / "etc/group").write_text(f"nonroot:x:{NONROOT}:\n")
    (folder / "Dockerfile").write_text(_scratch_dockerfile(program))
    return root / "usr/local/bin" / program


def _build_go(tool: Tool, paths: Paths, image: Image, folder: Path) -> Build:
    shutil.copy(tool.binary(paths, tool.name), _make_scratch_context(folder, tool.name))
    return Build(image.reference, folder / "Dockerfile", folder)


def _build_pause(paths: Paths, image: Image, folder: Path) -> Build:
    program = _make_scratch_context(folder, "pause")
    source = KUBE.folder(paths) / "pause.c"
    commands.run(["gcc", *PAUSE_FLAGS, "-o", str(program), str(source)], log=paths.log("image-pause"))
    return Build(image.reference, folder / "Dockerfile", folder)


def _build_envoy(paths: Paths, image: Image, _folder: Path) -> Build:
    context = settings.SOURCE / "envoy"
    return Build(image.reference, context / "Dockerfile", context, {"BASE_IMAGE": base_image.ensure(paths)})


def _build_pierhead(repository: Path, paths: Paths, image: Image, _folder: Path) -> Build:
    name, target = TARGETS.get(image.name, (image.name, None))
    arguments = {"BASE_IMAGE": base_image.ensure(paths)}
    return Build(image.reference, repository / f"Dockerfile.{name}", repository, arguments, timestamp=0, target=target)
