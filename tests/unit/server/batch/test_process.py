"""The real process, with a tiny real classifier: killed, stopped, and refused what it cannot do."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import httpx
import pytest
from pierhead_server.batch.parts import decode_header

from tests.unit.server.batch.hostile import make_lines, running_storage
from tests.unit.server.batch.jobs import make_document, read_outputs
from tests.unit.server.conftest import DEADLINE_SECONDS, make_environment, wait_listening, wait_until
from tests.unit.server.pictures import LABELS, encode, picture

PICTURES = 20
LINES = 3000
HOSTILE = 500

# Ends the whole process group, as a container that is out of memory ends.
POISONED = """\
import os, signal

class Predictor:
    @classmethod
    def from_path(cls, model_dir):
        return cls()

    def predict(self, instances, **kwargs):
        if instances == ["poison"]:
            os.killpg(os.getpgid(0), signal.SIGKILL)
        return [kwargs["said"] + str(instance) for instance in instances]
"""


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@contextlib.contextmanager
def running(artifact, document, log, shard=0, **settings):
    """One attempt, in a process group of its own."""
    termination = log.with_suffix(".termination")
    termination.touch()
    given = {"WORKERS": 1, "BATCH_ALLOWED_URIS": "file://", **settings}
    environment = make_environment(
        ARTIFACT_URI=artifact.as_uri(), BATCH_JOB=json.dumps(document), TERMINATION_LOG=termination, **given
    )
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pierhead_server", "batch"],
            env=environment | {"JOB_COMPLETION_INDEX": str(shard)},
            stderr=file,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(artifact, document, log, shard=0, **settings):
    """An attempt that ends by itself: its exit code and its last words."""
    with running(artifact, document, log, shard, **settings) as process:
        code = process.wait(DEADLINE_SECONDS)
    return code, log.with_suffix(".termination").read_text().rstrip("\n")


def write_pictures(folder):
    """Instances of pictures, among them some that cannot be predicted; the last line has no newline."""
    for seed in range(PICTURES):
        (folder / f"{seed}.jpg").write_bytes(encode(picture(seed=seed), "JPEG"))
    (folder / "broken.jpg").write_bytes(b"none")
    lines = []
    for number in range(LINES):
        name = {3: "missing", 5: "broken"}.get(number % 100, number % PICTURES)
        lines.append(json.dumps({"content": (folder / f"{name}.jpg").as_uri(), "mimeType": f"n/{number}"}))
        if number % 100 == 7:
            lines[-1] = f'{{"n/{number}'
    (folder / "in.jsonl").write_text("\n".join(lines))
    return folder / "in.jsonl"


def list_parts(out):
    return sorted((out / ".pierhead" / "parts").rglob("*.jsonl"))


def count_lines(part):
    header = decode_header(part.read_bytes())
    return header.successful + header.failed


def test_killed_worker_loses_nothing_and_repeats_nothing(torchvision_folder, tmp_path, out):
    source = write_pictures(tmp_path)
    document = make_document(out, [source.as_uri()], shards=2, modelParameters={"maxPredictions": 1})
    for _ in range(2):
        with running(torchvision_folder, document, tmp_path / "log") as process:
            seen = len(list_parts(out))
            wait_until(lambda seen=seen: len(list_parts(out)) > seen + 1, process)
            os.killpg(process.pid, signal.SIGKILL)
        assert not (out / "predictions_00001.jsonl").exists()
        told = json.loads((tmp_path / "log.termination").read_text().splitlines()[0])
        sizes = [count_lines(path) for path in list_parts(out)]
        # Of the last chunk that is there, the word may not be.
        assert told["successful"] + told["failed"] in (sum(sizes), sum(sizes[:-1]))
    for shard in range(2):
        code, words = run(torchvision_folder, document, tmp_path / "log", shard)
        assert (code, json.loads(words)["jobDone"]) == (0, shard == 1)
    assert json.loads(words)["done"]
    check_pictures(out)


def check_pictures(out):
    predictions, errors = read_outputs(out), read_outputs(out, "errors")
    assert (len(predictions), len(errors)) == (LINES - 3 * LINES // 100, 3 * LINES // 100)
    told = [json.dumps(line["instance"]) for line in predictions]
    numbers = [int(re.search(r"n/(\d+)", line)[1]) for line in told]
    assert numbers == sorted(numbers)
    failed = [int(re.search(r"n/(\d+)", json.dumps(line["instance"]))[1]) for line in errors]
    assert sorted(numbers + failed) == list(range(LINES))
    assert {number % 100: line["error"]["code"] for number, line in zip(failed, errors, strict=True)} == {
        3: 5,
        5: 3,
        7: 3,
    }
    assert {line["prediction"]["displayNames"][0] for line in predictions} <= set(LABELS)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["successful"], manifest["failed"]) == (len(predictions), len(errors))


def test_worker_that_is_stopped_leaves_at_once_and_tells_how_far_it_is(torchvision_folder, tmp_path, out):
    document = make_document(out, [write_pictures(tmp_path).as_uri()])
    log = tmp_path / "log"
    with running(torchvision_folder, document, log) as process:
        with httpx.Client(base_url=wait_listening(process, log)) as client:
            wait_until(lambda: client.get("/v1/progress").json()["successful"] > 0, process)
            progress = client.get("/v1/progress").json()
            assert client.get("/healthz").status_code == 200
            metrics = client.get("/metrics").text
        process.terminate()
        assert process.wait(5) == 143
    assert set(progress) == {"shard", "successful", "failed", "bytesDone", "bytesTotal", "done"}
    assert 0 < progress["bytesDone"] < progress["bytesTotal"]
    committed = float(re.search(r'^pierhead_batch_lines_total\{outcome="successful"\} (\S+)', metrics, re.MULTILINE)[1])
    assert committed >= progress["successful"]
    assert len(list_parts(out)) > 0
    assert not list((out / ".pierhead" / "tries").iterdir())


def test_worker_that_is_stopped_before_it_begins_has_not_succeeded(torchvision_folder, tmp_path, out):
    with running(torchvision_folder, make_document(out, ["file:///none"]), tmp_path / "log") as process:
        process.terminate()
        assert process.wait(DEADLINE_SECONDS) in (143, -signal.SIGTERM)  # the latter before Python runs the program


def test_line_that_kills_the_container_is_passed_in_the_third_attempt_after(tmp_path, out):
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "model.yaml").write_text("format: predictor\n")
    (artifact / "predictor.py").write_text(POISONED)
    (tmp_path / "in.jsonl").write_text("".join('"poison"\n' if n == 11 else f"{n}\n" for n in range(20)))
    document = make_document(out, [(tmp_path / "in.jsonl").as_uri()], modelParameters={"said": "it is "})
    codes = []
    while not codes or codes[-1]:
        assert len(codes) < 4
        codes.append(run(artifact, document, tmp_path / "log", ALLOW_CODE="true")[0])
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert [line["prediction"] for line in read_outputs(out)] == [f"it is {n}" for n in range(20) if n != 11]
    (error,) = read_outputs(out, "errors")
    assert error["error"]["message"] == "the worker died 2 times at this line"


ECHO = """\
class Predictor:
    @classmethod
    def from_path(cls, model_dir):
        return cls()

    def predict(self, instances, **kwargs):
        return instances
"""


@pytest.fixture
def echo(tmp_path):
    """A routine that gives each instance back, whatever it is."""
    folder = tmp_path / "echo"
    folder.mkdir()
    (folder / "model.yaml").write_text("format: predictor\n")
    (folder / "predictor.py").write_text(ECHO)
    return folder


@pytest.mark.parametrize("model", ["torchvision_folder", "echo"])
def test_real_models_take_hostile_lines_too(request, monkeypatch, tmp_path, out, model):
    artifact, lines = request.getfixturevalue(model), make_lines(HOSTILE)
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    with running_storage() as (_, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        allowed = "file://,gs://,s3://,az://,pvc://"
        document = make_document(out, [(tmp_path / "in.jsonl").as_uri()])
        code, words = run(artifact, document, tmp_path / "log", ALLOW_CODE="true", BATCH_ALLOWED_URIS=allowed)
    assert code == 0, words
    told = json.loads(words)
    assert told["successful"] + told["failed"] == sum(bool(line.strip()) for line in lines)
    assert len(read_outputs(out)) == told["successful"]
    assert len(read_outputs(out, "errors")) == told["failed"]


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"inputUris": ["file:///no/such"]}, 65, "InputNotFound: file:///no/such: nothing is there"),
        ({"shards": 0}, 65, "SettingsInvalid: PIERHEAD_BATCH_JOB: shards: "),
        ({"modelParameters": {"colour": 1}}, 65, "SettingsInvalid: modelParameters: colour: unknown"),
    ],
)
def test_what_cannot_be_done_is_told(torchvision_folder, tmp_path, out, change, code, reason):
    (tmp_path / "in.jsonl").write_text("1\n")
    document = make_document(out, [(tmp_path / "in.jsonl").as_uri()]) | change
    ended, words = run(torchvision_folder, document, tmp_path / "log")
    assert ended == code
    assert words.startswith(reason)


def test_artifact_that_is_not_there_is_told(tmp_path, out):
    (tmp_path / "in.jsonl").write_text("1\n")
    ended = run(tmp_path / "none", make_document(out, [(tmp_path / "in.jsonl").as_uri()]), tmp_path / "log")
    assert ended == (65, f"ArtifactNotFound: {(tmp_path / 'none').as_uri()}: no such folder")
