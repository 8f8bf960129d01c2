"""The compiled form: made once while clients go on, checked before it is used, and never needed."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino
import pytest
import torch
from pierhead_server import converted, converting, memory
from pierhead_server.artifact import read_artifact
from pierhead_server.comparing import measure_drift, synthetic_pictures
from pierhead_server.config import ImageInput, Preprocessing, TensorInput
from pierhead_server.converted import (
    ConversionError,
    Network,
    Order,
    PictureRunner,
    TensorRunner,
    check,
    compute_key,
)
from pierhead_server.converting import choose_batch, choose_precision, make, make_classifier_source, make_program_source
from pierhead_server.eager import ClassifierModule, EagerProgram, EagerRunner, probe
from pierhead_server.model import COMPILED_FOLDER, LoadOptions, load_model
from pierhead_server.signature import TensorSpec

from tests.unit.server.calls import instances, pictures, predict
from tests.unit.server.conftest import (
    DEADLINE_SECONDS,
    PREDICT,
    run,
    running_server,
    wait_until,
    write_entry_of_0_1,
)
from tests.unit.server.pictures import SIDE, export_program, picture

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # for models that were saved years ago


def confidences(predictions):
    return [dict(zip(each["ids"], each["confidences"], strict=True)) for each in predictions]


# Made by a server


def test_no_request_fails_while_the_form_is_exchanged(compilation):
    assert len(compilation.codes) > 20
    assert set(compilation.codes) == {200}


def test_compiled_form_answers_as_the_quick_one(compilation):
    for one, other in zip(confidences(compilation.quick), confidences(compilation.compiled), strict=True):
        assert one == pytest.approx(other, abs=2e-3)


def test_workers_are_exchanged_one_by_one(compilation):
    before, after = compilation.workers
    assert (len(before), len(after)) == (1, 1)
    assert before != after


def test_torch_goes_with_the_quick_form(compilation):
    before, after = compilation.parents
    assert before == after  # it keeps its workers until others are there
    assert compilation.torch == []


def test_two_servers_of_one_cache_convert_once(compilation):
    assert sum(log.count("converted in") for log in compilation.logs) == 1
    for log in compilation.logs:
        assert "Traceback" not in log
        assert log.count("the model is there in its compiled form") == 1


def test_second_start_takes_it_at_once(compilation, torchvision_folder, tmp_path):
    settings = {"COMPILE": "true", "COMPILED_DIR": compilation.entry.parent, "WORKERS": 1}
    with running_server(torchvision_folder, tmp_path / "log", **settings) as server:
        server.wait_ready()
        assert server.form() == "compiled"
        # The process that workers are forked from has no thread but its own; nor have those that OpenVINO computes in.
        for pid in (server.fork_server(), *server.workers()):
            assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
        assert server.find_torch() == []
        answer = server.client.post(PREDICT, json=compilation.body)
        given, expected = (confidences(each) for each in (answer.json()["predictions"], compilation.compiled))
        for one, other in zip(given, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    assert "quick form" not in (tmp_path / "log").read_text()


def test_nothing_is_left_but_the_entry(compilation):
    kept = sorted(path.name for path in compilation.entry.parent.iterdir())
    assert kept == [compilation.old.name, compilation.entry.name, f"{compilation.entry.name}.lock"]
    files = sorted(path.name for path in compilation.entry.iterdir())
    assert files == ["check.npz", "form.json", "model.bin", "model.xml"]


def test_entry_of_release_0_1_is_neither_read_nor_touched(compilation):
    """Servers began with the quick form, and made their own beside it."""
    times = {path.name: (path.stat().st_atime, path.stat().st_mtime) for path in compilation.old.iterdir()}
    assert times == dict.fromkeys(("batch-1.pt2", "batch-8.pt2", "check.npy", "form.json"), (0, 0))
    assert not any(compilation.old.name in log for log in compilation.logs)


def test_entry_that_no_worker_can_use_is_made_anew(torchvision_folder, cache, entry, tmp_path):
    """It looks whole until a worker loads it: the quick form answers meanwhile."""
    change_check(entry / "check.npz")
    settings = {"COMPILE": "true", "COMPILED_DIR": cache, "WORKERS": 2}
    with running_server(torchvision_folder, tmp_path / "log", **settings) as server:
        server.wait_ready(2)
        assert server.client.post(PREDICT, json=pictures(picture())).status_code == 200
        wait_until(lambda: "converted in" in (tmp_path / "log").read_text(), server.process)
        wait_until(lambda: server.form() == "compiled" and server.metric("pierhead_workers") == 2, server.process)
        assert server.client.post(PREDICT, json=pictures(picture())).status_code == 200
        assert server.metric("pierhead_worker_restarts_total") == 0
    log = (tmp_path / "log").read_text()
    assert "the quick form computes" in log
    # Workers that share it take the place of those that have loaded it each for itself.
    assert log.count("the model is there in its quick form") == 1
    assert "it is made anew" in log
    Network(entry).load()


def test_artifact_that_was_changed_meanwhile_is_not_taken(torchvision_folder, tmp_path):
    """What workers were loaded from was checked; what lies there now was not."""
    folder = shutil.copytree(torchvision_folder, tmp_path / "artifact")
    settings = {"COMPILE": "true", "COMPILED_DIR": tmp_path / "cache", "WORKERS": 1}
    with running_server(folder, tmp_path / "log", **settings) as server:
        server.wait_ready()
        before = server.client.post(PREDICT, json=pictures(picture())).json()
        (folder / "model.yaml").unlink()
        wait_until(lambda: server.metric("pierhead_model_not_compiled", reason=CHANGED) == 1, server.process)
        assert server.client.post(PREDICT, json=pictures(picture())).json() == before


CHANGED = "the artifact was changed after it was loaded"


def test_compiled_folder_is_not_compiled_again(torchvision_folder, compilation, tmp_path):
    folder = shutil.copytree(torchvision_folder, tmp_path / "artifact")
    shutil.copytree(compilation.entry, folder / "compiled" / compilation.entry.name)
    ended = run("compile", "--model", folder)
    assert (ended.returncode, ended.stdout) == (0, "nothing to do: the model is served in its compiled form\n")


# Taken, or refused


@pytest.fixture
def cache(compilation, tmp_path):
    """A copy of the cache that a test may spoil."""
    shutil.copytree(compilation.entry, tmp_path / "cache" / compilation.entry.name)
    return tmp_path / "cache"


@pytest.fixture
def entry(cache):
    return next(cache.iterdir())


def load_from(folder, cache, **options):
    return load_model(read_artifact(folder), LoadOptions(10**6, compiled_dir=cache, **options))


def test_entry_of_this_model_is_taken(torchvision_folder, cache):
    loaded = load_from(torchvision_folder, cache)
    assert (loaded.model.form, loaded.order) == ("compiled", None)
    loaded.network.load()
    quick = load_from(torchvision_folder, None)
    assert quick.model.form == "quick"
    bodies = [pictures(*(picture(seed=seed) for seed in range(count))) for count in (1, 3, 9)]
    for given, expected in zip(predict(loaded.model, *bodies), predict(quick.model, *bodies), strict=True):
        for one, other in zip(confidences(given), confidences(expected), strict=True):
            assert one == pytest.approx(other, abs=2e-3)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    """One bit of it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_header(path):
    """A bit that makes numpy trip over what it takes for a description of an array."""
    content = bytearray(path.read_bytes())
    content[69] ^= 64
    path.write_bytes(content)


def rewrite(path, content):
    """Other content, which whoever made the entry would vouch for."""
    path.write_bytes(content)
    change_form(checksums=converted.compute_checksums(path.parent))(path.parent / "form.json")


def fill(path):
    """Weights of the right size that compute something else."""
    size = path.stat().st_size
    rewrite(path, np.full(size // 4, 0.01, dtype=np.float32).tobytes().ljust(size, b"\0"))


def change_form(**fields):
    def change(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def change_check(path):
    with np.load(path) as arrays:
        kept = dict(arrays)
    np.savez(path, **kept | {"output_0": kept["output_0"] + 0.003})


def become_of_0_1(path):
    """The whole entry: its name would have to be the same by chance."""
    shutil.rmtree(path.parent)
    write_entry_of_0_1(path.parent)


AT_ONCE = [
    ("model.bin", cut, "it is another one, or damaged"),
    ("model.bin", lambda path: path.write_bytes(b""), "it is another one, or damaged"),
    ("model.bin", flip, "it is another one, or damaged"),
    ("model.bin", Path.unlink, "No such file"),
    ("model.xml", cut, "it is another one, or damaged"),
    ("form.json", lambda path: path.write_text("{"), "truncated"),
    ("form.json", Path.unlink, "No such file"),
    ("form.json", change_form(key="0" * 32), "it is another one, or damaged"),
    ("form.json", change_form(precision="int4"), "Invalid enum value"),
    ("form.json", change_form(batch=0), "Expected `int` >= 1"),
    ("form.json", become_of_0_1, "missing required field"),
]
ONCE_LOADED = [
    ("model.xml", lambda path: rewrite(path, b"<"), "cannot be used"),
    ("model.bin", fill, "cannot be used"),
    ("check.npz", Path.unlink, "cannot be used"),
    ("check.npz", flip_header, "cannot be used"),
    ("check.npz", lambda path: path.write_bytes(b""), "cannot be used"),
    ("check.npz", cut, "cannot be used"),
    ("check.npz", change_check, "differs from the first one by 0.003"),
    ("check.npz", lambda path: np.savez(path, input_0=np.zeros((2, 4, 4, 3), np.uint8)), "cannot be used"),
    ("check.npz", lambda path: np.savez(path, input_0=np.array([print])), "cannot be used"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), AT_ONCE)
def test_half_and_foreign_entries_are_refused_and_the_quick_form_is_loaded(
    torchvision_folder, cache, entry, caplog, name, spoil, message
):
    spoil(entry / name)
    loaded = load_from(torchvision_folder, cache)
    assert (loaded.model.form, loaded.network) == ("quick", None)
    assert loaded.order.entry == entry
    (record,) = [record.getMessage() for record in caplog.records if record.name == "pierhead_server.model"]
    assert message in record
    assert record.endswith(": the quick form is loaded")


@pytest.mark.parametrize(("name", "spoil", "message"), ONCE_LOADED)
def test_spoilt_entry_computes_nothing(torchvision_folder, cache, entry, name, spoil, message):
    spoil(entry / name)
    loaded = load_from(torchvision_folder, cache)
    with pytest.raises(ConversionError, match=message):
        loaded.network.load()
    first = loaded.load_first()
    assert (first.model.form, first.network, first.order.entry) == ("quick", None, entry)


def test_form_beside_the_artifact_is_taken_only_where_it_may_bring_code(torchvision_folder, cache, tmp_path):
    folder = shutil.copytree(torchvision_folder, tmp_path / "artifact")
    cache.rename(folder / COMPILED_FOLDER)
    assert load_from(folder, None).model.form == "quick"
    assert load_from(folder, None, allow_code=True).model.form == "compiled"
    assert load_from(folder, tmp_path / "empty", allow_code=True).model.form == "compiled"
    assert load_from(folder, None, allow_code=True, device="cuda").model.form == "quick"


def test_entry_of_another_version_is_left_alone(torchvision_folder, cache, entry, monkeypatch):
    """Of what an entry holds: it may look like one of today's in all but its key."""
    monkeypatch.setattr(converted, "_VERSION", converted._VERSION - 1)
    loaded = load_from(torchvision_folder, cache)
    assert (loaded.model.form, loaded.network) == ("quick", None)
    assert loaded.order.entry.parent == cache
    assert loaded.order.entry != entry


def test_entry_is_not_taken_for_a_gpu(torchvision_folder, cache):
    loaded = load_from(torchvision_folder, cache, device="cuda")
    assert (loaded.model.form, loaded.order) == ("quick", None)


# Without torch


RUN = """
import sys
from pathlib import Path
from pierhead_server.converted import Network, PictureRunner, compute_key
import numpy as np
compute_key(weights=Path(sys.argv[2]), model="")
network = Network(Path(sys.argv[1]))
network.load()
answer = PictureRunner(network)(list(np.zeros((5, 64, 64, 3), np.uint8)))
print(answer.shape, sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "openvino_telemetry")))
"""


def test_what_runs_the_compiled_form_imports_no_torch(compilation, torchvision_folder):
    weights = torchvision_folder / "model.safetensors"
    command = [sys.executable, "-c", RUN, str(compilation.entry), str(weights)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True)
    assert ended.stdout == "(5, 5) []\n"


def test_openvino_tells_its_maker_nothing():
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("openvino-telemetry")
    from openvino.tools.ovc import telemetry_stub, telemetry_utils

    assert isinstance(telemetry_utils.init_ovc_telemetry(), telemetry_stub.Telemetry)


# The key, and the check


def accepted_or(message):
    """What a test expects: nothing, or to be refused with this message."""
    return pytest.raises(ConversionError, match=message) if message else contextlib.nullcontext()


def test_key_covers_all_that_decides_what_is_computed(tmp_path, monkeypatch):
    weights, other = tmp_path / "weights", tmp_path / "other"
    weights.write_bytes(b"1")
    other.write_bytes(b"2")
    keys = [compute_key(weights=weights, model="a")]
    assert compute_key(weights=weights, model="a") == keys[0]
    keys += [compute_key(weights=other, model="a"), compute_key(weights=weights, model="b")]
    for name in ("openvino", "torch"):
        versions = converted.read_versions() | {name: "0"}
        with monkeypatch.context() as context:
            context.setattr(converted, "read_versions", lambda versions=versions: versions)
            keys.append(compute_key(weights=weights, model="a"))
    monkeypatch.setattr(converted, "_VERSION", 0)
    keys.append(compute_key(weights=weights, model="a"))
    monkeypatch.setattr(converted, "_describe_cpu", lambda: "another")
    keys.append(compute_key(weights=weights, model="a"))
    assert len(set(keys)) == len(keys) == 7
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in keys)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("labels: [ant,", "labels: [gnu,", True),  # names are not computed with
        ("resize: 72", "resize: 73", False),
        ("format:", "activation: sigmoid\nformat:", False),
        ("format:", "precision: bfloat16\nformat:", False),
        ("crop: 64}", "crop: 64, mean: [0, 0, 0]}", False),
    ],
)
def test_what_is_said_of_a_model_decides_its_entry(torchvision_folder, tmp_path, old, new, same):
    folder = shutil.copytree(torchvision_folder, tmp_path / "artifact")
    text = (folder / "model.yaml").read_text()
    assert old in text
    first = load_from(folder, tmp_path).order.entry
    (folder / "model.yaml").write_text(text.replace(old, new))
    assert (load_from(folder, tmp_path).order.entry == first) == same


@pytest.mark.parametrize(
    ("given", "expected", "least", "message"),
    [
        ([[0.5, 0.5]], [[0.5, 0.5]], 1.0, None),
        ([[0.5, 0.5]], [[0.5019, 0.4981]], 1.0, None),
        ([[0.5, 0.5]], [[0.503, 0.497]], 1.0, "differs from the first one by 0.0030"),
        ([[100.0, 0.0]], [[100.1, 0.0]], 1.0, None),  # of logits, which may be large
        ([[100.0, 0.0]], [[101.0, 0.0]], 1.0, "differs from the first one by 0.0099"),
        ([[0.0105, 0.021]], [[0.01, 0.02]], 1.0, None),
        ([[0.0105, 0.021]], [[0.01, 0.02]], 1e-3, "differs from the first one by 0.05"),  # of a program, to themselves
        ([[np.nan, 0.5]], [[0.5, 0.5]], 1.0, "gives other shapes, or no numbers"),
        ([[0.5]], [[0.5, 0.5]], 1.0, "gives other shapes, or no numbers"),
    ],
)
def test_forms_have_to_agree(given, expected, least, message):
    given, expected = np.array(given, dtype=np.float32), np.array(expected, dtype=np.float32)
    with accepted_or(message):
        check([given], [expected], least)


@pytest.mark.parametrize(
    "given",
    [[np.array([True, False])], [np.array([True])], [np.zeros(2, np.float32)], [], [np.array([True, True])] * 2],
)
def test_other_outputs_are_refused(given):
    with pytest.raises(ConversionError):
        check(given, [np.array([True, True])], 1.0)


# Converted


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, pictures):
        return self.head(torch.relu(self.features(pictures)).mean(dim=(2, 3)))


def write_classifier(folder, kind, **more):
    """A small network, saved as one of the formats."""
    folder.mkdir(exist_ok=True)
    network, example = Tiny().eval(), torch.zeros(2, 3, SIDE, SIDE)
    format_, program = ("torch.export", "model.pt2") if kind == "torch.export" else ("torchscript", "model.pt")
    if kind == "torch.export":
        export_program(network, folder / program, example, dynamic=True)
    elif kind == "scripted":
        torch.jit.script(network).save(folder / program)
    else:
        torch.jit.trace(network, example).save(folder / program)
    told = {
        "format": format_,
        "program": program,
        "labels": ["a", "b", "c", "d", "e"],
        "preprocessing": {"resize": SIDE, "crop": SIDE},
    }
    (folder / "model.yaml").write_text(json.dumps(told | more))
    return folder


def load_both(folder, cache):
    """An artifact in its quick form and in the compiled one, which is made."""
    quick = load_from(folder, cache)
    assert make(quick.order)
    loaded = load_from(folder, cache)
    loaded.network.load()
    assert loaded.model.form == "compiled"
    assert loaded.model.signature == quick.model.signature
    return quick, loaded


@pytest.mark.parametrize("kind", ["torch.export", "scripted", "traced"])
def test_classifier_computes_the_same_in_batches_of_any_size(tmp_path, kind):
    folder = write_classifier(tmp_path / "artifact", kind)
    quick, loaded = load_both(folder, tmp_path / "cache")
    for count in range(1, 10):
        given = synthetic_pictures(count, SIDE)
        np.testing.assert_allclose(loaded.model.runner(given), quick.model.runner(given), atol=1e-5)


class Scores(torch.nn.Module):
    """Two inputs, two outputs."""

    def forward(self, vector: torch.Tensor, scale: torch.Tensor):
        return {"sum": vector.sum(dim=1) * scale, "large": vector > scale.unsqueeze(1)}


SCORES = "{format: %s, program: %s, inputs: [{name: vector, shape: [-1]}, {name: scale}]}"


@pytest.mark.parametrize("kind", ["torch.export", "torchscript"])
def test_program_of_named_tensors_computes_the_same(tmp_path, kind):
    if kind == "torch.export":
        dynamic = torch.export.Dim.DYNAMIC
        shapes = ({0: dynamic, 1: dynamic}, {0: dynamic})
        program = torch.export.export(Scores(), (torch.zeros(2, 3), torch.zeros(2)), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "model.pt2")
        (tmp_path / "model.yaml").write_text(SCORES % (kind, "model.pt2"))
    else:
        torch.jit.script(Scores()).save(tmp_path / "model.pt")
        (tmp_path / "model.yaml").write_text(SCORES % (kind, "model.pt"))
    (tmp_path / "warmup.json").write_text('{"instances": [{"vector": [1, 2], "scale": 3}]}')
    quick, loaded = load_both(tmp_path, tmp_path / "cache")
    bodies = [
        instances({"vector": [1, 2], "scale": 2}, {"vector": [1, 2, 3], "scale": 0.5}),
        instances(*({"vector": [number, -1, 1], "scale": 1} for number in range(9))),
    ]
    assert predict(loaded.model, *bodies) == predict(quick.model, *bodies)


class Function(torch.nn.Module):
    """A program that is one function of its inputs."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


VECTOR = TensorInput(name="x", shape=(3,))
FREE = TensorInput(name="x", shape=(-1,))


def order_program(folder, module, *inputs, is_script=False):
    runner = EagerProgram(module, None)
    outputs = probe(runner, inputs)
    return Order(
        lambda: make_program_source(runner, inputs, outputs, is_script=is_script), folder / "cache" / "0123", "float32"
    )


def make_network(order):
    assert make(order)
    network = Network(order.entry)
    network.load()
    return network


@pytest.mark.parametrize(
    ("entry", "function"),
    [
        (VECTOR, lambda x: (x * 2, x > 0)),
        (VECTOR, lambda x: (x, x)),
        (TensorInput(name="x"), lambda x: x + 1),
        (TensorInput(name="x", shape=(-1, 2)), lambda x: x.mean(dim=1)),
        (TensorInput(name="x", shape=(3,), dtype="float16"), lambda x: x * 2),
        (TensorInput(name="x", shape=(3,), dtype="uint8"), lambda x: x.float() / 255),
        (TensorInput(name="x", shape=(3,), dtype="bool"), lambda x: x.float()),
        (ImageInput(name="x", type="image", preprocessing=Preprocessing(resize=8, crop=8)), lambda x: x.mean((2, 3))),
    ],
)
def test_inputs_and_outputs_of_many_kinds(tmp_path, entry, function):
    order = order_program(tmp_path, Function(function), entry)
    network, source = make_network(order), order.load()
    for batch in source.batches:
        for count in (1, 5, 9):
            part = [array[:count] for array in batch]
            for given, expected in zip(TensorRunner(network)(part).values(), source.compute(part), strict=True):
                assert given.dtype == expected.dtype
                np.testing.assert_allclose(given, expected, atol=1e-3)


def test_input_that_is_not_used_keeps_its_place(tmp_path):
    network = make_network(
        order_program(tmp_path, Function(lambda *given: given[0] * 2), TensorInput(name="x"), VECTOR)
    )
    assert TensorRunner(network)([np.ones(1, np.float32), np.zeros((1, 3), np.float32)])["output"] == 2


def refuse_negative(x):
    torch._assert_async(x.min() >= -5, "negative")
    return x * 2


def branch(x):
    return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x * 1, (x,))


@pytest.mark.parametrize(
    ("entry", "function", "cause"),
    [
        # What OpenVINO is known to do otherwise: zeros for indices out of range, 32 bits for 64, no assertions.
        (VECTOR, lambda x: torch.arange(10.0)[x.long()], "it takes indices out of its inputs"),
        (TensorInput(name="x", dtype="int32"), torch.nn.Embedding(3, 2), "it takes indices out of its inputs"),
        (TensorInput(name="x", shape=(3,), dtype="int64"), lambda x: x.float(), "it takes int64, of which"),
        (TensorInput(name="x", shape=(3,), dtype="float64"), lambda x: x.float(), "it takes float64, of which"),
        (TensorInput(name="x", shape=(3,), dtype="uint8"), lambda x: (x + 200).float(), "it computes with whole"),
        (VECTOR, lambda x: (x.long() * 100003).float(), "it makes whole numbers of others"),
        (VECTOR, lambda x: x.to(torch.uint8).float(), "it makes whole numbers of others"),
        (VECTOR, torch.nn.LogSigmoid(), "it takes the logarithm of a sigmoid"),
        (VECTOR, lambda x: torch.floor_divide(x, 0.3), "it divides and rounds down"),
        (VECTOR, lambda x: x.argmax(dim=1), "it gives int64"),
        (VECTOR, lambda x: x.bfloat16(), "it gives bf16"),
        (VECTOR, refuse_negative, "it refuses some values"),
        (VECTOR, branch, "it looks at its values"),
        (VECTOR, lambda x: x * 2 if x.sum() > 0 else x, "the model cannot be converted: "),
        (VECTOR, lambda x: x + torch.zeros(2, 3)[: len(x)], "the model cannot be converted: "),  # of two rows at most
        (VECTOR, lambda x: torch.log(-x.abs()), "or no numbers"),
        (VECTOR, lambda x: x + torch.rand(3), "differs from the first one"),
    ],
)
def test_what_openvino_does_otherwise_is_not_converted(tmp_path, entry, function, cause):
    module = function if isinstance(function, torch.nn.Module) else Function(function)
    order = order_program(tmp_path, module, entry)
    with pytest.raises(ConversionError, match=cause):
        make(order)
    assert [path.name for path in order.entry.parent.iterdir()] == ["0123.lock"]


class Raises(torch.nn.Module):
    def forward(self, x):
        if bool(x.min() < -100):
            raise ValueError("too small")
        return x * 2


class RaisesForSizes(torch.nn.Module):
    def forward(self, x):
        if x.size(1) > 100:
            raise ValueError("too many")
        return x * 2


@pytest.mark.parametrize(
    ("module", "entry", "message"),
    [
        (Raises, VECTOR, "it looks at its values"),
        # A client's size is the program's, which was seen not to raise; one that is free may be any.
        (RaisesForSizes, FREE, "it refuses some inputs"),
        (RaisesForSizes, VECTOR, None),
    ],
)
def test_torchscript_that_may_refuse_what_comes_is_not_converted(tmp_path, module, entry, message):
    order = order_program(tmp_path, torch.jit.script(module()), entry, is_script=True)
    with accepted_or(message):
        make(order)


def test_what_is_too_much_for_one_is_forgotten_with_its_answer(tmp_path):
    """OpenVINO goes on with the shapes of what raised: the next one would be told of it."""
    network = make_network(
        order_program(tmp_path, Function(lambda x, y: x * y), FREE, TensorInput(name="y", shape=(-1,)))
    )
    ones = [np.ones((1, 8), np.float32)] * 2
    np.testing.assert_array_equal(network(ones)[0], ones[0])
    with pytest.raises(RuntimeError, match=r"^(?!.*\.cpp)"):
        network([ones[0], np.ones((1, 5), np.float32)])
    np.testing.assert_array_equal(network(ones)[0], ones[0])


def test_sizes_that_come_once_are_not_kept_for_ever(tmp_path):
    layers = [torch.nn.Conv1d(8 if place else 1, 8, 5, padding=2) for place in range(8)]
    network = make_network(order_program(tmp_path, Function(lambda x: torch.nn.Sequential(*layers)(x[:, None])), FREE))

    def see(sizes):
        for size in sizes:
            network([np.ones((1, size), np.float32)])
        return memory.read_data()

    few, many, more = see(range(10, 120)), see(range(120, 400)), see(range(400, 680))
    assert more - many < max(16 << 20, many - few)


# Precision


def has(precision):
    return choose_precision(precision) == precision


def test_precision_that_the_cpu_has_not_is_float32(monkeypatch, caplog):
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    assert choose_precision("float32") == "float32"
    assert not caplog.records
    assert choose_precision("bfloat16") == "float32"
    assert "precision bfloat16: this CPU has none: the compiled form computes in float32" in caplog.text
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "BF16", "FP16"])
    assert (choose_precision("bfloat16"), choose_precision("float16")) == ("bfloat16", "float16")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_owners_precision_is_computed_in(tmp_path, precision):
    folder = write_classifier(tmp_path / "artifact", "torch.export", precision=precision)
    network = make_network(load_from(folder, tmp_path / "cache").order)
    assert network.described.precision == (precision if has(precision) else "float32")
    # What comes out is compared with float32, of which it may be away by as much as the owner accepts.
    exact = EagerRunner(ClassifierModule(Tiny(), Preprocessing(resize=SIDE, crop=SIDE), "softmax", "float32"))
    given = synthetic_pictures(4, SIDE)
    assert measure_drift(PictureRunner(network)(given), exact(given)) < 0.02


MOVES_TOO_FAR = "differs from the first one: in bfloat16 a number of a row moves by"


@pytest.mark.parametrize(("moved", "message"), [(0.05, None), (0.2, MOVES_TOO_FAR), (np.nan, MOVES_TOO_FAR)])
def test_half_precision_may_drift_on_average(order, monkeypatch, moved, message):
    """By less than a tenth of the largest number, whatever a single row does."""
    monkeypatch.setattr(converting, "choose_precision", lambda _: "bfloat16")
    compute = Network.__call__

    def drift(network, inputs):
        given = compute(network, inputs)
        if network.described.precision == "float32":
            return given
        return [array + np.float32(moved) * np.abs(array).max() for array in given]

    monkeypatch.setattr(Network, "__call__", drift)
    with accepted_or(message):
        make_network(order)


def _drift(*moved):
    """A network whose outputs, batch by batch, are moved by these."""
    moves = iter(moved)
    return lambda batch: [array + np.float32(next(moves)) for array in batch]


@pytest.mark.parametrize(
    ("moved", "message"),
    [
        ((0.09, 0.09), None),
        ((0.0, 0.2), MOVES_TOO_FAR),
        ((0.2, 0.0), MOVES_TOO_FAR),
        ((0.0, float("nan")), MOVES_TOO_FAR),
    ],
)
@pytest.mark.parametrize("outputs", [1, 2])
def test_half_precision_is_held_to_each_batch_and_each_output(moved, message, outputs):
    """The artifact's own sample is one row, beside nine that are made up."""
    batches = [[np.ones((9, 3), np.float32)], [np.ones((1, 3), np.float32)]]
    if outputs == 2:
        batches = [[batches[0][0], batches[0][0]]]
    source = SimpleNamespace(batches=batches, least=1.0)
    with accepted_or(message):
        converting.compare_precision(_drift(*moved), "bfloat16", source, batches)


# Making


@pytest.mark.parametrize(
    ("milliseconds", "best"),
    [
        ({1: 3.7, 4: 2.2, 8: 2.0}, 8),
        ({1: 12.0, 4: 10.6, 8: 12.1}, 4),
        ({1: 64.0, 4: 60.0, 8: 59.5}, 4),  # little more, and others wait for twice as many
        ({1: 10.0, 4: 9.9, 8: 9.8}, 1),
        ({1: 5.0}, 1),
    ],
)
def test_larger_batch_is_chosen_only_where_it_pays(milliseconds, best):
    assert choose_batch(milliseconds) == best


class Mean(torch.nn.Module):
    def forward(self, pictures):
        return pictures.float().mean(dim=(2, 3))


def make_order(folder, module=None):
    return Order(
        lambda: make_classifier_source(module or Mean(), SIDE, 3, is_script=False), folder / "new" / "0123", "float32"
    )


@pytest.fixture
def order(tmp_path):
    return make_order(tmp_path)


@pytest.fixture
def conversions(monkeypatch):
    """The conversions that were begun."""
    begun, convert = [], converting.convert
    monkeypatch.setattr(converting, "convert", lambda source: begun.append(source) or convert(source))
    return begun


@pytest.mark.parametrize(("took", "batch"), [({1: 9.0, 4: 2.0, 8: 1.0}, 8), ({1: 9.0, 4: 2.0, 8: 3.0}, 4)])
def test_entry_is_made_whole_and_tells_what_pays(order, monkeypatch, took, batch):
    monkeypatch.setattr(converting, "measure", lambda _network, given: took[len(given[0])])
    assert make(order)
    assert {path.name for path in order.entry.iterdir()} == {"model.xml", "model.bin", "check.npz", "form.json"}
    described = Network(order.entry).described
    assert (described.batch, described.milliseconds, described.precision) == (batch, took, "float32")
    assert described.outputs == (TensorSpec("confidences", "float32", (3,)),)
    assert described.versions == {name: metadata.version(name) for name in ("openvino", "torch", "torchvision")}


def test_what_is_there_is_not_made_again(order, conversions):
    assert make(order)
    assert not make(order)
    assert len(conversions) == 1


@pytest.mark.parametrize("spoil", [Path.unlink, become_of_0_1])
def test_spoilt_entry_is_made_anew(order, conversions, caplog, spoil):
    make(order)
    spoil(order.entry / "check.npz")
    assert make(order)
    assert len(conversions) == 2
    Network(order.entry).load()
    assert "it is made anew" in caplog.text


@pytest.mark.parametrize(
    ("owner", "step", "told"),
    [
        (converting, "convert", "the model cannot be converted"),
        (Network, "start", "OpenVINO cannot compute the model"),
    ],
)
def test_what_openvino_raises_is_told_and_leaves_nothing(order, monkeypatch, owner, step, told):
    def fail(_):
        raise RuntimeError("no kernel\n for it")

    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(ConversionError, match=f"^{told}: RuntimeError: no kernel for it$"):
        make(order)
    assert [path.name for path in order.entry.parent.iterdir()] == ["0123.lock"]


def test_form_that_computes_something_else_is_not_kept(order, monkeypatch):
    source = make_classifier_source(Function(lambda x: x.float().amax(dim=(2, 3))), SIDE, 3, is_script=False)
    convert = converting.convert
    monkeypatch.setattr(converting, "convert", lambda _: convert(source))
    with pytest.raises(ConversionError, match="differs from the first one by"):
        make(order)
    assert not order.entry.exists()


def test_second_maker_waits_for_the_first(order, conversions, monkeypatch):
    begun, go_on, made, convert = threading.Event(), threading.Event(), [], converting.convert

    def wait_and_convert(source):
        begun.set()
        assert go_on.wait(30)
        return convert(source)

    monkeypatch.setattr(converting, "convert", wait_and_convert)
    makers = [threading.Thread(target=lambda: made.append(make(order))) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        stack.callback(go_on.set)
        for maker in makers:
            maker.start()
        assert begun.wait(30)
    for maker in makers:
        maker.join(30)
    assert sorted(made) == [False, True]
    assert len(conversions) == 1


def test_cache_that_cannot_be_written_is_told(order):
    order.entry.parent.write_text("no folder")
    with pytest.raises(ConversionError, match="the compiled form cannot be kept in "):
        make(order)


def test_environment_is_left_as_it_is(order):
    environment = dict(os.environ)
    make(order)
    Network(order.entry).load()
    assert dict(os.environ) == environment


def test_server_tells_why_a_model_stays_in_its_quick_form(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    program = torch.export.export(
        Function(lambda x: x.argmax(dim=1)), (torch.zeros(2, 3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, folder / "model.pt2")
    (folder / "model.yaml").write_text("{format: torch.export, program: model.pt2, inputs: [{name: x, shape: [3]}]}")
    settings = {"COMPILE": "true", "COMPILED_DIR": tmp_path / "cache", "WORKERS": 1, "MODEL": "scores"}
    with running_server(folder, tmp_path / "log", **settings) as server:
        wait_until(lambda: server.metric("pierhead_model_not_compiled"), server.process)
        assert server.form() == "quick"
        told = server.client.get("/v2/models/scores").json()["parameters"]
        assert told == {
            "form_reason": "the model is not converted: it gives int64, which OpenVINO computes with other numbers"
        }
