"""Requests that need more memory than there is, and requests that kill: the container outlives them."""

import json

import httpx
import pytest

from tests.e2e.conftest import (
    ECHO_BODY,
    make_deployed_model,
    make_endpoint,
    make_predictor_model,
    upload_predictor,
)
from tests.kube import predict_url, wait_answered, wait_until

# An instance says what to do. The first two would take more than the container's memory limit.
HUNGRY = """\
import os, signal

class Predictor:
    from_path = classmethod(lambda cls, folder: cls())

    def predict(self, instances):
        return [self.obey(told) for told in instances]

    def obey(self, told):
        if told == "eat":
            return len(b"x" * (8 << 30))
        if told == "tensor":
            import torch
            return torch.ones(8 << 30, dtype=torch.uint8).sum().item()
        if told == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return told
"""
TIMES = 6  # more than a server survives if they count


@pytest.mark.parametrize("told", ["eat", "tensor", "die"])
def test_requests_that_take_too_much_put_no_pod_into_a_crash_loop(kubectl, told):
    kubectl.apply(
        make_predictor_model(upload_predictor("hungry", HUNGRY)),
        make_endpoint(),
        make_deployed_model("photos", "hungry"),
    )
    kubectl.wait_ready("endpoint", "photos")
    url = predict_url(kubectl.namespace, "photos")
    wait_answered(url, ECHO_BODY, "photos")
    with httpx.Client(timeout=60) as client:
        for number in range(TIMES):
            assert client.post(url, content=ECHO_BODY).status_code == 200
            answer = client.post(url, content=json.dumps({"instances": [told]}).encode())
            assert answer.status_code in (400, 500), f"{number}: {answer.status_code} {answer.text}"
    wait_until("it answers as ever", lambda: _answers(url))
    [pod] = kubectl.pods("photos")
    assert [status["restartCount"] for status in pod["status"]["containerStatuses"]] == [0]


def _answers(url):
    with httpx.Client(timeout=60) as client:
        return all(client.post(url, content=ECHO_BODY).status_code == 200 for _ in range(20))
