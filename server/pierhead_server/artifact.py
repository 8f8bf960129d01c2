"""A model version's artifact: fetch the folder from storage, verify its digest, read its `model.yaml`. No torch."""

import difflib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from pierhead_server.errors import (
    ArtifactInvalidError,
    ArtifactNotFoundError,
    ArtifactUnreachableError,
    StartupError,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

MODEL_FILE = "model.yaml"
MAX_MODEL_FILE_BYTES = 1024 * 1024
MAX_RETRIES = 4  # with back-off about three seconds, more where storage does not answer at all
_CHUNK_BYTES = 1024 * 1024


def _inside(path: str) -> str:
    """A path that stays inside the artifact's folder; raises ValueError."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or any(ord(c) < 32 or c == "\\" for c in path):
        raise ValueError("must be a path inside the artifact's folder")
    return path


def _labels(value: object) -> object:
    if isinstance(value, str):
        return _inside(value)
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return value
    raise ValueError("must be a file's path or a list of names (in YAML, quote yes, no and numbers)")


RelativePath = Annotated[str, AfterValidator(_inside)]


class Preprocessing(BaseModel):
    """How a picture becomes the model's input. The defaults are those of torchvision's ImageNet weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resize: int = Field(default=256, gt=0, le=4096)  # the shorter side is scaled to this many pixels
    crop: int = Field(default=224, gt=0, le=4096)  # the square cut out of the middle
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of red, green, blue in 0..1
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    @model_validator(mode="after")
    def _check(self) -> "Preprocessing":
        if self.crop > self.resize:
            raise ValueError("crop must be at most resize")
        if not all(value > 0 for value in self.std):
            raise ValueError("std must be above 0")
        return self


class _Classifier(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Annotated[str | list[str], BeforeValidator(_labels)]  # a file with one name a line, or the names
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"  # what turns the outputs into confidences
    preprocessing: Preprocessing = Preprocessing()


class TorchvisionClassifier(_Classifier):
    """One of torchvision's classification architectures with its weights in safetensors."""

    format: Literal["torchvision"]
    architecture: str
    weights: RelativePath


class ExportedClassifier(_Classifier):
    """A `torch.export` program that takes float32 [batch, 3, crop, crop] and gives [batch, classes]."""

    format: Literal["torch.export"]
    program: RelativePath


_FORMATS: dict[str, type[_Classifier]] = {"torchvision": TorchvisionClassifier, "torch.export": ExportedClassifier}
ModelConfig = TorchvisionClassifier | ExportedClassifier
_CONFIG: TypeAdapter[ModelConfig] = TypeAdapter(Annotated[ModelConfig, Field(discriminator="format")])


@dataclass(frozen=True)
class Artifact:
    """A model folder that was read and found complete."""

    folder: Path
    config: ModelConfig
    labels: tuple[str, ...]


def fetch_artifact(uri: str, model_dir: Path, *, emulator: str | None, max_bytes: int | None) -> Path:
    """Put the artifact on this machine's disk and return its folder.

    `file://` is read where it is; everything else is copied into `model_dir`. Blocks: not for the event loop.
    Raises ArtifactNotFoundError, ArtifactInvalidError, ArtifactUnreachableError.
    """
    if uri.startswith("file://"):
        folder = Path(unquote(urlsplit(uri).path))
        if not folder.is_dir():
            raise ArtifactNotFoundError(f"{uri}: no such folder")
        return folder
    return _download(uri, model_dir, emulator, max_bytes)


def _download(uri: str, model_dir: Path, emulator: str | None, max_bytes: int | None) -> Path:
    # Imported here: a folder on disk needs no storage client.
    from obstore.exceptions import BaseError

    incoming, folder = model_dir / "incoming", model_dir / "artifact"
    for stale in (incoming, folder):  # of a container that was restarted in this pod
        shutil.rmtree(stale, ignore_errors=True)
    try:
        store = _open_store(uri, emulator)
        # First and alone: a missing or wrong model.yaml is known before gigabytes of weights are copied.
        _copy_model_file(store, uri, incoming)
        for name in _list_files(store, uri, max_bytes):
            _copy(store, name, incoming / name)
    except BaseError as error:
        raise ArtifactUnreachableError(f"{uri}: {_first_line(error)}") from None
    except OSError as error:  # no space, or no right to write; or a file that vanished meanwhile
        raise ArtifactUnreachableError(f"{uri}: copying it to {model_dir} failed: {_first_line(error)}") from None
    # Renamed when whole: half a folder never looks like a model.
    return incoming.rename(folder)


def _open_store(uri: str, emulator: str | None) -> "ObjectStore":
    from obstore.store import GCSStore

    options: ClientConfig = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "6h"}
    retry: RetryConfig = {
        "max_retries": MAX_RETRIES,
        "retry_timeout": timedelta(seconds=20),
        "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=2), "base": 2},
    }
    if emulator is None:
        return GCSStore.from_url(uri, client_options=options, retry_config=retry)
    # The client speaks Cloud Storage's XML API, which fake-gcs-server answers under its public host's name alone.
    options |= {"allow_http": True, "default_headers": {"host": "storage.googleapis.com"}}
    return GCSStore.from_url(
        uri, config={"base_url": emulator, "skip_signature": True}, client_options=options, retry_config=retry
    )


def _copy_model_file(store: "ObjectStore", uri: str, incoming: Path) -> None:
    try:
        _copy(store, MODEL_FILE, incoming / MODEL_FILE)
    except FileNotFoundError:
        raise _missing_model_file(store, uri) from None
    _read_config(incoming)


def _missing_model_file(store: "ObjectStore", uri: str) -> StartupError:
    from obstore.exceptions import BaseError

    try:
        somewhat = next(iter(store.list(chunk_size=1)), [])
    except (BaseError, FileNotFoundError):
        # Storage answered for the file, so it can be reached: of a missing bucket the list alone is an error.
        somewhat = []
    if somewhat:
        return ArtifactInvalidError(f"{MODEL_FILE}: missing under {uri}: every artifact needs one")
    return ArtifactNotFoundError(f"{uri}: nothing is there: check the bucket and the path")


def _list_files(store: "ObjectStore", uri: str, max_bytes: int | None) -> Iterator[str]:
    """The artifact's files but for model.yaml, by relative path. Raises ArtifactInvalidError."""
    sizes = {str(entry["path"]): int(entry["size"]) for chunk in store.list() for entry in chunk}
    total = sum(sizes.values())
    if max_bytes is not None and total > max_bytes:
        raise ArtifactInvalidError(f"{uri}: {total} bytes are more than PIERHEAD_MAX_ARTIFACT_BYTES, {max_bytes}")
    for name, size in sorted(sizes.items()):
        # Consoles make "folders": empty objects whose name is the prefix of others.
        if size == 0 and (not name or any(other.startswith(f"{name}/") for other in sizes)):
            continue
        try:
            _inside(name)
        except ValueError as error:
            raise ArtifactInvalidError(f"{name!r}: {error}") from None
        if name != MODEL_FILE:
            yield name


def _copy(store: "ObjectStore", name: str, target: Path) -> None:
    stream = store.get(name).stream(min_chunk_size=_CHUNK_BYTES)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        for chunk in stream:
            file.write(chunk)


def _first_line(error: Exception) -> str:
    """Without what follows a `?`: the query of a signed address is a secret."""
    return re.sub(r"\?\S*", "", str(error).split("\n", 1)[0]).strip()


def compute_digest(folder: Path) -> str:
    """The digest of a folder: SHA-256 over the lines `sha256sum` prints for its files, sorted by path as bytes.

    The same as `find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum` inside it.
    """
    tree = hashlib.sha256()
    for name in sorted(_walk(folder), key=os.fsencode):
        with (folder / name).open("rb") as file:
            tree.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  ".encode() + os.fsencode(name) + b"\n")
    return f"sha256:{tree.hexdigest()}"


def _walk(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix()


def verify_digest(folder: Path, expected: str) -> None:
    """Raises ArtifactInvalidError unless the folder has this digest."""
    actual = compute_digest(folder)
    if actual != expected:
        raise ArtifactInvalidError(
            f"digest: the artifact is {actual}, not {expected}: it changed, or the digest is old"
        )


def read_artifact(folder: Path) -> Artifact:
    """Read and check a model folder; raises ArtifactInvalidError that names the field or the file and the fix."""
    config = _read_config(folder)
    if isinstance(config, TorchvisionClassifier):
        _check_file(folder, "weights", config.weights, ".safetensors")
    else:
        _check_file(folder, "program", config.program, ".pt2")
    return Artifact(folder, config, _read_labels(folder, config.labels))


def _read_config(folder: Path) -> ModelConfig:
    path = folder / MODEL_FILE
    if not path.is_file():
        raise ArtifactInvalidError(f"{MODEL_FILE}: missing: every artifact needs one")
    if path.stat().st_size > MAX_MODEL_FILE_BYTES:
        raise ArtifactInvalidError(f"{MODEL_FILE}: larger than {MAX_MODEL_FILE_BYTES} bytes: put labels into a file")
    try:
        document = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of a date that is none
        raise ArtifactInvalidError(f"{MODEL_FILE}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return _CONFIG.validate_python(document)
    except ValidationError as error:
        causes = [_explain(dict(cause)) for cause in error.errors()]
        raise ArtifactInvalidError(f"{MODEL_FILE}: {'; '.join(causes)}") from None


def _explain(cause: dict[str, Any]) -> str:
    """One pydantic error as `field: cause`, with the nearest known name for an unknown field."""
    tag, *where = [str(part) for part in cause["loc"]] or [""]
    field = ".".join(where)
    match cause["type"]:
        case "union_tag_not_found" | "union_tag_invalid":
            return f"format: must be {' or '.join(_FORMATS)}"
        case "missing":
            return f"{field}: missing"
        case "extra_forbidden":
            known = (_FORMATS[tag] if len(where) == 1 else Preprocessing).model_fields
            near = difflib.get_close_matches(where[-1], known, n=1)
            fix = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            return f"{field}: unknown: {fix}"
    return f"{field}: {cause['msg'].removeprefix('Value error, ')}".removeprefix(": ")


def _check_file(folder: Path, field: str, name: str, suffix: str) -> None:
    if not name.endswith(suffix):
        raise ArtifactInvalidError(f"{field}: {name} must be a {suffix} file: a pickle is never loaded")
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
