"""Cluster against a real HTTP server that records what comes and answers what a test says."""

import pytest
from pierhead_api import errors
from pierhead_api.cluster import Cluster
from pierhead_operator.types import DeployedModel, Endpoint

from tests.unit.api.transport.conftest import TOKEN, make_endpoint

ENDPOINTS = "/apis/pierhead.dev/v1/namespaces/team-a/endpoints"
WRITING = {"fieldManager": "pierhead-api", "fieldValidation": "Strict"}


@pytest.fixture
def cluster(kubernetes):
    return Cluster(kubernetes, TOKEN)


def _page(name, more="", **metadata):
    listed = {"apiVersion": "pierhead.dev/v1", "kind": "EndpointList", "metadata": {"continue": more}}
    return 200, {**listed, "items": [{"metadata": {"name": name, **metadata}, "spec": {}}]}


async def test_requests_go_where_objects_live_with_the_callers_token(api_server, cluster):
    api_server.answers = [(200, make_endpoint())]
    assert await cluster.get(Endpoint, "team-a", "photos") == make_endpoint()
    await cluster.create(make_endpoint())
    await cluster.patch(Endpoint, "team-a", "photos", {"spec": {"displayName": "P"}})
    await cluster.delete(Endpoint, "team-a", "photos", uid="u")
    asked = [(method, path, query, body) for method, path, query, _, body in api_server.requests]
    deleted = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
    assert asked == [
        ("GET", f"{ENDPOINTS}/photos", {}, None),
        ("POST", ENDPOINTS, WRITING, make_endpoint()),
        ("PATCH", f"{ENDPOINTS}/photos", WRITING, {"spec": {"displayName": "P"}}),
        ("DELETE", f"{ENDPOINTS}/photos", {}, {**deleted, "preconditions": {"uid": "u"}}),
    ]
    assert {headers["Authorization"] for _, _, _, headers, _ in api_server.requests} == {f"Bearer {TOKEN}"}
    assert api_server.requests[2][3]["Content-Type"] == "application/merge-patch+json"


async def test_list_selects_and_says_what_the_items_are(api_server, cluster):
    api_server.answers = [_page("a"), _page("b")]
    found = await cluster.list(DeployedModel, "team-a", fields={"spec.endpoint": "photos"}, labels={"a": "b"})
    assert [(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in found] == [
        ("pierhead.dev/v1", "DeployedModel", "a")
    ]
    await cluster.list(Endpoint, "team-a")
    queries = [query for _, _, query, _, _ in api_server.requests]
    assert queries == [
        {"fieldSelector": "spec.endpoint=photos", "labelSelector": "a=b", "limit": "20"},
        {"limit": "20"},
    ]


async def test_list_is_asked_for_page_by_page_and_leaves_out_what_nobody_reads(api_server, cluster):
    ours = {"vertex.pierhead.dev/kept": "{}", "operations.vertex.pierhead.dev/1": "{}"}
    written = {"annotations": {**ours, "kubectl.kubernetes.io/last-applied-configuration": "x" * 250_000}}
    written["managedFields"] = [{"time": "2026-11-22T11:30:00Z", "manager": "m", "fieldsV1": {"f:spec": {}}}]
    api_server.answers = [_page("a", more="m", **written), _page("b", labels={"team": "a"})]
    a, b = await cluster.list(Endpoint, "team-a", labels={"team": "a"})
    assert a["metadata"]["annotations"] == ours
    assert a["metadata"]["managedFields"] == [{"time": "2026-11-22T11:30:00Z"}]
    assert (b["metadata"]["name"], b["metadata"]["labels"]) == ("b", {"team": "a"})
    assert api_server.requests[1][2] == {"labelSelector": "team=a", "limit": "20", "continue": "m"}


async def test_delete_of_another_object_of_that_name_finds_nothing(api_server, cluster):
    api_server.answers = [(409, {"kind": "Status", "message": "uid differs", "reason": "Conflict"})]
    with pytest.raises(errors.NotFoundError):
        await cluster.delete(Endpoint, "team-a", "photos", uid="u")


@pytest.mark.parametrize("allowed", [True, False])
async def test_right_is_asked_for_with_the_callers_token(api_server, cluster, allowed):
    api_server.answers = [(201, {"status": {"allowed": allowed}})]
    assert await cluster.may("predict", "endpoints", "team-a", "photos") is allowed
    [(method, path, _, headers, body)] = api_server.requests
    assert (method, path) == ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert body["spec"]["resourceAttributes"] == {
        "group": "pierhead.dev",
        "verb": "predict",
        "resource": "endpoints",
        "namespace": "team-a",
        "name": "photos",
    }


async def test_no_name_leads_to_another_path(api_server, cluster):
    for namespace, name in (("team-a", ".."), ("../../..", "x"), ("team-a", "x/status")):
        with pytest.raises(errors.NotFoundError):
            await cluster.get(Endpoint, namespace, name)
    assert api_server.requests == []
