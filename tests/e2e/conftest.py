"""Photographs and models for the end-to-end tests."""

import base64
import json

import pytest
import skimage.data

from tests.kube import scratch_namespace


@pytest.fixture(scope="session")
def coffee() -> bytes:
    """A predict request for one photograph that both versions know as 'espresso'."""
    from pathlib import Path

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
def photos(cluster):
    """The example, as the quickstart applies it, in a namespace of this module's own."""
    from pathlib import Path

    example = Path(__file__).parents[2] / "examples" / "photos" / "photos.yaml"
    with scratch_namespace("photos") as kubectl:
        kubectl("apply", "--filename", str(example))
        kubectl.wait_ready("deployedmodel", "photos-1", "photos-2")
        kubectl.wait_ready("endpoint", "photos")
        yield kubectl
