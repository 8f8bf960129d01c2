"""Artifacts: what is fetched, what is refused, and in which words."""

import shutil
import subprocess

import pytest
from pierhead_server import artifact
from pierhead_server.artifact import (
    Preprocessing,
    compute_digest,
    fetch_artifact,
    read_artifact,
    verify_digest,
)
from pierhead_server.errors import ArtifactInvalidError, ArtifactNotFoundError, ArtifactUnreachableError

from tests.unit.server.bucket import running_bucket
from tests.unit.server.pictures import LABELS

GOOD = """\
format: torchvision
architecture: resnet18
weights: model.safetensors
labels: labels.txt
"""


@pytest.fixture
def folder(tmp_path):
    """A complete folder; what is in the weights shows only when they are loaded."""
    (tmp_path / "model.yaml").write_text(GOOD)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "labels.txt").write_text("ant\nbee\n")
    return tmp_path


def test_both_formats_are_read(torchvision_folder, exported_folder):
    torchvision, exported = read_artifact(torchvision_folder), read_artifact(exported_folder)
    assert torchvision.labels == exported.labels == LABELS
    assert (torchvision.config.format, exported.config.format) == ("torchvision", "torch.export")
    assert (torchvision.config.activation, exported.config.activation) == ("softmax", "sigmoid")


def test_preprocessing_defaults_to_torchvisions(folder):
    from torchvision.transforms._presets import ImageClassification

    preset = ImageClassification(crop_size=224)
    ours = read_artifact(folder).config.preprocessing
    assert ours == Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        mean=preset.mean,
        std=preset.std,
        interpolation=preset.interpolation.value,
    )


def test_same_name_may_label_two_classes(folder):
    (folder / "labels.txt").write_text("crane\r\ncrane\r\n")
    assert read_artifact(folder).labels == ("crane", "crane")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "model.yaml: Input should be a valid dictionary"),
        ("{", "model.yaml: not valid YAML: "),
        ("a: 2026-13-45", "model.yaml: not valid YAML: "),
        ("[" * 5000, "model.yaml: not valid YAML: "),
        ("labels: labels.txt", "model.yaml: format: must be torchvision or torch.export"),
        (GOOD.replace("torchvision", "pickle"), "model.yaml: format: must be torchvision or torch.export"),
        (GOOD.replace("weights", "weight"), "model.yaml: weights: missing; weight: unknown: did you mean weights?"),
        (GOOD + "program: model.pt2", "model.yaml: program: unknown: known are labels, "),
        (GOOD + "preprocessing: {resise: 1}", "model.yaml: preprocessing.resise: unknown: did you mean resize?"),
        (GOOD + "preprocessing: {crop: 300}", "model.yaml: preprocessing: crop must be at most resize"),
        (GOOD + "preprocessing: {std: [1, 0, 1]}", "model.yaml: preprocessing: std must be above 0"),
        (GOOD + "preprocessing: {mean: [1, 2]}", "model.yaml: preprocessing.mean.2: missing"),
        (GOOD + "activation: relu", "model.yaml: activation: Input should be 'softmax', 'sigmoid' or 'none'"),
        (GOOD.replace("labels.txt", "[yes, no]"), "model.yaml: labels: must be a file's path or a list of names"),
        (GOOD.replace("labels.txt", "[]"), "model.yaml: labels: must be a file's path or a list of names"),
        (GOOD.replace("labels.txt", "['']"), "labels: name 1 is empty: give every class a name"),
        (GOOD.replace("labels.txt", "names.txt"), "labels: the artifact has no file names.txt"),
        (
            GOOD.replace("labels.txt", "../labels.txt"),
            "model.yaml: labels: must be a path inside the artifact's folder",
        ),
        (GOOD.replace("model.s", "/etc/model.s"), "model.yaml: weights: must be a path inside the artifact's folder"),
        (GOOD.replace("model.safetensors", "other.safetensors"), "weights: the artifact has no file other.safetensors"),
        (GOOD.replace("model.safetensors", "model.pth"), "weights: model.pth must be a .safetensors file: a pickle is"),
        (
            "format: torch.export\nprogram: p.pkl\nlabels: labels.txt",
            "program: p.pkl must be a .pt2 file: a pickle is ",
        ),
        ("x" * (artifact.MAX_MODEL_FILE_BYTES + 1), "model.yaml: larger than 1048576 bytes"),
    ],
)
def test_bad_model_file_names_field_and_fix(folder, text, message):
    (folder / "model.yaml").write_text(text)
    with pytest.raises(ArtifactInvalidError) as caught:
        read_artifact(folder)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (b"ant\n\nbee\n", "labels: name 2 is empty: give every class a name"),
        (b"", "labels: name 1 is empty: give every class a name"),
        (b"\xff\xfe", "labels: labels.txt is not UTF-8"),
    ],
)
def test_bad_labels_are_refused(folder, labels, message):
    (folder / "labels.txt").write_bytes(labels)
    with pytest.raises(ArtifactInvalidError) as caught:
        read_artifact(folder)
    assert str(caught.value) == message


def test_missing_model_file_is_invalid(tmp_path):
    with pytest.raises(ArtifactInvalidError, match=r"model\.yaml: missing"):
        read_artifact(tmp_path)


def test_digest_is_what_sha256sum_prints(folder):
    (folder / "sub" / "deeper").mkdir(parents=True)
    for name in ("sub/b c.txt", "sub.txt", "sub/deeper/Z", "B", "a"):
        (folder / name).write_text(name)
    command = "find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    printed = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert compute_digest(folder) == f"sha256:{printed.split()[0]}"


def test_digest_knows_content_and_names(folder):
    before = compute_digest(folder)
    verify_digest(folder, before)
    (folder / "labels.txt").rename(folder / "names.txt")
    with pytest.raises(ArtifactInvalidError, match=rf"digest: the artifact is sha256:\w+, not {before}"):
        verify_digest(folder, before)


def fetch(uri, tmp_path, emulator=None, max_bytes=None):
    return fetch_artifact(uri, tmp_path / "models", emulator=emulator, max_bytes=max_bytes)


def test_folder_on_disk_is_read_in_place(folder, tmp_path):
    spaced = tmp_path / "with space"
    spaced.mkdir()
    shutil.copy(folder / "model.yaml", spaced)
    assert fetch(spaced.as_uri(), tmp_path) == spaced


def test_missing_folder_is_not_found(tmp_path):
    with pytest.raises(ArtifactNotFoundError, match="no such folder"):
        fetch((tmp_path / "none").as_uri(), tmp_path)


@pytest.fixture
def objects(folder):
    """The folder as objects of a bucket, among others."""
    files = {f"photos/1/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return files | {"photos/1/sub/b c.txt": b"x" * 3_000_000, "photos/10/model.yaml": b"another", "photos/1/sub": b""}


def test_objects_under_the_prefix_are_copied(objects, folder, tmp_path):
    with running_bucket(objects) as bucket:
        fetched = fetch("gs://models/photos/1", tmp_path, bucket.address)
    assert fetched == tmp_path / "models" / "artifact"
    assert read_artifact(fetched).labels == ("ant", "bee")
    names = {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()}
    assert names == {"model.yaml", "model.safetensors", "labels.txt", "sub/b c.txt"}
    assert (fetched / "sub" / "b c.txt").stat().st_size == 3_000_000
    # The emulator answers this name alone; see _open_store.
    assert bucket.hosts == {"storage.googleapis.com"}


def test_leftovers_of_an_earlier_start_are_replaced(objects, tmp_path):
    for name in ("incoming", "artifact"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "stale").touch()
    with running_bucket(objects) as bucket:
        assert not (fetch("gs://models/photos/1/", tmp_path, bucket.address) / "stale").exists()
    assert not (tmp_path / "models" / "incoming").exists()


@pytest.mark.parametrize("uri", ["gs://models/photos/2", "gs://elsewhere/photos/1"])
def test_nothing_there_is_not_found(uri, objects, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "MAX_RETRIES", 0)
    with running_bucket(objects) as bucket, pytest.raises(ArtifactNotFoundError, match=f"{uri}: nothing is there"):
        fetch(uri, tmp_path, bucket.address)


def test_objects_without_model_file_are_invalid(objects, tmp_path):
    del objects["photos/1/model.yaml"]
    with running_bucket(objects) as bucket, pytest.raises(ArtifactInvalidError, match=r"model.yaml: missing under gs"):
        fetch("gs://models/photos/1", tmp_path, bucket.address)


def test_bad_model_file_ends_the_download(objects, tmp_path):
    objects["photos/1/model.yaml"] = b"format: pickle"
    with running_bucket(objects) as bucket, pytest.raises(ArtifactInvalidError, match="format: must be"):
        fetch("gs://models/photos/1", tmp_path, bucket.address)
    assert bucket.requests == 1


def test_size_limit_is_kept(objects, tmp_path):
    with running_bucket(objects) as bucket, pytest.raises(ArtifactInvalidError, match="PIERHEAD_MAX_ARTIFACT_BYTES"):
        fetch("gs://models/photos/1", tmp_path, bucket.address, max_bytes=1_000_000)


def test_object_names_cannot_leave_the_folder(objects, tmp_path):
    objects["photos/1/../../escaped"] = b"x"
    with running_bucket(objects) as bucket, pytest.raises((ArtifactInvalidError, ArtifactUnreachableError)):
        fetch("gs://models/photos/1", tmp_path, bucket.address)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("failing", [401, 403, 503])
def test_storage_that_fails_is_unreachable(failing, objects, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "MAX_RETRIES", 1)
    with running_bucket(objects, failing) as bucket, pytest.raises(ArtifactUnreachableError, match=str(failing)):
        fetch("gs://models/photos/1", tmp_path, bucket.address)


def test_storage_that_is_away_is_unreachable(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "MAX_RETRIES", 0)
    with running_bucket({}) as bucket:
        away = bucket.address
    with pytest.raises(ArtifactUnreachableError, match="gs://models/photos/1: "):
        fetch("gs://models/photos/1", tmp_path, away)


def test_disk_that_cannot_be_written_is_unreachable(objects, tmp_path):
    (tmp_path / "models").write_text("a file where the folder should be")
    with running_bucket(objects) as bucket, pytest.raises(ArtifactUnreachableError, match="copying it to"):
        fetch("gs://models/photos/1", tmp_path, bucket.address)
