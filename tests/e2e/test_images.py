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
import getpass, glob, json, os, pathlib
[sbom] = glob.glob("/opt/pierhead/sbom/*.cdx.json")
stale = [str(path) for path in pathlib.Path("/app").rglob("*.py") if not list((path.parent / "__pycache__").glob(path.stem + ".*.pyc"))]
who = [os.getuid(), os.getgid(), getpass.getuser(), str(pathlib.Path.home())]
print(json.dumps({"who": who, "sbom": json.load(open(sbom)), "not compiled": stale}))
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


# The image's own user, and one that a cluster chooses, as OpenShift does: it has no name and no home.
USERS = {"own": ({}, 65532, 65532), "arbitrary": ({"runAsUser": 1000680000}, 1000680000, 0)}


@pytest.mark.parametrize(("asked", "user", "group"), USERS.values(), ids=USERS.keys())
@pytest.mark.parametrize("name", ["operator", "server", "server-openvino"])
def test_image_runs_without_rights_and_tells_what_it_is_made_of(kubectl, name, asked, user, group):
    container = {
        "name": "ask",
        "image": _find_image(name),
        "command": ["python", "-c", ASK],
        "securityContext": {**RESTRICTED, **asked},
    }
    spec = {"containers": [container], "restartPolicy": "Never", "automountServiceAccountToken": False}
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    wait_until("it has ended", lambda: kubectl.get("pod", name)["status"]["phase"] == "Succeeded")
    told = json.loads(kubectl("logs", name))
    assert told["who"] == [user, group, "pierhead", "/tmp"]
    assert told["not compiled"] == []
    assert told["sbom"]["bomFormat"] == "CycloneDX"
    components = {canonicalize_name(one["name"]): one["version"] for one in told["sbom"]["components"]}
    assert components == _read_lock(name)
