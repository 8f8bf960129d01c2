"""A version that cannot serve never gets traffic, and what served before keeps all of it."""

import json

import httpx
import pytest

from cluster.settings import STORAGE_URL
from tests.kube import predict_many, predict_url, wait_until
from tests.prober import Prober

GOOD = "class Predictor:\n    from_path = classmethod(lambda cls, folder: cls())\n    predict = lambda self, instances: instances\n"
# What is wrong -> its predictor.py, and the reason that says so.
BAD = {
    "crashes": ("import os\nos.abort()\n", "ModelProcessDied"),
    "hangs": (GOOD.replace("cls()", "__import__('time').sleep(3600)"), "Progressing"),
    "answers-errors": (
        GOOD.replace("predict = lambda self, instances: instances", "predict = lambda self, instances: 1 / 0"),
        "ArtifactInvalid",
    ),
}
BODY = json.dumps({"instances": [1]}).encode()


def _upload(name, predictor):
    """A predictor's artifact as gs://models/bad-versions/NAME."""
    files = {"model.yaml": "format: predictor\n", "predictor.py": predictor, "warmup.json": BODY.decode()}
    with httpx.Client(base_url=STORAGE_URL, timeout=60) as client:
        for file, content in files.items():
            to = {"uploadType": "media", "name": f"bad-versions/{name}/{file}"}
            client.post("/upload/storage/v1/b/models/o", params=to, content=content.encode()).raise_for_status()
    return f"gs://models/bad-versions/{name}"


def _object(kind, name, **spec):
    return {"apiVersion": "pierhead.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def versions(cluster):
    """Each version by its name, the good one first."""
    there = {"good": GOOD, **{name: predictor for name, (predictor, _) in BAD.items()}}
    return [
        {"name": name, "artifactUri": _upload(name, predictor), "allowCode": True} for name, predictor in there.items()
    ]


@pytest.mark.parametrize("bad", BAD)
def test_bad_version_gets_no_traffic(bad, versions, kubectl):
    """Once as an update of what serves, and once beside it with half of the wanted split."""
    url, reason = predict_url(kubectl.namespace, "e"), BAD[bad][1]
    kubectl.apply(
        _object("Model", "m", defaultVersion="good", versions=versions),
        _object("Endpoint", "e", trafficSplit={"old": 100}),
        _object("DeployedModel", "old", endpoint="e", model="m", modelVersion="good"),
    )
    kubectl.wait_ready("endpoint", "e")
    wait_until("it answers", lambda: predict_many(url, BODY, 20) == {"old": 20})
    [before] = [pod["metadata"]["name"] for pod in kubectl.pods("old")]
    with Prober(url, body=BODY) as prober:
        kubectl.patch("deployedmodel", "old", {"spec": {"modelVersion": bad}})
        kubectl.apply(_object("DeployedModel", "new", endpoint="e", model="m", modelVersion=bad))
        kubectl.patch("endpoint", "e", {"spec": {"trafficSplit": {"old": 50, "new": 50}}})
        for name in ("old", "new"):
            wait_until(
                f"{name} says what is wrong",
                lambda name=name: (
                    (c := kubectl.condition("deployedmodel", name)).get("status") == "False" and c["reason"] == reason
                ),
            )
        assert kubectl.condition("deployedmodel", "old", "Available")["status"] == "True"
        seen = prober.seen("old")
        wait_until("the old pod answers on", lambda: prober.seen("old") > seen + 100)
        assert before in {pod["metadata"]["name"] for pod in kubectl.pods("old")}
        assert kubectl.get("endpoint", "e")["status"]["trafficSplit"] == {"old": 100}
        assert set(prober.answers.counts) == {"old"}
    prober.check()
