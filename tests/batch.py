"""BatchPredictionJobs in tests: their inputs in the storage emulator, their outputs read back, their workers killed."""

import io
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import httpx
import skimage.data
from PIL import Image

from cluster.settings import STORAGE_URL
from tests.kube import Kubectl, Manifest

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", "PARTIALLY_SUCCEEDED")


class Storage:
    """The Cloud Storage emulator of the cluster, from this machine."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    @classmethod
    @contextmanager
    def connected(cls) -> Iterator["Storage"]:
        with httpx.Client(base_url=STORAGE_URL, timeout=60) as client:
            yield cls(client)

    def make_bucket(self, name: str) -> None:
        answer = self._client.post("/storage/v1/b", json={"name": name})
        assert answer.status_code in (200, 409), answer.text

    def put(self, bucket: str, name: str, content: bytes) -> None:
        to = {"uploadType": "media", "name": name}
        self._client.post(f"/upload/storage/v1/b/{bucket}/o", params=to, content=content).raise_for_status()

    def list(self, bucket: str, prefix: str) -> list[str]:
        items, token = [], ""
        while True:
            page = self._client.get(
                f"/storage/v1/b/{bucket}/o", params={"prefix": prefix, **({"pageToken": token} if token else {})}
            ).json()
            items += [item["name"] for item in page.get("items", [])]
            token = page.get("nextPageToken", "")
            if not token:
                return sorted(items)

    def get(self, bucket: str, name: str) -> bytes:
        answer = self._client.get(f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}", params={"alt": "media"})
        return answer.raise_for_status().content


def make_picture() -> bytes:
    """A small photograph that the example's models know."""
    picture = Image.open(Path(skimage.data.__file__).parent / "coffee.png").convert("RGB").resize((120, 80))
    data = io.BytesIO()
    picture.save(data, "JPEG")
    return data.getvalue()


def make_batch(name: str, uris: list[str], output: str = "gs://batch-out", **spec: object) -> Manifest:
    """A job of the Model `photos`."""
    return {
        "apiVersion": "pierhead.dev/v1",
        "kind": "BatchPredictionJob",
        "metadata": {"name": name},
        "spec": {
            "model": "photos",
            "modelParameters": {"maxPredictions": 1},
            "inputConfig": {"gcsSource": {"uris": uris}},
            "outputConfig": {"gcsDestination": {"outputUriPrefix": output}},
            **spec,
        },
    }


def state(kubectl: Kubectl, name: str) -> str:
    """Without its prefix; empty before there is one."""
    found = kubectl.get("batchpredictionjob", name) or {}
    return str(found.get("status", {}).get("state", "")).removeprefix("JOB_STATE_")


@dataclass(frozen=True)
class Output:
    """What a job has written, by file."""

    names: list[str]
    predictions: list[Manifest]
    errors: list[Manifest]

    def count(self) -> Counter[str]:
        """How often each instance is there."""
        return Counter(json.dumps(record["instance"]) for record in (*self.predictions, *self.errors))


class Reader(Protocol):
    """A storage that outputs are read from."""

    def list(self, bucket: str, prefix: str) -> list[str]: ...

    def get(self, bucket: str, name: str) -> bytes: ...


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and path."""
    bucket, _, path = uri.partition("://")[2].partition("/")
    return bucket, path


def read_output(storage: Reader, folder: str) -> Output:
    """Of a folder such as gs://bucket/folder."""
    bucket, prefix = split_uri(folder)
    names = [name.removeprefix(f"{prefix}/") for name in storage.list(bucket, f"{prefix}/")]

    def read(beginning: str) -> list[Manifest]:
        lines = [
            line
            for name in names
            if name.startswith(beginning)
            for line in storage.get(bucket, f"{prefix}/{name}").splitlines()
        ]
        return [json.loads(line) for line in lines]

    return Output(names, read("predictions_"), read("errors_"))


def read_parts(storage: Reader, folder: str) -> dict[str, bytes]:
    """What a job that has not ended has committed, by name."""
    bucket, prefix = split_uri(folder)
    return {name: storage.get(bucket, name) for name in storage.list(bucket, f"{prefix}/.pierhead/parts/")}


def count_predictions(parts: Mapping[str, bytes]) -> int:
    """Of these parts."""
    records = [json.loads(line) for content in parts.values() for line in content.splitlines()]
    return sum("prediction" in record for record in records)


def kill_worker(kubectl: Kubectl, name: str) -> bool:
    """Kills the first process of one worker, whichever runs; whether there was one."""
    running = list_workers(kubectl, name)
    random.shuffle(running)
    return any(kill_first_process(pod) for pod in running)


def list_workers(kubectl: Kubectl, name: str) -> list[Manifest]:
    """The pods that run."""
    pods = kubectl.items("pods", f"pierhead.dev/batch-prediction-job={name}")
    return [pod for pod in pods if pod["status"].get("phase") == "Running"]


def kill_first_process(pod: Manifest) -> bool:
    """The node is this machine, so that the pod's processes are here; whether there was one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _is_first_process(entry, pod["metadata"]["uid"]):
            os.kill(int(entry.name), signal.SIGKILL)
            return True
    return False


def _is_first_process(entry: Path, pod: str) -> bool:
    try:
        groups, status = (entry / "cgroup").read_text(), (entry / "status").read_text()
        command = (entry / "cmdline").read_text()
    except OSError:  # it has ended
        return False
    if pod not in groups and pod.replace("-", "_") not in groups:
        return False
    ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
    return ids[-1] == "1" and "pause" not in command
