"""What the images promise, asked inside of pods that run them."""

import json
import re

import pytest
import yaml
from packaging.utils import canonicalize_name

from tests.kube import OPERATOR, SYSTEM, wait_until
from tests.releases import REPOSITORY

# What a pod of the image says of itself, as JSON.
ASK = """
import glob, json, os, pathlib
[sbom] = glob.glob("/opt/pierhead/sbom/*.cdx.json")
stale = [str(path) for path in pathlib.Path("/app").rglob("*.py") if not list((path.parent / "__pycache__").glob(path.stem + ".*.pyc"))]
print(json.dumps({"user": os.getuid(), "sbom": json.load(open(sbom)), "not compiled": stale}))
"""
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,  # the kubelet reads the user from the image, which must be a number
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def _find_image(name):
    if name == "operator":
        return SYSTEM.get("deployment", OPERATOR)["spec"]["template"]["spec"]["containers"][0]["image"]
    server = yaml.safe_load(SYSTEM.get("configmap", OPERATOR)["data"]["operator.yaml"])["server"]
    return server["openvinoImage" if name == "server-openvino" else "image"]


def _read_lock(name):
    text = (REPOSITORY / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["operator", "server", "server-openvino"])
def test_image_runs_without_rights_and_tells_what_it_is_made_of(kubectl, name):
    container = {
        "name": "ask",
        "image": _find_image(name),
        "command": ["python", "-c", ASK],
        "securityContext": RESTRICTED,
    }
    spec = {"containers": [container], "restartPolicy": "Never", "automountServiceAccountToken": False}
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    wait_until("it has ended", lambda: kubectl.get("pod", name)["status"]["phase"] == "Succeeded")
    told = json.loads(kubectl("logs", name))
    assert told["user"] == 65532
    assert told["not compiled"] == []
    assert told["sbom"]["bomFormat"] == "CycloneDX"
    components = {canonicalize_name(one["name"]): one["version"] for one in told["sbom"]["components"]}
    assert components == _read_lock(name)
