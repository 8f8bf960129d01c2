"""`pierhead-server convert`: artifacts of torch's become ones of OpenVINO's that compute the same."""

import json
import shutil
import subprocess
from itertools import chain

import numpy as np
import openvino
import pytest
import torch
import torchvision
import yaml
from pierhead_server.artifact import compute_digest, read_artifact
from pierhead_server.comparing import measure_drift, synthetic_pictures
from pierhead_server.errors import ArtifactInvalidError, ArtifactUnreachableError
from pierhead_server.model import LoadOptions, load_model
from pierhead_server.rewriting import Converted, convert_artifact, describe
from safetensors.torch import save_file

from tests.unit.server.bucket import running_bucket
from tests.unit.server.calls import in_base64, instances, pictures, predict
from tests.unit.server.conftest import PROGRAM, make_environment, run, wait_until
from tests.unit.server.openvino_artifacts import make_classifier, write_artifact
from tests.unit.server.pictures import LABELS, SIDE, encode, picture

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


def load(folder):
    loaded = load_model(read_artifact(folder), LoadOptions(10**6))
    return loaded.load() if loaded.load else loaded.model


def compare(source, made):
    """Confidences of what is served beside those of eager."""
    eager, converted = load(source), load(made)
    assert (eager.form, converted.form) == ("quick", "compiled")
    side = read_artifact(made).config.preprocessing.crop
    given = synthetic_pictures(9, side)
    one, other = eager.runner(given), converted.runner(given)
    assert (one.argmax(axis=1) == other.argmax(axis=1)).all()
    assert measure_drift(other, one) < 2e-3
    bodies = [pictures(*(picture(seed=seed) for seed in range(count))) for count in (1, 3)]
    for some, others in zip(predict(eager, *bodies), predict(converted, *bodies), strict=True):
        for expected, answered in zip(some, others, strict=True):
            assert answered["displayNames"][0] == expected["displayNames"][0]
            assert sorted(answered["confidences"]) == pytest.approx(sorted(expected["confidences"]), abs=2e-3)


@pytest.fixture(scope="module")
def converted_folder(torchvision_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "artifact"
    convert_artifact(torchvision_folder, folder)
    return folder


def test_torchvision_model_answers_as_before(torchvision_folder, converted_folder):
    compare(torchvision_folder, converted_folder)


def test_program_of_torch_export_answers_as_before(exported_folder, tmp_path):
    convert_artifact(exported_folder, tmp_path / "artifact")
    compare(exported_folder, tmp_path / "artifact")
    config = read_artifact(tmp_path / "artifact").config
    assert (config.activation, config.preprocessing.interpolation) == ("sigmoid", "bicubic")


def test_script_answers_as_before(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 7, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    network.append(torch.nn.Flatten()).eval()
    (tmp_path / "source").mkdir()
    torch.jit.script(network).save(tmp_path / "source" / "model.pt")
    (tmp_path / "source" / "model.yaml").write_text(
        f"format: torchscript\nprogram: model.pt\nlabels: [a, b, c, d, e]\npreprocessing: {{resize: {SIDE}, crop: {SIDE}}}\n"
    )
    convert_artifact(tmp_path / "source", tmp_path / "artifact")
    compare(tmp_path / "source", tmp_path / "artifact")


def test_what_torchvision_says_of_its_weights_is_written_out(tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5()
    (tmp_path / "source").mkdir()
    save_file(network.state_dict(), tmp_path / "source" / "model.safetensors")
    (tmp_path / "source" / "model.yaml").write_text(
        "format: torchvision\narchitecture: shufflenet_v2_x0_5\nweights: model.safetensors\n"
        "metadata: ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1\n"
    )
    convert_artifact(tmp_path / "source", tmp_path / "artifact")
    compare(tmp_path / "source", tmp_path / "artifact")
    artifact = read_artifact(tmp_path / "artifact")
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    assert list(artifact.labels) == weights.meta["categories"]
    assert (artifact.config.preprocessing.resize, artifact.config.preprocessing.crop) == (256, 224)


class Named(torch.nn.Module):
    """A picture and a number in, a dict out."""

    def forward(self, image, age):
        return {"risk": image.mean(dim=(1, 2, 3)) * age[:, 0], "embedding": image.mean(dim=(2, 3)) + age}


def write_program(folder):
    folder.mkdir()
    free = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Named(), (torch.zeros(2, 3, 32, 32), torch.zeros(2, 1)), dynamic_shapes=(free, free))
    torch.export.save(program, folder / "model.pt2")
    (folder / "model.yaml").write_text(
        "format: torch.export\nprogram: model.pt2\ninputs:\n"
        "  - {name: image, type: image, preprocessing: {resize: 32, crop: 32}}\n  - {name: age, shape: [1]}\n"
    )
    sample = instances({"image": {"b64": in_base64(encode(picture()))}, "age": [3]})
    (folder / "warmup.json").write_text(json.dumps(sample))
    return folder


def test_program_of_named_tensors_keeps_their_names(tmp_path):
    source = write_program(tmp_path / "source")
    convert_artifact(source, tmp_path / "artifact")
    described = yaml.safe_load((tmp_path / "artifact" / "model.yaml").read_text())
    assert described["outputs"] == ["risk", "embedding"]
    assert described["inputs"][0]["preprocessing"] == {"resize": 32, "crop": 32}
    assert (tmp_path / "artifact" / "warmup.json").read_bytes() == (source / "warmup.json").read_bytes()
    body = instances(*({"image": {"b64": in_base64(encode(picture(seed=seed)))}, "age": [seed]} for seed in range(3)))
    (expected,), (given,) = predict(load(source), body), predict(load(tmp_path / "artifact"), body)
    for one, other in zip(given, expected, strict=True):
        assert one["risk"] == pytest.approx(other["risk"], abs=1e-4)
        assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-4)


def test_weights_stay_in_float32(converted_folder):
    network = openvino.Core().read_model(converted_folder / "model.xml")
    kinds = {
        operator.get_element_type().get_type_name()
        for operator in network.get_ops()
        if operator.get_type_name() == "Constant"
    }
    assert "f32" in kinds
    assert "f16" not in kinds


def test_half_precision_stays_the_owners_and_is_compared(exported_folder, tmp_path, monkeypatch, caplog):
    for module in ("rewriting", "openvino_network"):
        monkeypatch.setattr(f"pierhead_server.{module}.choose_precision", lambda asked: asked)
    shutil.copytree(exported_folder, tmp_path / "source")
    with (tmp_path / "source" / "model.yaml").open("a") as file:
        file.write("precision: bfloat16\n")
    with caplog.at_level("INFO"):
        convert_artifact(tmp_path / "source", tmp_path / "artifact")
    assert "in bfloat16 a number of a row moves by" in caplog.text
    assert read_artifact(tmp_path / "artifact").config.precision == "bfloat16"


def test_name_of_two_lines_stays_one(exported_folder, tmp_path):
    shutil.copytree(exported_folder, tmp_path / "source")
    text = (tmp_path / "source" / "model.yaml").read_text()
    names = ["a\nb", "b", "c", "d", "e"]
    (tmp_path / "source" / "model.yaml").write_text(text.replace("labels.txt", json.dumps(names)))
    convert_artifact(tmp_path / "source", tmp_path / "artifact")
    assert list(read_artifact(tmp_path / "artifact").labels) == names


# What it says, and where it does not


def test_command_prints_what_the_manifest_needs(exported_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    ended = run("convert", exported_folder, tmp_path / "empty")
    assert ended.returncode == 0, ended.stderr
    digest = compute_digest(tmp_path / "empty")
    assert f"digest: {digest}\n  runtime: OpenVINO\n" in ended.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [
        "labels.txt",
        "model.bin",
        "model.xml",
        "model.yaml",
    ]


def test_command_reads_and_writes_storage(exported_folder, tmp_path, monkeypatch):
    objects = {f"photos/1/{path.name}": path.read_bytes() for path in exported_folder.iterdir()}
    objects["photos/2/model.bin"] = b"half"  # of a try that was ended in the middle
    with running_bucket(objects) as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.address)
        settings = {"MODEL_DIR": tmp_path / "models"}
        ended = run("convert", "gs://models/photos/1", "gs://models/photos/2", **settings)
        assert ended.returncode == 0, ended.stderr
        again = run("convert", "gs://models/photos/1", "gs://models/photos/2", **settings)
    written = {name.removeprefix("photos/2/"): body for name, body in objects.items() if name.startswith("photos/2/")}
    assert list(written)[-1] == "model.yaml"  # without it, nobody takes the rest for an artifact
    (tmp_path / "copy").mkdir()
    for name, body in written.items():
        (tmp_path / "copy" / name).write_bytes(body)
    assert f"artifactUri: gs://models/photos/2\n  digest: {compute_digest(tmp_path / 'copy')}" in ended.stdout
    assert again.returncode == 1
    assert "ArtifactInvalid: gs://models/photos/2: something is there: name another address" in again.stderr


def test_operators_that_need_allow_code_are_told():
    told = describe(Converted("sha256:1", ["ScatterNDUpdate"]), "gs://models/1")
    assert "\n  allowCode: true  # for ScatterNDUpdate: OpenVINO does not check their indices" in told
    assert "allowCode" not in describe(Converted("sha256:1", []), "gs://models/1")


def refuse(source, destination):
    before = sorted(destination.parent.iterdir())
    with pytest.raises(ArtifactInvalidError) as caught:
        convert_artifact(source, destination)
    assert sorted(destination.parent.iterdir()) == before  # nothing is left
    return str(caught.value)


def test_destination_that_holds_something_is_left_alone(exported_folder, tmp_path):
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "file").touch()
    assert "something is there: name another folder" in refuse(exported_folder, tmp_path / "artifact")
    assert "something is there" in refuse(exported_folder, tmp_path / "artifact" / "file")


def test_destination_that_cannot_be_written_is_told(exported_folder):
    with pytest.raises(ArtifactUnreachableError, match="it cannot be written"):
        convert_artifact(exported_folder, type(exported_folder)("/proc/no/artifact"))


def test_predictors_and_networks_are_not_converted(obedient_folder, tmp_path):
    with pytest.raises(ArtifactInvalidError, match="format: predictor is not converted"):
        convert_artifact(obedient_folder, tmp_path / "artifact")
    source = write_artifact(tmp_path / "source", make_classifier())
    assert "format: openvino is not converted" in refuse(source, tmp_path / "artifact")


def test_indices_of_inputs_are_not_converted(tmp_path):
    (tmp_path / "source").mkdir()
    torch.manual_seed(0)
    program = torch.export.export(
        torch.nn.Embedding(4, 2),
        (torch.zeros(2, 3, dtype=torch.int64),),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    torch.export.save(program, tmp_path / "source" / "model.pt2")
    (tmp_path / "source" / "model.yaml").write_text(
        "format: torch.export\nprogram: model.pt2\ninputs: [{name: ids, dtype: int64, shape: [3]}]\n"
    )
    assert "it takes indices out of its inputs" in refuse(tmp_path / "source", tmp_path / "artifact")


def test_network_that_differs_is_not_written(exported_folder, tmp_path, monkeypatch):
    def mistake(source):
        """Another network of the same shape."""
        pictures = openvino.opset13.parameter([-1, 3, SIDE, SIDE], np.float32)
        means = openvino.opset13.reduce_mean(pictures, openvino.opset13.constant([2, 3]), keep_dims=False)
        weights = openvino.opset13.constant(np.ones((3, len(LABELS)), np.float32))
        return openvino.Model([openvino.opset13.matmul(means, weights, False, False)], [pictures], "other")

    monkeypatch.setattr("pierhead_server.rewriting.convert", mistake)
    assert "differs from the first one by" in refuse(exported_folder, tmp_path / "artifact")


@pytest.mark.parametrize("command", ["convert", "compile"])
def test_command_that_is_ended_has_not_succeeded(command, torchvision_folder, tmp_path):
    """A Job whose pod is evicted is tried again."""
    folder = shutil.copytree(torchvision_folder, tmp_path / "artifact")
    arguments = [folder, tmp_path / "out"] if command == "convert" else ["--model", folder]
    with subprocess.Popen([*PROGRAM, command, *map(str, arguments)], env=make_environment()) as process:
        wait_until(lambda: list(find_begun(tmp_path)), process)
        process.terminate()
        assert process.wait(60) == 143
    assert not list(find_begun(tmp_path))


def find_begun(folder):
    """What is being made."""
    return chain(folder.glob(".out-*"), folder.rglob("*.making"))
