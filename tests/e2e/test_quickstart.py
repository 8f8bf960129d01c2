"""What a newcomer sees: the quickstart, on this machine's cluster and on the one of a kubeconfig."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.chart import upgraded
from tests.kube import Kubectl

# The release is installed anew, with fewer values than the tests' own.
pytestmark = pytest.mark.exclusive

REPOSITORY = Path(__file__).parents[2]
DEFAULT = Kubectl("default")
SYSTEM = Kubectl("pierhead-system")


@pytest.fixture(scope="module")
def example(cluster):
    """The example goes to the namespace default; it is taken away again if it was not there before."""
    was_there = DEFAULT.get("endpoint.pierhead.dev", "photos") is not None
    yield
    if not was_there:
        for name in ("openvino", "batch"):
            DEFAULT("delete", "--filename", str(REPOSITORY / "examples" / "photos" / f"{name}.yaml"))


def _quickstart(**environment):
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "quickstart"],
        env={**os.environ, "COLUMNS": "120", **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _rows(stdout):
    """The table's rows as lists of cells."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in stdout.splitlines() if line.startswith("│")]


def _check(stdout):
    online, stored = stdout.split("what BatchPredictionJob photographs wrote")
    rows = _rows(online)
    photographs = {row[0] for row in rows}
    assert len(photographs) >= 5
    for photograph, top_class, confidence, answered_by, times in rows:
        assert answered_by in ("photos-1", "photos-2")
        assert 0 < float(confidence) <= 1
        assert int(times) > 0
        if photograph == "coffee.png":
            assert top_class == "espresso"
        if photograph == "chelsea.png":
            assert "cat" in top_class
    assert {row[3] for row in rows} == {"photos-1", "photos-2"}
    predicted = dict(_rows(stored))
    assert set(predicted) == photographs
    assert predicted["coffee.png"].startswith("espresso 0.9")
    assert "kubectl get pierhead" in stdout
    assert "curl" in stdout


@pytest.fixture(scope="module")
def printed(example):
    """What the quickstart on this machine prints."""
    return _quickstart()


def test_quickstart_on_this_machine(printed):
    _check(printed)
    assert "make cluster-down" in printed


def test_printed_curl_line_works(printed):
    line = next(line for line in printed.splitlines() if "| curl" in line)
    answer = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True, cwd=REPOSITORY
    )
    [prediction] = json.loads(answer.stdout)["predictions"]
    assert prediction["displayNames"][0] == "espresso"


def _find_images():
    """Those of the installation, as `CLUSTER=current` asks for them."""
    values = json.loads(SYSTEM("get", "deployment", "pierhead-operator", "--output", "json"))
    server = yaml.safe_load(SYSTEM.get("configmap", "pierhead-operator")["data"]["operator.yaml"])["server"]
    storage = Kubectl("pierhead-storage").get("deployment", "storage")
    return {
        "PIERHEAD_OPERATOR_IMAGE": values["spec"]["template"]["spec"]["containers"][0]["image"],
        "PIERHEAD_SERVER_IMAGE": server["openvinoImage"],
        "PIERHEAD_STORAGE_IMAGE": storage["spec"]["template"]["spec"]["containers"][0]["image"],
    }


@pytest.mark.parametrize("gateway", ["pierhead-system/pierhead", ""])
def test_quickstart_on_the_cluster_of_the_kubeconfig(printed, gateway):
    environment = _find_images()
    with upgraded():
        stdout = _quickstart(CLUSTER="current", PIERHEAD_GATEWAY=gateway, **environment)
        _check(stdout)
        assert "make cluster-down" not in stdout
        assert ("kubectl create token" in stdout) == (not gateway)


def test_quickstart_on_another_cluster_names_what_it_needs(cluster):
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "quickstart"],
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "CLUSTER": "current"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    for name in ("PIERHEAD_OPERATOR_IMAGE", "PIERHEAD_SERVER_IMAGE"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr
