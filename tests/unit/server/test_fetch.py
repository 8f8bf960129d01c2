"""Fetching: what is copied, taken again, refused; and what becomes of a download that breaks."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from pierhead_server import fetch as fetching
from pierhead_server.artifact import compute_digest, read_artifact
from pierhead_server.cache import Cache
from pierhead_server.errors import ArtifactInvalidError, ArtifactNotFoundError, ArtifactUnreachableError
from pierhead_server.fetch import fetch_artifact

from tests.unit.server.bucket import running_bucket
from tests.unit.server.conftest import DEADLINE_SECONDS, wait_until

URI = "gs://models/photos/1"
MODEL_FILE = b"""\
format: torchvision
architecture: resnet18
weights: model.safetensors
labels: labels.txt
"""


@pytest.fixture
def folder(tmp_path):
    """A complete folder; what is in the weights shows only when they are loaded."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.yaml").write_bytes(MODEL_FILE)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "labels.txt").write_text("ant\nbee\n")
    return folder


def fetch(uri, tmp_path, emulator=None, **given):
    return fetch_artifact(uri, Cache(tmp_path / "models"), **({"emulator": emulator, "max_bytes": None} | given))


def test_folder_on_disk_is_read_in_place(folder, tmp_path):
    spaced = tmp_path / "with space"
    spaced.mkdir()
    shutil.copy(folder / "model.yaml", spaced)
    assert fetch(spaced.as_uri(), tmp_path) == spaced


def test_download_is_told_what_comes_and_a_copy_is_not(objects, tmp_path):
    told = []
    with running_bucket(objects) as bucket:
        for _ in range(2):
            fetch("gs://models/photos/1", tmp_path, bucket.address, on_download=told.append)
    assert [config.format for config in told] == ["torchvision"]


def test_missing_folder_is_not_found(tmp_path):
    with pytest.raises(ArtifactNotFoundError, match="no such folder"):
        fetch((tmp_path / "none").as_uri(), tmp_path)


@pytest.fixture
def objects(folder):
    """The folder as objects of a bucket, among others."""
    files = {f"photos/1/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return files | {"photos/1/sub/b c.txt": b"x" * 3_000_000, "photos/10/model.yaml": b"another", "photos/1/sub": b""}


def test_objects_under_the_prefix_are_copied(objects, folder, tmp_path):
    with running_bucket(objects) as bucket:
        fetched = fetch("gs://models/photos/1", tmp_path, bucket.address)
    assert fetched.parent == tmp_path / "models"
    assert read_artifact(fetched).labels == ("ant", "bee")
    names = {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()}
    assert names == {"model.yaml", "model.safetensors", "labels.txt", "sub/b c.txt"}
    assert (fetched / "sub" / "b c.txt").stat().st_size == 3_000_000
    # The emulator answers this name alone; see open_store.
    assert bucket.hosts == {"storage.googleapis.com"}


@pytest.mark.parametrize("uri", ["gs://models/photos/2", "gs://elsewhere/photos/1"])
def test_nothing_there_is_not_found(uri, objects, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_RETRIES", 0)
    with running_bucket(objects) as bucket, pytest.raises(ArtifactNotFoundError, match=f"{uri}: nothing is there"):
        fetch(uri, tmp_path, bucket.address)


def test_objects_without_model_file_are_invalid(objects, tmp_path):
    del objects["photos/1/model.yaml"]
    with running_bucket(objects) as bucket, pytest.raises(ArtifactInvalidError, match=r"model.yaml: missing under gs"):
        fetch("gs://models/photos/1", tmp_path, bucket.address)


def test_bad_model_file_ends_the_download(objects, tmp_path):
    objects["photos/1/model.yaml"] = b"format: pickle"
    with running_bucket(objects) as bucket, pytest.raises(ArtifactInvalidError, match="format: must be"):
        fetch("gs://models/photos/1", tmp_path, bucket.address)
    assert (bucket.names, bucket.listings) == (["photos/1/model.yaml"], 0)


def test_size_limit_is_kept(objects, tmp_path):
    with running_bucket(objects) as bucket, pytest.raises(ArtifactInvalidError, match="PIERHEAD_MAX_ARTIFACT_BYTES"):
        fetch("gs://models/photos/1", tmp_path, bucket.address, max_bytes=1_000_000)


def test_object_names_cannot_leave_the_folder(objects, tmp_path):
    objects["photos/1/../../escaped"] = b"x"
    with running_bucket(objects) as bucket, pytest.raises((ArtifactInvalidError, ArtifactUnreachableError)):
        fetch("gs://models/photos/1", tmp_path, bucket.address)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("failing", [401, 403, 503])
def test_storage_that_fails_is_unreachable(failing, objects, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_RETRIES", 1)
    with running_bucket(objects, failing) as bucket, pytest.raises(ArtifactUnreachableError, match=str(failing)):
        fetch("gs://models/photos/1", tmp_path, bucket.address)


def test_storage_that_is_away_is_unreachable(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_RETRIES", 0)
    with running_bucket({}) as bucket:
        away = bucket.address
    with pytest.raises(ArtifactUnreachableError, match="gs://models/photos/1: "):
        fetch("gs://models/photos/1", tmp_path, away)


def test_disk_that_cannot_be_written_is_unreachable(objects, tmp_path):
    (tmp_path / "models").write_text("a file where the folder should be")
    with running_bucket(objects) as bucket, pytest.raises(ArtifactUnreachableError, match="copying it to"):
        fetch("gs://models/photos/1", tmp_path, bucket.address)


def big(size, seed=0):
    """Bytes that no two places share."""
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture
def small_ranges(monkeypatch):
    """Ranges of 1 MB: what takes gigabytes elsewhere takes megabytes here."""
    monkeypatch.setattr(fetching, "_RANGE_BYTES", 1_000_000)
    monkeypatch.setattr(fetching, "_CHUNK_BYTES", 100_000)


def test_ranges_of_a_file_come_in_parallel(objects, tmp_path, small_ranges):
    objects["photos/1/model.safetensors"] = big(3_500_001)
    with running_bucket(objects) as bucket:
        bucket.open.clear()
        copies = []
        thread = threading.Thread(target=lambda: copies.append(fetch(URI, tmp_path, bucket.address)))
        thread.start()
        for _ in range(fetching._WORKERS):
            assert bucket.stopped.acquire(timeout=DEADLINE_SECONDS)
        bucket.open.set()
        thread.join()
    assert (copies[0] / "model.safetensors").read_bytes() == objects["photos/1/model.safetensors"]
    parts = [part for name, part in bucket.ranges if name == "photos/1/model.safetensors"]
    assert sorted(parts) == [
        "bytes=0-999999",
        "bytes=1000000-1999999",
        "bytes=2000000-2999999",
        "bytes=3000000-3500000",
    ]


def test_files_of_any_size_are_copied(objects, tmp_path, small_ranges):
    sizes = (0, 1, 999_999, 1_000_000, 1_000_001)
    objects |= {f"photos/1/{size}": big(size, size) for size in sizes}
    with running_bucket(objects) as bucket:
        copy = fetch(URI, tmp_path, bucket.address)
    assert all((copy / str(size)).read_bytes() == big(size, size) for size in sizes)


def test_answers_that_break_off_are_gone_on_with(objects, tmp_path, small_ranges, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_RETRIES", 0)  # of obstore: our own come after them
    objects["photos/1/model.safetensors"] = big(5_000_000)
    with running_bucket(objects) as bucket:
        bucket.breaking = 4
        copy = fetch(URI, tmp_path, bucket.address)
    assert bucket.breaking == 0
    assert (copy / "model.safetensors").read_bytes() == objects["photos/1/model.safetensors"]
    starts = [re.search(r"\d+", part)[0] for name, part in bucket.ranges if part]
    assert any(int(start) % 1_000_000 for start in starts)  # from where it broke off, not anew


def test_answers_that_go_on_breaking_off_are_unreachable(objects, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_RETRIES", 0)
    monkeypatch.setattr(fetching, "MAX_BREAKS", 1)
    with running_bucket(objects) as bucket:
        bucket.breaking = 1000
        with pytest.raises(ArtifactUnreachableError, match="broke off 2 times: "):
            fetch(URI, tmp_path, bucket.address)
    assert list((tmp_path / "models").iterdir()) == [tmp_path / "models" / ".lock"]


def test_object_that_changes_between_its_ranges_is_not_mixed(objects, tmp_path, small_ranges):
    objects["photos/1/model.safetensors"] = big(2_000_000)
    with running_bucket(objects) as bucket:
        bucket.open.clear()
        errors = []

        def run():
            with pytest.raises(ArtifactUnreachableError) as caught:
                fetch(URI, tmp_path, bucket.address)
            errors.append(str(caught.value))

        thread = threading.Thread(target=run)
        thread.start()
        assert bucket.stopped.acquire(timeout=DEADLINE_SECONDS)
        objects |= {name: body[::-1] for name, body in objects.items() if not name.endswith(".yaml")}
        bucket.open.set()
        thread.join()
    assert errors[0].endswith("it changed while it was copied")


def test_digest_is_verified(objects, folder, tmp_path):
    objects = {name: body for name, body in objects.items() if (folder / name.removeprefix("photos/1/")).is_file()}
    digest = compute_digest(folder)
    with running_bucket(objects) as bucket:
        copy = fetch(URI, tmp_path, bucket.address, digest=digest)
        assert compute_digest(copy) == digest
        wrong = "sha256:" + "0" * 64
        with pytest.raises(ArtifactInvalidError, match=f"digest: the artifact is {digest}, not {wrong}"):
            fetch(URI, tmp_path, bucket.address, digest=wrong)
        assert not (copy.parent / wrong.replace(":", "-")).exists()


def test_digest_of_a_folder_on_disk_is_verified(folder, tmp_path):
    assert fetch(folder.as_uri(), tmp_path, digest=compute_digest(folder)) == folder
    with pytest.raises(ArtifactInvalidError, match="digest: the artifact is "):
        fetch(folder.as_uri(), tmp_path, digest="sha256:" + "0" * 64)


@pytest.mark.parametrize("with_digest", [True, False])
def test_copy_with_a_link_out_of_it_is_fetched_anew(objects, tmp_path, with_digest):
    """As who shares the folder might put there, to have another file read."""
    objects["photos/1/sub/labels"] = b"ant\n"
    (tmp_path / "secret").write_bytes(b"bee\n")
    with running_bucket(objects) as bucket:
        digest = compute_digest(fetch(URI, tmp_path, bucket.address)) if with_digest else None
        copy = fetch(URI, tmp_path, bucket.address, digest=digest)
        (copy / "sub" / "labels").unlink()
        (copy / "sub" / "labels").symlink_to(tmp_path / "secret")
        again = fetch(URI, tmp_path, bucket.address, digest=digest)
    assert (again / "sub" / "labels").read_bytes() == b"ant\n"
    assert not (again / "sub" / "labels").is_symlink()


def test_folder_on_disk_with_a_link_out_of_it_is_refused(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (folder / "more").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactInvalidError, match="more: a link out of the artifact's folder"):
        fetch(folder.as_uri(), tmp_path, digest=f"sha256:{'0' * 64}")
    with pytest.raises(ArtifactInvalidError, match="more: a link out of the artifact's folder"):
        read_artifact(fetch(folder.as_uri(), tmp_path))


def test_copy_with_the_digest_is_taken_without_asking_storage(objects, tmp_path):
    with running_bucket(objects) as bucket:
        copy = fetch(URI, tmp_path, bucket.address)
        digest = compute_digest(copy)
        copy = fetch(URI, tmp_path, bucket.address, digest=digest)
        asked = (len(bucket.names), bucket.listings)
        assert fetch(URI, tmp_path, bucket.address, digest=digest) == copy
        assert (len(bucket.names), bucket.listings) == asked


def test_copy_is_taken_where_storage_lists_the_same(objects, tmp_path):
    with running_bucket(objects) as bucket:
        copy = fetch(URI, tmp_path, bucket.address)
        inode = copy.stat().st_ino
        bucket.ranges.clear()
        assert fetch(f"{URI}", tmp_path, bucket.address) == copy
        assert (bucket.names, copy.stat().st_ino) == (["photos/1/model.yaml"], inode)


def test_changed_listing_is_fetched_anew(objects, tmp_path):
    with running_bucket(objects) as bucket:
        copy = fetch(URI, tmp_path, bucket.address)
        objects["photos/1/labels.txt"] = b"bee\nant\n"
        again = fetch(URI, tmp_path, bucket.address)
    assert again != copy
    assert read_artifact(again).labels == ("bee", "ant")


def test_listing_without_tags_proves_nothing(objects, tmp_path):
    with running_bucket(objects) as bucket:
        bucket.tagging = False
        assert fetch(URI, tmp_path, bucket.address) != fetch(URI, tmp_path, bucket.address)


def test_copy_that_nobody_can_take_again_is_removed(objects, tmp_path):
    with running_bucket(objects) as bucket:
        bucket.tagging = False
        with start_fetching(tmp_path, bucket.address) as process:
            read_copy(process)
        copy = fetch(URI, tmp_path, bucket.address)
    assert get_names(tmp_path / "models") == {".lock", copy.name}


def test_copy_of_before_a_reboot_proves_nothing_without_a_digest(objects, tmp_path, monkeypatch):
    with running_bucket(objects) as bucket:
        digest = compute_digest(fetch(URI, tmp_path, bucket.address))
        copies = [fetch(URI, tmp_path, bucket.address, digest=given) for given in (None, digest)]
        monkeypatch.setattr(fetching, "_read_boot", lambda: "the next start")
        again = [fetch(URI, tmp_path, bucket.address, digest=given) for given in (None, digest)]
    assert again[0] != copies[0]
    assert again[1] == copies[1]


@pytest.mark.parametrize("with_digest", [False, True])
def test_spoilt_copy_is_fetched_anew(objects, tmp_path, with_digest):
    with running_bucket(objects) as bucket:
        digest = compute_digest(fetch(URI, tmp_path, bucket.address)) if with_digest else None
        copy = fetch(URI, tmp_path, bucket.address, digest=digest)
        (copy / "labels.txt").write_text("an")
        assert fetch(URI, tmp_path, bucket.address, digest=digest) == copy
    assert read_artifact(copy).labels == ("ant", "bee")


FETCH = """
import logging, re, sys
from pathlib import Path
from pierhead_server.cache import Cache
from pierhead_server.fetch import fetch_artifact
logging.basicConfig(level=logging.INFO)
uri, models, address, keep = sys.argv[1:]
import obstore.store
def peak():  # in kB, of this program alone: getrusage counts what its parent was before exec
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
cache = Cache(Path(models), int(keep) if keep else None)
print(fetch_artifact(uri, cache, emulator=address or None, max_bytes=None), flush=True)
print(peak() - before, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def start_fetching(tmp_path, address, uri=URI, *, keep="", log=None, **environment):
    """`fetch_artifact` in a process that goes on living, and using the copy, until its stdin is closed."""
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", FETCH, uri, str(tmp_path / "models"), address, str(keep)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context(log.open("wb")) if log else None,
                text=True,
                env=dict(os.environ) | environment,
            )
        )
        try:
            yield process
        finally:
            process.kill()


def read_copy(process):
    """The folder that it uses now."""
    return Path(process.stdout.readline().strip())


def get_names(folder):
    return {path.name for path in folder.iterdir()}


def test_download_of_a_killed_process_is_removed(objects, tmp_path):
    models = tmp_path / "models"
    with running_bucket(objects) as bucket:
        bucket.open.clear()
        with start_fetching(tmp_path, bucket.address) as killed:
            assert bucket.stopped.acquire(timeout=DEADLINE_SECONDS)
            killed.kill()
        (left,) = models.glob("incoming-*")
        assert (left / "sub" / "b c.txt").stat().st_size == 3_000_000
        bucket.open.set()
        copy = fetch(URI, tmp_path, bucket.address)
    assert get_names(models) == {".lock", copy.name}


WAITS = "another process is copying the same artifact into "
WEIGHTS = "photos/1/model.safetensors"


def test_processes_at_once_fetch_once(objects, tmp_path):
    with running_bucket(objects) as bucket, contextlib.ExitStack() as stack:
        bucket.open.clear()
        first = stack.enter_context(start_fetching(tmp_path, bucket.address))
        assert bucket.stopped.acquire(timeout=DEADLINE_SECONDS)
        logs = [tmp_path / "log 1", tmp_path / "log 2"]
        others = [stack.enter_context(start_fetching(tmp_path, bucket.address, log=log)) for log in logs]
        for log, process in zip(logs, others, strict=True):
            wait_until(lambda log=log: WAITS in log.read_text(), process)
        bucket.open.set()
        (copy,) = {read_copy(process) for process in (first, *others)}
        assert bucket.names.count(WEIGHTS) == 1
        assert all("not fetched again" in log.read_text() for log in logs)
    assert get_names(tmp_path / "models") == {".lock", copy.name}


def test_who_waits_for_a_process_that_is_killed_fetches_itself(objects, tmp_path):
    with running_bucket(objects) as bucket:
        bucket.open.clear()
        log = tmp_path / "log"
        with start_fetching(tmp_path, bucket.address) as killed:
            assert bucket.stopped.acquire(timeout=DEADLINE_SECONDS)
            with start_fetching(tmp_path, bucket.address, log=log) as waiting:
                wait_until(lambda: WAITS in log.read_text(), waiting)
                killed.kill()
                bucket.open.set()
                copy = read_copy(waiting)
    assert (copy / "sub" / "b c.txt").read_bytes() == objects["photos/1/sub/b c.txt"]
    assert get_names(tmp_path / "models") == {".lock", copy.name}


def test_other_artifacts_are_not_waited_for(objects, tmp_path):
    objects["photos/3/model.yaml"] = MODEL_FILE
    with running_bucket(objects) as bucket:
        bucket.open.clear()
        with start_fetching(tmp_path, bucket.address):
            assert bucket.stopped.acquire(timeout=DEADLINE_SECONDS)
            copy = fetch("gs://models/photos/3", tmp_path, bucket.address)
            assert len(get_names(tmp_path / "models")) == 3  # the lock, the copy, and what is on its way
            bucket.open.set()
    assert (copy / "model.yaml").read_bytes() == MODEL_FILE


@pytest.mark.parametrize(("keep", "kept"), [(0, False), (10**9, True), ("", True)])
def test_cleaning_spares_what_is_in_use(objects, tmp_path, keep, kept):
    for number in (2, 3):
        objects[f"photos/{number}/model.yaml"] = MODEL_FILE
    models = tmp_path / "models"
    with running_bucket(objects) as bucket, start_fetching(tmp_path, bucket.address) as using:
        used = read_copy(using)
        with start_fetching(tmp_path, bucket.address, "gs://models/photos/2") as ending:
            ended = read_copy(ending)
        for _ in range(2):  # a start that fetches, and one that has its copy already
            with start_fetching(tmp_path, bucket.address, "gs://models/photos/3", keep=keep) as third:
                copy = read_copy(third)
            assert get_names(models) == {".lock", used.name, copy.name} | ({ended.name} if kept else set())


def test_memory_is_bounded(objects, tmp_path):
    objects["photos/1/model.safetensors"] = bytes(128_000_000)
    with running_bucket(objects) as bucket, start_fetching(tmp_path, bucket.address) as process:
        process.stdout.readline()
        kilobytes = int(process.stdout.readline())
        process.communicate("")
    assert kilobytes * 1024 < 64_000_000


def test_progress_is_logged(objects, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "pierhead_server.fetch")
    monkeypatch.setattr(fetching, "PROGRESS_SECONDS", 0.01)
    total = sum(len(body) for name, body in objects.items() if name.startswith("photos/1/"))
    with running_bucket(objects) as bucket:
        bucket.open.clear()
        thread = threading.Thread(target=fetch, args=(URI, tmp_path, bucket.address))
        thread.start()
        wait_until(lambda: re.search(rf"fetched \d+ of {total} bytes, \d+ MB/s", caplog.text))
        bucket.open.set()
        thread.join()
    assert f"fetched {total} of {total} bytes" in caplog.messages[-1]


def test_s3_is_read_with_the_environments_settings(objects, tmp_path):
    with (
        running_bucket(objects) as bucket,
        start_fetching(
            tmp_path,
            "",
            "s3://models/photos/1",
            AWS_ENDPOINT_URL=bucket.address,
            AWS_ALLOW_HTTP="true",
            AWS_ACCESS_KEY_ID="id",
            AWS_SECRET_ACCESS_KEY="key",
            AWS_REGION="eu-west-1",
        ) as process,
    ):
        copy = read_copy(process)
        process.communicate("")
    assert read_artifact(copy).labels == ("ant", "bee")


@pytest.mark.parametrize("uri", ["az://models/photos/1", "s3://models/photos/1", "gs://models/photos/1"])
def test_addresses_of_each_storage_are_understood(uri, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert str(fetching.open_store(uri, None).prefix) == "photos/1"


def test_azure_without_account_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ArtifactUnreachableError, match=r"(?i)^az://models/photos/1: .*account"):
        fetch("az://models/photos/1", tmp_path)


def test_query_of_a_signed_address_is_not_told():
    error = OSError("GET https://storage.example/o?X-Signature=secret failed\nsecret")
    assert fetching.first_line(error) == "GET https://storage.example/o failed"
