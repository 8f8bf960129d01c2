"""The REST API behind the gateway: whose rights count, what it forwards, and what a gateway asks it."""

import os
import ssl
from contextlib import contextmanager

import httpx
import pytest

from cluster.settings import API_URL, GATEWAY_TLS_ADDRESS
from tests.audit import find_refused, find_used_rights, make_user
from tests.chart import upgraded
from tests.e2e.conftest import ECHO_BODY, RESOURCES, make_deployed_model, make_echo_model, make_endpoint, make_owner
from tests.kube import SYSTEM, scratch_namespace, wait_until

API = "pierhead-api"


@pytest.fixture(scope="module")
def owned(cluster):
    """A namespace with an endpoint that answers, and its owner's token."""
    with scratch_namespace("api-owned") as kubectl:
        kubectl.apply(*make_owner(), make_echo_model(), make_endpoint(), make_deployed_model("photos"))
        kubectl.wait_ready("endpoint", "photos")
        yield kubectl, kubectl("create", "token", "owner").strip()


@pytest.fixture(scope="module")
def stranger(cluster):
    """The token of another namespace's owner."""
    with scratch_namespace("api-other") as kubectl:
        kubectl.apply(*make_owner())
        yield kubectl("create", "token", "owner").strip()


def ask(method, path, token=None, content=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.request(method, os.environ["PIERHEAD_URL"] + path, headers=headers, content=content, timeout=60)


def _predict_paths(namespace, location):
    return [
        f"/v1/projects/{namespace}/locations/{location}/endpoints/photos:predict",
        f"/v1/projects/{namespace}/locations/{location}/endpoints/photos%3Apredict",
        f"/v1/projects/{namespace}/models/photos:predict",
        f"/v1/projects/{namespace}/models/photos/versions/v1:predict",
    ]


def _wait_served(path):
    """Until the gateway has followed: before, it answers 404 by itself, in no JSON."""
    wait_until(f"{path} is the API's", lambda: ask("GET", path).status_code == 401, 60)


def test_callers_own_rights_count(owned, stranger):
    kubectl, owner = owned
    at = f"/v1/projects/{kubectl.namespace}/locations/us-central1"
    # This one the gateway leaves to the API.
    forwarded = f"{at.replace('/v1/', '/v1beta1/')}/endpoints/photos:predict"
    _wait_served(f"{at}/endpoints")
    assert ask("GET", f"{at}/endpoints", owner).json()["endpoints"][0]["displayName"] == "photos"
    assert ask("GET", f"{at}/endpoints/photos", owner).status_code == 200
    for method, path in [
        ("GET", f"{at}/endpoints"),
        ("GET", f"{at}/endpoints/photos"),
        ("GET", f"{at}/endpoints/nothing"),
        ("DELETE", f"{at}/endpoints/photos"),
        ("GET", f"{at}/models/photos"),
        ("GET", f"{at}/batchPredictionJobs"),
        ("POST", forwarded),
    ]:
        refused = ask(method, path, stranger, ECHO_BODY)
        assert (refused.status_code, refused.json()["error"]["status"]) == (403, "PERMISSION_DENIED"), path
        assert ask(method, path, content=ECHO_BODY).status_code == 401, path
        assert ask(method, path, "no.such.token", ECHO_BODY).status_code == 401, path
    assert ask("GET", "/v1/projects/no-such-namespace/locations/local/endpoints", owner).status_code == 403


def test_prediction_that_no_route_carries_is_forwarded(owned):
    kubectl, owner = owned
    path = _predict_paths(kubectl.namespace, "us-central1")[0]
    assert ask("POST", path, content=ECHO_BODY).json()["deployedModelId"] == "photos", "the gateway asks for no token"
    forwarded = path.replace("/v1/", "/v1beta1/")
    _wait_served(forwarded.removesuffix(":predict"))
    answer = ask("POST", forwarded, owner, ECHO_BODY)
    assert (answer.status_code, answer.json()["deployedModelId"]) == (200, "photos"), answer.text


@pytest.mark.parametrize("location", ["local", "us-central1"])
def test_answer_names_the_location_that_was_asked_for(owned, location):
    kubectl, owner = owned
    path = _predict_paths(kubectl.namespace, location)[0]
    forwarded = path.replace("/v1/", "/v1beta1/")
    _wait_served(forwarded.removesuffix(":predict"))
    model = f"projects/{kubectl.namespace}/locations/{location}/models/photos"
    for asked in (path, forwarded):
        assert ask("POST", asked, owner, ECHO_BODY).json()["model"] == model, asked
    raw = ask("POST", path.replace("predict", "rawPredict"), owner, ECHO_BODY)
    assert raw.headers["X-Vertex-AI-Model"] == model


def test_token_for_predictions_alone_is_good_for_nothing_else(owned):
    kubectl, _ = owned
    bound = kubectl("create", "token", "owner", "--audience", "pierhead").strip()
    at = f"/v1beta1/projects/{kubectl.namespace}/locations/us-central1"
    _wait_served(f"{at}/endpoints")
    answer = ask("POST", f"{at}/endpoints/photos:predict", bound, ECHO_BODY)
    assert (answer.status_code, answer.json()["deployedModelId"]) == (200, "photos"), answer.text
    assert ask("POST", f"{at.replace(kubectl.namespace, 'default')}/endpoints/x:predict", bound).status_code == 403
    refused = ask("GET", f"{at}/endpoints", bound)
    assert (refused.status_code, "is for predictions" in refused.text) == (401, True)
    trusted = ssl.create_default_context(cafile=os.environ["PIERHEAD_CA"])
    elsewhere = httpx.get(f"{API_URL}/api", headers={"Authorization": f"Bearer {bound}"}, verify=trusted)
    assert elsewhere.status_code == 401, "Kubernetes takes it itself"
    other = kubectl("create", "token", "owner", "--audience", "elsewhere").strip()
    assert ask("POST", f"{at}/endpoints/photos:predict", other, ECHO_BODY).status_code == 401


@pytest.mark.exclusive
def test_gateway_asks_who_may_predict(owned, stranger):
    kubectl, owner = owned
    bound = kubectl("create", "token", "owner", "--audience", "pierhead").strip()
    local, *others = _predict_paths(kubectl.namespace, "local")
    with upgraded("api.authorization=gateway"):
        wait_until("the gateway asks", lambda: ask("POST", local, content=ECHO_BODY).status_code == 401, 60)
        wait_until("nobody may any more", lambda: not kubectl.condition("endpoint", "photos", "Open"), 30)
        for path in (local, *others, _predict_paths(kubectl.namespace, "us-central1")[0]):
            assert ask("POST", path, owner, ECHO_BODY).status_code == 200, path
            assert ask("POST", path, bound, ECHO_BODY).status_code == 200, path
            refused = ask("POST", path, stranger, ECHO_BODY)
            assert (refused.status_code, refused.json()["error"]["status"]) == (403, "PERMISSION_DENIED"), path
            assert ask("POST", path, content=ECHO_BODY).status_code == 401, path
        management = f"/v1/projects/{kubectl.namespace}/locations/local/endpoints"
        assert ask("GET", management, owner).status_code == 200
        assert ask("GET", management, stranger).status_code == 403
    wait_until("the gateway asks no more", lambda: ask("POST", local, content=ECHO_BODY).status_code == 200, 60)
    wait_until("everybody may, which is told", lambda: kubectl.condition("endpoint", "photos", "Open"), 30)


@contextmanager
def _without(deployment):
    """A Deployment of the release has no pods meanwhile."""
    replicas = SYSTEM.get("deployment", deployment)["spec"]["replicas"]
    SYSTEM("scale", "deployment", deployment, "--replicas", "0")
    try:
        yield
    finally:
        SYSTEM("scale", "deployment", deployment, "--replicas", str(replicas))
        SYSTEM("rollout", "status", f"deployment/{deployment}", "--timeout", "60s")


@pytest.mark.exclusive
def test_predictions_need_nobody_who_manages(owned):
    kubectl, owner = owned
    at = f"/v1beta1/projects/{kubectl.namespace}/locations/us-central1/endpoints"
    _wait_served(at)
    with _without(f"{API}-management"):
        wait_until("nobody manages", lambda: ask("GET", at, owner).status_code == 503, 60)
        assert ask("GET", at, owner).headers["Retry-After"] == "1"
        assert ask("POST", f"{at}/photos:predict", owner, ECHO_BODY).status_code == 200
    wait_until("somebody manages again", lambda: ask("GET", at, owner).status_code == 200, 60)


@pytest.mark.exclusive
def test_listener_of_its_own_leaves_others_alone(owned):
    """Tokens come by TLS alone; and other teams' applications do not wait for the API."""
    kubectl, owner = owned
    path = _predict_paths(kubectl.namespace, "local")[0]
    elsewhere = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "elsewhere"},
        "spec": {
            "parentRefs": [{"namespace": SYSTEM.namespace, "name": "pierhead", "sectionName": "http"}],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/elsewhere"}}],
                    "filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 302, "port": 1}}],
                }
            ],
        },
    }
    kubectl.apply(elsewhere)
    trusted = ssl.create_default_context(cafile=os.environ["PIERHEAD_CA"])
    headers = {"Authorization": f"Bearer {owner}"}
    with (
        upgraded("api.authorization=gateway", "routing.gateway.sectionName=https"),
        httpx.Client(base_url=f"https://{GATEWAY_TLS_ADDRESS}", verify=trusted, headers=headers, timeout=60) as client,
    ):
        wait_until("plain HTTP has no predictions", lambda: ask("POST", path, owner, ECHO_BODY).status_code == 404, 60)
        wait_until("TLS has", lambda: client.post(path, content=ECHO_BODY).status_code == 200, 60)
        assert client.post(path, content=ECHO_BODY, headers={"Authorization": ""}).status_code == 401
        assert client.get(path.rpartition("/")[0]).status_code == 200
        with _without(API):
            refused = lambda: client.post(path, content=ECHO_BODY).status_code == 503  # noqa: E731
            wait_until("nobody answers the gateway", refused, 60)
            assert ask("GET", "/elsewhere").status_code == 302
    wait_until("plain HTTP has them again", lambda: ask("POST", path, content=ECHO_BODY).status_code == 200, 60)


def test_api_itself_uses_the_rights_that_it_has(owned):
    user = make_user(SYSTEM.namespace, API)
    watched = {("pierhead.dev", plural, verb) for plural in RESOURCES[:3] for verb in ("list", "watch")}
    reviewed = {
        ("authentication.k8s.io", "tokenreviews", "create"),
        ("authorization.k8s.io", "subjectaccessreviews", "create"),
    }
    assert find_used_rights(user) == watched | reviewed
    assert not find_refused(user)
