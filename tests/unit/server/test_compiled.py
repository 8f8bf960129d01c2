"""The compiled form: made once while clients go on, checked before it is used, and never needed."""

import contextlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from pierhead_server import compiled
from pierhead_server.artifact import read_artifact
from pierhead_server.classifier import EagerRunner, synthetic_pictures
from pierhead_server.compiled import CompiledRunner, CompileError, Order, check, choose_batch, compute_key, load, make
from pierhead_server.model import COMPILED_FOLDER, LoadOptions, load_model

from tests.unit.server.calls import pictures, predict
from tests.unit.server.conftest import PREDICT, run, running_server
from tests.unit.server.pictures import SIDE, picture


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


def test_two_servers_of_one_cache_compile_once(compilation):
    assert sum(log.count("compiled for 1 pictures in") for log in compilation.logs) == 1
    for log in compilation.logs:
        assert "Traceback" not in log
        assert log.count("the model is there in its compiled form") == 1


def test_second_start_takes_it_at_once(compilation, torchvision_folder, tmp_path):
    settings = {"COMPILE": "true", "COMPILED_DIR": compilation.entry.parent, "WORKERS": 1}
    with running_server(torchvision_folder, tmp_path / "log", **settings) as server:
        server.wait_ready()
        assert server.form() == "compiled"
        answer = server.client.post(PREDICT, json=compilation.body)
        given, expected = (confidences(each) for each in (answer.json()["predictions"], compilation.compiled))
        for one, other in zip(given, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    assert "quick form" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("milliseconds", "best"),
    [
        ({1: 3.7, 4: 2.2, 8: 2.0}, 8),  # as mobilenet_v3_small was seen
        ({1: 12.0, 4: 10.6, 8: 12.1}, 4),
        ({1: 64.0, 4: 60.0, 8: 59.5}, 4),  # little more, and others wait for twice as many
        ({1: 10.0, 4: 9.9, 8: 9.8}, 1),
        ({1: 5.0}, 1),
    ],
)
def test_larger_batch_is_chosen_only_where_it_pays(milliseconds, best):
    assert choose_batch(milliseconds) == best


def test_nothing_is_left_but_the_entry(compilation):
    kept = sorted(path.name for path in compilation.entry.parent.iterdir())
    assert kept == [compilation.entry.name, f"{compilation.entry.name}.lock"]


def test_compiled_folder_is_not_compiled_again(torchvision_folder, compilation, tmp_path):
    folder = shutil.copytree(torchvision_folder, tmp_path / "artifact")
    shutil.copytree(compilation.entry, folder / "compiled" / compilation.entry.name)
    ended = run("compile", "--model", folder)
    assert (ended.returncode, ended.stdout) == (
        0,
        "nothing to do: the model is served in its compiled form\n",
    )


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
    quick = load_from(torchvision_folder, None)
    assert quick.model.form == "quick"
    bodies = [pictures(*(picture(seed=seed) for seed in range(count))) for count in (1, 3, 5)]
    for given, expected in zip(predict(loaded.model, *bodies), predict(quick.model, *bodies), strict=True):
        for one, other in zip(confidences(given), confidences(expected), strict=True):
            assert one == pytest.approx(other, abs=2e-3)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def change(path):
    np.save(path, np.load(path) + 0.003)


def add_batch(path):
    form = json.loads(path.read_text())
    path.write_text(json.dumps(form | {"batches": [1, 64]}))


SPOILT = [
    ("batch-1.pt2", cut, "cannot be used"),
    ("batch-1.pt2", lambda path: path.write_bytes(b""), "cannot be used"),
    ("batch-1.pt2", Path.unlink, "cannot be used"),
    ("form.json", lambda path: path.write_text("{"), "cannot be used"),
    ("form.json", Path.unlink, "cannot be used"),
    ("form.json", add_batch, "cannot be used"),
    ("check.npy", Path.unlink, "cannot be used"),
    ("check.npy", lambda path: path.write_bytes(b""), "cannot be used"),
    ("check.npy", change, "differs from the quick one by 0.003"),
    ("check.npy", lambda path: np.save(path, np.zeros((4, 7), dtype=np.float32)), "gives other shapes, or no numbers"),
    ("check.npy", lambda path: np.save(path, np.array([print]), allow_pickle=True), "cannot be used"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), SPOILT)
def test_spoilt_entry_is_refused_and_the_quick_form_serves(
    torchvision_folder, cache, entry, caplog, name, spoil, message
):
    spoil(entry / name)
    loaded = load_from(torchvision_folder, cache)
    assert loaded.model.form == "quick"
    assert loaded.order.entry == entry
    (record,) = [record.getMessage() for record in caplog.records if record.name == "pierhead_server.model"]
    assert message in record
    assert record.endswith(": the quick form is loaded")


def test_form_beside_the_artifact_is_taken_only_where_it_may_bring_code(torchvision_folder, cache, tmp_path):
    folder = shutil.copytree(torchvision_folder, tmp_path / "artifact")
    cache.rename(folder / COMPILED_FOLDER)
    assert load_from(folder, None).model.form == "quick"
    assert load_from(folder, None, allow_code=True).model.form == "compiled"
    assert load_from(folder, tmp_path / "empty", allow_code=True).model.form == "compiled"
    assert load_from(folder, None, allow_code=True, device="cuda").model.form == "quick"


def test_entry_is_not_taken_for_a_gpu(torchvision_folder, cache):
    loaded = load_from(torchvision_folder, cache, device="cuda")
    assert (loaded.model.form, loaded.order) == ("quick", None)


def test_loading_leaves_nothing_behind(entry, tmp_path, monkeypatch):
    """The loader unpacks the package, and a process that is killed would not remove that."""
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    monkeypatch.setenv("TMPDIR", str(unpacked))
    monkeypatch.setattr("tempfile.tempdir", str(unpacked))
    environment = dict(os.environ)
    runner = load(entry, side=SIDE)
    assert list(unpacked.iterdir()) == []
    assert np.isfinite(runner(synthetic_pictures(5, SIDE))).all()
    assert dict(os.environ) == environment


# The key, and the check


def test_key_covers_all_that_decides_the_machine_code(tmp_path, monkeypatch):
    weights, other = tmp_path / "weights", tmp_path / "other"
    weights.write_bytes(b"1")
    other.write_bytes(b"2")
    keys = [compute_key(weights=weights, model="a")]
    assert compute_key(weights=weights, model="a") == keys[0]
    keys += [compute_key(weights=other, model="a"), compute_key(weights=weights, model="b")]
    monkeypatch.setattr(torch, "__version__", "0")
    keys.append(compute_key(weights=weights, model="a"))
    monkeypatch.setattr(compiled, "_describe_cpu", lambda: "another")
    keys.append(compute_key(weights=weights, model="a"))
    assert len(set(keys)) == 5
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in keys)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("labels: [ant,", "labels: [gnu,", True),  # names are not compiled
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
    ("given", "expected", "message"),
    [
        ([[0.5, 0.5]], [[0.5, 0.5]], None),
        ([[0.5, 0.5]], [[0.5019, 0.4981]], None),
        ([[0.5, 0.5]], [[0.503, 0.497]], "differs from the quick one by 0.0030"),
        ([[100.0, 0.0]], [[100.1, 0.0]], None),  # of logits, which may be large
        ([[100.0, 0.0]], [[101.0, 0.0]], "differs from the quick one by 0.0099"),
        ([[np.nan, 0.5]], [[0.5, 0.5]], "gives other shapes, or no numbers"),
        ([[0.5]], [[0.5, 0.5]], "gives other shapes, or no numbers"),
    ],
)
def test_forms_have_to_agree(given, expected, message):
    given, expected = np.array(given, dtype=np.float32), np.array(expected, dtype=np.float32)
    if message is None:
        check(given, expected)
        return
    with pytest.raises(CompileError, match=message):
        check(given, expected)


class FakePackage:
    """Gives each picture's mean, for batches of one size."""

    sizes: ClassVar = []

    def __init__(self, path):
        self._size = int(path.stem.removeprefix("batch-"))

    def __call__(self, batch):
        assert batch.shape == (self._size, 3, SIDE, SIDE)
        self.sizes.append(self._size)
        return batch.float().mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("batches", "count", "sizes"),
    [
        ([1], 3, [1, 1, 1]),
        ([1, 4], 1, [1]),
        ([1, 4], 3, [1, 1, 1]),
        ([1, 4], 4, [4]),
        ([1, 4], 9, [4, 4, 1]),
    ],
)
def test_what_does_not_fill_a_batch_goes_one_by_one(tmp_path, monkeypatch, batches, count, sizes):
    monkeypatch.setattr(compiled, "_Package", FakePackage)
    monkeypatch.setattr(FakePackage, "sizes", [])
    (tmp_path / "form.json").write_text(json.dumps({"batches": batches, "milliseconds": {}}))
    runner = CompiledRunner(tmp_path)
    given = synthetic_pictures(count, SIDE)
    np.testing.assert_allclose(runner(given), [pixels.mean(axis=(0, 1)) for pixels in given], rtol=1e-5)
    assert (runner.batch, FakePackage.sizes) == (max(batches), sizes)


# Making, with a compiler that has nothing to do

SIZES = [1, 4, 8]


class Mean(torch.nn.Module):
    def forward(self, pictures):
        return pictures.float().mean(dim=(2, 3))


@pytest.fixture
def order(tmp_path):
    return Order(EagerRunner(Mean()), SIDE, tmp_path / "new" / "0123")


@pytest.fixture
def compiler(monkeypatch):
    """What a package would compute, at once."""
    compiled_sizes = []

    def compile_(_module, batch, _side, package):
        compiled_sizes.append(batch)
        package.touch()

    monkeypatch.setattr(compiled, "_compile", compile_)
    monkeypatch.setattr(compiled, "_Package", FakePackage)
    return compiled_sizes


@pytest.mark.parametrize(
    ("milliseconds", "batches"),
    [({1: 9.0, 4: 2.0, 8: 1.0}, [1, 8]), ({1: 9.0, 4: 2.0, 8: 3.0}, [1, 4]), ({1: 9.0, 4: 9.0, 8: 9.0}, [1])],
)
def test_entry_is_made_whole_and_keeps_what_pays(order, compiler, monkeypatch, milliseconds, batches):
    monkeypatch.setattr(compiled, "_measure", lambda _package, given: milliseconds[len(given)])
    make(order)
    packages = {f"batch-{batch}.pt2" for batch in batches}
    assert {path.name for path in order.entry.iterdir()} == packages | {"check.npy", "form.json"}
    assert json.loads((order.entry / "form.json").read_text()) == {
        "batches": batches,
        "milliseconds": {str(batch): value for batch, value in milliseconds.items()},
    }
    assert load(order.entry, side=SIDE).batch == max(batches)


def test_what_is_there_is_not_made_again(order, compiler):
    make(order)
    make(order)
    assert compiler == SIZES


def test_spoilt_entry_is_made_anew(order, compiler, caplog):
    make(order)
    (order.entry / "check.npy").unlink()
    make(order)
    assert compiler == SIZES * 2
    assert load(order.entry, side=SIDE)
    assert "it is made anew" in caplog.text


def test_what_a_killed_compiler_left_is_removed(order, compiler):
    left = order.entry.with_suffix(".making")
    left.mkdir(parents=True)
    (left / "half").touch()
    make(order)
    assert {path.name for path in order.entry.parent.iterdir()} == {"0123", "0123.lock"}


def test_failed_compilation_leaves_nothing(order, compiler, monkeypatch):
    def fail(*_):
        raise CompileError("the model cannot be compiled")

    monkeypatch.setattr(compiled, "_compile", fail)
    with pytest.raises(CompileError, match="the model cannot be compiled"):
        make(order)
    assert [path.name for path in order.entry.parent.iterdir()] == ["0123.lock"]


def test_form_that_computes_something_else_is_not_kept(order, compiler, monkeypatch):
    monkeypatch.setattr(FakePackage, "__call__", lambda _, batch: batch.float().amax(dim=(2, 3)))
    with pytest.raises(CompileError, match="differs from the quick one by"):
        make(order)
    assert not order.entry.exists()


def test_model_that_cannot_be_exported_is_told(order):
    class Odd(torch.nn.Module):
        def forward(self, pictures):
            return pictures.float().mean(dim=(2, 3)) * (2 if pictures.float().mean() > 0 else 1)

    odd = Order(EagerRunner(Odd()), SIDE, order.entry)
    with pytest.raises(CompileError, match="the model cannot be compiled: "):
        make(odd)
    assert not order.entry.exists()


def test_second_maker_waits_for_the_first(order, compiler, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    fake = compiled._compile

    def wait_and_compile(*arguments):
        begun.set()
        assert go_on.wait(30)
        fake(*arguments)

    monkeypatch.setattr(compiled, "_compile", wait_and_compile)
    makers = [threading.Thread(target=make, args=(order,)) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        stack.callback(go_on.set)
        for maker in makers:
            maker.start()
        assert begun.wait(30)
    for maker in makers:
        maker.join(30)
    assert compiler == SIZES


def test_compiler_that_is_not_there_is_told(order, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CompileError, match=r"there is no C\+\+ compiler \(g\+\+\): the quick form stays"):
        make(order)
    assert not order.entry.parent.exists()


def test_cache_that_cannot_be_written_is_told(order, compiler):
    order.entry.parent.write_text("no folder")
    with pytest.raises(CompileError, match="the compiled form cannot be kept in "):
        make(order)
