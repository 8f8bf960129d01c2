"""What the images install is enough: some packages import what they do not ask for."""

import os
import re
import subprocess
import sys

import pytest

from tests.documents import REPOSITORY
from tests.unit.server.calls import pictures
from tests.unit.server.conftest import PREDICT, run, running_server
from tests.unit.server.pictures import picture, write_exported_artifact, write_torchvision_artifact
from tests.unit.server.test_compiled import write_classifier

# Runs at the start of each Python, in children, too: its finders find what a lock file has.
SITE = """
import importlib.metadata, re, sys

locked = set({locked!r})
found = importlib.metadata.packages_distributions().items()
names = {{name for name, by in found if not locked & {{re.sub(r"[-_.]+", "-", one).lower() for one in by}}}}
missing = names - {{"pierhead_server"}}


class Only:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else self.finder.find_spec(name, path, target)


sys.meta_path[:] = map(Only, sys.meta_path)
"""


@pytest.fixture
def find_only(tmp_path, monkeypatch):
    """Have programs find what a lock file has, and not what only the tests have."""

    def find(lock):
        text = (REPOSITORY / "requirements" / f"{lock}.txt").read_text()
        locked = re.findall(r"^([a-z0-9.-]+)==", text, re.MULTILINE)
        assert "openvino" in locked
        (tmp_path / "sitecustomize.py").write_text(SITE.format(locked=locked))
        paths = [str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))

    return find


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # for models that were saved years ago
@pytest.mark.parametrize("format_", ["torchvision", "torch.export", "traced"])
def test_image_has_all_that_a_compiled_form_is_made_with(find_only, tmp_path, format_):
    find_only("server")
    folder = tmp_path / "artifact"
    folder.mkdir()
    if format_ == "torchvision":
        write_torchvision_artifact(folder)
    elif format_ == "torch.export":
        write_exported_artifact(folder)
    else:
        write_classifier(folder, format_)
    ended = run("compile", "--model", folder)
    assert "compiled into" in ended.stdout, ended.stderr


def test_small_image_has_all_that_serves_a_network_of_openvino(find_only, tmp_path, torchvision_folder):
    ended = run("convert", torchvision_folder, tmp_path / "artifact")
    assert ended.returncode == 0, ended.stderr
    find_only("server-openvino")
    settings = {"WORKERS": 1}
    with running_server(tmp_path / "artifact", tmp_path / "log", **settings) as server:
        server.wait_ready(1)
        assert server.client.post(PREDICT, json=pictures(picture())).status_code == 200
        assert server.form() == "compiled"


@pytest.mark.parametrize(("lock", "module"), [("server", "pytest"), ("server-openvino", "torch")])
def test_what_only_the_tests_have_is_not_found(find_only, lock, module):
    find_only(lock)
    ended = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    assert f"No module named '{module}'" in ended.stderr
