"""Vertex AI's documentation, its curl commands word for word but for the address; and clients that poll meanwhile."""

import json
import os
import subprocess
import time

import pytest

from tests.chart import upgraded
from tests.e2e.conftest import make_echo_model, make_endpoint, make_owner
from tests.kube import OPERATOR, SYSTEM, scratch_namespace, wait_until


class Shell:
    """curl, as the documentation calls it, with a token at hand."""

    def __init__(self, project, token):
        self.base = f"{os.environ['PIERHEAD_URL']}/v1/projects/{project}/locations/us-central1"
        self._token = token

    def __call__(self, method, path, body=None):
        """The answer; fails where it is an error."""
        code, answer = self.ask(method, path, body)
        assert code == 200, answer
        return answer

    def ask(self, method, path, body=None):
        """HTTP's code, and the answer."""
        sends = ["--data", body if isinstance(body, str) else json.dumps(body)] if body is not None else []
        done = subprocess.run(
            ["curl", "--silent", "--show-error", "--max-time", "30", "--request", method, "--write-out", "\n%{http_code}",
             "--header", f"Authorization: Bearer {self._token}",
             "--header", "Content-Type: application/json; charset=utf-8",
             *sends, path if path.startswith("http") else f"{self.base}/{path}"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        text, _, code = done.stdout.rpartition("\n")
        return int(code), json.loads(text)

    def wait(self, operation):
        """The response of an operation; fails where it has none."""
        path = operation["name"].partition("/us-central1/")[2]

        def ended():
            found = self("GET", path)
            return found if found.get("done") else None

        return wait_until("the operation is done", ended, interval=0.5)["response"]


@pytest.fixture
def project(cluster):
    """A project with a Model, and its owner's curl."""
    with scratch_namespace("curl") as kubectl:
        kubectl.apply(*make_owner(), make_echo_model("v1", "v2"))
        shell = Shell(kubectl.namespace, kubectl("create", "token", "owner").strip())
        wait_until("the API answers", lambda: shell.ask("GET", "endpoints")[0] == 200, 60)
        yield kubectl, shell


def test_commands_of_the_documentation(project):
    kubectl, shell = project
    model = f"projects/{kubectl.namespace}/locations/us-central1/models/photos"

    created = shell.wait(shell("POST", "endpoints", '{"display_name": "ENDPOINT_NAME"}'))
    endpoint = created["name"].rpartition("/")[2]
    for wanted in ("display_name=ENDPOINT_NAME", "display_name=%22ENDPOINT_NAME%22"):
        [found] = shell("GET", f"endpoints?filter={wanted}")["endpoints"]
        assert found["name"] == created["name"]
    assert "endpoints" not in shell("GET", "endpoints?filter=display_name=ANOTHER")

    def deploy(version, split):
        deployed = {
            "model": f"{model}@{version}",
            "displayName": "DEPLOYED_MODEL_NAME",
            "dedicatedResources": {
                "machineSpec": {"machineType": "n1-standard-2"},
                "minReplicaCount": 1,
                "maxReplicaCount": 1,
            },
        }
        body = {"deployedModel": deployed, "trafficSplit": split}
        return shell.wait(shell("POST", f"endpoints/{endpoint}:deployModel", body))["deployedModel"]["id"]

    old = deploy("v1", {"0": 100})
    new = deploy("v2", {"0": 20, old: 80})
    assert shell("GET", f"endpoints/{endpoint}")["trafficSplit"] == {new: 20, old: 80}
    answer = shell("POST", f"endpoints/{endpoint}:predict", {"instances": [1]})
    assert (answer["predictions"], answer["deployedModelId"] in (old, new)) == ([1], True)
    code, refused = shell.ask("DELETE", f"endpoints/{endpoint}")
    assert (code, refused["error"]["status"]) == (400, "FAILED_PRECONDITION")
    body = {"deployedModelId": old, "trafficSplit": {new: 100}}
    shell.wait(shell("POST", f"endpoints/{endpoint}:undeployModel", body))
    shell.wait(shell("POST", f"endpoints/{endpoint}:undeployModel", {"deployedModelId": new}))
    shell.wait(shell("DELETE", f"endpoints/{endpoint}"))
    assert kubectl.get("endpoint.pierhead.dev", endpoint) is None

    job = shell(
        "POST",
        "batchPredictionJobs",
        {
            "displayName": "BATCH_JOB_NAME",
            "model": model,
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://models/no-such-file.jsonl"]}},
            "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://models/out"}},
            "dedicatedResources": {
                "machineSpec": {"machineType": "n1-standard-4"},
                "startingReplicaCount": 1,
                "maxReplicaCount": 1,
            },
        },
    )
    path = f"batchPredictionJobs/{job['name'].rpartition('/')[2]}"
    ended = wait_until(
        "the job fails", lambda: (found := shell("GET", path))["state"] == "JOB_STATE_FAILED" and found, interval=1
    )
    assert "no-such-file" in ended["error"]["message"]
    shell.wait(shell("DELETE", path))


@pytest.mark.exclusive
def test_who_polls_notices_nothing_of_restarts(project):
    """The API's pods are replaced and the operator is killed in the middle of a deployModel."""
    kubectl, shell = project
    kubectl.apply(make_endpoint())
    with upgraded("api.management.replicas=2"):
        model = f"projects/{kubectl.namespace}/locations/us-central1/models/photos"
        operation = shell("POST", "endpoints/photos:deployModel", {"deployedModel": {"model": model}})
        SYSTEM("rollout", "restart", "deployment/pierhead-api", "deployment/pierhead-api-management")
        for pod in SYSTEM.items("pods", f"app.kubernetes.io/name={OPERATOR}"):
            SYSTEM("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force", "--wait=false")
        path = operation["name"].partition("/us-central1/")[2]
        deadline, polls, done = time.monotonic() + 120, 0, None
        restarting = subprocess.Popen(
            ["kubectl", "--namespace", SYSTEM.namespace, "rollout", "status", "deployment/pierhead-api"],
            stdout=subprocess.DEVNULL,
        )
        try:
            while done is None or restarting.poll() is None:
                assert time.monotonic() < deadline, operation
                found = shell("GET", path)
                polls += 1
                assert found["name"] == operation["name"]
                assert not done or found == done
                done = found if found.get("done") else None
        finally:
            restarting.kill()
            restarting.wait()
    assert polls > 5
    deployed = done["response"]["deployedModel"]
    assert kubectl.get("deployedmodel", deployed["id"])["status"]["modelVersion"] == "v1"
    assert kubectl.get("endpoint.pierhead.dev", "photos")["status"]["trafficSplit"] == {deployed["id"]: 100}
