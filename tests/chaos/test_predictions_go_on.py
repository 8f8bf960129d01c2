"""What a platform team does on a Tuesday, under a steady stream of predictions of which none may fail."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from cluster import processes
from tests.chaos.killer import Killer, kill_operator
from tests.chart import CHART, RELEASE, helm
from tests.e2e.conftest import make_deployed_model, make_endpoint, make_model
from tests.kube import SYSTEM, predict_url, scratch_namespace, wait_answered, wait_operator, wait_until
from tests.prober import Prober, small_picture


@pytest.fixture
def photos(cluster, request):
    """Two DeployedModels that serve at 60/40, in a namespace of this test's own."""
    with scratch_namespace("chaos") as kubectl:
        kubectl.apply(
            make_model(v1="photos/1", v2="photos/2"),
            make_endpoint({"one": 60, "two": 40}),
            make_deployed_model("one"),
            make_deployed_model("two", "v2"),
        )
        kubectl.wait_ready("endpoint", "photos")
        wait_answered(predict_url(kubectl.namespace, "photos"), small_picture(), "one", "two")
        yield kubectl


@pytest.fixture
def prober(photos):
    """The stream; at the end it must have been without a failure."""
    with Prober(predict_url(photos.namespace, "photos")) as prober:
        wait_until("both answer", lambda: prober.seen("one") and prober.seen("two"))
        yield prober
        before = prober.answers.total
        wait_until("it goes on", lambda: prober.answers.total > before + 40)
    prober.check()


def _update_version(photos):
    old = {pod["metadata"]["name"] for pod in photos.pods("one")}
    version = photos.get("deployedmodel", "one")["spec"]["modelVersion"]
    photos.patch("deployedmodel", "one", {"spec": {"modelVersion": "v2" if version == "v1" else "v1"}})
    photos.wait_ready("deployedmodel", "one")
    wait_until(
        "the old pods are gone", lambda: not old & {pod["metadata"]["name"] for pod in photos.pods("one")}, seconds=240
    )


def _scale(photos, replicas):
    photos.patch("deployedmodel", "one", {"spec": {"automaticResources": {"minReplicaCount": replicas}}})
    photos.wait_ready("deployedmodel", "one")
    wait_until(f"{replicas} pods are there", lambda: len(photos.pods("one")) == replicas, seconds=240)


def _split(photos, **split):
    photos.patch("endpoint", "photos", {"spec": {"trafficSplit": split}})
    photos.wait_ready("endpoint", "photos")


def test_rolling_update_of_a_version(photos, prober):
    _update_version(photos)


def test_scaling_to_three_and_back(photos, prober):
    _scale(photos, 3)
    _scale(photos, 1)


def test_changes_of_the_split(photos, prober):
    for weight in (0, 100, 50, 1, 99):
        _split(photos, one=weight, two=100 - weight)


def test_undeploy_of_a_serving_model(photos, prober):
    photos("delete", "deployedmodel", "two")
    wait_until(
        "nothing of it is left",
        lambda: not photos.items("deployments,services,pods", "pierhead.dev/deployed-model=two"),
        seconds=180,
    )
    seen = prober.seen("one")
    wait_until("the other has all traffic", lambda: prober.seen("one") > seen + 40)


def test_drain_of_a_node_with_two_replicas(photos, prober):
    """There is one node, so that the second replica waits for it: the budget keeps one pod serving until then."""
    _scale(photos, 2)
    _split(photos, one=100, two=0)
    [node] = SYSTEM.items("nodes")
    name = node["metadata"]["name"]
    before = {pod["metadata"]["name"] for pod in photos.pods("one")}
    drain = subprocess.Popen(
        ["kubectl", "drain", name, "--pod-selector=pierhead.dev/deployed-model=one", "--delete-emptydir-data"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until("a pod is evicted", lambda: len(before & {p["metadata"]["name"] for p in photos.pods("one")}) < 2)
        wait_until(
            "its successor waits for a node", lambda: any(p["status"]["phase"] == "Pending" for p in photos.pods("one"))
        )
        assert drain.poll() is None, "the budget holds the second eviction back"
        SYSTEM("uncordon", name)
        wait_until("all were evicted", lambda: drain.poll() is not None, seconds=240)
        photos.wait_ready("deployedmodel", "one")
        assert not before & {pod["metadata"]["name"] for pod in photos.pods("one")}
    finally:
        SYSTEM("uncordon", name)
        drain.terminate()
        drain.wait()


def test_operator_killed_20_times_between_changes(photos, prober):
    with Killer(kill_operator, 20, pause=8) as killer:
        weight = 0
        while not killer.done:
            weight = (weight + 30) % 101
            photos.patch("endpoint", "photos", {"spec": {"trafficSplit": {"one": weight, "two": 100 - weight}}})
            pause = threading.Event()
            pause.wait(3)
    assert killer.killed >= 20
    _update_version(photos)
    _split(photos, one=50, two=50)


def test_60_seconds_without_the_api_server(photos, prober):
    server = processes.recorded()["kube-apiserver"]
    os.kill(server.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        seen = prober.answers.total
        wait_until("a minute is over", lambda: time.monotonic() - begun > 60, seconds=90)
        assert prober.answers.total > seen + 600
    finally:
        os.kill(server.pid, signal.SIGCONT)
    wait_until("the API server is back", lambda: _answers("get", "--raw", "/readyz"), seconds=120)
    _split(photos, one=30, two=70)


def _answers(*arguments):
    return subprocess.run(["kubectl", *arguments], capture_output=True, timeout=30, check=False).returncode == 0


def test_upgrade_of_the_operator_restarts_no_serving_pod(photos, prober):
    before = {pod["metadata"]["uid"] for name in ("one", "two") for pod in photos.pods(name)}
    settings_before = SYSTEM.get("configmap", "pierhead-operator")["data"]

    def upgrade(*arguments):
        helm("upgrade", RELEASE[0], CHART, *RELEASE[1:], "--reuse-values", "--wait", "--timeout", "4m", *arguments)
        wait_operator()

    try:
        upgrade(
            "--set",
            "server.resources.requests.cpu=110m",
            "--set",
            "server.image=images.invalid/pierhead/server:never-built",
        )
        assert SYSTEM.get("configmap", "pierhead-operator")["data"] != settings_before
        _split(photos, one=40, two=60)
        photos.apply({**make_model(v1="photos/1"), "metadata": {"name": "sign"}})
        photos.wait_ready("model", "sign")
        assert {pod["metadata"]["uid"] for name in ("one", "two") for pod in photos.pods(name)} == before
    finally:
        subprocess.run([sys.executable, "-m", "cluster", "install"], check=True, timeout=540)
