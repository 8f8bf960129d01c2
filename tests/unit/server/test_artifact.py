"""Artifacts: what is read, what is refused, and in which words."""

import os
import subprocess

import pytest
from pierhead_server.artifact import MAX_WARMUP_BYTES, Sample, compute_digest, read_artifact, verify_digest
from pierhead_server.config import MAX_MODEL_FILE_BYTES, Preprocessing
from pierhead_server.errors import ArtifactInvalidError

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


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("format: torchvision\narchitecture: a\nweights: w.pth\nmetadata: ResNet18_Weights.DEFAULT", "w.pth"),
        ("format: torch.export\nprogram: p.pt2\ninputs: [{name: x, shape: [3]}]", "p.pt2"),
        ("format: torchscript\nprogram: p.pt\ninputs: [{name: x}]", "p.pt"),
        ("format: torchscript\nprogram: p.ts\ninputs: [{name: picture, type: image}]", "p.ts"),
        ("format: predictor", "predictor.py"),
    ],
)
def test_labels_may_be_elsewhere_or_nowhere(tmp_path, text, file):
    (tmp_path / "model.yaml").write_text(text)
    (tmp_path / file).touch()
    assert read_artifact(tmp_path).labels is None


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
        (
            "labels: labels.txt",
            "model.yaml: format: must be one of torchvision, torch.export, torchscript, openvino, p",
        ),
        (
            GOOD.replace("torchvision", "pickle"),
            "model.yaml: format: must be one of torchvision, torch.export, torchscript, openvino, p",
        ),
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
        (GOOD.replace("model.safetensors", "model.pth"), "weights: the artifact has no file model.pth"),
        (GOOD.replace("model.safetensors", "m.pkl"), "weights: m.pkl must be a .safetensors or .pth or .pt file: a pi"),
        (GOOD.replace("labels: labels.txt\n", ""), "model.yaml: labels: missing: name every class, or give metadata"),
        ("format: torchscript\nprogram: p.pt2\nlabels: [a]", "program: p.pt2 must be a .pt or .ts file: a pickle is "),
        ("format: openvino\nprogram: p.onnx\nlabels: [a]", "program: p.onnx must be a .xml file, as openvino.save_mo"),
        ("format: openvino\nprogram: p.xml\nlabels: [a]", "program: the artifact has no file p.xml"),
        ("format: torch.export\nprogram: p.pt2", "model.yaml: give labels (an image classifier) or inputs"),
        (
            "format: torch.export\nprogram: p.pt2\ninputs: [{name: x, shape: [1099511627776]}]",
            "model.yaml: inputs.0: shape must be of at most 268435456 numbers",
        ),
        ("format: torch.export\nprogram: p.pt2\ninputs: [{name: x, type: text}]", "model.yaml: inputs.0.type: must be"),
        (
            "format: torch.export\nprogram: p.pt2\ninputs: [{name: x, shap: [1]}]",
            "model.yaml: inputs.0.shap: unknown: did",
        ),
        ("format: predictor", "predictor.py: missing: format predictor is a class Predictor in it"),
        ("format: predictor\nlabels: [a]", "model.yaml: labels: unknown: known are format"),
        (
            "format: torch.export\nprogram: p.pkl\nlabels: labels.txt",
            "program: p.pkl must be a .pt2 file: a pickle is ",
        ),
        ("x" * (MAX_MODEL_FILE_BYTES + 1), "model.yaml: larger than 1048576 bytes"),
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


def test_own_sample_is_read(folder):
    assert read_artifact(folder).sample is None
    (folder / "warmup.json").write_bytes(b"x" * MAX_WARMUP_BYTES)
    assert read_artifact(folder).sample == Sample(b"x" * MAX_WARMUP_BYTES, "warmup.json")
    (folder / "warmup.json").write_bytes(b"x" * (MAX_WARMUP_BYTES + 1))
    with pytest.raises(ArtifactInvalidError, match=r"^warmup\.json: larger than 1048576 bytes"):
        read_artifact(folder)


def test_missing_model_file_is_invalid(tmp_path):
    with pytest.raises(ArtifactInvalidError, match=r"model\.yaml: missing"):
        read_artifact(tmp_path)


def test_digest_is_what_sha256sum_prints(folder):
    (folder / "sub" / "deeper").mkdir(parents=True)
    for name in ("sub/b c.txt", "sub.txt", "sub/deeper/Z", "B", "a"):
        (folder / name).write_text(name)
    (folder / "linked").symlink_to("sub")
    (folder / "sub" / "deeper" / "link").symlink_to("../../labels.txt")
    command = "find -L . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    printed = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert compute_digest(folder) == f"sha256:{printed.split()[0]}"


def test_digest_knows_content_and_names(folder):
    before = compute_digest(folder)
    verify_digest(folder, before)
    (folder / "labels.txt").rename(folder / "names.txt")
    with pytest.raises(ArtifactInvalidError, match=rf"digest: the artifact is sha256:\w+, not {before}"):
        verify_digest(folder, before)


def test_digest_knows_what_a_link_leads_to(folder):
    (folder / "..data").mkdir()
    (folder / "..data" / "labels.txt").write_text("ant\nbee\n")
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").symlink_to("..data/labels.txt")
    before = compute_digest(folder)
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").symlink_to("..data/../model.safetensors")
    with pytest.raises(ArtifactInvalidError, match=r"^digest: "):
        verify_digest(folder, before)


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("labels.txt", "/etc/hostname", "labels.txt: a link out of the artifact's folder: put the file itself there"),
        ("sub/deep", "../../outside", "sub/deep: a link out of the artifact's folder: "),
        ("sub/deep", "../sub/../../outside/secret", "sub/deep: a link out of the artifact's folder: "),
        ("sub/deep", "nowhere", "sub/deep: a link that leads to nothing: "),
        ("sub/deep", "deep", "sub/deep: a link that leads to nothing: "),
        ("sub/deep", ".", "sub/deep: a link to a folder that it lies in: remove it"),
        ("sub/deep", "../", "sub/deep: a link to a folder that it lies in: remove it"),
    ],
)
def test_link_that_leads_elsewhere_is_refused(tmp_path, link, target, message):
    folder, outside = tmp_path / "artifact", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (folder / "sub").mkdir(parents=True)
    (folder / "model.yaml").write_text(GOOD)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / link).symlink_to(target)
    for read in (read_artifact, compute_digest):
        with pytest.raises(ArtifactInvalidError) as caught:
            read(folder)
        assert str(caught.value).startswith(message)


def test_links_in_a_circle_are_refused(folder):
    for name, other in (("one", "two"), ("two", "one")):
        (folder / name).mkdir()
        (folder / name / "to").symlink_to(f"../{other}")
    with pytest.raises(ArtifactInvalidError, match="a link to a folder that it lies in"):
        read_artifact(folder)


def test_links_inside_are_read_as_kubernetes_mounts_them(folder):
    (folder / "..2026").mkdir()
    (folder / "labels.txt").rename(folder / "..2026" / "labels.txt")
    (folder / "..data").symlink_to("..2026")
    (folder / "labels.txt").symlink_to("..data/labels.txt")
    assert read_artifact(folder).labels == ("ant", "bee")


def test_what_is_no_file_has_no_part_in_the_digest(folder):
    before = compute_digest(folder)
    os.mkfifo(folder / "pipe")
    assert compute_digest(folder) == before


def test_more_links_than_anybody_can_follow_are_refused(folder):
    """Two in each of thirty folders make a thousand million paths."""
    for level in range(30):
        (folder / str(level)).mkdir()
        for side in ("left", "right"):
            (folder / str(level) / side).symlink_to(f"../{level + 1}")
    (folder / "30").mkdir()
    with pytest.raises(ArtifactInvalidError, match="more than 1000 links"):
        read_artifact(folder)
