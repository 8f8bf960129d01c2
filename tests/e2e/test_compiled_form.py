"""The compiled form, made by the image that a cluster runs."""

import json

import httpx
import pytest

from tests.e2e.conftest import make_deployed_model, make_endpoint, make_model
from tests.kube import predict_url, wait_answered, wait_until

# The server's gauges of its form, and how many processes hold torch.
LOOK = """
import glob, json, urllib.request
lines = urllib.request.urlopen("http://127.0.0.1:8080/metrics").read().decode().splitlines()
maps = [open(path).read() for path in glob.glob("/proc/[0-9]*/maps")]
told = [line for line in lines if line.startswith(("pierhead_model_info{", "pierhead_model_not_compiled{"))]
print(json.dumps({"told": told, "torch": sum("libtorch" in text for text in maps)}))
"""


def test_pod_takes_its_compiled_form_and_lets_torch_go(kubectl, coffee):
    kubectl.apply(make_model(v1="photos/1"), make_endpoint(), make_deployed_model("photos"))
    kubectl.wait_ready("endpoint", "photos")
    url = predict_url(kubectl.namespace, "photos")
    wait_answered(url, coffee, "photos")
    [pod] = [one["metadata"]["name"] for one in kubectl.pods("photos")]

    def look():
        return json.loads(kubectl("exec", pod, "--", "python", "-c", LOOK))

    def is_over():
        told = " ".join(look()["told"])
        return told if 'form="compiled"' in told or "pierhead_model_not_compiled{" in told else None

    told = wait_until("it has its compiled form, or says why not", is_over, seconds=240, interval=1)
    assert "pierhead_model_not_compiled" not in told
    wait_until("its last worker with torch has left", lambda: look()["torch"] == 0, seconds=60, interval=1)
    answer = httpx.post(url, content=coffee, headers={"content-type": "application/json"}, timeout=60).json()
    [prediction] = answer["predictions"]
    assert prediction["displayNames"] == ["espresso"]
    assert prediction["confidences"] == [pytest.approx(0.957, abs=0.01)]
