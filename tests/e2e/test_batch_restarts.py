"""A batch worker that had done something is made again soon, however many of its shard died before."""

import json
import time

import pytest

from tests.batch import Storage, kill_first_process, list_workers, make_batch
from tests.e2e.conftest import make_predictor_model, make_slow_echo, upload_predictor
from tests.kube import scratch_namespace, wait_until

FAILURES = "batch.kubernetes.io/job-index-failure-count"
BEFORE = 8  # as many have died: by itself, Kubernetes waits ten minutes now
RUN_SECONDS = 65  # longer than pierhead_operator.batch_backoff.PROVEN
BACK_SECONDS = 60


@pytest.fixture(scope="module")
def slow(cluster):
    with Storage.connected() as storage, scratch_namespace("restarts") as kubectl:
        storage.make_bucket("batch-in")
        storage.make_bucket("batch-out")
        lines = "\n".join(json.dumps({"number": number}) for number in range(20_000))
        storage.put("batch-in", "restarts.jsonl", lines.encode())
        kubectl.apply(make_predictor_model(upload_predictor("slow-restarts", make_slow_echo(0.02))))
        yield kubectl


def _find_worker(kubectl, job, other_than=""):
    running = [pod for pod in list_workers(kubectl, job) if pod["metadata"]["uid"] != other_than]
    return running[0] if running else None


def _committed(kubectl, job):
    status = kubectl.get("batchpredictionjob", job).get("status", {})
    return status.get("completionStats", {}).get("successfulCount", 0)


def _kill(_, pod):
    assert kill_first_process(pod)


def _evict(kubectl, pod):
    """As a node that is drained does, and one of the cloud's spot nodes before it goes."""
    metadata = {name: pod["metadata"][name] for name in ("name", "namespace")}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/eviction"
    kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(body))


@pytest.mark.parametrize("end", [_kill, _evict], ids=["killed", "evicted"])
def test_worker_that_had_done_something_is_back_within_a_minute(slow, end):
    job = end.__name__.strip("_")
    slow.apply(make_batch(job, ["gs://batch-in/restarts.jsonl"], modelParameters={}))
    pod = wait_until("a worker runs", lambda: _find_worker(slow, job), seconds=180)
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    slow("annotate", "pod", name, f"{FAILURES}={BEFORE}", "--overwrite")
    begun = time.monotonic()
    wait_until("it has committed something", lambda: _committed(slow, job), interval=1)
    wait_until("it has run for a while", lambda: time.monotonic() - begun > RUN_SECONDS, interval=1)
    end(slow, pod)
    died = time.monotonic()
    again = wait_until("another one runs", lambda: _find_worker(slow, job, uid), seconds=BACK_SECONDS)
    print(f"\nback after {time.monotonic() - died:.0f} s")
    # Of a new pod: what was counted for it when it was made.
    assert int(again["metadata"]["annotations"][FAILURES]) <= 1
    slow.patch("batchpredictionjob", job, {"spec": {"cancel": True}})


def test_worker_that_did_nothing_waits_as_kubernetes_has_it(slow):
    """Or one that dies at its start would do so every ten seconds, for ever."""
    slow.apply(make_batch("at-once", ["gs://batch-in/restarts.jsonl"], modelParameters={}))
    pod = wait_until("a worker runs", lambda: _find_worker(slow, "at-once"), seconds=180)
    slow("annotate", "pod", pod["metadata"]["name"], f"{FAILURES}={BEFORE}", "--overwrite")
    assert kill_first_process(pod)

    def failed():
        found = slow.get("pod", pod["metadata"]["name"])
        return found and found["status"]["phase"] == "Failed" and found

    dead = wait_until("it has failed", failed)
    assert dead["metadata"]["annotations"][FAILURES] == str(BEFORE)
    slow.patch("batchpredictionjob", "at-once", {"spec": {"cancel": True}})
