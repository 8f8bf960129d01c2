"""Two installations on one cluster: each leaves the other's resources alone, and follows it when it is gone."""

import pytest
import yaml

from tests.audit import find_refused, make_user
from tests.chart import installed_beside
from tests.e2e.conftest import ECHO_BODY, make_deployed_model, make_echo_model, make_endpoint
from tests.kube import OPERATOR, SYSTEM, predict_url, scale_operator, wait_answered, wait_operator, wait_until
from tests.prober import Prober

FIRST = f"{SYSTEM.namespace}/{OPERATOR}"  # all namespaces, Gateway API
RELEASE = "second"
OF_PIERHEAD = "models,endpoints.pierhead.dev,deployedmodels"
MADE = "deployments,services,httproutes,horizontalpodautoscalers,networkpolicies"


def _make_values(kubectl):
    """A second installation for one namespace, without a gateway, of the images of the first."""
    operator = SYSTEM.get("deployment", OPERATOR)["spec"]["template"]["spec"]["containers"][0]["image"]
    server = yaml.safe_load(SYSTEM.get("configmap", OPERATOR)["data"]["operator.yaml"])["server"]
    return {
        "crds": {"enabled": False},
        "watchNamespaces": [kubectl.namespace],
        "operator": {"image": operator},
        "api": {"enabled": False},
        "server": server,
        "routing": {"provider": "none"},
    }


def _find_holders(kubectl):
    return {live.get("status", {}).get("installation") for live in kubectl.items(OF_PIERHEAD)}


def _find_versions(kubectl):
    """Another one for each that was written, and none for one that was deleted."""
    found = kubectl.items(f"{OF_PIERHEAD},{MADE}", "app.kubernetes.io/part-of!=pierhead")
    return {
        (live["kind"], live["metadata"]["name"]): (live["metadata"]["uid"], live["metadata"]["resourceVersion"])
        for live in found
    }


def _find_pods(kubectl):
    return {pod["metadata"]["uid"] for pod in kubectl.pods("photos")}


def _deploy(kubectl):
    kubectl.apply(make_echo_model(), make_endpoint(), make_deployed_model("photos"))


def test_second_one_changes_nothing_of_the_first(kubectl):
    _deploy(kubectl)
    kubectl.wait_ready("endpoint", "photos")
    url = predict_url(kubectl.namespace, "photos")
    wait_answered(url, ECHO_BODY, "photos")
    assert _find_holders(kubectl) == {FIRST}
    before = _find_versions(kubectl)
    assert {"HTTPRoute", "Deployment", "Service", "Endpoint", "Model", "DeployedModel"} <= {kind for kind, _ in before}
    with Prober(url, ECHO_BODY) as prober:
        with installed_beside(kubectl, RELEASE, _make_values(kubectl)):
            log = wait_until("it has seen all", lambda: _read_log(kubectl, lines=3))
            assert log.count(f"is left to the installation {FIRST}") == 3
            assert _find_versions(kubectl) == before
            # What comes later goes where its Endpoint is.
            kubectl.apply(make_deployed_model("later"))
            kubectl.patch("endpoint", "photos", {"spec": {"trafficSplit": {"photos": 50, "later": 50}}})
            kubectl.wait_ready("deployedmodel", "later")
            kubectl.wait_ready("endpoint", "photos")
            wait_until("both answer", lambda: prober.seen("later"))
            assert _find_holders(kubectl) == {FIRST}
            kubectl.patch("endpoint", "photos", {"spec": {"trafficSplit": {"photos": 100, "later": None}}})
            kubectl("delete", "deployedmodel", "later")
            wait_until("nothing of it is left", lambda: not kubectl.items(MADE, "pierhead.dev/deployed-model=later"))
            assert not find_refused(make_user(kubectl.namespace, f"{RELEASE}-operator"))
        kubectl.wait_ready("endpoint", "photos")
    prober.check()


def _read_log(kubectl, lines):
    log = kubectl("logs", f"deployment/{RELEASE}-operator")
    return log if log.count("is left to the installation") >= lines else ""


@pytest.mark.exclusive
def test_first_one_leaves_the_second_alone_and_follows_it_when_it_is_gone(kubectl):
    """The first stands still until the second has taken what is there."""
    second = f"{kubectl.namespace}/{RELEASE}-operator"
    scale_operator(0)
    try:
        with installed_beside(kubectl, RELEASE, _make_values(kubectl)):
            _deploy(kubectl)
            kubectl.wait_ready("endpoint", "photos")
            assert _find_holders(kubectl) == {second}
            before, pods = _find_versions(kubectl), _find_pods(kubectl)
            assert "HTTPRoute" not in {kind for kind, _ in before}
            scale_operator(1)
            wait_operator()
            wait_until("the first has seen it", lambda: _leaves(kubectl.namespace))
            assert _find_versions(kubectl) == before
    finally:
        scale_operator(1)
    wait_until("the first has followed", lambda: _find_holders(kubectl) == {FIRST}, seconds=180)
    kubectl.wait_ready("endpoint", "photos")
    wait_answered(predict_url(kubectl.namespace, "photos"), ECHO_BODY, "photos")
    assert _find_pods(kubectl) == pods


def _leaves(namespace):
    log = SYSTEM("logs", f"deployment/{OPERATOR}")
    return all(f"{kind} {namespace}/photos is left" in log for kind in ("Model", "Endpoint", "DeployedModel"))
