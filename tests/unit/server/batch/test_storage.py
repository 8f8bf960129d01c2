"""Storage: what is created once, refused, retried; and an emulator that takes uploads in its own way."""

import asyncio
from urllib.parse import parse_qs, urlsplit

import pytest
from pierhead_server import fetch as fetching
from pierhead_server.batch import storage as storing
from pierhead_server.batch.errors import OutputNotWritableError, RefusedError, StorageUnreachableError
from pierhead_server.batch.predict import Budget
from pierhead_server.batch.pulse import Pulse
from pierhead_server.batch.storage import Storage
from prometheus_client import CollectorRegistry

from tests.unit.server import bucket as buckets
from tests.unit.server.batch.jobs import ANYWHERE
from tests.unit.server.bucket import running_bucket


class Uploads(buckets._Handler):
    """A bucket that takes objects by the JSON API, as emulators do."""

    def do_POST(self):  # noqa: N802 - http.server calls it so
        url = urlsplit(self.path)
        told = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if url.path != "/upload/storage/v1/b/models/o":
            self.answer(404)
        elif told.get("ifGenerationMatch") == "0" and told["name"] in self.server.objects:
            self.answer(412)
        else:
            self.server.objects[told["name"]] = body
            self.answer(200)


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(fetching, "MAX_RETRIES", 0)
    monkeypatch.setattr(storing, "FIRST_BACKOFF_SECONDS", 0.001)
    with running_bucket({}) as bucket:
        bucket.RequestHandlerClass = Uploads
        yield bucket


def make_storage(emulator=None):
    registry = CollectorRegistry()
    return Storage(emulator, Pulse(registry), ANYWHERE), registry


@pytest.fixture(params=["folder", "emulator"])
def place(request, bucket, tmp_path):
    """A storage, and a folder in it."""
    if request.param == "folder":
        return make_storage()[0], tmp_path.as_uri()
    return make_storage(bucket.address)[0], "gs://models/in ner"


async def test_links_in_a_claim_are_followed_inside_of_it_alone(tmp_path):
    claim, elsewhere = tmp_path / "volumes" / "claim", tmp_path / "elsewhere"
    for folder in (claim / "photos", elsewhere, tmp_path / "volumes" / "claim-2"):
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_text("here")
    (claim / "inside").symlink_to(claim / "photos")
    (claim / "out").symlink_to(elsewhere)
    (claim / "file.jsonl").symlink_to(elsewhere / "a.jsonl")
    (claim / "neighbour").symlink_to("../claim-2")
    storage = Storage(None, Pulse(CollectorRegistry()), ANYWHERE, volumes=str(tmp_path / "volumes"))
    assert (await storage.read("pvc://claim/inside/a.jsonl", 0, 4)).data == b"here"
    for uri in ("out/a.jsonl", "file.jsonl", "neighbour/a.jsonl"):
        with pytest.raises(RefusedError, match="a link leads out of the claim"):
            await storage.read(f"pvc://claim/{uri}", 0, 4)
    with pytest.raises(RefusedError, match="a link leads out of the claim"):
        await storage.list_folder("pvc://claim/out")
    with pytest.raises((RefusedError, OutputNotWritableError), match="a link leads out of the claim"):
        await storage.create("pvc://claim/out/b.json", b"x")
    assert not (elsewhere / "b.json").exists()


async def test_object_is_created_once(place):
    storage, folder = place
    uri = f"{folder}/a/b.json"
    assert await storage.create(uri, b"first")
    assert not await storage.create(uri, b"second")
    assert await storage.read_all(uri) == b"first"
    await storage.replace(uri, b"third")
    assert await storage.read_all(uri) == b"third"
    block = await storage.read(uri, 1, 100)
    assert (block.data, block.size) == (b"hird", 5)
    assert block.tag == (await storage.head(uri)).tag if folder.startswith("file") else True
    assert [entry.uri for entry in await storage.list_folder(f"{folder}/a")] == [uri]
    assert await storage.list_folder(f"{folder}/none") == []


async def test_writer_makes_an_object_when_it_ends_well(place):
    storage, folder = place
    uri = f"{folder}/big"

    def write(fail):
        with storage.writer(uri) as sink:
            for _ in range(12):
                sink.write(b"x" * 1_000_000)
            if fail:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(write, True)
    with pytest.raises(FileNotFoundError, match="nothing is there"):
        await storage.read_all(uri)
    await asyncio.to_thread(write, False)
    assert len(await storage.read_all(uri)) == 12_000_000


async def test_missing_bucket_is_not_writable(bucket):
    storage, _ = make_storage(bucket.address)
    with pytest.raises(OutputNotWritableError, match=r"^gs://elsewhere/x: no such bucket"):
        await storage.create("gs://elsewhere/x", b"")


async def test_request_is_tried_again(bucket):
    storage, registry = make_storage(bucket.address)
    bucket.objects["x"] = b"12345678"
    bucket.breaking = 2
    assert await storage.read_all("gs://models/x") == b"12345678"
    bucket.failing = 503
    with pytest.raises(StorageUnreachableError, match=r"^gs://models/x: .*503"):
        await storage.read_all("gs://models/x")
    assert registry.get_sample_value("pierhead_batch_storage_retries_total") >= storing.ROUNDS - 1


@pytest.mark.parametrize("code", [401, 403])
async def test_refusal_is_not_tried_again(bucket, code):
    storage, registry = make_storage(bucket.address)
    bucket.failing = code
    with pytest.raises(RefusedError, match=f"^gs://models/x: .*{code}"):
        await storage.read_all("gs://models/x")
    assert registry.get_sample_value("pierhead_batch_storage_retries_total") == 0


async def test_budget_is_shared():
    budget, held, most = Budget(10), 0, 0

    async def take(size):
        nonlocal held, most
        with budget.share() as share:
            await share.take(size)
            held += size
            most = max(most, held)
            await asyncio.sleep(0)
            held -= size

    await asyncio.wait_for(asyncio.gather(*map(take, [4, 5, 25, 6, 3, 11, 1])), 5)
    assert most == 25  # the one that is more than all waits until nobody holds any
    assert held == 0
