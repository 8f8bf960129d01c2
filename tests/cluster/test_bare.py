"""An installation with the defaults on a cluster that has neither a gateway nor Istio, by the commands of docs/install.md."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster import containers, images, install, registry, settings, up
from cluster.settings import Paths
from tests.documents import REPOSITORY, find_blocks
from tests.e2e.conftest import make_deployed_model, make_endpoint, make_model
from tests.kube import SYSTEM, Kubectl

PATHS = Paths.from_environment()
VERSION = yaml.safe_load((REPOSITORY / "charts" / "pierhead" / "Chart.yaml").read_text())["appVersion"]
STORAGE = json.dumps([{"name": "STORAGE_EMULATOR_HOST", "value": settings.STORAGE_URL_IN_CLUSTER}])


@pytest.fixture(scope="module")
def kubectl():
    """kubectl in the namespace `default` of a bare cluster, which knows the images by the names of docs/install.md."""
    if up.is_up(PATHS):
        pytest.skip("a cluster is up: `make cluster-down` has this run")
    with pytest.MonkeyPatch.context() as patch:
        try:
            _cluster("up", "--bare")
            for name, value in up.describe(PATHS).make_variables(os.environ["PATH"]).items():
                patch.setenv(name, value)
            _cluster("images")
            for name in ("operator", "server"):
                _publish(images.make_pierhead_image(name).reference, f"registry.example.com/pierhead/{name}:{VERSION}")
            yield Kubectl("default")
        finally:
            _cluster("down")


def _publish(reference, name):
    """Lets the image be pulled by another name: the node asks its one registry for those of all."""
    registry.tag(reference, VERSION)
    containers.forget_image(name)


def _cluster(*arguments):
    subprocess.run([sys.executable, "-m", "cluster", *arguments], cwd=settings.REPOSITORY, check=True, timeout=3600)


@pytest.fixture(scope="module")
def storage(kubectl):
    """Artifacts for the example's models."""
    install.upload_artifacts(settings.STORAGE_URL)


def test_nothing_of_a_gateway_is_there(kubectl):
    crds = kubectl("get", "crds", "--output", "name")
    assert "gateway" not in crds
    assert "istio" not in crds


@pytest.fixture
def leaving_nothing(kubectl):
    """Nothing of Pierhead is there afterwards."""
    yield
    kubectl("delete", "crds", "--selector=app.kubernetes.io/name=pierhead")
    # Nobody is served any more: what they would wait for, to fail no request, need not be.
    SYSTEM("scale", "deployment", "--all", "--replicas=0")
    SYSTEM("delete", "pods", "--all", "--grace-period=1")
    kubectl("delete", "namespace", SYSTEM.namespace)
    for kind in ("clusterroles", "clusterrolebindings"):
        kubectl("delete", kind, "--selector=app.kubernetes.io/part-of=pierhead")


@pytest.mark.parametrize("way", ["kubectl", "helm"])
def test_commands_lead_from_nothing_to_a_prediction(storage, leaving_nothing, tmp_path, unused_tcp_port, way):
    port = str(unused_tcp_port)
    commands = _find_commands(way) + _find_commands("predict")
    for before, after in {
        "8080": port,
        "examples/photos/photos.yaml": _write_models(tmp_path),
        # All pods learn where the tests' storage is.
        "install pierhead charts/pierhead": f"install pierhead charts/pierhead --set-json 'server.env={STORAGE}'",
        "| kubectl apply": f"| sed 's|env: \\[\\]|env: {STORAGE}|' | kubectl apply",
    }.items():
        commands = commands.replace(before, after)
    assert port in commands
    assert settings.STORAGE_URL_IN_CLUSTER in commands
    began = time.monotonic()
    [answer] = _run_shell(commands).splitlines()[-1:]
    print(f"\n{way}: {time.monotonic() - began:.0f} s from nothing to a prediction")
    found = json.loads(answer)
    assert found["predictions"][0]["displayNames"][0] == "espresso"
    assert found["deployedModelId"] == "photos-1"
    if way == "helm":
        _check_release(port)


def _find_commands(way):
    [block] = [block.text for block in find_blocks(REPOSITORY / "docs" / "install.md") if way in block.classes]
    return block


def _write_models(folder):
    """One model of the example, for two cores."""
    file = folder / "photos.yaml"
    file.write_text(yaml.safe_dump_all([make_model(v1="photos/1"), make_endpoint(), make_deployed_model("photos-1")]))
    return str(file)


def _run_shell(commands):
    """What bash prints, in the repository; a port that is forwarded in the background is no longer afterwards."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script = f"set -euo pipefail\ntrap 'jobs -p | xargs --no-run-if-empty kill' EXIT\n{commands}"
    return subprocess.run(
        ["bash", "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=True,
    ).stdout


def _check_release(port):
    """What the notes say holds: `helm test`, and the API with a token of somebody who may edit."""
    notes = json.loads(_run_shell("helm status pierhead --namespace pierhead-system --output json"))["info"]["notes"]
    commands = [line.strip() for line in notes.splitlines() if line.startswith("  ")]
    told = _run_shell(
        "\n".join(commands).replace("8080", port).replace("curl", "curl --silent --retry 9 --retry-all-errors")
    )
    assert "Phase:          Succeeded" in told
    assert json.loads(told.splitlines()[-1])["endpoints"][0]["name"].endswith("/endpoints/photos")
