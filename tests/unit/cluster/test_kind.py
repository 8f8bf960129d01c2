"""Images for a cluster of kind's, with fakes in the place of kubectl, Docker, buildah and kind."""

import re

import pytest

from cluster import install, kind, settings
from cluster.errors import ClusterError
from tests.documents import REPOSITORY, find_blocks

OPERATOR, SERVER = (kind.find_reference(name) for name in kind.IMAGES)
BUILDS = [
    ["build", f"--file={settings.REPOSITORY}/Dockerfile.operator", f"--tag={OPERATOR}", str(settings.REPOSITORY)],
    [
        *("build", f"--file={settings.REPOSITORY}/Dockerfile.server", "--target=openvino"),
        *(f"--tag={SERVER}", str(settings.REPOSITORY)),
    ],
]


@pytest.fixture
def machine(tmp_path):
    """Gives the environment of a machine with fakes of these programs on PATH, and what they were called with."""
    folder, record = tmp_path / "bin", tmp_path / "called"
    folder.mkdir()

    def make(*programs, context="kind-demo"):
        for name in programs:
            answer = f"printf %s '{context}'" if name == "kubectl" else f'echo "{name} $*" >> {record}'
            (folder / name).write_text(f"#!/bin/sh\n{answer}\n")
            (folder / name).chmod(0o755)
        called = lambda: [line.split() for line in record.read_text().splitlines()]  # noqa: E731
        return {"PATH": str(folder), "HOME": str(tmp_path)}, called

    return make


def _load(environment, monkeypatch):
    monkeypatch.setenv("PATH", environment["PATH"])
    kind.load(environment)


def test_docker_builds_and_kind_loads(machine, monkeypatch):
    environment, called = machine("kubectl", "docker", "kind", "buildah")
    _load(environment, monkeypatch)
    assert called() == [
        *(["docker", *build] for build in BUILDS),
        ["kind", "load", "docker-image", "--name=demo", OPERATOR, SERVER],
    ]


def test_buildah_builds_where_there_is_no_docker(machine, monkeypatch):
    environment, called = machine("kubectl", "kind", "buildah")
    _load(environment, monkeypatch)
    lines = called()
    assert lines[:2] == [["buildah", *build] for build in BUILDS]
    for number, reference in enumerate([OPERATOR, SERVER]):
        push, load = lines[2 + 2 * number : 4 + 2 * number]
        assert push[:3] == ["buildah", "push", reference]
        archive = push[3].removeprefix("docker-archive:").removesuffix(f":{reference}")
        assert load == ["kind", "load", "image-archive", "--name=demo", archive]


@pytest.mark.parametrize(
    ("programs", "context", "said"),
    [
        (("kubectl", "docker", "kind"), "gke_a_b", "none of kind's"),
        (("kubectl", "docker", "kind"), "", "none of kind's"),
        (("kubectl", "kind"), "kind-demo", "neither docker nor buildah"),
    ],
)
def test_what_is_missing_is_told(machine, monkeypatch, programs, context, said):
    environment, _ = machine(*programs, context=context)
    with pytest.raises(ClusterError, match=said):
        _load(environment, monkeypatch)


def test_quickstart_on_kind_needs_no_more_than_its_context(machine, monkeypatch):
    environment, _ = machine("kubectl", "helm")
    monkeypatch.setenv("PATH", environment["PATH"])
    target = install.find_current(environment)
    assert (target.operator_image, target.server_image) == (OPERATOR, SERVER)
    assert target.gateway is None
    assert install.make_values(target)["routing"] == {"provider": "none"}
    # The API asks who predicts, as it does by default.
    assert "authorization" not in install.make_values(target)["api"]


def test_quickstart_on_kind_takes_other_images(machine, monkeypatch):
    environment, _ = machine("kubectl", "helm")
    monkeypatch.setenv("PATH", environment["PATH"])
    target = install.find_current({**environment, "PIERHEAD_SERVER_IMAGE": "registry.example.com/server:1"})
    assert (target.operator_image, target.server_image) == (OPERATOR, "registry.example.com/server:1")


def test_quickstart_elsewhere_names_the_images_that_it_wants(machine, monkeypatch):
    environment, _ = machine("kubectl", "helm", context="gke_a_b")
    monkeypatch.setenv("PATH", environment["PATH"])
    with pytest.raises(ClusterError, match=r"(?s)PIERHEAD_OPERATOR_IMAGE.*PIERHEAD_SERVER_IMAGE"):
        install.find_current(environment)


def test_page_of_kind_has_three_commands():
    [block] = [block for block in find_blocks(REPOSITORY / "docs/install/kind.md") if "kind" in block.classes]
    assert block.text.splitlines() == [
        "kind create cluster",
        "CLUSTER=current make images",
        "CLUSTER=current make quickstart",
    ]
    makefile = (REPOSITORY / "Makefile").read_text()
    for target, command in {"images": "images", "predictions": "quickstart"}.items():
        assert re.search(rf"^{target}:.*\n(\t.*\n)*\t.*-m cluster {command}$", makefile, re.MULTILINE)
