"""Photographs and models for the end-to-end tests."""

import base64
import json
from pathlib import Path

import httpx
import pytest
import skimage.data

from cluster.settings import STORAGE_URL
from tests.kube import wait_until


@pytest.fixture(scope="session")
def coffee() -> bytes:
    """A predict request for one photograph that both versions know as 'espresso'."""
    content = base64.b64encode((Path(skimage.data.__file__).parent / "coffee.png").read_bytes()).decode()
    instance = {"content": content, "mimeType": "image/png"}
    return json.dumps({"instances": [instance], "parameters": {"maxPredictions": 1}}).encode()


def make_model(**artifacts):
    """The Model `photos` with the versions v1, v2, ... of these artifacts in gs://models."""
    versions = [{"name": name, "artifactUri": f"gs://models/{folder}"} for name, folder in artifacts.items()]
    return _object("Model", "photos", {"defaultVersion": versions[0]["name"], "versions": versions})


# Answers with what it is asked, and starts sooner than a network does.
ECHO = "class Predictor:\n    from_path = classmethod(lambda cls, folder: cls())\n    predict = lambda self, instances: instances\n"
ECHO_BODY = json.dumps({"instances": [1]}).encode()


def make_slow_echo(seconds):
    """One that takes its time, and no core's."""
    return ECHO.replace("instances: instances", f"instances: (__import__('time').sleep({seconds}), instances)[1]")


def upload_predictor(name, predictor=ECHO):
    """The version `name` of a Model, with this predictor.py as gs://models/predictors/NAME."""
    files = {"model.yaml": "format: predictor\n", "predictor.py": predictor, "warmup.json": ECHO_BODY.decode()}
    with httpx.Client(base_url=STORAGE_URL, timeout=60) as client:
        for file, content in files.items():
            to = {"uploadType": "media", "name": f"predictors/{name}/{file}"}
            client.post("/upload/storage/v1/b/models/o", params=to, content=content.encode()).raise_for_status()
    return {"name": name, "artifactUri": f"gs://models/predictors/{name}", "allowCode": True}


def make_echo_model(*versions):
    """The Model `photos` of who needs somebody that answers, whatever it is."""
    return make_predictor_model(*map(upload_predictor, versions or ("v1",)))


def make_predictor_model(*uploaded):
    """The Model `photos` with versions that `upload_predictor` gave."""
    return _object("Model", "photos", {"defaultVersion": uploaded[0]["name"], "versions": list(uploaded)})


def make_endpoint(split=None, **spec):
    return _object("Endpoint", "photos", {**({"trafficSplit": split} if split else {}), **spec})


def make_deployed_model(name, version="v1", **spec):
    return _object("DeployedModel", name, {"endpoint": "photos", "model": "photos", "modelVersion": version, **spec})


def _object(kind, name, spec):
    return {"apiVersion": "pierhead.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


# The gauges of a server's form, read in its pod.
_ASK_FORM = """
import urllib.request
lines = urllib.request.urlopen("http://127.0.0.1:8080/metrics").read().decode().splitlines()
print(*[line for line in lines if line.startswith(("pierhead_model_info{", "pierhead_model_not_compiled{"))])
"""


def wait_compiled(kubectl, pod):
    """Until a pod has its compiled form; fails where it says that it will have none."""

    def is_over():
        told = kubectl("exec", pod, "--", "python", "-c", _ASK_FORM)
        return told if 'form="compiled"' in told or "pierhead_model_not_compiled{" in told else None

    told = wait_until("it has its compiled form, or says why not", is_over, seconds=240, interval=1)
    assert "pierhead_model_not_compiled" not in told


RESOURCES = ["models", "endpoints", "deployedmodels", "batchpredictionjobs"]


def make_owner():
    """A ServiceAccount that may do everything with Pierhead's resources of its namespace, and predict."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "owner"}
    rule = {"apiGroups": ["pierhead.dev"], "resources": RESOURCES, "verbs": ["*"]}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "owner"}}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "owner"}},
        {**rbac, "kind": "Role", "rules": [rule]},
        {**rbac, "kind": "RoleBinding", "roleRef": role, "subjects": [{"kind": "ServiceAccount", "name": "owner"}]},
    ]
