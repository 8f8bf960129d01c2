"""Photographs and models for the end-to-end tests."""

import base64
import json
from pathlib import Path

import pytest
import skimage.data

from tests.kube import predict_url, scratch_namespace, wait_answered


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


def make_endpoint(split=None):
    return _object("Endpoint", "photos", {"trafficSplit": split} if split else {})


def make_deployed_model(name, version="v1", **spec):
    return _object("DeployedModel", name, {"endpoint": "photos", "model": "photos", "modelVersion": version, **spec})


def _object(kind, name, spec):
    return {"apiVersion": "pierhead.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def photos(cluster, coffee):
    """The example, as the quickstart applies it, in a namespace of this module's own."""
    example = Path(__file__).parents[2] / "examples" / "photos" / "photos.yaml"
    with scratch_namespace("photos") as kubectl:
        kubectl("apply", "--filename", str(example))
        kubectl.wait_ready("deployedmodel", "photos-1", "photos-2")
        kubectl.wait_ready("endpoint", "photos")
        wait_answered(predict_url(kubectl.namespace, "photos"), coffee, "photos-1", "photos-2")
        yield kubectl
