"""A version that cannot serve never gets traffic, and what served before keeps all of it."""

import pytest

from tests.e2e.conftest import ECHO, ECHO_BODY, upload_predictor
from tests.kube import predict_many, predict_url, wait_until
from tests.prober import Prober

# What is wrong -> its predictor.py, and the reason that says so.
BAD = {
    "crashes": ("import os\nos.abort()\n", "ModelProcessDied"),
    "hangs": (ECHO.replace("cls()", "__import__('time').sleep(3600)"), "Progressing"),
    "answers-errors": (
        ECHO.replace("predict = lambda self, instances: instances", "predict = lambda self, instances: 1 / 0"),
        "ArtifactInvalid",
    ),
}


def _object(kind, name, **spec):
    return {"apiVersion": "pierhead.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def versions(cluster):
    """Each version by its name, the good one first."""
    there = {"good": ECHO, **{name: predictor for name, (predictor, _) in BAD.items()}}
    return [upload_predictor(name, predictor) for name, predictor in there.items()]


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
    wait_until("it answers", lambda: predict_many(url, ECHO_BODY, 20) == {"old": 20})
    [before] = [pod["metadata"]["name"] for pod in kubectl.pods("old")]
    with Prober(url, body=ECHO_BODY) as prober:
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
