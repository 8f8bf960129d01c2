"""Batch prediction in an S3 of one's own, whose keys come from a Secret."""

import json
import secrets

import pytest

from cluster.settings import NODE_IP
from tests.batch import ENDED, make_batch, read_output, state
from tests.e2e.conftest import make_predictor_model, upload_predictor
from tests.kube import SYSTEM, scratch_namespace, wait_until
from tests.s3 import running_s3

LINES = 300
# Of a picture how long it is; a number itself.
MEASURE = """\
class Predictor:
    from_path = classmethod(lambda cls, folder: cls())
    predict = lambda self, instances: [len(i["content"]) if isinstance(i, dict) else i for i in instances]
"""
PICTURE = {"content": "s3://batch-in/picture.jpg"}
MISSING = {"content": "s3://batch-in/nowhere.jpg"}


@pytest.fixture(scope="module")
def s3(cluster):
    # The node is this machine: its pods reach what listens at its address.
    with running_s3(NODE_IP, secret=secrets.token_hex(16)) as s3:
        for bucket in ("batch-in", "batch-out"):
            s3.make_bucket(bucket)
        s3.put("batch-in", "picture.jpg", b"12345")
        s3.put("batch-in", "lines/1.jsonl", "\n".join(map(json.dumps, [*range(LINES), PICTURE, MISSING])).encode())
        yield s3


@pytest.fixture(scope="module")
def measured(s3):
    """A namespace with a model and the Secret."""
    with scratch_namespace("s3") as kubectl:
        model = make_predictor_model(upload_predictor("measure", MEASURE))
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "storage"}, "stringData": s3.environment}
        kubectl.apply(model, secret)
        yield kubectl


def _make_job(s3, name, output):
    def take(key):
        return {"name": key, "valueFrom": {"secretKeyRef": {"name": "storage", "key": key}}}

    return make_batch(
        name,
        ["s3://batch-in/lines/*.jsonl"],
        output,
        modelParameters={},
        dedicatedResources={"startingReplicaCount": 2},
        podOverrides={"env": [take(key) for key in s3.environment]},
    )


def test_job_in_s3_with_keys_of_a_secret_which_nothing_tells(measured, s3):
    measured.apply(_make_job(s3, "good", "s3://batch-out"), _make_job(s3, "bad", "s3://no-such-bucket"))
    for name in ("good", "bad"):
        wait_until(f"{name} ends", lambda name=name: state(measured, name) in ENDED, seconds=240, interval=1)
    status = measured.get("batchpredictionjob", "good")["status"]
    assert status["state"] == "JOB_STATE_SUCCEEDED", status
    output = read_output(s3, status["outputInfo"]["gcsOutputDirectory"])
    assert {"_SUCCESS", "manifest.json", "predictions_00001.jsonl", "predictions_00002.jsonl"} <= set(output.names)
    assert [record["prediction"] for record in output.predictions] == [*range(LINES), 5]
    assert [(error["instance"], error["error"]["code"]) for error in output.errors] == [(MISSING, 5)]
    stats = status["completionStats"]
    assert (stats["successfulCount"], stats["failedCount"]) == (LINES + 1, 1)
    told = measured.condition("batchpredictionjob", "bad")
    assert (told["reason"], "no such bucket" in told["message"]) == ("OutputNotWritable", True)
    logs = measured("logs", "job/bpj-good", "--all-pods") + measured("logs", "job/bpj-bad", "--all-pods")
    assert "planned 1 files in 2 shards" in logs
    assert "s3://no-such-bucket" in logs
    objects = measured("get", "bpj,jobs,pods,events", "--output", "yaml")
    assert "AWS_SECRET_ACCESS_KEY" in objects
    assert s3.secret not in objects + logs + SYSTEM("logs", "deployment/pierhead-operator")
