"""The chart with its defaults on a cluster that has neither a gateway nor Istio, by the commands of docs/install.md."""

import json
import os
import subprocess
import sys

import httpx
import pytest

from cluster import install, settings, up
from cluster.settings import Paths
from tests.e2e.conftest import make_deployed_model, make_endpoint, make_model
from tests.kube import Kubectl, wait_until
from tests.prober import small_picture

PATHS = Paths.from_environment()
RELEASE = ("pierhead", "--namespace", "pierhead-system")


@pytest.fixture(scope="module")
def kubectl():
    """kubectl in the namespace `default` of a bare cluster, which knows the images by the chart's own names."""
    if up.is_up(PATHS):
        pytest.skip("a cluster is up: `make cluster-down` has this run")
    with pytest.MonkeyPatch.context() as patch:
        try:
            _cluster("up", "--bare")
            for name, value in up.describe(PATHS).make_variables(os.environ["PATH"]).items():
                patch.setenv(name, value)
            _cluster("images", "--release")
            yield Kubectl("default")
        finally:
            _cluster("down")


def _cluster(*arguments):
    subprocess.run([sys.executable, "-m", "cluster", *arguments], cwd=settings.REPOSITORY, check=True, timeout=3600)


def _run(*command):
    return subprocess.run(
        command, cwd=settings.REPOSITORY, check=True, timeout=600, stdout=subprocess.PIPE, text=True
    ).stdout


@pytest.fixture(scope="module")
def installed(kubectl):
    """Pierhead on it."""
    return _run("helm", "install", RELEASE[0], "charts/pierhead", *RELEASE[1:], "--create-namespace", "--wait")


def test_nothing_of_a_gateway_is_there(kubectl):
    crds = kubectl("get", "crds", "--output", "name")
    assert "gateway" not in crds
    assert "istio" not in crds


def test_helm_test_tells_that_it_works(installed):
    told = _run("helm", "test", *RELEASE, "--logs")
    assert "leads" in told
    assert "is ready" in told


@pytest.fixture(scope="module")
def api(installed, unused_tcp_port_factory):
    """The API's URL and the command that asks it for endpoints, both as the notes have them but for the port."""
    port = str(unused_tcp_port_factory())
    commands = [line.strip().replace("8080", port) for line in installed.splitlines() if line.startswith("  ")]
    [forward] = [command.removesuffix(" &") for command in commands if "port-forward" in command]
    [ask] = [command for command in commands if command.startswith("curl")]
    for command in commands:
        if command.startswith("kubectl") and "port-forward" not in command:
            _run("sh", "-c", command)
    with subprocess.Popen(forward.split(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("Forwarding from")
            yield f"http://localhost:{port}", ask
        finally:
            process.terminate()


def test_notes_lead_to_the_api(api):
    _, ask = api
    assert json.loads(_run("sh", "-c", f"{ask} --silent --show-error --fail")) == {}


def test_model_is_predicted_through_the_api(kubectl, api):
    """No value of the chart is changed: a DeployedModel itself says where the storage emulator is."""
    url, _ = api
    install.upload_artifacts(settings.STORAGE_URL)
    env = [{"name": "STORAGE_EMULATOR_HOST", "value": settings.STORAGE_URL_IN_CLUSTER}]
    kubectl.apply(
        make_model(v1="photos/1"),
        make_endpoint(),
        make_deployed_model("photos-1", podOverrides={"env": env}),
    )
    kubectl.wait_ready("deployedmodel", "photos-1", seconds=400)
    token = kubectl("create", "token", "pierhead-user").strip()
    path = "/v1/projects/default/locations/local/endpoints/photos:predict"
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
        answer = wait_until(
            "the API knows the endpoint's split",
            lambda: (found := client.post(path, content=small_picture())).is_success and found,
            seconds=30,
        )
    assert answer.json()["predictions"][0]["displayNames"]
    assert answer.json()["deployedModelId"] == "photos-1"
