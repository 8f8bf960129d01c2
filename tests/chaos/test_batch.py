"""Batch prediction while workers and the operator are killed again and again."""

import json
import random
import re
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import pytest

from tests.batch import (
    ENDED,
    Storage,
    count_predictions,
    kill_first_process,
    kill_worker,
    list_workers,
    make_batch,
    make_picture,
    read_output,
    read_parts,
    split_uri,
    state,
)
from tests.chaos.killer import Killer, kill_operator
from tests.e2e.conftest import make_model
from tests.kube import scratch_namespace, wait_operator, wait_until

LINES = 20_000
SHARDS = 4
FILES = 3
PICTURES = 100
DEATHS = 5  # of each shard's workers: Kubernetes makes the n-th one again after 10 s * 2^(n-1)
OPERATOR_DEATHS = 5
FRESH_SECONDS = 10.0  # the oldest that the counts may be
# Of an operator that was killed: another pod starts, and takes the Lease when it is over.
OPERATOR_BACK_SECONDS = 30.0
# Of each hundred lines, those that cannot be predicted, and google.rpc.Code for them.
WRONG = {3: 5, 5: 3, 7: 3}
INDEX = "batch.kubernetes.io/job-completion-index"


def _make_line(number):
    if number % 100 == 7:
        return f'{{"mimeType": "n/{number}"'
    name = {3: "nowhere", 5: "corrupt"}.get(number % 100, f"pictures/{number % PICTURES:03d}")
    # A line after an empty one now and then.
    line = json.dumps({"content": f"gs://chaos-in/{name}.jpg", "mimeType": f"n/{number}"})
    return f"\n{line}" if number % 100 == 9 else line


@pytest.fixture(scope="module")
def storage(cluster):
    with Storage.connected() as storage:
        for bucket in ("chaos-in", "chaos-out"):
            storage.make_bucket(bucket)
        picture = make_picture()
        for number in range(PICTURES):
            storage.put("chaos-in", f"pictures/{number:03d}.jpg", picture)
        storage.put("chaos-in", "corrupt.jpg", b"this is no picture")
        for file in range(FILES):
            numbers = range(LINES * file // FILES, LINES * (file + 1) // FILES)
            storage.put("chaos-in", f"lines/{file}.jsonl", "\n".join(map(_make_line, numbers)).encode())
        yield storage


@pytest.fixture
def photos(storage):
    with scratch_namespace("chaos-batch") as kubectl:
        kubectl.apply(make_model(v1="photos/1"))
        yield kubectl


def _start(kubectl, name):
    """A job of all lines; its folder."""
    kubectl.apply(
        make_batch(
            name,
            ["gs://chaos-in/lines/*.jsonl"],
            output="gs://chaos-out",
            dedicatedResources={"startingReplicaCount": SHARDS},
        )
    )
    return wait_until("it has a folder", lambda: _status(kubectl, name).get("outputInfo", {}).get("gcsOutputDirectory"))


def _status(kubectl, name):
    return kubectl.get("batchpredictionjob", name).get("status", {})


class WorkerKiller:
    """Kills one worker of those shards that lost the fewest, by SIGKILL and by deletion in turn."""

    def __init__(self, kubectl, name):
        self._kubectl = kubectl
        self._name = name
        self._random = random.Random(20261122)  # noqa: S311
        self.deaths = Counter()
        self.last = {}  # of each shard, when

    def __call__(self):
        running = [pod for pod in list_workers(self._kubectl, self._name) if self.deaths[_shard(pod)] < DEATHS]
        if not running:
            return 0
        self._random.shuffle(running)
        pod = min(running, key=lambda pod: self.deaths[_shard(pod)])
        if self.deaths.total() % 2:
            self._kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force", "--wait=false")
        elif not kill_first_process(pod):
            return 0
        self.deaths[_shard(pod)] += 1
        self.last[_shard(pod)] = time.monotonic()
        return 1


def _shard(pod):
    return int(pod["metadata"]["labels"][INDEX])


@dataclass(frozen=True)
class Chunk:
    """What was committed, and when it was seen."""

    seen: float
    shard: int
    lines: int


@dataclass
class Sample:
    """What the status counted at a moment, and how old the oldest commit is that it did not count."""

    moment: float
    counted: int
    age: float


@dataclass
class Watch:
    """Compares, while a job runs, what its status counts with what is committed; `with` starts and ends it."""

    kubectl: object
    storage: Storage
    name: str
    folder: str
    chunks: dict[str, Chunk] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self):
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()

    def _run(self):
        bucket, prefix = split_uri(self.folder)
        while not self._stopped.wait(0.5):
            for name in self.storage.list(bucket, f"{prefix}/.pierhead/parts/"):
                if name not in self.chunks:
                    self._add(bucket, name)
            moment = time.monotonic()
            status = _status(self.kubectl, self.name)
            stats = status.get("completionStats", {})
            if status["state"] == "JOB_STATE_SUCCEEDED":
                return  # its shards are told by its manifest.json alone
            shards = {one["shard"]: one.get("successful", 0) + one.get("failed", 0) for one in status["shards"]}
            counted = stats.get("successfulCount", 0) + stats.get("failedCount", 0)
            assert counted == sum(shards.values())
            ages = [self._find_age(shard, shards.get(shard, 0), moment) for shard in range(SHARDS)]
            self.samples.append(Sample(moment, counted, max(ages)))

    def _add(self, bucket, name):
        with suppress(httpx.HTTPStatusError):  # the job has ended, and removed it
            header = json.loads(self.storage.get(bucket, name).partition(b"\n")[0])
            shard = int(name.rpartition("/")[0].rpartition("/")[2])
            self.chunks[name] = Chunk(time.monotonic(), shard, header["successful"] + header["failed"])

    def _find_age(self, shard, counted, moment):
        """Of a shard's first chunk that is not among those counted."""
        for chunk in self.chunks.values():
            if chunk.shard == shard:
                counted -= chunk.lines
                if counted < 0:
                    return moment - chunk.seen
        return 0.0


class OperatorKiller:
    """Kills the operator, and knows when it did."""

    def __init__(self):
        self.moments = []

    def __call__(self):
        self.moments.append(time.monotonic())
        return kill_operator()

    def excuses(self, sample):
        """Whether it may not be back yet."""
        return any(0 <= sample.moment - moment < OPERATOR_BACK_SECONDS for moment in self.moments)


def test_every_line_comes_once_and_in_order_though_25_are_killed(photos, storage):
    begun = time.monotonic()
    folder = _start(photos, "killed")
    workers, operators = WorkerKiller(photos, "killed"), OperatorKiller()
    with (
        Watch(photos, storage, "killed", folder) as watch,
        Killer(workers, SHARDS * DEATHS, pause=16) as first,
        Killer(operators, OPERATOR_DEATHS, pause=60) as second,
    ):
        wait_until("it ends", lambda: state(photos, "killed") in ENDED, seconds=1500, interval=1)
        assert first.done, f"{first.killed} workers were killed before its end"
        assert second.done, f"the operator was killed {second.killed} times before its end"
    seconds = time.monotonic() - begun
    status = _status(photos, "killed")
    assert status["state"] == "JOB_STATE_SUCCEEDED", status
    _check_output(storage, folder, status)
    counts = [sample.counted for sample in watch.samples]
    assert counts == sorted(counts), "they never go backwards"
    judged = [sample for sample in watch.samples if not operators.excuses(sample)]
    ages = sorted(sample.age for sample in judged)
    kept = sum(chunk.seen < workers.last[chunk.shard] for chunk in watch.chunks.values())
    print(
        f"\n{LINES} lines in {seconds:.0f} s; {first.killed} workers and {second.killed} operators killed;"
        f" {kept} of {len(watch.chunks)} chunks were committed by workers that died;"
        f" counts up to {ages[-1]:.1f} s old, {max(sample.age for sample in watch.samples):.1f} s without an operator"
    )
    assert ages[-1] <= FRESH_SECONDS, [(sample.moment - begun, sample) for sample in judged if sample.age > 5]


def _check_output(storage, folder, status):
    output = read_output(storage, folder)
    numbers = [int(record["instance"]["mimeType"][2:]) for record in output.predictions]
    assert numbers == [number for number in range(LINES) if number % 100 not in WRONG]
    assert all(record["prediction"]["displayNames"] == ["espresso"] for record in output.predictions)
    failed = [int(re.search(r"n/(\d+)", json.dumps(record["instance"]))[1]) for record in output.errors]
    assert failed == [number for number in range(LINES) if number % 100 in WRONG]
    assert [record["error"]["code"] for record in output.errors] == [WRONG[number % 100] for number in failed]
    assert "_SUCCESS" in output.names
    assert not [name for name in output.names if name.startswith((".pierhead/parts/", ".pierhead/tries/"))]
    bucket, prefix = split_uri(folder)
    manifest = json.loads(storage.get(bucket, f"{prefix}/manifest.json"))
    stats = status["completionStats"]
    assert (manifest["successful"], manifest["failed"]) == (len(numbers), len(failed))
    assert (stats["successfulCount"], stats["failedCount"]) == (len(numbers), len(failed))
    assert stats["incompleteCount"] == 0
    assert len(manifest["shards"]) == SHARDS


def test_cancel_ends_a_job_whose_worker_and_operator_were_just_killed(photos, storage):
    folder = _start(photos, "cancelled")
    wait_until(
        "it has committed something",
        lambda: _status(photos, "cancelled").get("completionStats", {}).get("successfulCount", 0) > 500,
        interval=1,
    )
    assert kill_worker(photos, "cancelled")
    assert kill_operator()
    photos.patch("batchpredictionjob", "cancelled", {"spec": {"cancel": True}})
    begun = time.monotonic()
    wait_until("it is cancelled", lambda: state(photos, "cancelled") == "CANCELLED", seconds=30)
    print(f"\ncancelled in {time.monotonic() - begun:.0f} s")
    parts = read_parts(storage, folder)
    assert count_predictions(parts) >= _status(photos, "cancelled")["completionStats"]["successfulCount"] > 500
    lines = [line for content in parts.values() for line in content.splitlines()[1:]]
    assert len(set(lines)) == len(lines)
    wait_operator()
