"""An Endpoint that nobody serves, through the real gateways: Google's error, which says why, until somebody does."""

import httpx
import pytest

from tests.chart import upgraded
from tests.e2e.conftest import ECHO_BODY, make_deployed_model, make_echo_model, make_endpoint, make_model
from tests.kube import SYSTEM, predict_url, scratch_namespace, wait_answered, wait_until


def _ask(url):
    """The status, Google's status and the message; no more than the status where the answer is no JSON."""
    answer = httpx.post(url, content=ECHO_BODY, timeout=60)
    if not answer.headers.get("content-type", "").startswith("application/json"):
        return (answer.status_code,)
    error = answer.json().get("error", {})
    assert answer.status_code == error.get("code", 200)
    assert ("retry-after" in answer.headers) == (answer.status_code == 503)
    return answer.status_code, error.get("status"), error.get("message")


def _wait_told(url, *expected):
    wait_until(f"{url} is answered {expected}", lambda: _ask(url) == expected, seconds=60)


NOTHING = (400, "FAILED_PRECONDITION", "nothing is deployed on the endpoint photos")


def _unserved(cause):
    return 503, "UNAVAILABLE", f"no DeployedModel of the endpoint photos answers: photos ({cause})"


def _find_routes(kubectl):
    kinds = "httproutes,backendtrafficpolicies,services"
    return {f"{live['kind']} {live['metadata']['name']}" for live in kubectl.items(kinds)} - {"Service dm-photos"}


def test_gateways_clients_are_told_why_until_somebody_serves_and_again_afterwards(kubectl):
    url = predict_url(kubectl.namespace, "photos")
    kubectl.apply(make_model(v1="photos/nowhere"), make_endpoint(maxRequestBytes=1024 * 1024))
    _wait_told(url, *NOTHING)
    kubectl.apply(make_deployed_model("photos"))
    _wait_told(url, *_unserved("ArtifactNotFound"))
    assert _find_routes(kubectl) == set()
    kubectl("delete", "deployedmodel,model", "photos")
    _wait_told(url, *NOTHING)
    kubectl.apply(make_echo_model(), make_deployed_model("photos"))
    wait_answered(url, ECHO_BODY, "photos")
    assert _find_routes(kubectl) == {"HTTPRoute ep-photos", "BackendTrafficPolicy ep-photos", "HTTPRoute mdl-photos"}
    kubectl("delete", "deployedmodel", "photos")
    _wait_told(url, *NOTHING)


def test_private_gateways_clients_are_told_likewise_and_the_public_ones_nothing(kubectl):
    [address] = SYSTEM.get("gateway", "pierhead-private")["status"]["addresses"]
    inside = f"http://{address['value']}"
    url, outside = predict_url(kubectl.namespace, "photos", inside), predict_url(kubectl.namespace, "photos")
    kubectl.apply(make_echo_model(), make_endpoint(access="Private"))
    _wait_told(url, *NOTHING)
    assert _ask(outside)[0] == 401, "as of an endpoint that there is not"
    kubectl.apply(make_deployed_model("photos"))
    wait_answered(url, ECHO_BODY, "photos")
    # Nothing else of the API is behind this gateway.
    management = f"{inside}/v1/projects/{kubectl.namespace}/locations/local/endpoints"
    assert httpx.get(management, timeout=60).status_code == 404


@pytest.mark.exclusive
def test_without_the_api_the_gateway_answers_and_no_address_is_used_up(cluster):
    with upgraded("api.enabled=false"), scratch_namespace("unserved") as kubectl:
        url = predict_url(kubectl.namespace, "photos")
        kubectl.apply(make_echo_model(), make_endpoint())
        _wait_told(url, 503)
        assert kubectl.get("service", "ep-photos")["spec"]["clusterIP"] == "None"
        kubectl.apply(make_deployed_model("photos"))
        wait_answered(url, ECHO_BODY, "photos")
        wait_until("the idle Service is gone", lambda: "Service ep-photos" not in _find_routes(kubectl))
