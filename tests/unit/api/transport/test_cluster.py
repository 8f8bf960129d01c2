"""Cluster against a real HTTP server that records what comes and answers what a test says."""

import pytest
from pierhead_api import errors
from pierhead_api.cluster import Cluster
from pierhead_api.pages import Ask
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
        {"fieldSelector": "spec.endpoint=photos", "labelSelector": "a=b", "limit": "250"},
        {"limit": "250"},
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
    assert api_server.requests[1][2] == {"labelSelector": "team=a", "limit": "250", "continue": "m"}


async def test_page_is_as_large_as_it_is_asked_for(api_server, cluster):
    api_server.answers = [_page("a", more="m2")]
    page = await cluster.list_page(Endpoint, "team-a", Ask("m", 7, {"metadata.name": "a"}, {"team": "b"}))
    assert ([one["metadata"]["name"] for one in page.manifests], page.more, page.limit) == (["a"], "m2", 7)
    assert (page.manifests[0]["apiVersion"], page.manifests[0]["kind"]) == ("pierhead.dev/v1", "Endpoint")
    selectors = {"fieldSelector": "metadata.name=a", "labelSelector": "team=b"}
    assert api_server.requests[0][1:3] == (ENDPOINTS, {**selectors, "limit": "7", "continue": "m"})


async def test_large_objects_come_a_few_at_a_time(api_server, cluster):
    """A page is held as a whole, and each object may have 1.5 MB of annotations."""
    large = {"annotations": {"a": "x" * 5_000_000}}
    api_server.answers = [
        *[_page("a", **large)] * 4,  # 250, 62, 15 and 3: too large
        _page("a", more="m", **large),
        *[_page("b", more="n")] * 2,
        _page("c"),
    ]
    found = await cluster.list(Endpoint, "team-a")
    assert [one["metadata"]["name"] for one in found] == ["a", "b", "b", "c"]
    limits = [int(query["limit"]) for _, _, query, _, _ in api_server.requests]
    assert limits == [250, 62, 15, 3, 1, 2, 4, 8]


OLD = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}


async def test_page_that_is_too_old_goes_on_as_it_is_now(api_server, cluster):
    api_server.answers = [(410, {**OLD, "metadata": {"continue": "now"}}), _page("b", more="m3")]
    page = await cluster.list_page(Endpoint, "team-a", Ask("m"))
    assert ([one["metadata"]["name"] for one in page.manifests], page.more) == (["b"], "m3")
    assert [query["continue"] for _, _, query, _, _ in api_server.requests] == ["m", "now"]


@pytest.mark.parametrize(
    "answer",
    [
        (410, {**OLD, "metadata": {}}),
        (500, {"kind": "Status", "message": "etcdserver: mvcc: required revision is a future revision"}),
    ],
)
async def test_page_that_kubernetes_does_not_know_is_told(api_server, cluster, answer):
    api_server.answers = [answer]
    with pytest.raises(errors.ExpiredError):
        await cluster.list_page(Endpoint, "team-a", Ask("m"))


async def test_token_of_a_page_leads_to_no_other_place(api_server, cluster):
    """It is a client's: Kubernetes is asked for the same list, whatever the token says."""
    api_server.answers = [_page("a")]
    for token in ("../../secrets", "a&limit=1", "a#b", "a\r\nX: y", "\0"):
        await cluster.list_page(Endpoint, "team-a", Ask(token, 7))
        assert api_server.requests[-1][1:3] == (ENDPOINTS, {"limit": "7", "continue": token})


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
