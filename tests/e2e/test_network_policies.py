"""NetworkPolicies where they are enforced, in a namespace of restricted Pod Security: some are let in, others are not."""

import json

import pytest

from tests.batch import ENDED, Storage, make_batch, state
from tests.chart import upgraded
from tests.e2e.conftest import ECHO_BODY, make_deployed_model, make_echo_model, make_endpoint
from tests.kube import OPERATOR, SYSTEM, predict_url, scratch_namespace, wait_answered, wait_until

# The installation gets other values.
pytestmark = pytest.mark.exclusive

# Runs in a pod: the status of an answer, or that there is none. Some network plugins refuse, others drop.
ASK = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=2).status)
except urllib.error.URLError as error:
    print(f"unreachable: {error.reason}")
"""
_NAMESPACE = "namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name"


def _make_settings(callers):
    """Predictions come from Envoy Gateway's pods and from those that are labelled so; storage is the emulator."""
    storage = "networkPolicy.egress[0]"
    return (
        "networkPolicy.enabled=true",
        f"networkPolicy.gateways[0].{_NAMESPACE}=envoy-gateway-system",
        f"networkPolicy.gateways[1].{_NAMESPACE}={callers.namespace}",
        "networkPolicy.gateways[1].podSelector.matchLabels.role=caller",
        f"{storage}.to[0].{_NAMESPACE}=pierhead-storage",
        f"{storage}.ports[0].port=4443",
    )


def _make_pod(role):
    """One that questions can be asked from."""
    image = SYSTEM.get("deployment", OPERATOR)["spec"]["template"]["spec"]["containers"][0]["image"]
    command = ["/opt/pierhead/bin/python", "-c", "import time; time.sleep(3600)"]
    spec = {"terminationGracePeriodSeconds": 0, "containers": [{"name": "python", "image": image, "command": command}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role, "labels": {"role": role}}, "spec": spec}


@pytest.fixture(scope="module")
def callers(cluster):
    """A namespace with the pods `caller` and `stranger`."""
    with scratch_namespace("callers") as kubectl:
        wait_until("pods can be made", lambda: kubectl.get("serviceaccount", "default"))
        kubectl.apply(_make_pod("caller"), _make_pod("stranger"))
        kubectl("wait", "pods", "--all", "--for=condition=Ready", "--timeout=60s")
        yield kubectl


@pytest.fixture(scope="module")
def restricted(cluster):
    """A namespace that takes only pods of Pod Security's strictest level."""
    with scratch_namespace("restricted") as kubectl:
        kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted")
        yield kubectl


def _ask(kubectl, pod, url, python="/opt/pierhead/bin/python"):
    return kubectl("exec", pod, "--", python, "-c", ASK, url).strip()


def _wait_unreachable(kubectl, pod, url, **python):
    wait_until(
        f"{pod} does not reach {url}", lambda: _ask(kubectl, pod, url, **python).startswith("unreachable"), seconds=30
    )


def _find_policies(kubectl):
    return {live["metadata"]["name"] for live in kubectl.items("networkpolicies")}


def _find_address(kubectl, selector, port):
    pods = [pod for pod in kubectl.items("pods", selector) if not pod["metadata"].get("deletionTimestamp")]
    [address] = {pod["status"]["podIP"] for pod in pods}
    return f"http://{address}:{port}"


def _run_batch(kubectl):
    """A batch prediction, from the emulator and back."""
    with Storage.connected() as storage:
        storage.make_bucket("batch-in")
        storage.make_bucket("batch-out")
        storage.put("batch-in", "restricted.jsonl", json.dumps({"number": 1}).encode())
    kubectl.apply(make_batch("nightly", ["gs://batch-in/restricted.jsonl"]))
    wait_until("the job ends", lambda: state(kubectl, "nightly") in ENDED)
    assert state(kubectl, "nightly") == "SUCCEEDED", kubectl.condition("batchpredictionjob", "nightly")


def test_only_who_is_let_in_reaches_what_pierhead_runs(restricted, callers):
    url = predict_url(restricted.namespace, "photos")
    with upgraded(*_make_settings(callers)):
        restricted.apply(make_echo_model(), make_endpoint(), make_deployed_model("photos"))
        # Its artifact came out of storage, its node probed it, and the operator got a prediction of it.
        restricted.wait_ready("deployedmodel", "photos")
        wait_answered(url, ECHO_BODY, "photos")
        service = f"http://dm-photos.{restricted.namespace}.svc/healthz"
        pod = f"{_find_address(restricted, 'pierhead.dev/deployed-model=photos', 8080)}/healthz"
        for address in (service, pod):
            _wait_unreachable(callers, "stranger", address)
            assert _ask(callers, "caller", address) == "200"
        _check_own_pods(callers)
        [server] = [found["metadata"]["name"] for found in restricted.pods("photos")]
        _wait_unreachable(restricted, server, "http://pierhead-api.pierhead-system.svc/healthz", python="python")
        _run_batch(restricted)
        assert _find_policies(restricted) == {"dm-photos", "bpj-nightly"}
    wait_until("they are gone", lambda: not _find_policies(restricted) | _find_policies(SYSTEM), seconds=60)
    wait_until("everybody is let in", lambda: _ask(callers, "stranger", service) == "200", seconds=30)
    wait_answered(url, ECHO_BODY, "photos")


def _check_own_pods(callers):
    """The API is there for everybody, and who manages for the API; of the operator nobody but its node asks anything."""
    assert _ask(callers, "stranger", "http://pierhead-api.pierhead-system.svc/healthz") == "200"
    _wait_unreachable(callers, "stranger", "http://pierhead-api-management.pierhead-system.svc/healthz")
    operator = _find_address(SYSTEM, "app.kubernetes.io/name=pierhead-operator", 8081)
    _wait_unreachable(callers, "stranger", f"{operator}/healthz")
