"""Endpoints of access Private: predicted against inside the cluster, and not from outside."""

import json
import os

import httpx
import pytest

from tests.e2e.conftest import ECHO_BODY, make_deployed_model, make_echo_model, make_endpoint
from tests.kube import SYSTEM, KubectlError, predict_many, predict_url, scratch_namespace, wait_answered, wait_until

# Runs in a pod: whoever answers, by the private gateway.
ASK = """
import json, sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.stdin.buffer.read(), {"content-type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=60))["deployedModelId"])
"""


@pytest.fixture(scope="module")
def private(cluster):
    """The private gateway, as the cluster reaches it."""
    [address] = wait_until(
        "the private gateway has an address",
        lambda: SYSTEM.get("gateway", "pierhead-private").get("status", {}).get("addresses"),
    )
    return f"http://{address['value']}"


@pytest.fixture(scope="module")
def photos(cluster):
    """A DeployedModel on an Endpoint of access Private."""
    with scratch_namespace("private") as kubectl:
        kubectl.apply(make_echo_model(), make_endpoint(access="Private"), make_deployed_model("photos"))
        kubectl.wait_ready("endpoint", "photos")
        yield kubectl


def _predict_in_pod(kubectl, url):
    """Who answers a pod of the cluster; what went wrong where nobody does."""
    [pod] = [pod["metadata"]["name"] for pod in kubectl.pods("photos")]
    try:
        return kubectl("exec", "-i", pod, "--", "python", "-c", ASK, url, stdin=ECHO_BODY.decode()).strip()
    except KubectlError as error:
        return f"failed: {error}"


def _model_url(kubectl):
    """The path of AI Platform, outside."""
    return f"{os.environ['PIERHEAD_URL']}/v1/projects/{kubectl.namespace}/models/photos:predict"


# A path without a route is the REST API's, which tells nobody without a token what there is.
NOWHERE = {401}


def _wait_gone(url):
    wait_until(f"{url} leads nowhere", lambda: {*_ask(url)} == NOWHERE, seconds=30)


def _wait_without_a_route(url):
    """On the private gateway, which the REST API is not behind."""
    wait_until(f"{url} leads nowhere", lambda: {*_ask(url)} == {404}, seconds=30)


def _ask(url):
    with httpx.Client(timeout=60) as client:
        return [client.post(url, content=ECHO_BODY).status_code for _ in range(5)]


def test_private_gateway_has_no_address_outside_the_cluster(private):
    selector = "gateway.envoyproxy.io/owning-gateway-name=pierhead-private"
    services = json.loads(
        SYSTEM.in_any_namespace("get", "services", "--all-namespaces", "--selector", selector, "--output", "json")
    )["items"]
    assert [service["spec"]["type"] for service in services] == ["ClusterIP"]
    assert private == f"http://{services[0]['spec']['clusterIP']}"


def test_pods_predict_and_clients_outside_do_not(photos, private):
    url = predict_url(photos.namespace, "photos", private)
    wait_until("a pod is answered", lambda: _predict_in_pod(photos, url) == "photos", seconds=60)
    for outside in (predict_url(photos.namespace, "photos"), _model_url(photos)):
        assert {*_ask(outside)} == NOWHERE


def test_change_of_access_moves_the_route(photos, private):
    inside, outside = (predict_url(photos.namespace, "photos", gateway) for gateway in (private, None))
    _set_access(photos, "Standard")
    wait_answered(outside, ECHO_BODY, "photos")
    _wait_without_a_route(inside)
    _set_access(photos, "Private")
    wait_answered(inside, ECHO_BODY, "photos")
    _wait_gone(outside)
    assert predict_many(inside, ECHO_BODY, 10) == {"photos": 10}


def test_change_of_access_moves_the_models_own_paths(photos):
    _set_access(photos, "Standard")
    wait_until("the Model's path answers", lambda: {*_ask(_model_url(photos))} == {200}, seconds=30)
    _set_access(photos, "Private")
    _wait_gone(_model_url(photos))


def test_model_whose_endpoint_is_missing_is_on_no_public_path(kubectl):
    """It may be a Private one that comes later, or that was deleted."""
    kubectl.apply(make_echo_model(), make_deployed_model("orphan", endpoint="secret"))
    wait_until("it answers", lambda: kubectl.condition("deployedmodel", "orphan", "Available").get("status") == "True")
    assert kubectl.condition("deployedmodel", "orphan")["reason"] == "EndpointNotFound"
    # Once another one is routed, the Model was looked after.
    kubectl.apply(make_endpoint(), make_deployed_model("photos"))
    kubectl.wait_ready("endpoint", "photos")
    wait_until("the Model's path answers", lambda: {*_ask(_model_url(kubectl))} == {200}, seconds=30)
    assert _find_backends(kubectl) == {"dm-photos"}
    kubectl("delete", "endpoint.pierhead.dev", "photos")
    _wait_gone(_model_url(kubectl))


def _find_backends(kubectl):
    """Where the Model's own paths lead."""
    rules = kubectl.get("httproute", "mdl-photos")["spec"]["rules"]
    return {backend["name"] for rule in rules for backend in rule["backendRefs"]}


def _set_access(kubectl, access):
    kubectl.patch("endpoint", "photos", {"spec": {"access": access}})
    kubectl.wait_ready("endpoint", "photos")
