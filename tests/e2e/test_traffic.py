"""Traffic through the real gateway goes where the split says, and nowhere else."""

import threading
from collections import Counter

import httpx
import pytest

from tests.e2e.conftest import (
    ECHO_BODY,
    make_deployed_model,
    make_echo_model,
    make_endpoint,
    make_model,
    make_predictor_model,
    upload_predictor,
)
from tests.kube import predict, predict_many, predict_url, scratch_namespace, wait_answered, wait_until


class Load:
    """Predictions without a pause from a few clients, until it is stopped; `answers` counts who answered."""

    def __init__(self, url, body, clients=2):
        self.answers = Counter()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url, body)) for _ in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self, url, body):
        with httpx.Client(timeout=60) as client:
            while not self._stopped.is_set():
                answer = predict(client, url, body)
                with self._lock:
                    self.answers[answer] += 1

    def reset(self):
        with self._lock:
            self.answers.clear()

    @property
    def failures(self):
        return {answer: count for answer, count in self.answers.items() if answer.startswith("failed")}


@pytest.fixture(scope="module")
def canary(cluster):
    """80 percent for one DeployedModel, the rest for another one."""
    with scratch_namespace("traffic") as kubectl:
        split = {"photos-1": 80, "photos-2": 20}
        kubectl.apply(make_echo_model(), make_endpoint(split), *map(make_deployed_model, split))
        kubectl.wait_ready("deployedmodel", *split)
        kubectl.wait_ready("endpoint", "photos")
        wait_answered(predict_url(kubectl.namespace, "photos"), ECHO_BODY, *split)
        yield kubectl


def test_split_is_met_over_1000_predictions(canary):
    answers = predict_many(predict_url(canary.namespace, "photos"), ECHO_BODY, 1000)
    assert sum(answers.values()) == 1000
    assert set(answers) == {"photos-1", "photos-2"}, answers
    assert 760 <= answers["photos-1"] <= 840


def test_changed_split_moves_all_traffic_and_no_request_fails(canary):
    with Load(predict_url(canary.namespace, "photos"), ECHO_BODY) as load:
        wait_until("both answer", lambda: len(load.answers) >= 2)
        canary.patch("endpoint", "photos", {"spec": {"trafficSplit": {"photos-1": 0, "photos-2": 100}}})
        canary.wait_ready("endpoint", "photos")
        assert canary.get("endpoint", "photos")["status"]["trafficSplit"] == {"photos-2": 100}
        load_before = load.answers["photos-2"]
        wait_until("the new one answers on", lambda: load.answers["photos-2"] >= load_before + 10)
        failures = load.failures
        load.reset()
        wait_until("50 more answers", lambda: sum(load.answers.values()) >= 50)
        assert set(load.answers) == {"photos-2"}, load.answers
    assert not failures
    assert not load.failures


def test_changed_version_rolls_out_and_no_request_fails(kubectl, coffee):
    kubectl.apply(make_model(v1="photos/1", v2="photos/2"), make_endpoint(), make_deployed_model("photos"))
    kubectl.wait_ready("endpoint", "photos")
    wait_answered(predict_url(kubectl.namespace, "photos"), coffee, "photos")
    with Load(predict_url(kubectl.namespace, "photos"), coffee, clients=1) as load:
        wait_until("it answers", lambda: load.answers["photos"] >= 5)
        [old] = [pod["metadata"]["name"] for pod in kubectl.pods("photos")]
        kubectl.patch("deployedmodel", "photos", {"spec": {"modelVersion": "v2"}})
        wait_until(
            "the old pod is gone", lambda: old not in [p["metadata"]["name"] for p in kubectl.pods("photos")], 240
        )
        kubectl.wait_ready("deployedmodel", "photos")
    assert not load.failures
    assert kubectl.get("deployedmodel", "photos")["status"]["modelVersion"] == "v2"


def _make_quota(pods):
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "pods"},
        "spec": {"hard": {"pods": str(pods)}},
    }


def test_weight_comes_with_the_replicas_that_answer(kubectl):
    """Of two wanted replicas a quota lets one in: it gets its part of three, and all once both answer."""
    two, url = {"minReplicaCount": 2}, predict_url(kubectl.namespace, "photos")
    old, new = (make_deployed_model(name, automaticResources=two) for name in ("old", "new"))
    kubectl.apply(_make_quota(3), make_echo_model(), make_endpoint({"old": 100}), old)
    kubectl.wait_ready("deployedmodel", "old")
    kubectl.wait_ready("endpoint", "photos")
    wait_answered(url, ECHO_BODY, "old")
    kubectl.apply(new)
    with Load(url, ECHO_BODY, clients=1) as load:
        kubectl.patch("endpoint", "photos", {"spec": {"trafficSplit": {"old": 0, "new": 100}}})
        wait_until(
            "one replica has its part",
            lambda: kubectl.get("endpoint", "photos")["status"]["trafficSplit"] == {"old": 67, "new": 33},
        )
        told = kubectl.condition("endpoint", "photos")
        assert told["reason"] == "WaitingForDeployedModels"
        assert "new: 1 of 2 needed replicas answer" in told["message"]
        wait_until("both answer", lambda: set(load.answers) == {"old", "new"})
        kubectl.apply(_make_quota(4))
        # Kubernetes would try again by itself, after a back-off.
        kubectl("annotate", "replicasets", "--all", "example.com/look=again")
        kubectl.wait_ready("endpoint", "photos")
        assert kubectl.get("endpoint", "photos")["status"]["trafficSplit"] == {"new": 100}
    assert not load.failures


def _find_reasons(kubectl):
    return [event["reason"] for event in kubectl.items("events.events.k8s.io")]


def test_missing_artifact_is_told_in_time_and_gets_no_traffic(kubectl):
    """Half of the traffic is meant for a DeployedModel that never comes up: all of it stays with the one that serves."""
    kubectl.apply(
        make_predictor_model(upload_predictor("v1"), {"name": "v2", "artifactUri": "gs://models/photos/nowhere"}),
        make_endpoint({"good": 50, "broken": 50}),
        make_deployed_model("good"),
        make_deployed_model("broken", "v2"),
    )

    def failed():
        return [
            status
            for pod in kubectl.pods("broken")
            for status in pod["status"].get("containerStatuses", [])
            if "terminated" in status["state"] or "terminated" in status.get("lastState", {})
        ]

    wait_until("the pod fails", failed)
    found = wait_until(
        "the condition tells why",
        lambda: (c := kubectl.condition("deployedmodel", "broken")).get("reason") == "ArtifactNotFound" and c,
        seconds=10,
    )
    assert found["status"] == "False"
    assert "gs://models/photos/nowhere" in found["message"]
    wait_until(
        "an Event tells it too, after the status", lambda: "ArtifactNotFound" in _find_reasons(kubectl), seconds=10
    )
    kubectl.wait_ready("deployedmodel", "good")
    wait_until(
        "the endpoint sends all to the one that serves",
        lambda: kubectl.get("endpoint", "photos")["status"].get("trafficSplit") == {"good": 100},
    )
    assert kubectl.condition("endpoint", "photos")["reason"] == "WaitingForDeployedModels"
    assert "ArtifactNotFound" in kubectl.condition("endpoint", "photos")["message"]
    wait_answered(predict_url(kubectl.namespace, "photos"), ECHO_BODY, "good")
    answers = predict_many(predict_url(kubectl.namespace, "photos"), ECHO_BODY, 50)
    assert answers == {"good": 50}


def test_split_over_more_than_a_route_takes_is_refused_with_the_number(kubectl):
    kubectl.apply(make_echo_model(), make_endpoint({"photos": 100}), make_deployed_model("photos"))
    kubectl.wait_ready("endpoint", "photos")
    url = predict_url(kubectl.namespace, "photos")
    wait_answered(url, ECHO_BODY, "photos")
    split = {f"other-{number}": 1 for number in range(16)}
    kubectl.patch("endpoint", "photos", {"spec": {"trafficSplit": {"photos": 84, **split}}})
    refused = wait_until(
        "it is told",
        lambda: (c := kubectl.condition("endpoint", "photos")).get("reason") == "TooManyDeployedModels" and c,
        seconds=30,
    )
    assert "16 DeployedModels at most" in refused["message"]
    assert "gives weight to 17" in refused["message"]
    assert predict_many(url, ECHO_BODY, 10) == {"photos": 10}
