"""Two installations on one cluster: each leaves the other's resources alone, and follows it when it is gone."""

import json

import pytest

from tests.audit import find_refused, make_user
from tests.chart import RELEASE as OF_FIRST
from tests.chart import helm, installed_beside, make_values_beside, uninstalled
from tests.e2e.conftest import ECHO_BODY, make_deployed_model, make_echo_model, make_endpoint
from tests.kube import (
    OPERATOR,
    SYSTEM,
    predict_url,
    scale_operator,
    scratch_namespace,
    wait_answered,
    wait_operator,
    wait_until,
)
from tests.prober import Prober

FIRST = f"{SYSTEM.namespace}/{OPERATOR}"  # all namespaces, Gateway API
RELEASE = "second"
OF_PIERHEAD = "models,endpoints.pierhead.dev,deployedmodels"
MADE = "deployments,services,httproutes,horizontalpodautoscalers,networkpolicies"


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
        with installed_beside(kubectl, RELEASE, make_values_beside(kubectl)):
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
        with installed_beside(kubectl, RELEASE, make_values_beside(kubectl)):
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


@pytest.mark.exclusive
def test_release_of_another_name_and_namespace_goes_on_with_what_is_there(kubectl):
    """The CRDs bear the name of the release that brought them, and outlive it."""
    _deploy(kubectl)
    kubectl.wait_ready("endpoint", "photos")
    url = predict_url(kubectl.namespace, "photos")
    wait_answered(url, ECHO_BODY, "photos")
    values = json.loads(helm("get", "values", *OF_FIRST, "--output", "json"))
    pods, kinds = _find_pods(kubectl), _find_kinds()
    with Prober(url, ECHO_BODY) as prober:
        with (
            uninstalled(),
            scratch_namespace("elsewhere") as place,
            installed_beside(place, "models", values, "--take-ownership"),
        ):
            second = f"{place.namespace}/models-operator"
            wait_until("the second has followed", lambda: _find_holders(kubectl) == {second}, seconds=180)
            kubectl.apply(make_deployed_model("later"))
            kubectl.patch("endpoint", "photos", {"spec": {"trafficSplit": {"photos": 50, "later": 50}}})
            wait_until("both answer", lambda: prober.seen("later"))
        wait_until("the first has followed", lambda: _find_holders(kubectl) == {FIRST}, seconds=180)
        kubectl.wait_ready("endpoint", "photos")
    prober.check()
    assert pods == _find_pods(kubectl)
    assert kinds == _find_kinds()


def _find_kinds():
    """Others of the same names would have lost every resource."""
    return {crd["metadata"]["uid"] for crd in SYSTEM.items("crds", "app.kubernetes.io/name=pierhead")}


def _leaves(namespace):
    log = SYSTEM("logs", f"deployment/{OPERATOR}")
    return all(f"{kind} {namespace}/photos is left" in log for kind in ("Model", "Endpoint", "DeployedModel"))
