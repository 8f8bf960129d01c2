"""Installations with the defaults on a cluster that has neither a gateway nor Istio, by the commands of the documentation.

They come and go on one cluster, from the first that brings Pierhead's kinds to one that takes over what others left.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from cluster import containers, images, install, registry, settings, up
from cluster.settings import Paths
from tests.documents import REPOSITORY, find_blocks
from tests.e2e.conftest import make_deployed_model, make_endpoint, make_model
from tests.kube import Kubectl, find_port, wait_until

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


NAMESPACES = ("pierhead-system", "models-system", "models")  # of Pierhead's, in the documentation


@contextmanager
def leaving_nothing(kubectl):
    """Nothing of Pierhead is there afterwards."""
    try:
        yield
    finally:
        kubectl("delete", "crds", "--selector=app.kubernetes.io/name=pierhead")
        for namespace in NAMESPACES:
            # Nobody is served any more: what they would wait for, to fail no request, need not be.
            Kubectl(namespace)("delete", "deployments", "--all")
            Kubectl(namespace)("delete", "pods", "--all", "--grace-period=1")
            kubectl("delete", "namespace", namespace, "--ignore-not-found")
        for kind in ("clusterroles", "clusterrolebindings"):
            kubectl("delete", kind, "--selector=app.kubernetes.io/part-of=pierhead")


@pytest.fixture(scope="module")
def models(storage, tmp_path_factory):
    """A file with one model of the example, for two cores."""
    file = tmp_path_factory.mktemp("models") / "photos.yaml"
    file.write_text(yaml.safe_dump_all([make_model(v1="photos/1"), make_endpoint(), make_deployed_model("photos-1")]))
    return str(file)


@pytest.fixture(scope="module")
def release(kubectl, models):
    """The release of docs/install.md, with which the model was predicted against."""
    with leaving_nothing(kubectl):
        _install("helm", models)
        yield


def test_kubectl_leads_from_nothing_to_a_prediction(kubectl, models):
    with leaving_nothing(kubectl):
        _install("kubectl", models)


def test_helm_leads_from_nothing_to_a_prediction(release):
    """What the notes say holds: `helm test`, and the API with a token of somebody who may edit."""
    notes = json.loads(_run_shell("helm status pierhead --namespace pierhead-system --output json"))["info"]["notes"]
    commands = [line.strip() for line in notes.splitlines() if line.startswith("  ")]
    told = _run_shell(
        "\n".join(commands)
        .replace("8080", str(find_port()))
        .replace("curl", "curl --silent --retry 9 --retry-all-errors")
    )
    assert "Phase:          Succeeded" in told
    assert json.loads(told.splitlines()[-1])["endpoints"][0]["name"].endswith("/endpoints/photos")


# A cloud's controller, which gives a Service an address: one of the node's network that nobody has.
BALANCER = f"{settings.NODE_IP}77"
CLOUD = f"""
while ! kubectl get service pierhead-api --namespace pierhead-system --output=jsonpath='{{.status}}' | grep {BALANCER}; do
  kubectl patch service pierhead-api --namespace pierhead-system --subresource=status --type=merge \\
    --patch '{{"status": {{"loadBalancer": {{"ingress": [{{"ip": "{BALANCER}"}}]}}}}}}' || true
  sleep 1
done >&2 &
"""


@pytest.mark.parametrize(("way", "before"), [("nodeport", ""), ("loadbalancer", CLOUD)])
def test_api_is_reached_from_outside(release, way, before):
    commands = _find_commands(way, "install/without-gateway.md")
    assert "port-forward" not in commands
    _check_answer(_run_shell(before + commands))


# The commands of docs/upgrading.md, and which installation looks after everything afterwards; the last one is the first
# one's release again, in the place of what kubectl has applied.
TAKERS = [
    ("another", "models-system", "models"),
    ("kubectl", "models", "pierhead"),
    ("helm", "models", "pierhead"),
]


def test_models_outlive_what_installed_pierhead(kubectl, release, models):
    there = _find_versions(kubectl)
    assert len(there) == len(("Model", "Endpoint", "DeployedModel", "Pod")) + 4
    for way, namespace, name in TAKERS:
        _run_shell(_find_commands(way, "upgrading.md"))
        wait_until(
            f"{name} in {namespace} looks after everything",
            lambda holder=f"{namespace}/{name}-operator": _find_holders(kubectl) == {holder},
        )
        _check_answer(_predict(models, namespace, f"{name}-api"))
        assert _find_versions(kubectl) == there, way


def _find_versions(kubectl):
    """Of the kinds, the resources and the pods that serve: another one of the same name would have another uid."""
    found = [
        *kubectl.items("crds", "app.kubernetes.io/name=pierhead"),
        *kubectl.items("models,endpoints.pierhead.dev,deployedmodels"),
        *kubectl.items("pods", "pierhead.dev/endpoint=photos"),
    ]
    return {
        (one["metadata"]["uid"], one["status"].get("containerStatuses", [{}])[0].get("restartCount")) for one in found
    }


def _find_holders(kubectl):
    found = kubectl.items("models,endpoints.pierhead.dev,deployedmodels")
    return {one.get("status", {}).get("installation") for one in found}


def _install(way, models):
    """By the commands of a way of docs/install.md; returns once a prediction was answered."""
    commands = _find_commands(way)
    # All pods learn where the tests' storage is.
    for before, after in {
        "install pierhead charts/pierhead": f"install pierhead charts/pierhead --set-json 'server.env={STORAGE}'",
        "| kubectl apply": f"| sed 's|env: \\[\\]|env: {STORAGE}|' | kubectl apply",
    }.items():
        commands = commands.replace(before, after)
    assert settings.STORAGE_URL_IN_CLUSTER in commands
    began = time.monotonic()
    _run_shell(commands)
    _check_answer(_predict(models))
    print(f"\n{way}: {time.monotonic() - began:.0f} s from nothing to a prediction")


def _predict(models, namespace="pierhead-system", service="pierhead-api"):
    """What the page's commands print that apply the models and ask for a prediction, of the API of an installation."""
    commands = _find_commands("predict")
    for before, after in {
        "8080": str(find_port()),
        "examples/photos/photos.yaml": models,
        "pierhead-system": namespace,
        "service/pierhead-api": f"service/{service}",
    }.items():
        assert before in commands
        commands = commands.replace(before, after)
    return _run_shell(commands)


def _check_answer(printed):
    [answer] = printed.splitlines()[-1:]
    found = json.loads(answer)
    assert found["predictions"][0]["displayNames"][0] == "espresso"
    assert found["deployedModelId"] == "photos-1"


def _find_commands(way, page="install.md"):
    [block] = [block.text for block in find_blocks(REPOSITORY / "docs" / page) if way in block.classes]
    return block


def _run_shell(commands):
    """What bash prints, in the repository; what it left in the background is no longer there afterwards."""
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
