"""An image's tag stands for its content."""

import re
import tomllib
from pathlib import Path

import pytest

from cluster import buildah, go_build, images, settings
from cluster.buildah import Build
from cluster.settings import Paths

FILES = {
    "Dockerfile.operator": "FROM x\n",
    ".dockerignore": "*\n",
    "LICENSE": "",
    "requirements/uv.txt": "uv==1\n",
    "requirements/operator.txt": "kopf==1\n",
    "requirements/server.txt": "torch==1\n",
    "operator/pierhead_operator/__init__.py": "",
    "operator/pierhead_operator/names.py": "x = 1\n",
    "api/pierhead_api/names.py": "x = 1\n",
}


@pytest.fixture
def repository(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_reference_is_on_loopback(repository):
    image = images.make_pierhead_image("operator", repository)
    assert image.reference == f"127.0.0.1:15000/pierhead/operator:{image.key}"
    assert len(image.key) == 12


@pytest.mark.parametrize(
    "name",
    [
        "Dockerfile.operator",
        ".dockerignore",
        "requirements/operator.txt",
        "operator/pierhead_operator/names.py",
        "api/pierhead_api/names.py",
    ],
)
def test_key_changes_with_what_goes_in(repository, name):
    before = images.make_pierhead_image("operator", repository).key
    (repository / name).write_text("changed\n")
    assert images.make_pierhead_image("operator", repository).key != before


def test_key_changes_with_a_new_file_and_with_a_mode(repository):
    before = images.make_pierhead_image("operator", repository).key
    (repository / "operator/pierhead_operator/names.py").chmod(0o755)
    with_mode = images.make_pierhead_image("operator", repository).key
    (repository / "operator/pierhead_operator/new.py").write_text("")
    assert len({before, with_mode, images.make_pierhead_image("operator", repository).key}) == 3


def test_key_stays_for_what_does_not_go_in(repository):
    before = images.make_pierhead_image("operator", repository).key
    cache = repository / "operator/pierhead_operator/__pycache__"
    cache.mkdir()
    (cache / "names.cpython-311.pyc").write_bytes(b"x")
    (repository / "requirements/server.txt").write_text("torch==2\n")
    (repository / "README.md").write_text("x")
    assert images.make_pierhead_image("operator", repository).key == before


def test_server_without_torch_is_a_target_of_the_same_dockerfile(repository, monkeypatch):
    for name in ("Dockerfile.server", "requirements/server-openvino.txt", "server/pierhead_server/a.py"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("x\n")
    small, large = (images.make_pierhead_image(name, repository) for name in ("server-openvino", "server"))
    (repository / "requirements/server.txt").write_text("torch==2\n")
    assert images.make_pierhead_image("server-openvino", repository).key == small.key != large.key
    (repository / "requirements/server-openvino.txt").write_text("openvino==2\n")
    assert images.make_pierhead_image("server-openvino", repository).key != small.key
    monkeypatch.setattr(images.base_image, "ensure", lambda _: "base")
    build = small.build(Paths(Path("/c")), small, Path("/none"))
    assert (build.dockerfile.name, build.target) == ("Dockerfile.server", "openvino")
    assert "--target=openvino" in buildah.build_command(Paths(Path("/c")), build, [])
    assert large.build(Paths(Path("/c")), large, Path("/none")).target is None


def test_images_of_programs_follow_their_tool():
    image = images.make_go_image(go_build.COREDNS)
    assert image.name == "coredns"
    assert image.key != images.make_go_image(go_build.FAKE_GCS_SERVER).key


def test_build_command_leaves_nothing_of_the_machine_in_the_image():
    build = Build("r:1", Path("/repo/Dockerfile"), Path("/repo"), {"BASE_IMAGE": "base"})
    argv = buildah.build_command(Paths(Path("/c")), build, ["/host/ca:/etc/ca:ro"])
    assert argv[:3] == ["buildah", "--root", "/c/buildah"]
    assert {"--build-arg=BASE_IMAGE=base", "--volume=/host/ca:/etc/ca:ro"} <= set(argv)
    assert "--pull-never" in argv
    assert not any(part.startswith("--env") for part in argv)
    assert not any(part.startswith(("--timestamp", "--no-cache")) for part in argv)
    assert argv[-1] == "/repo"


def test_build_from_nothing_is_of_a_time_of_its_own():
    build = Build("r:1", Path("/repo/Dockerfile"), Path("/repo"), timestamp=0, cached=False)
    assert {"--timestamp=0", "--no-cache"} <= set(buildah.build_command(Paths(Path("/c")), build, []))


def test_package_index_is_read_from_files_then_variables(tmp_path):
    system, user = tmp_path / "system.conf", tmp_path / "user.conf"
    system.write_text("[global]\nindex-url = http://a.invalid\ncert = /x\ntimeout = 9\n")
    user.write_text("[global]\nindex-url = http://b.invalid/%40\n")
    found = buildah.read_pip_settings([system, user, tmp_path / "none"], {"PIP_TIMEOUT": "30", "PIP_CERT": "/y"})
    assert found == {"index-url": "http://b.invalid/%40", "timeout": "30"}
    assert buildah.read_pip_settings([], {}) == {}


def test_pip_and_uv_get_the_same_index():
    values = {"index-url": "http://a.invalid", "extra-index-url": "http://b.invalid http://c.invalid"}
    assert "index-url = http://a.invalid\n" in buildah.make_pip_config(values)
    assert buildah.make_uv_config(values).splitlines() == [
        "system-certs = true",
        'index-url = "http://a.invalid"',
        "extra-index-url = ['http://b.invalid', 'http://c.invalid']",
    ]
    assert buildah.make_uv_config({}) == "system-certs = true\n"


@pytest.mark.parametrize("name", ["operator", "server"])
def test_dockerfiles_are_ordinary_ones(name):
    text = (settings.REPOSITORY / f"Dockerfile.{name}").read_text()
    version = tomllib.loads((settings.REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert "ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm\n" in text
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE_IMAGE}"}
    assert "USER 65532:65532\n" in text
    assert f'org.opencontainers.image.version="{version}"' in text
    dependencies, code = text.index("--require-hashes"), text.index(f"COPY {name}/pierhead_{name} ")
    assert dependencies < code
