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
# Answers, and ends six seconds after the first answer of each process.
MORTAL = """\
import os, sys, threading

def end():
    print("out of luck", file=sys.stderr, flush=True)
    os._exit(3)

class Predictor:
    from_path = classmethod(lambda cls, folder: cls())
    timer = None

    def predict(self, instances):
        if self.timer is None:
            self.timer = threading.Timer(6, end)
            self.timer.daemon = True
            self.timer.start()
        return instances
"""


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


def test_canary_that_dies_again_and_again_loses_its_traffic(cluster, kubectl):
    """It answers between its deaths, and no container restarts: only the server itself knows."""
    url = predict_url(kubectl.namespace, "e")
    versions = [upload_predictor("good"), upload_predictor("mortal", MORTAL)]
    kubectl.apply(
        _object("Model", "m", defaultVersion="good", versions=versions),
        _object("Endpoint", "e", trafficSplit={"old": 100}),
        _object("DeployedModel", "old", endpoint="e", model="m", modelVersion="good"),
    )
    kubectl.wait_ready("endpoint", "e")
    wait_until("it answers", lambda: predict_many(url, ECHO_BODY, 20) == {"old": 20})
    with Prober(url, body=ECHO_BODY) as prober:
        kubectl.apply(_object("DeployedModel", "new", endpoint="e", model="m", modelVersion="mortal"))
        kubectl.patch("endpoint", "e", {"spec": {"trafficSplit": {"old": 90, "new": 10}}})
        wait_until("it has its share", lambda: prober.seen("new"))
        wait_until("it dies", lambda: " died: " in kubectl("logs", "deployment/dm-new"), seconds=30)
        wait_until("the cause is told", lambda: _reason(kubectl, "new") == "ModelProcessDies", seconds=30)
        assert "exit code 3; its last words: out of luck" in kubectl.condition("deployedmodel", "new")["message"]
        wait_until("its weight is gone", lambda: kubectl.get("endpoint", "e")["status"]["trafficSplit"] == {"old": 100})
        wait_until("the gateway follows", lambda: predict_many(url, ECHO_BODY, 50) == {"old": 50})
        _stays_out(kubectl, prober)
    [pod] = kubectl.pods("new")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def _reason(kubectl, name):
    return kubectl.condition("deployedmodel", name).get("reason")


def _stays_out(kubectl, prober):
    """For a minute in which it dies ten times more: nobody notices, and nothing is written."""
    before, failed = kubectl.get("deployedmodel", "new"), len(prober.answers.failures)
    deaths = kubectl("logs", "deployment/dm-new").count(" died: ")

    def look():
        now = kubectl.get("deployedmodel", "new")
        assert now["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"], now["status"]
        return kubectl("logs", "deployment/dm-new").count(" died: ") >= deaths + 10

    wait_until("it dies on", look, interval=1)
    assert len(prober.answers.failures) == failed, prober.answers.failures[failed:]
