"""All of Pierhead on a cluster that chooses the user of its pods, as OpenShift does: one without a name, in group 0."""

import json
from contextlib import contextmanager

import httpx
import pytest

from tests.batch import Storage, make_batch, make_picture, state
from tests.chart import helm, installed_beside, make_values_beside
from tests.e2e.conftest import make_deployed_model, make_endpoint, make_model, make_owner, wait_compiled
from tests.kube import (
    SYSTEM,
    KubectlError,
    forwarded,
    make_list,
    predict_url,
    scale_operator,
    scratch_namespace,
    wait_until,
)

# The installed operator stands still meanwhile.
pytestmark = pytest.mark.exclusive

USER = 1000680000
RELEASE = "arbitrary"
ADMISSION = "admissionregistration.k8s.io/v1"
ASK = "import getpass, os, pathlib; print(os.getuid(), os.getgid(), getpass.getuser(), pathlib.Path.home())"


def make_policies(namespace):
    """What OpenShift's restricted-v2 does with the pods of a namespace: it gives each a user, and refuses others."""
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    matched = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "resourceRules": [pods],
    }
    has_user = "has(object.spec.securityContext) && has(object.spec.securityContext.runAsUser)"
    given = f"Object.spec.securityContext{{runAsUser: {USER}, fsGroup: {USER}}}"
    is_given = " && ".join(f"object.spec.securityContext.{field} == {USER}" for field in ("runAsUser", "fsGroup"))
    give = {
        "matchConstraints": matched,
        "matchConditions": [{"name": "has-no-user", "expression": f"!({has_user})"}],
        "reinvocationPolicy": "Never",
        "mutations": [
            {
                "patchType": "ApplyConfiguration",
                "applyConfiguration": {"expression": f"Object{{spec: Object.spec{{securityContext: {given}}}}}"},
            }
        ],
    }
    refuse = {"matchConstraints": matched, "validations": [{"expression": is_given, "message": "another user"}]}
    for kind, spec, binding in (
        ("MutatingAdmissionPolicy", give, {}),
        ("ValidatingAdmissionPolicy", refuse, {"validationActions": ["Deny"]}),
    ):
        metadata = {"name": namespace}
        yield {"apiVersion": ADMISSION, "kind": kind, "metadata": metadata, "spec": spec}
        bound = {"policyName": namespace, **binding}
        yield {"apiVersion": ADMISSION, "kind": f"{kind}Binding", "metadata": metadata, "spec": bound}


def _try_pod(kubectl, **context):
    """The user of a pod that asks for this; None where it is refused."""
    container = {"name": "one", "image": "registry.example.com/one"}
    spec = {"containers": [container], "securityContext": context}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}
    try:
        made = kubectl("create", "--dry-run=server", "--output=json", "--filename=-", stdin=json.dumps(pod))
    except KubectlError:
        return None
    return json.loads(made)["spec"]["securityContext"].get("runAsUser")


@contextmanager
def users_are_chosen(kubectl):
    """In kubectl's namespace, meanwhile."""
    policies = make_list(make_policies(kubectl.namespace))
    SYSTEM("apply", "--server-side", "--filename=-", stdin=policies)
    try:
        wait_until("pods are given a user", lambda: _try_pod(kubectl) == USER)
        wait_until("others are refused", lambda: _try_pod(kubectl, runAsUser=65532, fsGroup=65532) is None)
        yield
    finally:
        SYSTEM("delete", "--filename=-", stdin=policies)


@pytest.fixture(scope="module")
def installed(cluster):
    """A namespace in which Pierhead runs as such a user, and looks after what is there."""
    with scratch_namespace("arbitrary-user") as kubectl:
        values = make_values_beside(kubectl)
        values["server"]["arbitraryUser"] = True
        values["api"] = {"enabled": True}
        scale_operator(0)
        try:
            with users_are_chosen(kubectl), installed_beside(kubectl, RELEASE, values):
                yield kubectl
        finally:
            scale_operator(1)


def test_operator_api_server_and_batch_run_as_a_user_without_a_name(installed, coffee):
    with Storage.connected() as storage:
        for bucket in ("batch-in", "batch-out"):
            storage.make_bucket(bucket)
        storage.put("batch-in", "arbitrary/coffee.jpg", make_picture())
        line = {"content": "gs://batch-in/arbitrary/coffee.jpg", "mimeType": "image/jpeg"}
        storage.put("batch-in", "arbitrary/lines.jsonl", json.dumps(line).encode())
    job = make_batch("nightly", ["gs://batch-in/arbitrary/lines.jsonl"])
    installed.apply(make_model(v1="photos/1"), make_endpoint(), make_deployed_model("photos"), job, *make_owner())
    installed.wait_ready("endpoint", "photos")
    assert _predict(installed, coffee)["predictions"][0]["displayNames"] == ["espresso"]
    [pod] = [one["metadata"]["name"] for one in installed.pods("photos")]
    wait_compiled(installed, pod)
    wait_until("the job has ended", lambda: state(installed, "nightly") == "SUCCEEDED", seconds=240, interval=1)
    pods = installed.items("pods")
    names = {one["metadata"]["labels"]["app.kubernetes.io/name"] for one in pods}
    of_release = ("operator", "api", "api-management")
    assert names == {*(f"pierhead-{name}" for name in of_release), "pierhead-server", "pierhead-batch"}
    assert {one["spec"]["securityContext"]["runAsUser"] for one in pods} == {USER}
    assert not any(one["restartCount"] for pod in pods for one in pod["status"]["containerStatuses"])
    for name in (*(f"{RELEASE}-{name}" for name in of_release), "dm-photos"):
        told = installed("exec", f"deployment/{name}", "--", "python", "-c", ASK)
        assert told.split() == [str(USER), "0", "pierhead", "/tmp"]
    helm("test", RELEASE, "--namespace", installed.namespace)


def _predict(kubectl, body):
    """The answer of the API to who may predict, once it has seen that somebody serves."""
    token = kubectl("create", "token", "owner").strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with forwarded(kubectl, f"{RELEASE}-api", 80) as url:
        path = predict_url(kubectl.namespace, "photos", url)
        answer = wait_until(
            "the API has seen it",
            lambda: (got := httpx.post(path, content=body, headers=headers, timeout=60)).status_code == 200 and got,
            seconds=30,
        )
    return answer.json()
