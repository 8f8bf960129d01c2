"""`pierhead-server check`: the figures, the advice, and the command as its user runs it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pierhead_server import converted, converting
from pierhead_server.artifact import read_artifact
from pierhead_server.check import report
from pierhead_server.converted import has_arithmetic
from pierhead_server.errors import ArtifactInvalidError
from pierhead_server.precisions import ENOUGH_SAMPLES, Agreement, Checked, Measured, Missing, Speed, advise, make_table
from pierhead_server.settings import load_settings

from tests.unit.server.conftest import run
from tests.unit.server.openvino_artifacts import make_classifier, write_artifact
from tests.unit.server.pictures import encode, picture, write_obedient_artifact

PAGE = (Path(__file__).parents[3] / "docs" / "model-server.md").read_text()


# The figures


def rows(*values):
    return [np.array(values, dtype=np.float32)]


def test_agreement_tells_the_number_of_each_sample_that_moves_most():
    agreement = Agreement(has_classes=True)
    agreement.add(rows([0.5, 0.3, 0.2], [0.4, 0.5, 0.1]), rows([0.6, 0.3, 0.1], [0.5, 0.4, 0.1]), 1.0)
    agreement.add(rows([0.7, 0.3, 0.0]), rows([0.7, 0.3, 0.0]), 1.0)
    assert agreement.drifts == pytest.approx([0.1, 0.1, 0.0])
    assert (agreement.most, agreement.mean) == pytest.approx((0.1, 0.2 / 3))
    assert (agreement.same, agreement.changed) == (2, 1)


def test_agreement_of_named_tensors_is_to_the_largest_number_of_the_output_that_moves_most():
    agreement = Agreement(has_classes=False)
    agreement.add([*rows([10.0, 2.0]), *rows([1.0])], [*rows([20.0, 2.0]), *rows([1.1])], 1e-3)
    assert agreement.drifts == pytest.approx([0.5])
    assert agreement.changed == 0


def test_numbers_that_are_none_are_seen():
    agreement = Agreement(has_classes=True)
    agreement.add(rows([np.nan, 0.0]), rows([0.5, 0.5]), 1.0)
    assert np.isnan(agreement.mean)


# The table and the advice


def measured(moved, milliseconds, *, changed=0, count=60, has_classes=True):
    agreement = Agreement(has_classes, [moved] * count, count - changed if has_classes else 0)
    return Measured(agreement, Speed({1: milliseconds * 2, 4: milliseconds, 8: milliseconds * 3}, 4))


def checked(count=60, *, are_own=True, has_classes=True, **others):
    default = {"float32": measured(0.0, 9.25, count=count, has_classes=has_classes)}
    return Checked(Speed({1: 25.0, 4: 20.0, 8: 20.0}, 4), default | others, count, are_own, has_classes)


def test_table_has_a_line_for_each_form_and_why_one_is_missing():
    lines = make_table(checked(bfloat16=measured(0.0123, 3.91, changed=3), float16=Missing("this CPU has none")))
    assert lines == [
        "            moves at most  on average  same top class  ms, batch of 1  ms, best batch  images/s a core",
        "first form                                                      25.00       20.00 (4)               50",
        "float32            0.0000      0.0000        60 of 60           18.50        9.25 (4)              108",
        "bfloat16           0.0123      0.0123        57 of 60            7.82        3.91 (4)              256",
        "float16     this CPU has none",
    ]


def test_named_tensors_have_no_top_class():
    lines = make_table(checked(has_classes=False))
    assert lines[0].split("  ")[-1] == "rows/s a core"
    assert "top class" not in lines[0]


BFLOAT16 = "bfloat16 is 2.3 times as fast"


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (
            checked(float32=Missing("it takes int64"), bfloat16=Missing("it takes int64")),
            "Use `precision: float32` in model.yaml: only the first form serves this model.",
        ),
        (
            checked(bfloat16=Missing("none"), float16=measured(0.0, 8.5)),
            "Use `precision: float32` in model.yaml: no other is at least 1.15 times as fast on this CPU.",
        ),
        (
            checked(bfloat16=measured(0.01, 4.0), float16=measured(0.0, 6.0)),
            f"Use `precision: bfloat16` in model.yaml: {BFLOAT16}, "
            "a confidence moves by 0.0100 on average, and the top class changes for 0 of 60 samples.",
        ),
        (
            checked(bfloat16=measured(0.01, 4.0, changed=3), float16=measured(0.0, 6.0)),
            "Use `precision: float16` in model.yaml: float16 is 1.5 times as fast, "
            "a confidence moves by 0.0000 on average, and the top class changes for 0 of 60 samples.",
        ),
        (
            checked(bfloat16=measured(0.01, 4.0, changed=3)),
            f"Use `precision: float32` in model.yaml unless you accept this: {BFLOAT16}, "
            "a confidence moves by 0.0100 on average, and the top class changes for 3 of 60 samples.",
        ),
        (
            checked(bfloat16=measured(np.nan, 4.0)),
            f"Use `precision: float32` in model.yaml unless you accept this: {BFLOAT16}, "
            "a confidence moves by nan on average, and the top class changes for 0 of 60 samples.",
        ),
        (
            checked(are_own=False, bfloat16=measured(0.01, 4.0)),
            f"Use `precision: float32` in model.yaml until you have compared 30 samples of your own: {BFLOAT16}, "
            "a confidence moves by 0.0100 on average, and the top class changes for 0 of 60 samples.",
        ),
        (
            checked(ENOUGH_SAMPLES - 1, bfloat16=measured(0.01, 4.0, count=ENOUGH_SAMPLES - 1)),
            f"Use `precision: float32` in model.yaml until you have compared 30 samples of your own: {BFLOAT16}, "
            "a confidence moves by 0.0100 on average, and the top class changes for 0 of 29 samples.",
        ),
        (
            checked(has_classes=False, bfloat16=measured(0.01, 4.0, has_classes=False)),
            f"Use `precision: bfloat16` in model.yaml: {BFLOAT16}, and a number moves by 0.0100 on average.",
        ),
    ],
)
def test_advice_says_what_to_write_and_what_it_costs(given, advice):
    assert advise(given) == advice


# The report of an artifact


@pytest.fixture
def tell(tmp_path, monkeypatch):
    """The report's lines of a folder."""
    monkeypatch.setattr(converting, "BATCHES", (1, 4))

    def tell(folder, images=None):
        (tmp_path / "made").mkdir()
        settings = load_settings(artifact_uri=folder.as_uri())
        return list(report(read_artifact(folder), images, settings, tmp_path / "made"))

    return tell


@pytest.fixture
def images(tmp_path):
    """Images in several forms, in a folder of a folder, with files that are none."""
    folder = tmp_path / "images"
    (folder / "cats").mkdir(parents=True)
    for number, encoding in enumerate(["PNG", "JPEG", "WebP"]):
        (folder / "cats" / f"{number}.{encoding.lower()}").write_bytes(encode(picture(seed=number), encoding))
    (folder / "labels.txt").write_text("cat\n")
    (folder / "empty.png").touch()
    return folder


def forms(lines):
    """The table's lines by their form."""
    return {line[:12].strip(): line[12:].split() for line in lines[4:-2]}


def check_forms(lines, count):
    told = forms(lines)
    assert sorted(told) == sorted(["first form", "float32", "bfloat16", "float16"])
    assert told["float32"][:5] == ["0.0000", "0.0000", str(count), "of", str(count)]
    for precision in ("bfloat16", "float16"):
        if has_arithmetic(precision):
            assert float(told[precision][1]) < 0.05
        else:
            assert " ".join(told[precision]) == "this CPU has no arithmetic for it"
    assert len(told["first form"]) == 4  # two speeds, the best batch and the images


def test_images_are_compared_as_the_server_reads_them(exported_folder, images, tell):
    lines = tell(exported_folder, images)
    assert lines[0] == f"{exported_folder}: torch.export, precision float32"
    assert lines[1] == f"samples: 3 images of {images}; skipped: empty.png, labels.txt"
    check_forms(lines, 3)
    assert lines[-1].startswith("Use `precision: float32` in model.yaml")


def test_sample_of_the_artifact_is_compared_too(exported_folder, images, tell, tmp_path):
    folder = shutil.copytree(exported_folder, tmp_path / "artifact")
    (folder / "warmup.json").write_text('{"instances": [[[[200, 10, 10]]], [[[10, 200, 10]]]]}')
    lines = tell(folder, images)
    assert lines[1].startswith(f"samples: 2 of warmup.json, 3 images of {images}")
    check_forms(lines, 5)


def test_precision_of_the_artifact_changes_nothing_of_what_is_compared_with(exported_folder, tell, tmp_path):
    folder = shutil.copytree(exported_folder, tmp_path / "artifact")
    (folder / "model.yaml").write_text((exported_folder / "model.yaml").read_text() + "precision: bfloat16\n")
    lines = tell(folder)
    assert lines[0] == f"{folder}: torch.export, precision bfloat16"
    assert lines[1] == "samples: 9 synthetic ones, since there are no others: they tell little about the top class"
    check_forms(lines, 9)


class Double(torch.nn.Module):
    def forward(self, vector: torch.Tensor):
        return vector * 2


class Look(torch.nn.Module):
    """Takes an index, of which OpenVINO would not refuse one that is out of range."""

    def forward(self, index: torch.Tensor):
        return torch.arange(10.0)[index.long()]


def write_program(folder, module, shape):
    folder.mkdir()
    example, free = torch.zeros(2, *shape), torch.export.Dim.DYNAMIC
    program = torch.export.export(module, (example,), dynamic_shapes=({0: free},))
    torch.export.save(program, folder / "model.pt2")
    inputs = f"[{{name: x, shape: {list(shape)}}}]"
    (folder / "model.yaml").write_text(f"format: torch.export\nprogram: model.pt2\ninputs: {inputs}\n")
    return folder


def test_program_of_named_tensors_is_compared_by_its_numbers(tell, tmp_path):
    folder = write_program(tmp_path / "artifact", Double(), (3,))
    (folder / "warmup.json").write_text('{"instances": [[1, 2, 3]]}')
    lines = tell(folder)
    assert lines[1] == "samples: 1 of warmup.json"
    assert forms(lines)["float32"][:2] == ["0.0000", "0.0000"]
    assert "top class" not in "\n".join(lines)


def test_model_that_is_not_converted_is_told_with_the_reason(tell, tmp_path):
    lines = tell(write_program(tmp_path / "artifact", Look(), ()))
    for precision in ("float32", "bfloat16", "float16"):
        assert "it takes indices out of its inputs" in " ".join(forms(lines)[precision])
    assert len(forms(lines)["first form"]) == 4
    assert lines[1] == "samples: 9 synthetic ones, since there are no others"
    assert lines[-1] == "Use `precision: float32` in model.yaml: only the first form serves this model."


def test_precision_that_the_cpu_has_not_is_told(exported_folder, tell, monkeypatch):
    monkeypatch.setattr(converted, "has_arithmetic", lambda precision: precision == "float32")
    told = forms(tell(exported_folder))
    for precision in ("bfloat16", "float16"):
        assert " ".join(told[precision]) == "this CPU has no arithmetic for it"


def test_precision_that_the_server_would_refuse_is_told(exported_folder, tell, monkeypatch):
    monkeypatch.setattr(converted, "has_arithmetic", lambda _: True)
    monkeypatch.setattr(converting, "_MOST_DRIFT", -1.0)
    told = forms(tell(exported_folder))
    assert "in bfloat16 a number of a row moves by" in " ".join(told["bfloat16"])
    assert told["float32"][0] == "0.0000"


def test_model_that_cannot_answer_its_sample_is_none(exported_folder, tell, tmp_path):
    folder = write_program(tmp_path / "artifact", Double(), (3,))
    (folder / "warmup.json").write_text('{"instances": [[1, 2]]}')
    with pytest.raises(ArtifactInvalidError, match=r"the model cannot answer warmup\.json: .* expected shape \[3\]"):
        tell(folder)


def test_skipped_files_are_named_up_to_three(exported_folder, images, tell):
    for number in range(3):
        (images / f"notes-{number}").write_text("no image")
    (images / "notes-3").symlink_to("/proc/self/mem")  # which nobody can read from its beginning
    assert tell(exported_folder, images)[1].endswith("; skipped: empty.png, labels.txt, notes-0 and 3 more")


# The command


def test_command_prints_the_report_alone(exported_folder, images):
    ended = run("check", exported_folder, "--images", images)
    assert ended.returncode == 0, ended.stderr
    first, *_, last = lines = ended.stdout.splitlines()
    assert first == f"{exported_folder}: torch.export, precision float32"
    check_forms(lines, 3)
    assert last.startswith("Use `precision: float32` in model.yaml")
    assert ended.stderr == "loading and converting takes some seconds ...\n"


def test_help_says_what_there_is():
    ended = run("check", "--help")
    assert ended.returncode == 0
    for word in ("pierhead-server check", "DIR", "--images FOLDER"):
        assert word in ended.stdout
    assert "pierhead-server check DIR" in run("--help").stdout


def test_predictor_has_nothing_to_choose_and_is_not_run(tmp_path):
    folder = write_obedient_artifact(tmp_path)
    (folder / "predictor.py").write_text("raise SystemExit(9)\n")
    ended = run("check", folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("A custom predictor computes as its code says")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "the following arguments are required: DIR"),
        (["/no/such/folder"], 1, "ArtifactInvalid: model.yaml: missing: every artifact needs one\n"),
        (["{program}", "--images", "/"], 2, "argument --images: the model takes more than a picture"),
        (["{classifier}", "--images", "{program}"], 2, "argument --images: no image that the server reads is in "),
        (["{classifier}", "--images", "/no/such/folder"], 2, "argument --images: no such folder: /no/such/folder"),
    ],
)
def test_what_cannot_be_checked_is_told(exported_folder, tmp_path, arguments, code, message):
    folders = {"program": write_program(tmp_path / "program", Double(), (3,)), "classifier": exported_folder}
    ended = run("check", *(argument.format(**folders) for argument in arguments))
    assert ended.returncode == code
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_page_shows_the_columns_that_there_are():
    (shown,) = re.findall(r"```console\n\$ pierhead-server check .*?\n```", PAGE, re.S)
    head = next(line for line in shown.splitlines() if "moves at most" in line)
    assert head.split() == make_table(checked())[0].split()
    for form in ("first form", "float32", "bfloat16", "float16"):
        assert f"\n{form} " in shown


def test_network_of_openvinos_is_loaded_and_has_one_form(tmp_path):
    folder = write_artifact(tmp_path / "artifact", make_classifier())
    ended = run("check", folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(
        "A network of OpenVINO's has one form: check the artifact that it was converted from"
    )
    ended = run("check", folder, "--images", tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    write_artifact(folder, make_classifier(classes=4))
    assert run("check", folder).returncode == 1
