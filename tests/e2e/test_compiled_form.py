"""The compiled form, made by the image that a cluster runs."""

import httpx
import pytest

from tests.e2e.conftest import make_deployed_model, make_endpoint, make_model, wait_compiled
from tests.kube import predict_url, wait_answered, wait_until

# How many processes hold torch.
ASK_TORCH = """
import glob
print(sum("libtorch" in open(path).read() for path in glob.glob("/proc/[0-9]*/maps")))
"""


def test_pod_takes_its_compiled_form_and_lets_torch_go(kubectl, coffee):
    kubectl.apply(make_model(v1="photos/1"), make_endpoint(), make_deployed_model("photos"))
    kubectl.wait_ready("endpoint", "photos")
    url = predict_url(kubectl.namespace, "photos")
    wait_answered(url, coffee, "photos")
    [pod] = [one["metadata"]["name"] for one in kubectl.pods("photos")]
    wait_compiled(kubectl, pod)

    def count_torch():
        return int(kubectl("exec", pod, "--", "python", "-c", ASK_TORCH))

    wait_until("its last worker with torch has left", lambda: count_torch() == 0, seconds=60, interval=1)
    answer = httpx.post(url, content=coffee, headers={"content-type": "application/json"}, timeout=60).json()
    [prediction] = answer["predictions"]
    assert prediction["displayNames"] == ["espresso"]
    assert prediction["confidences"] == [pytest.approx(0.957, abs=0.01)]
