"""Jobs in S3, of which a server is asked that is a process of its own."""

import asyncio
import json

import pytest
from pierhead_server.batch import shard as sharding
from pierhead_server.batch import storage as storing
from pierhead_server.batch.errors import InputNotFoundError, OutputNotWritableError
from pierhead_server.batch.pulse import Pulse
from pierhead_server.batch.storage import Storage
from prometheus_client import CollectorRegistry

from tests.s3 import PAGE, running_s3
from tests.unit.server.batch.jobs import ANYWHERE, Answering, Runner, make_document, read_outputs

LINES = 40


@pytest.fixture(scope="module")
def server():
    with running_s3() as server:
        for bucket in ("batch-in", "batch-out"):
            server.make_bucket(bucket)
        yield server


@pytest.fixture
def s3(server, monkeypatch):
    """The server, which a Storage finds by the environment."""
    monkeypatch.setattr(sharding, "CHUNK_LINES", 4)
    monkeypatch.setattr(storing, "FIRST_BACKOFF_SECONDS", 0.001)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def storage(s3):
    return Storage(None, Pulse(CollectorRegistry()), ANYWHERE)


def put_lines(s3, name, lines):
    s3.put("batch-in", name, "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode())
    return f"s3://batch-in/{name}"


def read_lines(s3, folder, kind="predictions"):
    """The lines of all shards' files, parsed."""
    names = [name for name in s3.list("batch-out", folder) if name.startswith(f"{folder}/{kind}_")]
    return [json.loads(line) for name in names for line in s3.get("batch-out", name).splitlines()]


# As the operator makes them of a Model's display name.
FOLDERS = [
    "prediction-" + name for name in ("\u5199" * 42, "\U0001f5bc", "..", "_.._etc", "Fotos_\u00e4\u00f6", "a" * 128)
]


@pytest.mark.parametrize("name", FOLDERS, ids=ascii)
@pytest.mark.parametrize("prefix", ["s3://batch-out", "file://{tmp_path}", "pvc://claim"])
async def test_folder_may_have_any_models_name(artifact, s3, tmp_path, monkeypatch, prefix, name):
    monkeypatch.setattr(Storage.__init__, "__defaults__", (str(tmp_path),))
    uri = put_lines(s3, "names/1.jsonl", range(3))
    folder = f"{prefix.format(tmp_path=tmp_path)}/{name}-2026_11_22T12_00_00_1b4e28baZ"
    runner = Runner(artifact, make_document(folder, [uri], shards=2))
    assert await runner.run()
    where = folder.partition("://")[2].removeprefix("batch-out/")
    if prefix.startswith("s3"):
        assert [line["prediction"] for line in read_lines(s3, where)] == [0, 1, 2]
        assert f"{where}/_SUCCESS" in s3.list("batch-out", where)
    else:
        path = tmp_path / where.removeprefix(f"{tmp_path}/")
        assert [line["prediction"] for line in read_outputs(path)] == [0, 1, 2]
        assert (path / "_SUCCESS").is_file()


async def test_job_is_run_resumed_and_finished(artifact, s3):
    s3.put("batch-in", "a b.jpg", b"12345")
    missing = {"content": "s3://batch-in/none.jpg"}, {"content": "s3://nowhere/a.jpg"}
    first = put_lines(s3, "job/1.jsonl", [{"content": "s3://batch-in/a b.jpg"}, missing[0], "{broken", *range(LINES)])
    put_lines(s3, "job/2.jsonl", [*range(LINES, 2 * LINES), missing[1], '"refuse"'])
    document = make_document("s3://batch-out/job", [f"{first.rpartition('/')[0]}/*.jsonl"], shards=2)
    runner = Runner(artifact, document)
    begun = runner.make()
    attempt = asyncio.create_task(begun.run())
    while begun.progress.successful < 10:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)  # of the loop, in which the worker runs
    attempt.cancel()
    await asyncio.wait({attempt})
    await begun.leave()
    answering = Answering()
    assert not await runner.make(workers=answering).run()
    assert 0 < len(answering.calls) <= LINES + 1 - begun.progress.successful
    assert await runner.make(1).run()
    assert [line["prediction"] for line in read_lines(s3, "job")] == [5, *range(2 * LINES)]
    errors = read_lines(s3, "job", "errors")
    assert [line["instance"] for line in errors] == [missing[0], "{broken", missing[1], "refuse"]
    assert [line["error"]["code"] for line in errors] == [5, 3, 5, 3]
    assert errors[0]["error"]["message"] == "content: s3://batch-in/none.jpg: nothing is there"
    manifest = json.loads(s3.get("batch-out", "job/manifest.json"))
    assert (manifest["successful"], manifest["failed"]) == (2 * LINES + 1, 4)
    assert s3.get("batch-out", "job/_SUCCESS") == b""
    assert not s3.list("batch-out", "job/.pierhead/parts")
    assert not s3.list("batch-out", "job/.pierhead/tries")


async def test_two_workers_of_one_shard_make_one_output(artifact, s3):
    uri = put_lines(s3, "two.jsonl", range(LINES))
    runner = Runner(artifact, make_document("s3://batch-out/two", [uri]))
    assert any(await asyncio.gather(*(runner.make().run() for _ in range(2))))
    assert [line["prediction"] for line in read_lines(s3, "two")] == [*range(LINES)]


async def test_large_output_is_written_in_many_parts(artifact, s3, storage):
    lines = [f"{number}{'x' * 2_000_000}" for number in range(6)]
    await Runner(
        artifact, make_document("s3://batch-out/large", [put_lines(s3, "large.jsonl", map(json.dumps, lines))])
    ).run()
    assert [line["prediction"] for line in read_lines(s3, "large")] == lines
    entry = await storage.head("s3://batch-out/large/predictions_00001.jsonl")
    assert entry.tag.endswith("-3"), "24 MB in parts of 8 MiB"


async def test_object_is_created_once(storage):
    uri = "s3://batch-out/on ce/a.json"
    assert await storage.create(uri, b"first")
    assert not await storage.create(uri, b"second")
    assert await storage.read_all(uri) == b"first"
    await storage.replace(uri, b"third")
    block = await storage.read(uri, 1, 100)
    assert (block.data, block.size, block.tag) == (b"hird", 5, (await storage.head(uri)).tag)


async def test_many_objects_are_listed_and_removed(storage):
    uris = [f"s3://batch-out/many/{number:04d}" for number in range(PAGE + 1)]
    await asyncio.gather(*(storage.create(uri, b"") for uri in uris))
    assert [entry.uri for entry in await storage.list_folder("s3://batch-out/many")] == uris
    await storage.delete(uris[:PAGE])
    assert [entry.uri for entry in await storage.list_folder("s3://batch-out/many")] == uris[PAGE:]


async def test_missing_bucket_is_told(artifact, s3, storage):
    uri = put_lines(s3, "few.jsonl", range(3))
    with pytest.raises(OutputNotWritableError, match=r"^s3://nowhere/out/\S+: no such bucket"):
        await Runner(artifact, make_document("s3://nowhere/out", [uri])).run()
    for name, cause in (("x.jsonl", "nothing is there"), ("*.jsonl", "no such bucket")):
        with pytest.raises(InputNotFoundError, match=rf"^s3://nowhere\S*: {cause}"):
            await Runner(artifact, make_document("s3://batch-out/none", [f"s3://nowhere/{name}"])).run()

    def write():
        with storage.writer("s3://nowhere/out") as sink:
            sink.write(b"x")

    with pytest.raises(OutputNotWritableError, match="no such bucket"):
        await asyncio.to_thread(write)
