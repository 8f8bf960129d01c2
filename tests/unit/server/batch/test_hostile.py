"""Lines that nobody would write: each of them is a prediction or an error, and none ends its worker."""

import asyncio
import json

import pytest
from pierhead_server.batch import caution as cautions
from pierhead_server.batch import predict as predicting
from pierhead_server.batch import run as running
from pierhead_server.batch import shard as sharding
from pierhead_server.batch import storage as storing
from pierhead_server.batch.allowed import Allowed
from pierhead_server.batch.errors import StorageUnreachableError
from pierhead_server.batch.lines import MAX_LINE_BYTES

from tests.unit.server.batch.hostile import JSON, URIS, make_lines, running_storage
from tests.unit.server.batch.jobs import ANYWHERE, Runner, make_document, read_outputs
from tests.unit.server.bucket import running_bucket

LINES = 1000


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr("pierhead_server.fetch.MAX_RETRIES", 0)
    monkeypatch.setattr(storing, "FIRST_BACKOFF_SECONDS", 0.001)


@pytest.fixture
def bucket(monkeypatch):
    with running_storage() as (bucket, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield bucket


def count_outputs(out):
    manifest = json.loads((out / "manifest.json").read_text())
    predictions, errors = read_outputs(out), read_outputs(out, "errors")
    assert (manifest["successful"], manifest["failed"]) == (len(predictions), len(errors))
    assert all(set(line) == {"instance", "error"} and line["error"]["message"] for line in errors)
    return len(predictions), len(errors)


async def test_thousand_hostile_lines_are_predictions_or_errors(artifact, tmp_path, bucket):
    lines = make_lines(LINES)
    large = b'"' + b"x" * (MAX_LINE_BYTES - 2) + b'"'
    (tmp_path / "in.jsonl").write_bytes(b"\n".join([*lines, large, large + b" "]))
    document = make_document(tmp_path / "out", [(tmp_path / "in.jsonl").as_uri()])
    runner = Runner(artifact, document, bucket.address, Allowed((*ANYWHERE.entries, "http://127.0.0.1:1")))
    assert await runner.run()
    predicted, failed = count_outputs(tmp_path / "out")
    assert predicted + failed == sum(bool(line.strip()) for line in lines) + 2
    assert predicted > 20
    assert failed > LINES / 2


@pytest.mark.parametrize("form", ["file-list", "csv"])
async def test_hostile_files_of_other_formats_are_predictions_or_errors(artifact, tmp_path, bucket, form):
    uris = [uri for uri in URIS if '"' not in uri and "," not in uri]
    lines = [*(uri.encode() for uri in uris), *(line for line in JSON if b'"' not in line and b"," not in line)]
    head = [b"content"] if form == "csv" else []
    (tmp_path / "in").write_bytes(b"\n".join([*head, *lines]))
    document = make_document(tmp_path / "out", [(tmp_path / "in").as_uri()], inputFormat=form)
    assert await Runner(artifact, document, bucket.address).run()
    predicted, failed = count_outputs(tmp_path / "out")
    assert predicted + failed == sum(bool(line.strip()) for line in lines)
    assert predicted > 0


async def end_by_outages(runner):
    """As many workers as storage that is away may end, each before it leaves."""
    for _ in range(cautions.MOST_OUTAGES):
        worker = runner.make()
        with pytest.raises(StorageUnreachableError):
            await worker.run()
        yield worker
        await worker.leave()


async def test_bucket_that_never_answers_ends_five_workers_and_then_its_lines(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "CHUNK_LINES", 1)
    (tmp_path / "in.jsonl").write_text('1\n{"content": "gs://models/a.jpg"}\n2\n')
    document = make_document(tmp_path / "out", [(tmp_path / "in.jsonl").as_uri()])
    with running_bucket({}, failing=503) as bucket:
        runner = Runner(artifact, document, bucket.address)
        async for worker in end_by_outages(runner):
            assert not worker._caution.active, "nothing is to blame"
        assert await runner.make().run()
    (line,) = read_outputs(tmp_path / "out", "errors")
    assert line["error"]["code"] == 14
    assert [line["prediction"] for line in read_outputs(tmp_path / "out")] == [1, 2]


async def test_storage_that_never_answers_ends_no_more_workers_for_more_buckets(artifact, tmp_path):
    (tmp_path / "list").write_text("".join(f"gs://bucket-{number}/a.jpg\n" for number in range(20)))
    document = make_document(tmp_path / "out", [(tmp_path / "list").as_uri()], inputFormat="file-list")
    with running_bucket({}, failing=503) as bucket:
        runner = Runner(artifact, document, bucket.address)
        async for _ in end_by_outages(runner):
            pass
        assert await runner.make().run()
    assert {line["error"]["code"] for line in read_outputs(tmp_path / "out", "errors")} == {14}


async def test_bucket_that_comes_back_ends_no_line(artifact, tmp_path):
    (tmp_path / "list").write_text("gs://models/a.jpg\n")
    document = make_document(tmp_path / "out", [(tmp_path / "list").as_uri()], inputFormat="file-list")
    with running_bucket({"a.jpg": b"123"}, failing=503) as bucket:
        runner = Runner(artifact, document, bucket.address)
        for _ in range(cautions.MOST_OUTAGES - 1):
            worker = runner.make()
            with pytest.raises(StorageUnreachableError):
                await worker.run()
            await worker.leave()
        bucket.failing = None
        assert await runner.make().run()
    assert [line["prediction"] for line in read_outputs(tmp_path / "out")] == [3]


async def test_line_that_ends_its_worker_by_a_bug_is_found_and_passed(artifact, tmp_path, monkeypatch):
    """Whatever no test thought of costs four workers, and not the shard."""
    real = predicting.read_instance

    def fail(reading, line, columns=()):
        assert line != b'"bug"', "nobody expects this"
        return real(reading, line, columns)

    (tmp_path / "in.jsonl").write_text("".join('"bug"\n' if n == 5 else f"{n}\n" for n in range(10)))
    document = make_document(tmp_path / "out", [(tmp_path / "in.jsonl").as_uri()])
    monkeypatch.setattr(predicting, "read_instance", fail)
    for _ in range(4):
        with pytest.raises(AssertionError, match="nobody expects this"):
            await Runner(artifact, document).run()
    assert await Runner(artifact, document).run()
    (line,) = read_outputs(tmp_path / "out", "errors")
    assert line["instance"] == '"bug"'
    assert line["error"]["message"] == "the worker died 3 times at this line"
    assert len(read_outputs(tmp_path / "out")) == 9


@pytest.mark.parametrize(
    ("error", "in_peace"), [(ZeroDivisionError("a bug"), False), (StorageUnreachableError("gs://b/x: 503"), True)]
)
async def test_worker_that_ends_by_a_bug_leaves_its_note(error, in_peace):
    class Leaving:
        left = False

        async def leave(self):
            self.left = True

    async def fail():
        raise error

    worker, forever = Leaving(), [asyncio.create_task(asyncio.Event().wait()) for _ in range(2)]
    with pytest.raises(type(error)):
        await running._wait(worker, asyncio.create_task(fail()), *forever)
    for task in forever:
        task.cancel()
    assert worker.left is in_peace
