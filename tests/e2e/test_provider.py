"""Another routing provider in the same installation, and back: nothing is left, and no pod notices."""

import pytest

from tests.chart import upgraded
from tests.e2e.conftest import ECHO_BODY, make_deployed_model, make_echo_model, make_endpoint
from tests.istio import istio_crds
from tests.kube import predict_many, predict_url, scratch_namespace, wait_answered, wait_until

# The installation gets another routing provider.
pytestmark = pytest.mark.exclusive

OF_GATEWAY_API = {"HTTPRoute ep-photos", "HTTPRoute mdl-photos", "BackendTrafficPolicy ep-photos"}
THEIRS = "HTTPRoute theirs"  # nobody's to tidy up
# The values of each provider, and what it makes.
PROVIDERS = {
    "none": (("routing.provider=none",), set()),
    "istio": (
        ("routing.provider=istio", "routing.istio.gateways={gateways/public}"),
        {"VirtualService ep-photos", "VirtualService mdl-photos", "DestinationRule dm-photos"},
    ),
}
ROUTES = "httproutes,backendtrafficpolicies,virtualservices,destinationrules"


@pytest.fixture(scope="module")
def istio(cluster):
    with istio_crds():
        yield


@pytest.fixture(scope="module")
def photos(istio):
    """An Endpoint that answers, and a route of somebody else."""
    endpoint = make_endpoint(maxRequestBytes=1024 * 1024)
    theirs = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "theirs"}}
    with scratch_namespace("provider") as kubectl:
        kubectl.apply(make_echo_model(), endpoint, make_deployed_model("photos"), {**theirs, "spec": {}})
        kubectl.wait_ready("endpoint", "photos")
        wait_answered(predict_url(kubectl.namespace, "photos"), ECHO_BODY, "photos")
        yield kubectl


def _find_routes(kubectl):
    """All that carries predictions, by kind and name; not what belongs to the pods."""
    found = {f"{live['kind']} {live['metadata']['name']}" for live in kubectl.items(f"{ROUTES},services")}
    return found - {"Service dm-photos"}


def _find_pods(kubectl):
    return {
        (pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"])
        for pod in kubectl.pods("photos")
    }


@pytest.mark.parametrize("provider", PROVIDERS)
def test_change_of_the_provider_and_back_leaves_nothing_behind(photos, provider):
    settings, made = PROVIDERS[provider]
    url, pods = predict_url(photos.namespace, "photos"), _find_pods(photos)
    before = {*OF_GATEWAY_API, THEIRS}
    wait_until("its routes are there", lambda: _find_routes(photos) == before, seconds=30)
    with upgraded(*settings):
        wait_until(f"only {provider}'s are there", lambda: _find_routes(photos) == {*made, THEIRS}, seconds=60)
        photos.wait_ready("endpoint", "photos")
        wait_until(
            "the gateway has followed",
            lambda: all("404" in answer for answer in predict_many(url, ECHO_BODY, 5)),
            seconds=30,
        )
        assert _find_pods(photos) == pods
    wait_until("its routes are there again", lambda: _find_routes(photos) == before, seconds=60)
    photos.wait_ready("endpoint", "photos")
    wait_answered(url, ECHO_BODY, "photos")
    assert _find_pods(photos) == pods
