"""Files of web servers: what is read, where a redirect leads to, and what a dead host costs."""

import logging
import socket
from collections import defaultdict

import pytest
from pierhead_server.batch import predict as predicting
from pierhead_server.batch import storage as storing
from pierhead_server.batch.allowed import Allowed
from pierhead_server.batch.errors import (
    InputInvalidError,
    MalformedError,
    OutputNotWritableError,
    RefusedError,
    StorageUnreachableError,
)
from pierhead_server.batch.pulse import Pulse
from pierhead_server.batch.storage import ROUNDS, Storage
from prometheus_client import CollectorRegistry

from tests.unit.server.batch.jobs import ANYWHERE, Answering, Runner, make_document, read_outputs
from tests.unit.server.batch.websites import running_website


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(storing, "FIRST_BACKOFF_SECONDS", 0.001)


@pytest.fixture
def website():
    with running_website({"/a.jpg": b"12345", "/a%20b": b"1", "/a?b=c": b"123"}) as website:
        yield website


@pytest.fixture
def dead():
    """A port where nobody listens: it is taken, and by nobody else."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{port.getsockname()[1]}"


def make_storage(*entries):
    return Storage(None, Pulse(CollectorRegistry()), Allowed((*ANYWHERE.entries, *entries)))


async def admit(size):
    return 1000 if size is None else size


async def read(storage, uri):
    return await storage.read_all(uri, admit)


async def test_file_is_read_whole_and_in_part(website):
    storage, uri = make_storage(website.address), f"{website.address}/a.jpg"
    assert await read(storage, uri) == b"12345"
    block = await storage.read(uri, 1, 100)
    assert (block.data, block.size, block.tag) == (b"2345", 5, "1")
    entry = await storage.head(uri)
    assert (entry.size, entry.tag) == (5, "1")
    assert await read(storage, f"{website.address}/a b#part") == b"1"
    assert await read(storage, f"{website.address}/a%20b") == b"1"
    assert await read(storage, f"{website.address}/a?b=c") == b"123"


async def test_size_that_nobody_tells_is_bounded(website):
    website.telling = False
    storage = make_storage(website.address)
    assert await read(storage, f"{website.address}/a.jpg") == b"12345"
    website.pages["/large"] = b"x" * 1001
    with pytest.raises(RefusedError, match="it is longer than 1000 bytes"):
        await read(storage, f"{website.address}/large")
    with pytest.raises(RefusedError, match="does not tell its size"):
        await storage.head(f"{website.address}/a.jpg")


async def test_file_of_lines_needs_ranges(website):
    website.ranges = False
    with pytest.raises(RefusedError, match="does not answer ranges"):
        await make_storage(website.address).read(f"{website.address}/a.jpg", 0, 2)


async def test_redirect_is_followed_only_to_what_is_allowed(website):
    with running_website({"/secret": b"secret", "/a": b"here"}) as other:
        website.pages |= {
            "/here": "/a.jpg",
            "/twice": "here",
            "/for-ever": "/for-ever",
            "/there": f"{other.address}/a",
            "/metadata": "http://169.254.169.254/computeMetadata/v1/",
            "/file": "file:///etc/passwd",
            "/user": website.address.replace("//", "//user@"),
        }
        storage = make_storage(website.address)
        assert await read(storage, f"{website.address}/twice") == b"12345"
        for path in ("there", "metadata", "file", "user"):
            with pytest.raises(RefusedError, match=r"redirects elsewhere|a user and a password"):
                await read(storage, f"{website.address}/{path}")
            with pytest.raises(RefusedError):
                await storage.read(f"{website.address}/{path}", 0, 1)
        with pytest.raises(RefusedError, match="redirects more than 5 times"):
            await read(storage, f"{website.address}/for-ever")
        assert other.asked == []
        assert await read(make_storage(website.address, other.address), f"{website.address}/there") == b"here"


@pytest.mark.parametrize(
    ("status", "error", "requests"),
    [
        (404, FileNotFoundError, 1),
        (410, FileNotFoundError, 1),
        (401, RefusedError, 1),
        (400, RefusedError, 1),
        (204, RefusedError, 1),
        (300, RefusedError, 1),
        (429, StorageUnreachableError, ROUNDS),
        (500, StorageUnreachableError, ROUNDS),
    ],
)
async def test_answer_is_judged(website, status, error, requests):
    website.pages["/x"] = status
    with pytest.raises(error, match=f"^{website.address}/x: "):
        await read(make_storage(website.address), f"{website.address}/x")
    assert len(website.asked) == requests


@pytest.mark.parametrize(
    "uri", ["http://", "http://[::1/x", "http://h:99999/x", "http://a b/", "http://user@h/x", "http://\u24d4/"]
)
async def test_what_is_no_url_is_malformed(uri):
    with pytest.raises(MalformedError):
        await read(make_storage("http://*"), uri)


async def test_query_is_not_logged(dead, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(StorageUnreachableError):
        await read(make_storage(dead), f"{dead}/a?signature=secret")
    assert "/a: " in caplog.text
    assert "secret" not in caplog.text


async def test_host_that_is_away_is_its_lines_error_and_costs_its_retries_once(
    artifact, tmp_path, website, dead, monkeypatch
):
    monkeypatch.setattr(predicting, "MOST_FETCHES", 1)  # one after another: each knows of the one before
    with running_website(defaultdict(lambda: 503)) as away:
        allowed = Allowed((*ANYWHERE.entries, website.address, dead, away.address))
        good, bad = f"{website.address}/a.jpg", [f"{away.address}/{number}.jpg" for number in range(20)]
        (tmp_path / "list").write_text("\n".join([good, *bad, f"{dead}/x", good]))
        document = make_document(tmp_path / "out", [(tmp_path / "list").as_uri()], inputFormat="file-list")
        assert await Runner(artifact, document, allowed=allowed).run()
    assert [line["prediction"] for line in read_outputs(tmp_path / "out")] == [5, 5]
    errors = read_outputs(tmp_path / "out", "errors")
    assert [line["instance"]["content"] for line in errors] == [*bad, f"{dead}/x"]
    assert {line["error"]["code"] for line in errors} == {14}
    assert errors[0]["error"]["message"] == f"content: {bad[0]}: the server answers 503"
    assert len(away.asked) == ROUNDS + len(bad) - 1


async def test_lines_of_the_job_itself_may_lie_on_a_web_server(artifact, tmp_path, website):
    website.pages["/in.jsonl"] = b"1\n2\n3"
    runner = Runner(
        artifact,
        make_document(tmp_path / "out", [f"{website.address}/in.jsonl"], shards=2),
        allowed=Allowed((*ANYWHERE.entries, website.address)),
    )
    assert await runner.run()
    assert [line["prediction"] for line in read_outputs(tmp_path / "out")] == [1, 2, 3]


@pytest.mark.parametrize(
    "uri", ["http://169.254.169.254/latest/meta-data/", "https://example.test/a.jpg", "file:///etc/passwd"]
)
async def test_line_reaches_nothing_that_is_not_allowed(artifact, tmp_path, monkeypatch, uri):
    """By default: no metadata server, no other host, no file of the worker's own disk."""
    monkeypatch.setattr(Storage.__init__, "__defaults__", (str(tmp_path),))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "list").write_text(uri)
    document, workers = make_document("pvc://data/out", ["pvc://data/list"], inputFormat="file-list"), Answering()
    await Runner(artifact, document, allowed=Allowed()).make(workers=workers).run()
    (line,) = read_outputs(tmp_path / "data" / "out", "errors")
    assert line["error"]["code"] == 7
    assert "this installation does not allow" in line["error"]["message"]
    assert not workers.calls


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"inputUris": ["file:///in.jsonl"]}, InputInvalidError),
        ({"inputUris": ["https://example.test/in.jsonl"]}, InputInvalidError),
        ({"outputUri": "file:///tmp/out"}, OutputNotWritableError),
    ],
)
async def test_job_reaches_nothing_that_is_not_allowed(artifact, change, error):
    document = make_document("pvc://data/out", ["pvc://data/list"]) | change
    with pytest.raises(error, match="this installation does not allow"):
        await Runner(artifact, document, allowed=Allowed()).run()
