"""Whole jobs in one process over real storage: what is written, resumed, refused; killed at every request."""

import asyncio
import csv
import gzip
import json
import random
import sys
from pathlib import Path

import pytest
from arro3.io import read_parquet
from pierhead_server.batch import run as running
from pierhead_server.batch import shard as sharding
from pierhead_server.batch import storage as storing
from pierhead_server.batch.document import read_task
from pierhead_server.batch.errors import (
    InputInvalidError,
    InputNotFoundError,
    OutputNotWritableError,
    StorageUnreachableError,
)
from pierhead_server.batch.lines import MAX_LINE_BYTES
from pierhead_server.batch.shard import Chunk
from pierhead_server.batch.storage import Storage
from pierhead_server.errors import SettingsInvalidError

from tests.unit.server.batch.jobs import Answering, Runner, make_document, read_outputs
from tests.unit.server.bucket import running_bucket

LINES = 30


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(sharding, "CHUNK_LINES", 4)
    monkeypatch.setattr(storing, "FIRST_BACKOFF_SECONDS", 0.001)


@pytest.fixture
def lines(tmp_path):
    """A file of as many lines, of which each seventh is refused."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"n": {n}}}\n' if n % 7 else f'"refuse"\n\n{n}\n' for n in range(LINES)))
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def expected(lines):
    """Predictions and errors of that file."""
    instances = [json.loads(line) for line in lines.read_text().splitlines() if line]
    good = [{"instance": each, "prediction": each} for each in instances if each != "refuse"]
    bad = [each for each in instances if each == "refuse"]
    return good, bad


def check(out, lines):
    """All is there, once, and nothing else."""
    good, bad = expected(lines)
    assert read_outputs(out) == good
    assert [each["error"] for each in read_outputs(out, "errors")] == [{"code": 3, "message": "content: no"}] * len(bad)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["successful"], manifest["failed"]) == (len(good), len(bad))
    assert (out / "_SUCCESS").read_bytes() == b""
    assert not [path for path in (out / ".pierhead" / "parts").rglob("*") if path.is_file()]
    assert not list((out / ".pierhead" / "tries").iterdir())


@pytest.mark.parametrize("shards", [1, 3, 50])
async def test_each_line_is_answered_once_and_in_order(artifact, lines, out, shards):
    assert await Runner(artifact, make_document(out, [lines.as_uri()], shards=shards)).run()
    check(out, lines)
    assert len(list(out.glob("predictions_*.jsonl"))) == shards
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["model"], manifest["modelVersionId"]) == ("m/photos", "1")
    assert manifest["inputFiles"] == [{"uri": lines.as_uri(), "bytes": lines.stat().st_size}]


async def test_files_that_patterns_name_are_read_once_and_in_order(artifact, tmp_path, out):
    folder = tmp_path / "in put"
    folder.mkdir()
    (folder / "b.jsonl").write_text("2\n3")
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b"0\r\n1\r\n"))
    (folder / "c.txt").write_text("9")
    (folder / "empty.jsonl").write_text("")
    (tmp_path / "last").write_text("\ufeff4\n")
    uris = [f"{folder.as_uri()}/*.jsonl*", (tmp_path / "last").as_uri(), (folder / "b.jsonl").as_uri()]
    await Runner(artifact, make_document(out, uris, shards=2)).run()
    assert [each["prediction"] for each in read_outputs(out)] == [0, 1, 2, 3, 4]


async def test_second_attempt_does_only_what_is_left(artifact, lines, out):
    runner = Runner(artifact, make_document(out, [lines.as_uri()]))
    first = runner.make()
    attempt = asyncio.create_task(first.run())
    while first.progress.successful < 10:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)  # of the loop, in which the worker runs
    attempt.cancel()
    await asyncio.wait({attempt})
    await first.leave()
    progress = first.progress
    second, answering = None, Answering()
    second = runner.make(workers=answering)
    assert await second.run()
    assert 0 < progress.bytes_done < progress.bytes_total == second.progress.bytes_done
    good, bad = expected(lines)
    assert len(answering.calls) == len(good) + len(bad) - progress.successful - progress.failed
    check(out, lines)
    again = Answering()
    assert await runner.make(workers=again).run()
    assert not again.calls


class LostError(Exception):
    """The process is no more."""


async def test_slow_worker_commits_what_it_has(artifact, lines, out, monkeypatch):
    class Slow(Answering):
        def submit(self, call, *, alone=False):
            future = super().submit(call, alone=alone)
            return asyncio.get_running_loop().create_future() if len(self.calls) > 10 else future

    monkeypatch.setattr(sharding, "CHUNK_LINES", sys.maxsize)
    monkeypatch.setattr(sharding, "CHUNK_SECONDS", 0)
    worker = Runner(artifact, make_document(out, [lines.as_uri()])).make(workers=Slow())
    attempt = asyncio.create_task(worker.run())
    async with asyncio.timeout(10):
        while worker.progress.successful < 2:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)
    attempt.cancel()
    await asyncio.wait({attempt})


@pytest.mark.parametrize("after", [False, True])
async def test_worker_killed_at_any_request_loses_nothing(artifact, lines, tmp_path, monkeypatch, after):
    class Dying(Storage):
        left = sys.maxsize

        async def _try(self, uri, ask, *rounds):
            Dying.left -= 1
            if Dying.left < 0 or (Dying.left == 0 and not after):
                raise LostError
            answer = await super()._try(uri, ask, *rounds)
            if Dying.left <= 0:
                raise LostError
            return answer

    monkeypatch.setattr(running, "Storage", Dying)
    for request in range(1, 1000):
        out = tmp_path / f"out{request}"
        runner = Runner(artifact, make_document(out, [lines.as_uri()]))
        Dying.left = request
        try:
            await runner.make().run()
            break
        except LostError:
            Dying.left = sys.maxsize
        assert await runner.make().run()
        check(out, lines)
    assert request > 20


async def test_worker_killed_again_and_again_comes_to_an_end(artifact, lines, out, monkeypatch):
    class Dying(Storage):
        left = 0

        async def _try(self, uri, ask, *rounds):
            Dying.left -= 1
            if Dying.left <= 0:
                raise LostError
            return await super()._try(uri, ask, *rounds)

    monkeypatch.setattr(running, "Storage", Dying)
    runner = Runner(artifact, make_document(out, [lines.as_uri()]))
    for requests in (8, 16, 20, 24, 28):  # one more chunk, and a few more requests to find those before it
        Dying.left = requests
        with pytest.raises(LostError):
            await runner.make().run()
    Dying.left = sys.maxsize
    assert await runner.make().run()
    check(out, lines)


async def test_two_workers_of_one_shard_make_one_output(artifact, lines, out, monkeypatch):
    chance = random.Random(0)  # noqa: S311 - the same in every run
    # Where a chunk ends they do not agree about.
    monkeypatch.setattr(Chunk, "full", property(lambda chunk: len(chunk.records) >= chance.randint(1, 4)))
    runner = Runner(artifact, make_document(out, [lines.as_uri()]))
    workers = [runner.make() for _ in range(3)]
    assert any(await asyncio.gather(*(worker.run() for worker in workers)))
    good, bad = expected(lines)
    assert read_outputs(out) == good
    assert len(read_outputs(out, "errors")) == len(bad)
    assert all(worker.progress.successful == len(good) for worker in workers)


async def test_line_that_kills_its_worker_is_found_and_passed(artifact, tmp_path, out):
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(f"{n}\n" if n != 13 else '"poison"\n' for n in range(LINES)))

    class Dying(Answering):
        def submit(self, call, *, alone=False):
            future = super().submit(call, alone=alone)
            if self.calls[-1][0] == "poison":
                future.cancel()
                raise LostError
            return future

    runner, deaths = Runner(artifact, make_document(out, [lines.as_uri()])), 0
    while True:
        try:
            assert await runner.make(workers=Dying()).run()
            break
        except LostError:
            deaths += 1
    assert deaths == 3  # among others, and twice alone
    (error,) = read_outputs(out, "errors")
    assert error == {
        "instance": "poison",
        "error": {"code": 13, "message": "the worker died 2 times at this line"},
    }
    assert [each["prediction"] for each in read_outputs(out)] == [n for n in range(LINES) if n != 13]
    assert not list((out / ".pierhead" / "tries").iterdir())


async def test_worker_that_dies_while_its_model_is_loaded_blames_no_line(artifact, lines, out):
    class Loading:
        async def wait(self):
            raise LostError

    runner = Runner(artifact, make_document(out, [lines.as_uri()]))
    for _ in range(4):
        loading = Answering()
        loading.loaded = Loading()
        with pytest.raises(LostError):
            await runner.make(workers=loading).run()
    assert await runner.make().run()
    check(out, lines)


async def test_line_that_kills_its_model_process_alone_is_an_error(artifact, tmp_path, out):
    (tmp_path / "in.jsonl").write_text('1\n"die"\n2\n')
    await Runner(artifact, make_document(out, [(tmp_path / "in.jsonl").as_uri()])).run()
    (error,) = read_outputs(out, "errors")
    assert (error["instance"], error["error"]["code"]) == ("die", 13)
    assert [each["prediction"] for each in read_outputs(out)] == [1, 2]


async def test_lines_that_cannot_be_read_are_errors(artifact, tmp_path, out, monkeypatch):
    content = b'1\n{broken\n\xff\n%d\n{"content": "file:///no/such%%20file"}\n2' % 10**30
    (tmp_path / "in.jsonl").write_bytes(content)
    await Runner(artifact, make_document(out, [(tmp_path / "in.jsonl").as_uri()])).run()
    errors = read_outputs(out, "errors")
    assert [each["error"]["code"] for each in errors] == [3, 3, 3, 5]
    assert [each["instance"] for each in errors[:2]] == ["{broken", "\ufffd"]
    assert errors[2]["error"]["message"] == "a whole number is beyond 64 bits"
    assert errors[3]["error"]["message"] == "content: file:///no/such%20file: nothing is there"
    assert [each["prediction"] for each in read_outputs(out)] == [1, 2]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("form", ["jsonl", "csv", "file-list"])
async def test_file_of_another_encoding_is_told(artifact, tmp_path, out, encoding, form):
    (tmp_path / "in").write_bytes("content\ngs://models/a.jpg\n".encode(encoding))
    (tmp_path / "in.gz").write_bytes(gzip.compress((tmp_path / "in").read_bytes()))
    for name in ("in", "in.gz"):
        uri = (tmp_path / name).as_uri()
        with pytest.raises(
            InputInvalidError, match=rf"^{uri}: it is UTF-\d\d, which is not supported: save it as UTF-8"
        ):
            await Runner(artifact, make_document(out, [uri], inputFormat=form)).run()


async def test_messy_lines_are_those_that_a_person_would_count(artifact, tmp_path, out):
    lines = ["\ufeff1\r", "", " \t\r", '"\u2028\u0085"', "2\r", '{"a":', '"\u0442"']
    (tmp_path / "in.jsonl").write_bytes("\n".join(lines).encode())
    (tmp_path / "none.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_bytes(b"\r\n\n  \n")
    await Runner(artifact, make_document(out, [f"{tmp_path.as_uri()}/*.jsonl"], shards=3)).run()
    assert [each["prediction"] for each in read_outputs(out)] == [1, "\u2028\u0085", 2, "\u0442"]
    assert [each["instance"] for each in read_outputs(out, "errors")] == ['{"a":']


async def test_csv_with_newlines_in_quotes_is_read_by_one_shard(artifact, tmp_path, out):
    text = "".join(f'"{n}: \n""x"", y\r\n\nz",{n}\n' for n in range(50))
    (tmp_path / "in.csv").write_bytes(("name,size\n" + text).encode())
    (tmp_path / "more.csv").write_bytes(b"name,size\n" + b"".join(b"p,%d\n" % n for n in range(50)))
    uris = [(tmp_path / name).as_uri() for name in ("in.csv", "more.csv")]
    document = make_document(out, uris, inputFormat="csv", shards=4)
    assert await Runner(artifact, document).run()
    predictions = [each["prediction"] for each in read_outputs(out)]
    assert predictions == [
        *({"name": f'{n}: \n"x", y\n\nz', "size": n} for n in range(50)),
        *({"name": "p", "size": n} for n in range(50)),
    ]
    assert not read_outputs(out, "errors")
    counts = json.loads((out / "manifest.json").read_text())["shards"]
    assert sum(count["successful"] > 0 for count in counts) > 1, "a file without quotes is cut"


NAMES = [
    "a b",
    "100%",
    "a%20b",
    "a+b",
    "a#b",
    "a?b",
    "\u043a\u043e\u0442",
    "a&b=c",
    "'a'",
    "a\u00a0b",
    "[a]",
    "a;b",
    "~a",
    "a\\b",
]


@pytest.mark.parametrize("place", ["gs://models", "pvc://data"])
async def test_names_count_as_they_are(artifact, tmp_path, out, monkeypatch, place):
    monkeypatch.setattr(Storage.__init__, "__defaults__", (str(tmp_path),))
    objects = {f"in/{name}.jpg": str(number).encode() * (number + 1) for number, name in enumerate(NAMES)}
    (tmp_path / "data" / "in").mkdir(parents=True)
    for name, content in objects.items():
        (tmp_path / "data" / name).write_bytes(content)
    (tmp_path / "list").write_text("\n".join(f"{place}/{name}" for name in objects))
    document = make_document(out, [(tmp_path / "list").as_uri()], inputFormat="file-list")
    with running_bucket(objects) as bucket:
        await Runner(artifact, document, bucket.address).run()
    assert [each["prediction"] for each in read_outputs(out)] == [*map(len, objects.values())]


@pytest.mark.parametrize("place", ["gs://models", "pvc://data"])
async def test_prefix_is_a_whole_name_and_folders_hold_no_lines(artifact, tmp_path, out, monkeypatch, place):
    monkeypatch.setattr(Storage.__init__, "__defaults__", (str(tmp_path),))
    objects = {
        "photos/1/a.jsonl": b"1",
        "photos/1/b c%.jsonl": b"2",
        "photos/10/a.jsonl": b"10",
        "photos/1.jsonl": b"3",
    }
    for name, content in objects.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    # As consoles make them; on a disk there are folders themselves.
    markers = {"photos/1/": b"", "photos/": b"", "photos/1/sub/": b""}
    with running_bucket(objects | markers) as bucket:
        document = make_document(out, [f"{place}/photos/1/*", f"{place}/photos/*.jsonl"], shards=2)
        await Runner(artifact, document, bucket.address).run()
    assert [each["prediction"] for each in read_outputs(out)] == [1, 2, 3]
    manifest = json.loads((out / "manifest.json").read_text())
    names = [file["uri"].rpartition("/photos/")[2] for file in manifest["inputFiles"] if file["bytes"]]
    assert names == ["1/a.jsonl", "1/b c%.jsonl", "1.jsonl"]


async def test_line_that_is_too_long_is_an_error(artifact, tmp_path, out):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"1\n" + b'"' + b"x" * MAX_LINE_BYTES + b'"\n2\n')
    await Runner(artifact, make_document(out, [path.as_uri()])).run()
    (error,) = read_outputs(out, "errors")
    assert error["instance"] == f"the line at byte 2 of {path.as_uri()}"
    assert error["error"]["message"] == f"the line is longer than {MAX_LINE_BYTES} bytes"
    assert [each["prediction"] for each in read_outputs(out)] == [1, 2]


async def test_csv_in_and_out(artifact, tmp_path, out):
    (tmp_path / "in.csv").write_text('name,size\n"a, ""b""",1.5\nc,2\n')
    document = make_document(out, [(tmp_path / "in.csv").as_uri()], inputFormat="csv", outputFormat="csv")
    await Runner(artifact, document).run()
    with (out / "predictions_00001.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    instances = [{"name": 'a, "b"', "size": 1.5}, {"name": "c", "size": 2}]
    assert rows[0] == ["instance", "prediction"]
    assert [[json.loads(cell) for cell in row] for row in rows[1:]] == [[each, each] for each in instances]


@pytest.mark.parametrize("count", [0, 2500])
async def test_parquet_out(artifact, tmp_path, out, count, monkeypatch):
    monkeypatch.setattr(sharding, "CHUNK_LINES", 200)
    (tmp_path / "in.jsonl").write_text("".join(f'"ü{n}"\n' for n in range(count)))
    await Runner(artifact, make_document(out, [(tmp_path / "in.jsonl").as_uri()], outputFormat="parquet")).run()
    table = read_parquet(out / "predictions_00001.parquet").read_all()
    assert table.column_names == ["instance", "prediction"]
    assert [json.loads(cell.as_py()) for cell in table.column("instance")] == [f"ü{n}" for n in range(count)]


async def test_pictures_are_fetched_and_told_by_their_uris(artifact, tmp_path, out):
    uris = ["gs://models/a.jpg", "gs://models/none.jpg", "gs://models/empty.jpg", "gs://elsewhere/a.jpg"]
    (tmp_path / "list").write_text("\n".join(uris))
    document = make_document(out, [(tmp_path / "list").as_uri()], inputFormat="file-list")
    with running_bucket({"a.jpg": b"12345", "empty.jpg": b""}) as bucket:
        await Runner(artifact, document, bucket.address).run()
    told = [{"content": uri, "mimeType": "image/jpeg"} for uri in uris]
    assert read_outputs(out) == [{"instance": told[0], "prediction": 5}]
    errors = read_outputs(out, "errors")
    assert [each["instance"] for each in errors] == told[1:]
    assert [each["error"]["code"] for each in errors] == [5, 3, 5]
    assert errors[0]["error"]["message"] == "content: gs://models/none.jpg: nothing is there"


async def test_storage_that_is_away_ends_the_worker(artifact, tmp_path, out, monkeypatch):
    monkeypatch.setattr("pierhead_server.fetch.MAX_RETRIES", 0)
    (tmp_path / "list").write_text("gs://models/a.jpg\n")
    document = make_document(out, [(tmp_path / "list").as_uri()], inputFormat="file-list")
    with (
        running_bucket({}, failing=503) as bucket,
        pytest.raises(StorageUnreachableError, match=r"^gs://models/a.jpg: .*503"),
    ):
        await Runner(artifact, document, bucket.address).run()


async def test_claims_are_folders(artifact, tmp_path, out, monkeypatch):
    monkeypatch.setattr(Storage.__init__, "__defaults__", (str(tmp_path),))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a b.jsonl").write_text('{"content": "pvc://data/x%.png"}')
    (tmp_path / "data" / "x%.png").write_bytes(b"123")
    await Runner(artifact, make_document("pvc://data/out", ["pvc://data/*.jsonl"])).run()
    (line,) = read_outputs(tmp_path / "data" / "out")
    assert line["prediction"] == 3
    manifest = json.loads((tmp_path / "data" / "out" / "manifest.json").read_text())
    assert manifest["inputFiles"][0]["uri"] == "pvc://data/a b.jsonl"


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("file:///no/such", InputNotFoundError, "file:///no/such: nothing is there"),
        ("file:///no/such/*.jsonl", InputNotFoundError, "file:///no/such/\\*.jsonl: no file matches"),
        ("https://example.test/*.jsonl", InputInvalidError, "name each file"),
    ],
)
async def test_input_that_is_not_there_is_told(artifact, out, uri, error, message):
    with pytest.raises(error, match=message):
        await Runner(artifact, make_document(out, [uri])).run()


async def test_input_that_changes_is_told(artifact, lines, out):
    runner = Runner(artifact, make_document(out, [lines.as_uri()], shards=2))
    await runner.make(0).run()
    lines.write_text("1\n")
    with pytest.raises(InputInvalidError, match="it was changed after the job had begun"):
        await runner.make(1).run()


async def test_output_of_another_job_is_not_touched(artifact, lines, out):
    await Runner(artifact, make_document(out, [lines.as_uri()])).run()
    other = Runner(artifact, make_document(out, [lines.as_uri()], modelParameters={"a": 1}))
    with pytest.raises(OutputNotWritableError, match="it holds the output of another job"):
        await other.run()
    check(out, lines)


async def test_output_that_cannot_be_written_is_told(artifact, lines):
    with pytest.raises((OutputNotWritableError, StorageUnreachableError), match="file:///proc/out"):
        await Runner(artifact, make_document(Path("/proc/out"), [lines.as_uri()])).run()


async def test_parameters_are_a_routines_arguments(artifact, lines, out):
    runner = Runner(artifact, make_document(out, [lines.as_uri()], modelParameters={"a": [1]}))
    answering = Answering()
    await runner.make(workers=answering).run()
    assert {json.dumps(arguments) for _, arguments in answering.calls} == {'{"a": [1]}'}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": 0}, "PIERHEAD_BATCH_JOB: shards: "),
        ({"inputUris": ["x.jsonl"]}, "PIERHEAD_BATCH_JOB: inputUris.0: "),
        ({"colour": 1}, "PIERHEAD_BATCH_JOB: colour: "),
        ({"outputUri": "https://a/b"}, "PIERHEAD_BATCH_JOB: outputUri: "),
        (
            {"instanceConfig": {"includedFields": ["a"], "excludedFields": ["b"]}},
            "PIERHEAD_BATCH_JOB: instanceConfig: .*at most one of includedFields and excludedFields",
        ),
        (
            {"instanceConfig": {"keyField": "a", "excludedFields": ["a"]}},
            "PIERHEAD_BATCH_JOB: instanceConfig: .*take it out of excludedFields",
        ),
        (
            {"inputFormat": "file-list", "instanceConfig": {"keyField": "a"}},
            "PIERHEAD_BATCH_JOB: .*instanceConfig: a file-list has no fields",
        ),
    ],
)
def test_wrong_document_is_told_by_field(change, message):
    document = make_document("gs://b/out", ["gs://b/in"]) | change
    with pytest.raises(SettingsInvalidError, match=rf"^{message}"):
        read_task({"PIERHEAD_BATCH_JOB": json.dumps(document), "JOB_COMPLETION_INDEX": "0"})


@pytest.mark.parametrize("index", ["", "1", "-1", "x"])
def test_wrong_index_is_told(index):
    document = json.dumps(make_document("gs://b/out", ["gs://b/in"]))
    with pytest.raises(SettingsInvalidError, match=r"^JOB_COMPLETION_INDEX: must be a shard's number from 0 to 0"):
        read_task({"PIERHEAD_BATCH_JOB": document, "JOB_COMPLETION_INDEX": index})
