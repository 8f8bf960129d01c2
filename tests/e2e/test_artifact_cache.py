"""Artifacts in a folder that the pods of a node share: each is fetched once."""

import os
import re

import pytest

from tests.chart import upgraded
from tests.e2e.conftest import make_deployed_model, make_echo_model, make_endpoint
from tests.kube import scratch_namespace, wait_until

# The installation gets a volume for artifacts.
pytestmark = pytest.mark.exclusive

SERVER_UID = 65532
DOWNLOAD = re.compile(r"fetched \d+ of \d+ bytes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """On the node, which is this machine, as the documentation has it prepared."""
    folder = tmp_path_factory.mktemp("artifacts")
    folder.chmod(0o700)
    os.chown(folder, SERVER_UID, SERVER_UID)
    return folder


@pytest.fixture(scope="module")
def photos(cluster, folder):
    """A namespace in an installation with such a folder, and one DeployedModel that serves."""
    source = "server.artifactCache.hostPath"
    with upgraded(f"{source}.path={folder}", f"{source}.type=Directory"), scratch_namespace("cache") as kubectl:
        kubectl.apply(make_echo_model("v1", "v2"), make_endpoint({"first": 100}), make_deployed_model("first"))
        kubectl.wait_ready("deployedmodel", "first")
        yield kubectl


def _read_log(kubectl, deployed_model):
    return kubectl("logs", f"deployment/dm-{deployed_model}")


def test_second_pod_takes_the_copy_of_the_first(photos, folder):
    assert DOWNLOAD.search(_read_log(photos, "first"))
    [copy] = folder.glob("listing-*")
    photos.apply(make_deployed_model("second"))
    photos.wait_ready("deployedmodel", "second")
    log = _read_log(photos, "second")
    assert "not fetched again" in log
    assert not DOWNLOAD.search(log)
    assert [copy] == list(folder.glob("listing-*"))


def test_folder_that_the_server_may_not_write_is_told(photos, folder):
    os.chown(folder, 0, 0)
    try:
        photos.apply(make_deployed_model("third", "v2"))
        condition = wait_until(
            "it is told",
            lambda: (c := photos.condition("deployedmodel", "third")).get("reason") == "ArtifactUnreachable" and c,
            seconds=60,
        )
        assert "copying it to /models failed" in condition["message"]
        assert "Permission denied" in condition["message"]
    finally:
        os.chown(folder, SERVER_UID, SERVER_UID)
