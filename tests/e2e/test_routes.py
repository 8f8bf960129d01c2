"""What the gateway does beyond the split: AI Platform's paths, copies, and limits of an Endpoint."""

import os
import re

import httpx
import pytest

from tests.e2e.conftest import make_deployed_model, make_endpoint, make_model
from tests.kube import predict, predict_many, predict_url, scratch_namespace, wait_answered, wait_until
from tests.prober import small_picture


@pytest.fixture(scope="module")
def routed(cluster):
    """Two versions of a Model, one DeployedModel each; the second gets copies of the first one's requests."""
    with scratch_namespace("routes") as kubectl:
        endpoint = make_endpoint({"one": 100, "two": 0})
        endpoint["spec"] |= {"mirror": {"deployedModel": "two"}, "maxRequestBytes": 64 * 1024}
        kubectl.apply(
            make_model(**{"v1": "photos/1", "v2--b": "photos/2"}),
            endpoint,
            make_deployed_model("one"),
            make_deployed_model("two", "v2--b"),
        )
        kubectl.wait_ready("deployedmodel", "one", "two")
        kubectl.wait_ready("endpoint", "photos")
        wait_answered(predict_url(kubectl.namespace, "photos"), small_picture(), "one")
        yield kubectl


@pytest.mark.parametrize(
    ("path", "deployed_model"),
    [
        ("models/photos", "one"),
        ("models/photos/versions/v1", "one"),
        ("models/photos/versions/v2_b", "two"),
        ("models/photos/versions/v2--b", "two"),
    ],
)
def test_model_and_its_versions_answer_on_ai_platforms_paths(routed, path, deployed_model):
    url = f"{os.environ['PIERHEAD_URL']}/v1/projects/{routed.namespace}/{path}:predict"

    def answered():
        answer = httpx.post(url, content=small_picture(), timeout=60)
        return answer.status_code == 200 and answer.json()["predictions"]

    [prediction] = wait_until(f"{path} answers", answered)
    assert prediction["displayNames"]
    assert _count(routed, deployed_model, "aiplatform") > 0


def test_version_that_there_is_not_leads_to_no_model(routed):
    url = f"{os.environ['PIERHEAD_URL']}/v1/projects/{routed.namespace}/models/photos/versions/v9:predict"
    # A path without a route is the REST API's, which tells nobody without a token what there is.
    assert httpx.post(url, content=small_picture(), timeout=60).status_code == 401


def test_copies_go_where_the_mirror_says_and_answers_do_not(routed):
    before = _count(routed, "two", "vertex")
    answers = predict_many(predict_url(routed.namespace, "photos"), small_picture(), 20)
    assert answers == {"one": 20}
    wait_until("the copies arrived", lambda: _count(routed, "two", "vertex") >= before + 20)


def test_body_over_the_endpoints_limit_is_refused(routed):
    with httpx.Client(timeout=60) as client:
        answer = predict(client, predict_url(routed.namespace, "photos"), b" " * (64 * 1024 + 1))
    assert answer.startswith("failed: 413")


def _count(kubectl, deployed_model, dialect):
    """How many predictions of a dialect the pods of a DeployedModel have answered, by their own metrics."""
    total = 0
    for pod in kubectl.pods(deployed_model):
        path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{pod['metadata']['name']}:8080/proxy/metrics"
        metrics = kubectl("get", "--raw", path)
        for line in metrics.splitlines():
            if line.startswith("pierhead_predict_requests_total") and f'dialect="{dialect}"' in line:
                total += float(re.split(r"\s", line)[-1])
    return total
