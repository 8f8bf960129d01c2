"""A model version's artifact: read its folder, verify its digest. No torch."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pierhead_server.config import (
    CustomPredictor,
    ExportedProgram,
    ModelConfig,
    OpenvinoProgram,
    TorchScriptProgram,
    TorchvisionModel,
    read_config,
)
from pierhead_server.errors import ArtifactInvalidError

PREDICTOR_FILE = "predictor.py"
WARMUP_FILE = "warmup.json"
MAX_WARMUP_BYTES = 1024 * 1024
_MOST_LINKS = 1000  # of links to folders of links there are soon more paths than anybody can read


@dataclass(frozen=True)
class Sample:
    """A request that a model answers before any client's, and whenever it is probed."""

    body: bytes  # as a client of Vertex AI sends it
    source: str  # in a person's words

    def explain(self, cause: str) -> str:
        """Why a model that does not answer it cannot be served."""
        return f"the model cannot answer {self.source}: {cause}"


@dataclass(frozen=True)
class Artifact:
    """A model folder that was read and found complete."""

    folder: Path
    config: ModelConfig
    # None where model.yaml has none: torchvision's metadata names the classes later, other programs have no classes.
    labels: tuple[str, ...] | None
    sample: Sample | None = None  # its own, of warmup.json


def compute_digest(folder: Path) -> str:
    """The digest of a folder: SHA-256 over the lines `sha256sum` prints for its files, sorted by path as bytes.

    A link counts as what it leads to. The same as
    `find -L . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum` inside it.
    Raises ArtifactInvalidError for a link that leads out of the folder.
    """
    tree = hashlib.sha256()
    for name in sorted(_walk(folder), key=os.fsencode):
        with (folder / name).open("rb") as file:
            tree.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  ".encode() + os.fsencode(name) + b"\n")
    return f"sha256:{tree.hexdigest()}"


def _walk(folder: Path) -> Iterator[str]:
    """The files' paths inside the folder, through links, too. Raises ArtifactInvalidError for one that leads out."""
    root = folder.resolve()
    links = 0

    def visit(parent: str, above: tuple[Path, ...]) -> Iterator[str]:
        """The files under `parent`, which is the last of `above`, the folders it lies in, without links."""
        nonlocal links
        with os.scandir(folder / parent) as entries:
            for entry in entries:
                name, place = f"{parent}{entry.name}", above[-1] / entry.name
                if entry.is_symlink():
                    links += 1
                    if links > _MOST_LINKS:
                        raise ArtifactInvalidError(f"{name}: more than {_MOST_LINKS} links: put files in their place")
                    place = _follow(root, name, above)
                if entry.is_dir():
                    yield from visit(f"{name}/", (*above, place))
                elif entry.is_file():
                    yield name

    return visit("", (root,))


def _follow(root: Path, name: str, above: tuple[Path, ...]) -> Path:
    """Where a link leads; `above` are the folders that it lies in. Raises ArtifactInvalidError."""
    try:
        target = (root / name).resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a link to itself
        raise ArtifactInvalidError(f"{name}: a link that leads to nothing: put the file itself there") from None
    if not target.is_relative_to(root):
        raise ArtifactInvalidError(f"{name}: a link out of the artifact's folder: put the file itself there (cp -L)")
    if target in above:
        raise ArtifactInvalidError(f"{name}: a link to a folder that it lies in: remove it")
    return target


def check_links(folder: Path) -> None:
    """Raises ArtifactInvalidError for a link that leads out of the folder, to nothing, or round in a circle.

    Whoever could put such a link there would have the server read any file of its container.
    """
    for _ in _walk(folder):
        pass


def read_state(folder: Path) -> list[tuple[str, int, int]]:
    """The files with their sizes and times: another list where somebody has written there. Nothing is read of them."""
    stats = ((name, (folder / name).stat()) for name in _walk(folder))
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def verify_digest(folder: Path, expected: str) -> None:
    """Raises ArtifactInvalidError unless the folder has this digest."""
    actual = compute_digest(folder)
    if actual != expected:
        raise ArtifactInvalidError(
            f"digest: the artifact is {actual}, not {expected}: it changed, or the digest is old"
        )


def read_artifact(folder: Path) -> Artifact:
    """Read and check a model folder; raises ArtifactInvalidError that names the field or the file and the fix."""
    if folder.is_dir():
        check_links(folder)
    config = read_config(folder)
    labels = None
    match config:
        case TorchvisionModel():
            _check_file(folder, "weights", config.weights, (".safetensors", ".pth", ".pt"))
            labels = config.labels
        case ExportedProgram():
            _check_file(folder, "program", config.program, (".pt2",))
            labels = config.labels
        case TorchScriptProgram():
            _check_file(folder, "program", config.program, (".pt", ".ts"))
            labels = config.labels
        case OpenvinoProgram():
            _check_file(folder, "program", config.program, (".xml",))
            weights = PurePosixPath(config.program).with_suffix(".bin")
            if not (folder / weights).is_file():
                raise ArtifactInvalidError(
                    f"program: the artifact has no file {weights}, the weights of {config.program}"
                )
            labels = config.labels
        case CustomPredictor():
            if not (folder / PREDICTOR_FILE).is_file():
                raise ArtifactInvalidError(f"{PREDICTOR_FILE}: missing: format predictor is a class Predictor in it")
    return Artifact(folder, config, None if labels is None else _read_labels(folder, labels), _read_sample(folder))


def _read_sample(folder: Path) -> Sample | None:
    path = folder / WARMUP_FILE
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_WARMUP_BYTES:
        raise ArtifactInvalidError(f"{WARMUP_FILE}: larger than {MAX_WARMUP_BYTES} bytes: one small instance is enough")
    return Sample(path.read_bytes(), WARMUP_FILE)


def _check_file(folder: Path, field: str, name: str, suffixes: tuple[str, ...]) -> None:
    if not name.endswith(suffixes):
        fix = ": a pickle is never loaded" if ".xml" not in suffixes else ", as openvino.save_model writes it"
        raise ArtifactInvalidError(f"{field}: {name} must be a {' or '.join(suffixes)} file{fix}")
    if not (folder / name).is_file():
        raise ArtifactInvalidError(f"{field}: the artifact has no file {name}")


def _read_labels(folder: Path, labels: str | list[str]) -> tuple[str, ...]:
    if isinstance(labels, list):
        names = labels
    else:
        if not (folder / labels).is_file():
            raise ArtifactInvalidError(f"labels: the artifact has no file {labels}")
        try:
            text = (folder / labels).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ArtifactInvalidError(f"labels: {labels} is not UTF-8") from None
        names = text.removesuffix("\n").split("\n")
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise ArtifactInvalidError(f"labels: name {number} is empty: give every class a name")
    if not names:
        raise ArtifactInvalidError("labels: empty: give every class a name")
    return tuple(name.strip() for name in names)
