"""`format: openvino`: a network that a user made with OpenVINO's own tools, served without torch."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops
from pierhead_server import converted, model
from pierhead_server.artifact import read_artifact
from pierhead_server.batch.arguments import make_arguments
from pierhead_server.comparing import synthetic_pictures
from pierhead_server.config import Preprocessing
from pierhead_server.errors import ArtifactInvalidError, SettingsInvalidError
from pierhead_server.model import LoadOptions, load_model
from pierhead_server.openvino_network import find_other_operators
from pierhead_server.serve import make_load, make_pool, needs_torch
from pierhead_server.settings import load_settings

from tests.unit.server.calls import instances, pictures, predict
from tests.unit.server.conftest import PREDICT, running_server
from tests.unit.server.openvino_artifacts import (
    CLASSIFIER_YAML,
    compute_classifier,
    make_classifier,
    write_artifact,
)
from tests.unit.server.pictures import SIDE, picture

PROGRAM_YAML = """\
format: openvino
program: model.xml
inputs:
  - {name: scale, dtype: float32, shape: [1]}
  - {name: vector, dtype: float32, shape: [-1]}
outputs: [sum, scaled]
"""


@pytest.fixture
def folder(tmp_path):
    return write_artifact(tmp_path / "artifact", make_classifier())


def load(folder, **options):
    return load_model(read_artifact(folder), LoadOptions(10**6, **options))


def serve(folder, **options):
    """What a worker has."""
    return load(folder, **options).load()


# What it computes


@pytest.mark.parametrize("batch", [-1, 1, 2])
def test_pictures_are_normalised_and_confidences_activated(tmp_path, batch):
    """Whatever batch the network was made for."""
    classifier = serve(write_artifact(tmp_path / "artifact", make_classifier(batch)))
    assert (classifier.form, classifier.batch) == ("compiled", 4)
    given = synthetic_pictures(9, SIDE)
    expected = compute_classifier(np.stack(given), Preprocessing())
    for count in (1, 2, 9):
        assert classifier.runner(given[:count]) == pytest.approx(expected[:count], abs=1e-4)


@pytest.mark.parametrize(("activation", "apply"), [("sigmoid", lambda x: 1 / (1 + np.exp(-x))), ("none", lambda x: x)])
def test_activation_is_model_yamls(tmp_path, activation, apply):
    text = f"{CLASSIFIER_YAML}activation: {activation}\n"
    given = synthetic_pictures(2, SIDE)
    logits = serve(write_artifact(tmp_path / "none", make_classifier(), f"{CLASSIFIER_YAML}activation: none"))
    confidences = serve(write_artifact(tmp_path / "artifact", make_classifier(), text))
    assert confidences.runner(given) == pytest.approx(apply(logits.runner(given)), abs=1e-5)


def test_pictures_are_answered_with_labels(folder):
    ((first, second),) = predict(serve(folder), pictures(picture(), picture(seed=1), maxPredictions=2))
    assert len(first["displayNames"]) == len(second["displayNames"]) == 2
    assert set(first["displayNames"]) < {"ant", "bee", "cat", "dog", "eel"}


def make_program(vector_type=np.float32):
    vector = ops.parameter([-1, -1], vector_type, name="vector")
    scale = ops.parameter([1, 1], np.float32, name="scale")
    for port, name in ((vector, "vector"), (scale, "scale")):
        port.output(0).set_names({name})
    scaled = ops.multiply(ops.convert(vector, "f32"), scale)
    total = ops.reduce_sum(scaled, ops.constant([1]), keep_dims=False)
    for node, name in ((scaled, "scaled"), (total, "sum")):
        node.output(0).set_names({name})
    return openvino.Model([scaled, total], [vector, scale], "program")


def test_inputs_and_outputs_are_found_by_their_names(tmp_path):
    """The network has them in another order than model.yaml."""
    program = serve(write_artifact(tmp_path / "artifact", make_program(), PROGRAM_YAML))
    assert [(spec.name, spec.dtype, spec.shape) for spec in program.signature.outputs] == [
        ("sum", "float32", ()),
        ("scaled", "float32", (-1,)),
    ]
    body = instances({"vector": [1, 2], "scale": [3]}, {"vector": [1, 2, 3], "scale": [2]})
    assert predict(program, body) == [[{"sum": 9.0, "scaled": [3.0, 6.0]}, {"sum": 12.0, "scaled": [2.0, 4.0, 6.0]}]]


def test_names_that_the_network_does_not_know_go_by_their_order(tmp_path):
    text = PROGRAM_YAML.replace("name: scale, dtype: float32, shape: [1]", "name: a, shape: [-1]")
    text = text.replace("name: vector, dtype: float32, shape: [-1]", "name: b, shape: [1]").replace("outputs", "# ")
    program = serve(write_artifact(tmp_path / "artifact", make_program(), text))
    assert [spec.name for spec in program.signature.outputs] == ["output_0", "output_1"]
    assert predict(program, instances({"a": [1, 2], "b": [3]})) == [[{"output_0": [3.0, 6.0], "output_1": 9.0}]]


def test_pictures_of_a_program_come_normalised(tmp_path):
    text = f"format: openvino\nprogram: model.xml\ninputs: [{{name: image, type: image, preprocessing: {{crop: {SIDE}}}}}]\n"
    program = serve(write_artifact(tmp_path / "artifact", make_classifier(), text))
    ((answer,),) = predict(program, instances({"image": [[[255, 255, 255]]]}))
    assert len(answer) == 5


def test_whole_numbers_beyond_32_bits_are_the_callers_error(tmp_path):
    text = PROGRAM_YAML.replace("name: vector, dtype: float32", "name: vector, dtype: int64")
    program = serve(write_artifact(tmp_path / "artifact", make_program(np.int64), text))
    good, bad = ({"vector": [value], "scale": [1]} for value in (2**31 - 129, 2**31))
    answer, refused = predict(program, instances(good), instances(bad))
    assert answer[0]["sum"] == pytest.approx(2**31 - 129)
    assert "a whole number of more than 32 bits" in refused


def test_half_precision_is_taken_where_the_cpu_has_it(tmp_path, monkeypatch):
    hints = []
    monkeypatch.setattr(
        "pierhead_server.openvino_network.choose_precision", lambda asked: hints.append(asked) or "float32"
    )
    write_artifact(tmp_path / "artifact", make_classifier(), f"{CLASSIFIER_YAML}precision: bfloat16\n")
    serve(tmp_path / "artifact")
    assert hints == ["bfloat16"]


def test_precision_that_the_cpu_lacks_is_told(monkeypatch, caplog):
    class Core:
        def get_property(self, *_):
            return ["FP32"]

    monkeypatch.setattr(openvino, "Core", Core)
    assert converted.choose_precision("bfloat16") == "float32"
    assert "this CPU has none" in caplog.text


def test_weights_in_half_precision_are_taken(tmp_path):
    """As OpenVINO's own tools store them."""
    folder = write_artifact(tmp_path / "artifact", make_classifier())
    openvino.save_model(make_classifier(), folder / "model.xml", compress_to_fp16=True)
    given = synthetic_pictures(3, SIDE)
    expected = compute_classifier(np.stack(given), Preprocessing())
    assert serve(folder).runner(given) == pytest.approx(expected, abs=2e-2)


def test_inputs_of_another_kind_than_float32_are_told(tmp_path):
    pictures = ops.parameter([-1, 3, SIDE, SIDE], np.uint8)
    means = ops.reduce_mean(ops.convert(pictures, "f32"), ops.constant([2, 3]), keep_dims=False)
    folder = write_artifact(tmp_path, openvino.Model([means], [pictures], "bytes"))
    assert "preprocessing.crop: the program takes uint8, and model.yaml says float32" in refuse(folder)


# What is refused


def change(old, new):
    """An edit of model.xml."""
    return lambda folder: (folder / "model.xml").write_text((folder / "model.xml").read_text().replace(old, new))


def refuse(folder, **options):
    with pytest.raises(ArtifactInvalidError) as caught:
        serve(folder, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("network", "text", "message"),
    [
        (make_classifier(classes=4), CLASSIFIER_YAML, "labels: 5 names, but the program gives 4 classes"),
        (
            make_classifier(side=32),
            CLASSIFIER_YAML,
            r"program: model\.xml: preprocessing\.crop: the program takes \[-1, 3, 32, 32\], and model\.yaml says \[bat",
        ),
        (make_program(), CLASSIFIER_YAML, "it has 2 inputs and 2 outputs, and an image classifier has one of each"),
        (
            make_program(),
            PROGRAM_YAML.replace("name: scale, dtype: float32", "name: scale, dtype: int64"),
            r"inputs\.scale: the program takes float32, and model\.yaml says int64",
        ),
        (
            make_program(),
            PROGRAM_YAML.replace("shape: [1]", "shape: [2]"),
            r"inputs\.scale: the program takes \[1, 1\], and model\.yaml says \[batch, 2\]",
        ),
        (make_classifier(), PROGRAM_YAML, "inputs: 2 entries, but the program takes 1"),
        (make_program(), PROGRAM_YAML.replace("[sum, scaled]", "[sum]"), "outputs: 1 names, but the program gives 2"),
    ],
)
def test_what_does_not_fit_model_yaml_is_told(tmp_path, network, text, message):
    artifact = read_artifact(write_artifact(tmp_path / "artifact", network, text))
    # In the process that workers are forked from: before any of them.
    with pytest.raises(ArtifactInvalidError, match=message):
        load_model(artifact, LoadOptions(10**6))


def make_flattening(shape):
    """A network with the batch written into it, beyond its input."""
    pictures = ops.parameter([1, 3, SIDE, SIDE], np.float32)
    reduced = ops.reduce_mean(pictures, ops.constant([2, 3]), keep_dims=False)
    logits = ops.matmul(reduced, ops.constant(np.ones((3, 5), np.float32)), False, False)
    return openvino.Model([ops.reshape(logits, ops.constant(shape), special_zero=False)], [pictures], "flattening")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, -1], "output 0 has 1 rows for any batch"),
        ([1, 5], "output 0 has 1 rows for any batch|cannot be made dynamic"),
    ],
)
def test_batch_that_is_written_into_the_network_is_told(tmp_path, shape, message):
    assert re.search(
        f"{message}.*: make it with a dynamic batch", refuse(write_artifact(tmp_path, make_flattening(shape)))
    )


def make_mixing():
    """A network that was made for a batch of one, and divides by what all rows hold."""
    pictures = ops.parameter([1, 3, SIDE, SIDE], np.float32)
    reduced = ops.reduce_mean(pictures, ops.constant([2, 3]), keep_dims=False)
    logits = ops.matmul(reduced, ops.constant(np.eye(3, 5, dtype=np.float32)), False, False)
    total = ops.reduce_sum(ops.abs(logits), ops.constant([0, 1]), keep_dims=True)
    return openvino.Model([ops.divide(logits, total)], [pictures], "mixing")


def test_rows_that_depend_on_each_other_are_told(tmp_path):
    folder = write_artifact(tmp_path, make_mixing())
    assert "otherwise where others are beside it" in refuse(folder)
    (folder / "model.yaml").write_text(f"precision: bfloat16\n{CLASSIFIER_YAML}")
    assert "otherwise where others are beside it" in refuse(folder)


def make_logarithm(mixing):
    """A program for a batch of one that gives no number for a zero."""
    value = ops.parameter([1, 2], np.float32, name="value")
    logarithm = ops.log(value)
    given = ops.add(logarithm, ops.reduce_sum(value, ops.constant([0]), keep_dims=True)) if mixing else logarithm
    return openvino.Model([given], [value], "logarithm")


@pytest.mark.parametrize("mixing", [False, True])
def test_rows_that_are_no_numbers_are_compared_too(tmp_path, mixing):
    text = "format: openvino\nprogram: model.xml\ninputs: [{name: value, shape: [2]}]\n"
    folder = write_artifact(tmp_path, make_logarithm(mixing), text)
    if mixing:
        assert "otherwise where others are beside it" in refuse(folder)
    else:
        assert predict(serve(folder), instances([1.0, 1.0])) == [[[0.0, 0.0]]]


def test_network_without_weights_is_taken(tmp_path):
    value = ops.parameter([-1, 2], np.float32, name="value")
    text = "format: openvino\nprogram: model.xml\ninputs: [{name: value, shape: [2]}]\n"
    folder = write_artifact(tmp_path, openvino.Model([ops.relu(value)], [value], "relu"), text)
    (folder / "model.bin").write_bytes(b"")
    assert predict(serve(folder), instances([-1.0, 1.0])) == [[[0.0, 1.0]]]


def test_text_that_was_looked_through_is_what_workers_read(folder):
    loaded = load(folder)
    (folder / "model.xml").write_text("another one")
    assert loaded.load().form == "compiled"


def test_weights_are_shared_by_processes(tmp_path):
    """They are mapped: a process's own memory grows by little of them."""
    weights = np.random.default_rng(0).normal(size=(64 << 20) // 4).astype(np.float32).reshape(1, -1)
    value = ops.parameter([-1, 1], np.float32, name="value")
    total = ops.reduce_sum(ops.multiply(ops.constant(weights), value), ops.constant([1]), keep_dims=True)
    text = "format: openvino\nprogram: model.xml\ninputs: [{name: value, shape: [1]}]\n"
    folder = write_artifact(tmp_path, openvino.Model([total], [value], "large"), text)
    code = (
        "import pathlib, re; from pierhead_server.artifact import read_artifact;"
        "from pierhead_server.model import LoadOptions, load_model; import openvino;"
        "own = lambda: int(re.search(r'Anonymous: +(\\d+)', open('/proc/self/smaps_rollup').read())[1]);"
        f"artifact = read_artifact(pathlib.Path({str(folder)!r})); before = own();"
        "loaded = load_model(artifact, LoadOptions(10**6)); print(own() - before)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 32 << 10


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.bin").unlink(), "program: the artifact has no file model.bin, the weights of"),
        (lambda folder: (folder / "model.bin").write_bytes(b"x"), "OpenVINO cannot read it and its .bin: "),
        (lambda folder: (folder / "model.xml").write_text("no"), "is no network of OpenVINO's: save it by openvino.sa"),
        (lambda folder: (folder / "model.xml").write_bytes(b"<net\0"), "is no network of OpenVINO's: save it by"),
        (lambda folder: (folder / "model.xml").write_text("<net>"), "OpenVINO cannot read it and its .bin: "),
        (
            lambda folder: (folder / "model.xml").write_bytes((folder / "model.xml").read_text().encode("utf-16")),
            "is no network of OpenVINO's: it is not UTF-8",
        ),
        (change("Convolution", "Nonsense"), "Nonsense, whose indices OpenVINO does not check: set allowCode"),
        (change('type="ReLU"', "type='&#82;eLU'"), "&#82;eLU, whose indices OpenVINO does not check"),
        (change('type="ReLU"', 'name=\'type="Add\' type="If"'), " If, whose indices OpenVINO does not check"),
        (change('type="ReLU"', "type\n= 'ReadValue'"), "has ReadValue: a state would pass from one request to"),
    ],
)
def test_files_that_are_spoilt_are_told(folder, spoil, message):
    spoil(folder)
    told = refuse(folder)
    assert message in told
    assert len(told) < 500


def make_scattering():
    """A network that writes to the places that its input names."""
    places = ops.parameter([-1, 1], np.int32, name="places")
    table = ops.constant(np.zeros((8,), np.float32))
    flat = ops.reshape(places, ops.constant([-1]), special_zero=False)
    written = ops.scatter_update(table, flat, ops.convert(flat, "f32"), ops.constant(0))
    row = ops.unsqueeze(ops.reduce_sum(written, ops.constant([0]), keep_dims=False), ops.constant(0))
    nothing = ops.multiply(row, ops.constant(np.zeros(1, np.float32)))
    return openvino.Model([ops.add(ops.convert(flat, "f32"), nothing)], [places], "scattering")


SCATTERING_YAML = "format: openvino\nprogram: model.xml\ninputs: [{name: places, dtype: int32, shape: [1]}]\n"


def test_operators_that_check_no_index_need_allow_code(tmp_path):
    folder = write_artifact(tmp_path, make_scattering(), SCATTERING_YAML)
    assert "ScatterUpdate, whose indices OpenVINO does not check: set allowCode: true" in refuse(folder)
    assert serve(folder, allow_code=True).form == "compiled"


def make_slicing(kind):
    """A network that goes through its input in steps that another one names."""
    value, step = ops.parameter([-1, 4], np.float32, name="value"), ops.parameter([-1], np.int64, name="step")
    ends = [ops.constant([0, 0]), ops.constant([0, 3])]
    first = ops.slice(step, ops.constant([0]), ops.constant([1]), ops.constant([1]))
    if kind == "StridedSlice":
        steps = ops.concat([ops.constant(np.array([1], np.int64)), first], 0)
        given = ops.strided_slice(value, *ends, steps, [1, 0], [1, 0])
    else:
        scalar = ops.squeeze(first, ops.constant([0]))
        numbers = ops.range(ops.constant(0), ops.constant(4), ops.convert(scalar, "i32"), "f32")
        given = ops.add(value, ops.reduce_sum(numbers, ops.constant([0]), keep_dims=False))
    return openvino.Model([given], [value, step], "slicing")


@pytest.mark.parametrize("kind", ["StridedSlice", "Range"])
def test_steps_that_a_client_gives_need_allow_code(tmp_path, kind):
    text = "format: openvino\nprogram: model.xml\ninputs: [{name: value, shape: [4]}, {name: step, dtype: int64}]\n"
    folder = write_artifact(tmp_path, make_slicing(kind), text)
    assert f"it has {kind} with a step that is no constant" in refuse(folder)


def test_operators_of_other_names_are_told_briefly():
    assert find_other_operators({"If", "Add", "x" * 100 + "\n"}) == ["If", "x" * 40]


# Without torch, and beside a GPU


def test_neither_the_first_process_nor_a_worker_imports_torch(folder):
    code = (
        "import sys, pathlib; from pierhead_server.artifact import read_artifact;"
        "from pierhead_server.model import LoadOptions, load_model;"
        f"loaded = load_model(read_artifact(pathlib.Path({str(folder)!r})), LoadOptions(10**6));"
        "loaded.load().warm_up();"
        "print(sorted(name for name in sys.modules if name.startswith('torch')))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_torchs_formats_say_what_to_do_where_torch_is_not(monkeypatch, torchvision_folder):
    monkeypatch.setattr(model, "has_torch", lambda: False)
    with pytest.raises(ArtifactInvalidError, match=r"format: torchvision needs PyTorch.*leave out runtime: OpenVINO"):
        load(torchvision_folder)


def test_gpus_are_left_alone_where_torch_is_not(monkeypatch):
    monkeypatch.setattr("pierhead_server.serve.has_torch", lambda: False)
    monkeypatch.setattr("pierhead_server.serve.count_gpus", lambda: 2)
    monkeypatch.setenv("PIERHEAD_ARTIFACT_URI", "file:///nowhere")
    assert make_pool(load_settings()).device == "cpu"
    with pytest.raises(SettingsInvalidError, match="cuda, but this image is without PyTorch"):
        make_pool(load_settings(device="cuda"))


def test_openvino_is_computed_on_the_cpu_beside_a_gpu(monkeypatch, folder, torchvision_folder, caplog):
    monkeypatch.setattr("pierhead_server.serve.count_gpus", lambda: 2)
    monkeypatch.setenv("PIERHEAD_ARTIFACT_URI", "file:///nowhere")
    assert make_load(load_settings(), torchvision_folder).device == "cuda"
    assert make_load(load_settings(), folder).device == "cpu"
    assert "set PIERHEAD_DEVICE=cpu" in caplog.text


def test_torch_is_not_expected_for_it_or_where_it_is_not(monkeypatch, folder, torchvision_folder, tmp_path):
    monkeypatch.setenv("PIERHEAD_ARTIFACT_URI", "file:///nowhere")
    settings = load_settings(compiled_dir=tmp_path / "cache")
    network, architecture = (read_artifact(each).config for each in (folder, torchvision_folder))
    assert (needs_torch(network, settings), needs_torch(architecture, settings)) == (False, True)
    monkeypatch.setattr("pierhead_server.serve.has_torch", lambda: False)
    assert not needs_torch(architecture, settings)


def test_versions_are_those_that_are_installed(monkeypatch):
    read = converted.importlib.metadata.version

    def find(name):
        if name.startswith("torch"):
            raise converted.importlib.metadata.PackageNotFoundError(name)
        return read(name)

    monkeypatch.setattr(converted.importlib.metadata, "version", find)
    assert list(converted.read_versions()) == ["openvino"]


# In a server


def test_server_answers_with_it(folder, tmp_path):
    settings = {"COMPILE": "true", "COMPILED_DIR": tmp_path / "cache", "WORKERS": 2}
    with running_server(folder, tmp_path / "log", **settings) as server:
        server.wait_ready(2)
        assert server.form() == "compiled"
        answer = server.client.post(PREDICT, json=pictures(picture(), picture(seed=1)))
        assert answer.status_code == 200
        assert "Traceback" not in (tmp_path / "log").read_text()
        libraries = [Path(f"/proc/{pid}/maps").read_text() for pid in server.family()]
        assert [maps for maps in libraries if "libtorch" in maps] == []
        assert any("libopenvino" in maps for maps in libraries)
    assert not (tmp_path / "cache").exists()


def test_server_says_what_only_a_worker_finds(folder, tmp_path):
    """The rows are run by workers alone."""
    shutil.copytree(write_artifact(tmp_path / "mixing", make_mixing()), tmp_path / "artifact", dirs_exist_ok=True)
    environment = {"WORKERS": 1, "TERMINATION_LOG": tmp_path / "termination"}
    (tmp_path / "termination").touch()
    with running_server(tmp_path / "artifact", tmp_path / "log", **environment) as server:
        assert server.process.wait(timeout=60) == 1
    told = (tmp_path / "termination").read_text()
    assert told.startswith("ArtifactInvalid: program: model.xml: it computes a row otherwise")


def test_batch_jobs_parameters_are_a_classifiers(folder):
    config = read_artifact(folder).config
    assert make_arguments(config, {"maxPredictions": 3}) == {"parameters": {"maxPredictions": 3}}
