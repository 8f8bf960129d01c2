"""Cluster against a real HTTP server that records what comes and answers what a test says."""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration
from pierhead_operator.cluster import Cluster, ClusterError, Rejected
from pierhead_operator.resources import SERVING_KINDS
from pierhead_operator.routing import ROUTE_KINDS
from pierhead_operator.status import Event
from pierhead_operator.types import DeployedModel

from tests.unit.operator.conftest import make_deployed_model

DM = DeployedModel.model_validate(make_deployed_model())
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "s", "namespace": "default", "uid": "u", "resourceVersion": "7"},
}


class ApiServer:
    """Answers each request with the next of `answers`, a status and a body; the last one stands."""

    def __init__(self):
        self.requests = []
        self.answers = [(200, {})]
        self.hold = asyncio.Event()
        self.hold.set()

    async def answer(self, request):
        body = await request.text()
        self.requests.append((request.method, request.path, dict(request.query), json.loads(body) if body else None))
        status, answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await self.hold.wait()
        return web.json_response(answer, status=status)


@pytest.fixture
async def server():
    return ApiServer()


@pytest.fixture
async def api(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    async with TestServer(app) as there, ApiClient(Configuration(host=str(there.make_url("")).rstrip("/"))) as api:
        yield api
        server.hold.set()


WRITES = {
    "create": lambda cluster: cluster.create(SERVICE),
    "update": lambda cluster: cluster.update(SERVICE),
    "apply": lambda cluster: cluster.apply(SERVICE),
    "apply_status": lambda cluster: cluster.apply_status(DM, DM.status),
    "delete": lambda cluster: cluster.delete(SERVICE),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_write_is_refused_where_this_process_must_not_write(api, server, write):
    with pytest.raises(ClusterError, match="not the leader"):
        await write(Cluster(api, lambda: 0.0))
    assert server.requests == []


async def test_event_is_dropped_where_this_process_must_not_write(api, server):
    await Cluster(api, lambda: 0.0).create_event(DM, Event("Normal", "Serving", "all well"))
    assert server.requests == []


async def test_reading_needs_no_leader(api, server):
    server.answers = [(200, SERVICE)]
    assert await Cluster(api, lambda: 0.0).get("Service", "default", "s") == SERVICE


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_write_tells_the_api_server_how_long_it_may_take(api, server, write):
    await write(Cluster(api, lambda: 2.9))
    [(_, _, query, _)] = server.requests
    assert query["timeout"] == "2900ms"


async def test_write_under_way_is_given_up_when_its_time_is_over(api, server):
    server.hold.clear()
    with pytest.raises(ClusterError, match="TimeoutError"):
        await Cluster(api, lambda: 0.05).apply(SERVICE)


async def test_update_and_create_go_where_the_object_lives(api, server):
    server.answers = [(200, SERVICE)]
    cluster = Cluster(api)
    assert await cluster.update(SERVICE) == SERVICE
    assert await cluster.create(SERVICE) == SERVICE
    assert [(method, path, body) for method, path, _, body in server.requests] == [
        ("PUT", "/api/v1/namespaces/default/services/s", SERVICE),
        ("POST", "/api/v1/namespaces/default/services", SERVICE),
    ]


async def test_list_reads_all_pages_and_says_what_the_items_are(api, server):
    server.answers = [
        (200, {"apiVersion": "v1", "items": [{"metadata": {"name": "a"}}], "metadata": {"continue": "more"}}),
        (200, {"apiVersion": "v1", "items": [{"metadata": {"name": "b"}}], "metadata": {}}),
    ]
    found = await Cluster(api).list_objects("Pod", "default", {"app": "x"})
    assert found == [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}} for name in ("a", "b")]
    assert [query.get("continue") for _, _, query, _ in server.requests] == [None, "more"]
    assert {query["labelSelector"] for _, _, query, _ in server.requests} == {"app=x"}


async def test_kind_that_is_not_installed_has_no_objects(api, server):
    server.answers = [(404, {"message": "the server could not find the requested resource"})]
    assert await Cluster(api).list_objects("VirtualService", None) == []
    assert await Cluster(api).get("VirtualService", "default", "ep-photos") is None


async def test_every_kind_that_is_made_can_be_read(api, server):
    server.answers = [(404, {})]
    for kind in sorted(SERVING_KINDS.union(*ROUTE_KINDS.values())):
        assert await Cluster(api).list_objects(kind, "default") == []
    assert all(path.startswith(("/api/", "/apis/")) for _, path, _, _ in server.requests)


@pytest.mark.parametrize(
    ("status", "error"), [(403, Rejected), (409, Rejected), (422, Rejected), (500, ClusterError), (429, ClusterError)]
)
async def test_refusal_says_whether_another_try_may_help(api, server, status, error):
    server.answers = [(status, {"message": "because"})]
    with pytest.raises(error, match="because"):
        await Cluster(api).update(SERVICE)


async def test_each_request_is_observed(api, server):
    seen, left = [], 30.0

    def observe(verb, kind, code, seconds):
        assert 0 <= seconds < 30
        seen.append((verb, kind, code))

    cluster = Cluster(api, lambda: left, observe)
    server.answers = [
        (404, {}),
        (200, {"apiVersion": "v1", "items": [], "metadata": {}}),
        (201, {}),
        (409, {"message": "changed"}),
        (200, {}),
    ]
    await cluster.get("Pod", "default", "p")
    await cluster.list_objects("Pod", "default")
    await cluster.create_event(DM, Event("Normal", "Serving", "all well"))
    with pytest.raises(Rejected):
        await cluster.update(SERVICE)
    await cluster.delete(SERVICE)
    server.hold.clear()
    left = 0.05
    with pytest.raises(ClusterError):
        await cluster.apply(SERVICE)
    assert seen == [
        ("get", "Pod", "404"),
        ("list", "Pod", "200"),
        ("create", "Event", "201"),
        ("update", "Service", "409"),
        ("delete", "Service", "200"),
        ("patch", "Service", "none"),
    ]
