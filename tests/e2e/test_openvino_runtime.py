"""A Model version with runtime OpenVINO: converted by the example's Job, served and predicted by the small image."""

import json
import re
import secrets
from types import SimpleNamespace

import httpx
import pytest
import yaml

from cluster.settings import STORAGE_URL_IN_CLUSTER
from tests.batch import ENDED, Storage, make_batch, make_picture, read_output, state
from tests.e2e.conftest import make_deployed_model, make_endpoint
from tests.kube import OPERATOR, SYSTEM, KubectlError, predict_url, scratch_namespace, wait_answered, wait_until
from tests.releases import REPOSITORY

PICTURES = 20


def _find_images():
    """The server's, with PyTorch and without."""
    server = yaml.safe_load(SYSTEM.get("configmap", OPERATOR)["data"]["operator.yaml"])["server"]
    return server["image"], server["openvinoImage"]


def _make_job(image, destination):
    """The example's, on this cluster: its storage, and a node that has room for little."""
    job = yaml.safe_load((REPOSITORY / "examples" / "convert" / "job.yaml").read_text())
    [container] = job["spec"]["template"]["spec"]["containers"]
    container |= {
        "image": image,
        "args": ["convert", "gs://models/photos/1", destination],
        "env": [{"name": "STORAGE_EMULATOR_HOST", "value": STORAGE_URL_IN_CLUSTER}],
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "3Gi"}},
    }
    return job


def _is_over(kubectl, job):
    status = kubectl.get("job", job).get("status", {})
    return status.get("succeeded") or any(one["type"] == "Failed" for one in status.get("conditions", []))


@pytest.fixture(scope="module")
def converted(cluster):
    """A namespace with the Model `photos`: version v1 is converted, v2 is what it is made of, both of runtime OpenVINO."""
    large, small = _find_images()
    assert large != small
    destination = f"gs://models/converted/{secrets.token_hex(4)}"
    with scratch_namespace("openvino") as kubectl:
        job = _make_job(large, destination)
        name = job["metadata"]["name"]
        kubectl.apply(job)
        wait_until("it has converted", lambda: _is_over(kubectl, name), seconds=300, interval=1)
        said = kubectl("logs", f"job/{name}")
        assert kubectl.get("job", name)["status"].get("succeeded") == 1, said
        # What it says to write is what is written.
        [entry] = yaml.safe_load(said[said.index('- name: "<its name>"') :])
        assert entry == {
            "name": "<its name>",
            "artifactUri": destination,
            "digest": re.search(r"sha256:[0-9a-f]{64}", said)[0],
            "runtime": "OpenVINO",
        }
        versions = [
            {**entry, "name": "v1"},
            {"name": "v2", "artifactUri": "gs://models/photos/1", "runtime": "OpenVINO"},
        ]
        spec = {"defaultVersion": "v1", "versions": versions}
        model = {"apiVersion": "pierhead.dev/v1", "kind": "Model", "metadata": {"name": "photos"}, "spec": spec}
        kubectl.apply(model, make_endpoint({"small": 100}), make_deployed_model("small"))
        kubectl.wait_ready("deployedmodel", "small")
        kubectl.wait_ready("endpoint", "photos")
        yield SimpleNamespace(kubectl=kubectl, image=small)


def test_small_image_answers_as_the_other_one(converted, coffee):
    url = predict_url(converted.kubectl.namespace, "photos")
    wait_answered(url, coffee, "small")
    answer = httpx.post(url, content=coffee, headers={"content-type": "application/json"}, timeout=60).json()
    [prediction] = answer["predictions"]
    assert prediction["displayNames"] == ["espresso"]
    # Of EfficientNet-Lite0 by PyTorch: examples/photos/README.md.
    assert prediction["confidences"] == [pytest.approx(0.957, abs=0.01)]
    [pod] = converted.kubectl.pods("small")
    [container] = pod["spec"]["containers"]
    assert container["image"] == converted.image
    there = "import importlib.util; print(importlib.util.find_spec('torch'))"
    assert converted.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", there).strip() == "None"


def test_small_image_runs_batch_jobs(converted):
    kubectl = converted.kubectl
    with Storage.connected() as storage:
        for bucket in ("batch-in", "batch-out"):
            storage.make_bucket(bucket)
        storage.put("batch-in", "openvino/picture.jpg", make_picture())
        line = json.dumps({"content": "gs://batch-in/openvino/picture.jpg", "mimeType": "image/jpeg"})
        storage.put("batch-in", "openvino/lines.jsonl", "\n".join([line] * PICTURES).encode())
        kubectl.apply(make_batch("small", ["gs://batch-in/openvino/lines.jsonl"]))
        wait_until("the job ends", lambda: state(kubectl, "small") in ENDED, seconds=240, interval=1)
        status = kubectl.get("batchpredictionjob", "small")["status"]
        assert status["state"] == "JOB_STATE_SUCCEEDED", status
        output = read_output(storage, status["outputInfo"]["gcsOutputDirectory"])
    assert [record["prediction"]["displayNames"] for record in output.predictions] == [["espresso"]] * PICTURES
    [container] = kubectl.get("job", "bpj-small")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == converted.image


def test_artifact_that_needs_torch_is_told(converted):
    kubectl = converted.kubectl
    kubectl.apply(make_deployed_model("needs-torch", "v2"))
    condition = wait_until(
        "it says what is wrong",
        lambda: (
            found
            if (found := kubectl.condition("deployedmodel", "needs-torch")).get("reason") == "ArtifactInvalid"
            else None
        ),
    )
    assert condition["status"] == "False"
    assert "format: torch.export needs PyTorch" in condition["message"]
    assert "leave out runtime: OpenVINO" in condition["message"]
    kubectl("delete", "deployedmodel", "needs-torch")


def test_accelerator_that_nothing_would_use_is_told(converted):
    kubectl = converted.kubectl
    machine = {"machineSpec": {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}}
    kubectl.apply(make_deployed_model("wasteful", dedicatedResources=machine))
    wait_until(
        "it says what is wrong",
        lambda: kubectl.condition("deployedmodel", "wasteful").get("reason") == "AcceleratorNotUsed",
    )
    assert kubectl.pods("wasteful") == []
    kubectl("delete", "deployedmodel", "wasteful")


def test_runtime_of_a_version_never_changes(converted):
    kubectl = converted.kubectl
    change = [{"op": "replace", "path": "/spec/versions/0/runtime", "value": "PyTorch"}]
    with pytest.raises(KubectlError, match="a written version never changes: add a new version with this artifact"):
        kubectl("patch", "model", "photos", "--type", "json", "--patch", json.dumps(change))
    change = [{"op": "remove", "path": "/spec/versions/1/runtime"}]
    with pytest.raises(KubectlError, match="a written version never changes"):
        kubectl("patch", "model", "photos", "--type", "json", "--patch", json.dumps(change))
