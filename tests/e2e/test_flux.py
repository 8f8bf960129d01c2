"""Flux's own controllers apply models out of Git: they wait for what serves, and find nothing to change afterwards."""

import json
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from tests.chart import uninstalled
from tests.e2e.conftest import make_deployed_model, make_echo_model, make_endpoint
from tests.flux import (
    FLUX_SYSTEM,
    GIT_REPOSITORY,
    KUSTOMIZATION,
    ask_again,
    make_kustomization,
    make_source,
    running_flux,
)
from tests.git import serving_git
from tests.kube import OPERATOR, SYSTEM, Kubectl, forwarded, predict_url, wait_until

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def flux(cluster, tmp_path_factory):
    with running_flux(tmp_path_factory.mktemp("flux")) as flux:
        yield flux


@pytest.fixture(scope="module")
def git(tmp_path_factory):
    with serving_git(tmp_path_factory.mktemp("git")) as server:
        yield server


@pytest.fixture
def repository(git, kubectl):
    return git.make_repository(kubectl.namespace)


def commit(repository, *manifests):
    """A commit as Flux names it."""
    return f"main@sha1:{repository.commit({'models.yaml': yaml.safe_dump_all(manifests)})}"


def follow(kubectl, repository):
    kubectl.apply(
        make_source("models", repository.url), make_kustomization("models", targetNamespace=kubectl.namespace)
    )


def wait_applied(kubectl, revision):
    """Until the Kustomization is Ready with this commit."""
    wait_until(
        f"{revision} is applied",
        lambda: kubectl.get(KUSTOMIZATION, "models").get("status", {}).get("lastAppliedRevision") == revision,
    )
    kubectl.wait_ready(KUSTOMIZATION, "models")


def test_kustomization_is_ready_once_everything_serves(kubectl, flux, repository):
    model = make_echo_model("v1", "v2")
    first = commit(repository, make_deployed_model("photos"), make_endpoint(), model)
    follow(kubectl, repository)
    wait_applied(kubectl, first)
    since = kubectl.condition(KUSTOMIZATION, "models")["lastTransitionTime"]
    for kind, name in (("model", "photos"), ("endpoint.pierhead.dev", "photos"), ("deployedmodel", "photos")):
        ready = kubectl.condition(kind, name)
        assert (ready["status"], ready["lastTransitionTime"] <= since) == ("True", True), kind

    ask_again(kubectl, KUSTOMIZATION, "models")
    before = len(flux.changes(kubectl, "models"))
    wait_until("it is applied again", lambda: len(flux.changes(kubectl, "models")) > before)
    assert set(flux.changes(kubectl, "models")[-1].values()) == {"unchanged"}

    second = commit(repository, make_deployed_model("photos", "v2"), make_endpoint(), model)
    ask_again(kubectl, GIT_REPOSITORY, "models")
    wait_applied(kubectl, second)
    status = kubectl.get("deployedmodel", "photos")["status"]
    assert (status["modelVersion"], kubectl.condition("deployedmodel", "photos")["status"]) == ("v2", "True")
    changes = flux.changes(kubectl, "models")[-1]
    assert [name for name, change in changes.items() if change != "unchanged"] == [
        f"DeployedModel/{kubectl.namespace}/photos"
    ]

    commit(repository, make_endpoint(), model)
    ask_again(kubectl, GIT_REPOSITORY, "models")
    wait_until("what left Git is gone", lambda: not kubectl.get("deployedmodel", "photos"))


def test_kustomization_with_a_model_that_is_broken_says_so(kubectl, flux, repository):
    model = make_echo_model("v1")
    model["spec"]["versions"][0]["artifactUri"] = "gs://models/there-is-none"
    commit(repository, model, make_endpoint(), make_deployed_model("photos"))
    follow(kubectl, repository)
    failed = wait_until(
        "it says that it is not healthy",
        lambda: (ready := kubectl.condition(KUSTOMIZATION, "models")).get("reason") == "HealthCheckFailed" and ready,
    )
    assert failed["status"] == "False"
    assert f"DeployedModel/{kubectl.namespace}/photos status: 'Failed'" in failed["message"]


TEAM = Kubectl("default")
PLATFORM = Kubectl("pierhead-by-flux")
KINDS = "app.kubernetes.io/name=pierhead"


@pytest.mark.exclusive
def test_documented_commands_lead_from_nothing_to_a_prediction(flux, git, tmp_path, coffee):
    """Those of docs/gitops.md, in a cluster without Pierhead."""
    adapt = make_adaptation(git)
    for file in sorted((REPOSITORY / "examples/gitops/flux").iterdir()):
        documents = [adapt(document) for document in yaml.safe_load_all(file.read_text())]
        (tmp_path / file.name).write_text(yaml.safe_dump_all(documents))
    with uninstalled(), flux_system() as kubectl:
        kubectl.in_any_namespace("apply", "--server-side", "-k", str(tmp_path))
        kubectl("wait", "kustomization/models", "--for=condition=Ready", "--timeout=5m", timeout=320)
        with forwarded(PLATFORM, "pierhead-api", 80) as url:
            token = TEAM("create", "token", "client").strip()
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            answer = httpx.post(predict_url("default", "photos", url), content=coffee, headers=headers, timeout=60)
        assert answer.json()["predictions"][0]["displayNames"] == ["espresso"]


@contextmanager
def flux_system():
    """Flux's namespace, and none of what came by it afterwards."""
    FLUX_SYSTEM("create", "namespace", FLUX_SYSTEM.namespace)
    try:
        yield FLUX_SYSTEM
    finally:
        # The models first: who looks after them drains them.
        for name in ("models", "pierhead"):
            FLUX_SYSTEM("delete", KUSTOMIZATION, name, "--ignore-not-found")
        FLUX_SYSTEM("delete", "namespace", FLUX_SYSTEM.namespace)
        there = SYSTEM.items("crd", KINDS)
        SYSTEM("delete", "crd", "--selector", KINDS)
    assert len(there) == 4, "the kinds outlive the installation that Flux has pruned"


def make_adaptation(git):
    """What turns the example into one of this cluster: its repositories, its images, and machines of its size."""
    operator = SYSTEM.get("deployment", OPERATOR)["spec"]["template"]["spec"]["containers"][0]["image"]
    settings = yaml.safe_load(SYSTEM.get("configmap", OPERATOR)["data"]["operator.yaml"])
    small = yaml.safe_dump({name: settings[name] for name in ("server", "rollout")})
    patch = [{"op": "replace", "path": "/data/operator.yaml", "value": small}]
    pierhead = {
        "images": [
            _make_image("images.invalid/pierhead/operator", operator),
            _make_image("images.invalid/pierhead/server", settings["server"].pop("image")),
        ],
        "targetNamespace": PLATFORM.namespace,
        "patches": [{"target": {"kind": "ConfigMap", "name": OPERATOR}, "patch": json.dumps(patch)}],
    }
    urls = {"pierhead": commit_pierhead(git), "models": commit_models(git)}

    def adapt(document):
        if document["kind"] == "GitRepository":
            document["spec"]["url"] = urls[document["metadata"]["name"]]
        elif document.get("metadata", {}).get("name") == "pierhead":
            document["spec"].update(pierhead)
        return document

    return adapt


def _make_image(name, reference):
    new_name, _, tag = reference.rpartition(":")
    return {"name": name, "newName": new_name, "newTag": tag}


def commit_pierhead(git):
    repository = git.make_repository("pierhead")
    folder = REPOSITORY / "config" / "default"
    repository.commit({f"config/default/{file.name}": file.read_text() for file in folder.iterdir()})
    return repository.url


def commit_models(git):
    """What docs/gitops.md says that a team's repository holds."""
    repository = git.make_repository("models")
    files = ("photos/photos.yaml", "gitops/client.yaml")
    repository.commit({Path(file).name: (REPOSITORY / "examples" / file).read_text() for file in files})
    return repository.url
