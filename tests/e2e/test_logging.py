"""What pods log is a DeployedModel's to say."""

import json

import httpx

from tests.e2e.conftest import ECHO_BODY, make_deployed_model, make_echo_model, make_endpoint
from tests.kube import predict_url, wait_answered, wait_until

REQUESTS = "pierhead_server.requests"


def _read_log(kubectl):
    """The lines of the DeployedModel's pod, which is alone by now."""
    pods = [pod for pod in kubectl.pods("photos") if not pod["metadata"].get("deletionTimestamp")]
    [name] = [pod["metadata"]["name"] for pod in pods]
    return [json.loads(line) for line in kubectl("logs", name).splitlines()]


def test_pods_log_what_they_are_told_to(kubectl):
    logging = {"enableAccessLogging": True, "disableContainerLogging": True}
    kubectl.apply(make_echo_model(), make_endpoint(), make_deployed_model("photos", **logging))
    kubectl.wait_ready("endpoint", "photos")
    url = predict_url(kubectl.namespace, "photos")
    wait_answered(url, ECHO_BODY, "photos")
    assert {line["logger"] for line in _read_log(kubectl)} == {REQUESTS}, "predictions, and nothing else"

    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"Authorization": "Bearer secret", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    answer = httpx.post(f"{url}?key=secret", content=ECHO_BODY, headers=headers, timeout=60)
    lines = wait_until("it is told", lambda: [one for one in _read_log(kubectl) if one.get("trace_id") == trace], 30)
    [line] = lines
    assert line.items() >= {"code": 200, "instances": 1, "dialect": "vertex", "method": "POST"}.items()
    assert (line["bytes_in"], line["bytes_out"]) == (len(ECHO_BODY), len(answer.content))
    assert 0 < line["seconds"] < 60
    assert "secret" not in json.dumps(line)

    kubectl.patch("deployedmodel", "photos", {"spec": dict.fromkeys(logging)})
    kubectl.wait_ready("deployedmodel", "photos")
    wait_until("the old pod is gone", lambda: len(kubectl.pods("photos")) == 1)
    wait_answered(url, ECHO_BODY, "photos")
    lines = _read_log(kubectl)
    assert any("listening on" in line["message"] for line in lines)
    # One of a hundred, as without the field.
    assert sum(line["logger"] == REQUESTS for line in lines) < 10
