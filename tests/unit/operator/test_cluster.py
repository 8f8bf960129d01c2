"""Cluster against a real HTTP server that records what comes and answers what a test says."""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration
from pierhead_operator import names
from pierhead_operator.cluster import (
    Cluster,
    ClusterError,
    Conflict,
    Invalid,
    Rejected,
    UnreadableError,
    find_resource,
    parse_neighbour,
)
from pierhead_operator.resources import NETWORK_POLICY, SERVING_KINDS
from pierhead_operator.routing import ROUTE_KINDS
from pierhead_operator.status import Event
from pierhead_operator.store import Store
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
        self.answers = [(200, SERVICE)]
        self.content_types = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def answer(self, request):
        body = await request.text()
        self.requests.append((request.method, request.path, dict(request.query), json.loads(body) if body else None))
        self.content_types.append(request.content_type)
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
    "patch": lambda cluster: cluster.patch(SERVICE, {"spec": {"type": None}}),
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


async def test_patch_takes_away_what_is_none_of_this_very_object(api, server):
    server.answers = [(200, SERVICE)]
    await Cluster(api).patch(SERVICE, {"metadata": {"labels": {"a": "b"}}, "spec": {"type": None}})
    [(method, path, query, body)] = server.requests
    assert (method, path) == ("PATCH", "/api/v1/namespaces/default/services/s")
    assert (query["fieldManager"], "force" in query) == ("pierhead-control", False)
    assert body == {"metadata": {"labels": {"a": "b"}, "uid": "u"}, "spec": {"type": None}}
    assert server.content_types == ["application/merge-patch+json"]


async def test_patch_of_what_is_gone_does_nothing(api, server):
    server.answers = [(404, {})]
    await Cluster(api).patch(SERVICE, {"spec": {"type": None}})


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
    for kind in sorted({NETWORK_POLICY}.union(SERVING_KINDS, *ROUTE_KINDS.values())):
        assert await Cluster(api).list_objects(kind, "default") == []
    assert all(path.startswith(("/api/", "/apis/")) for _, path, _, _ in server.requests)


def _service(name, version):
    labels = {"app.kubernetes.io/managed-by": "pierhead"}
    metadata = {"name": name, "namespace": "default", "resourceVersion": str(version), "labels": labels}
    return {"apiVersion": "v1", "metadata": metadata}


def _page(version, *items, **metadata):
    return 200, {"apiVersion": "v1", "items": list(items), "metadata": {"resourceVersion": str(version), **metadata}}


@pytest.fixture
def store():
    return Store({"Service", "DeployedModel"})


async def test_what_is_kept_is_read_without_a_request(api, server, store):
    cluster = Cluster(api, store=store)
    assert await cluster.get("Service", "default", "s") is None
    store.put("Service", _service("s", 1))
    assert (await cluster.get("Service", "default", "s"))["metadata"]["name"] == "s"
    assert len(await cluster.list_objects("Service", "default")) == 1
    assert server.requests == []
    server.answers = [(200, {"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": SERVICE["metadata"]}]})]
    assert await cluster.fetch("Service", "default", "s") == SERVICE
    [(method, path, query, _)] = server.requests
    assert (method, path, query) == ("GET", "/api/v1/namespaces/default/services", {"fieldSelector": "metadata.name=s"})


async def test_write_is_seen_at_once(api, server, store):
    server.answers = [(200, {**SERVICE, "spec": {"clusterIP": "10.96.0.7"}})]
    cluster = Cluster(api, store=store)
    await cluster.apply(SERVICE)
    assert (await cluster.get("Service", "default", "s"))["spec"] == {"clusterIP": "10.96.0.7"}
    written = make_deployed_model()
    written["metadata"]["resourceVersion"] = "8"
    server.answers = [(200, {**written, "status": {"modelVersion": "7"}})]
    await cluster.apply_status(DM, DM.status)
    assert (await cluster.get_resource(DeployedModel, "default", DM.name)).status.model_version == "7"


async def test_first_status_of_an_installation_is_for_what_was_read(api, server):
    read = make_deployed_model()
    read["metadata"]["resourceVersion"] = "7"
    free = DeployedModel.model_validate(read)
    claimed = free.status.model_copy(update={"installation": "a/b"})
    await Cluster(api).apply_status(free, claimed)
    own = free.model_copy(update={"status": claimed})
    await Cluster(api).apply_status(own, claimed)
    versions = [body["metadata"].get("resourceVersion") for _, _, _, body in server.requests]
    assert versions == ["7", None]


async def test_claim_of_what_has_changed_meanwhile_is_refused(api, server):
    read = make_deployed_model()
    read["metadata"]["resourceVersion"] = "7"
    free = DeployedModel.model_validate(read)
    server.answers = [(409, {"message": "the object has been modified"})]
    with pytest.raises(Conflict):
        await Cluster(api).apply_status(free, free.status.model_copy(update={"installation": "a/b"}))
    await Cluster(api).apply_status(free, free.status)  # of another one of that name there is nothing to tell


@pytest.mark.parametrize(
    "told",
    [
        "failed to create manager for existing fields: failed to convert new object: expected string",
        "failed to create typed live object (default/a; pierhead.dev/v1, Kind=DeployedModel): .spec: expected string",
    ],
    ids=["written by an apply", "written otherwise"],
)
async def test_status_of_what_the_schema_takes_no_longer_is_replaced(api, server, told):
    """As the API server answers where an older CRD took another type: else nobody would tell the author."""
    server.answers = [(500, {"message": told}), (200, make_deployed_model())]
    await Cluster(api).apply_status(DM, DM.status)
    [(_, _, _, applied), (method, path, query, body)] = server.requests
    assert (method, path.rpartition("/")[2], "force" in query) == ("PATCH", "status", False)
    assert body == [
        {"op": "test", "path": "/metadata/uid", "value": DM.metadata.uid},
        {"op": "add", "path": "/status", "value": applied["status"]},
    ]


async def test_status_that_the_api_server_fails_to_write_otherwise_is_not(api, server):
    server.answers = [(500, {"message": "etcdserver: request timed out"})]
    with pytest.raises(ClusterError, match="timed out"):
        await Cluster(api).apply_status(DM, DM.status)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "written", "told"),
    [(200, True, ""), (404, False, ""), (409, False, ""), (422, False, "status refused: it is wrong")],
    ids=["written", "gone", "a namesake", "never to be taken"],
)
async def test_status_says_whether_it_was_written(api, server, caplog, status, written, told):
    server.answers = [(status, make_deployed_model() if written else {"message": "it is wrong"})]
    assert await Cluster(api).apply_status(DM, DM.status) is written
    assert [(record.levelname, told in record.message) for record in caplog.records] == [("WARNING", True)] * bool(told)


@pytest.mark.parametrize("message", ["no right", 'admission webhook "x" denied the request'])
async def test_status_that_may_be_taken_another_time_is_put_off(api, server, message):
    server.answers = [(403, {"message": message})]
    with pytest.raises(Rejected, match=message):
        await Cluster(api).apply_status(DM, DM.status)


async def test_refresh_corrects_what_is_known_and_gives_what_is_gone(api, server, store):
    for name, version in (("old", 3), ("gone", 4), ("new", 30)):
        store.put("Service", _service(name, version))
    server.answers = [_page(20, _service("old", 10), **{"continue": "more"}), _page(20, _service("other", 5))]
    cluster = Cluster(api, store=store)
    told = [
        (listed.live["metadata"]["name"], listed.is_news)
        async for listed in cluster.refresh("Service", None, {"app": "x"})
    ]
    assert told == [("old", True), ("other", True), ("gone", True)]
    kept = await cluster.list_objects("Service", None)
    versions = {live["metadata"]["name"]: live["metadata"]["resourceVersion"] for live in kept}
    assert versions == {"old": "10", "other": "5", "new": "30"}
    assert {query["labelSelector"] for _, _, query, _ in server.requests} == {"app=x"}


async def test_refresh_of_a_kind_that_is_not_installed_finds_nothing(api, server, store):
    server.answers = [(404, {})]
    assert [live async for live in Cluster(api, store=store).refresh("Service", None)] == []


@pytest.mark.parametrize(
    ("kind", "resource"),
    [("Pod", ("", "v1", "pods")), ("DeployedModel", ("pierhead.dev", "v1", "deployedmodels"))],
)
def test_resource_of_a_kind(kind, resource):
    assert find_resource(kind) == resource


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (403, "exceeded quota", Rejected),
        (404, "no such namespace", Rejected),
        (409, "it has changed", Conflict),
        (422, "spec.replicas: must be at least 0", Invalid),
        (400, "strict decoding error", Invalid),
        (413, "too large", Invalid),
        (400, 'admission webhook "x" denied the request', Rejected),
        (422, 'admission webhook "x" denied the request', Rejected),
        (422, """deployments.apps "dm-a" is forbidden: ValidatingAdmissionPolicy 'x' denied request""", Rejected),
        (422, 'Deployment.apps "dm-a" is invalid: labels: Invalid value: "admission webhook \\"x\\" denied"', Invalid),
        (422, 'Deployment.apps "dm-a" is invalid: labels: Invalid value: "a \\"b\\" is forbidden: "', Invalid),
        (500, "failed to create typed patch object (default/dm-a; apps/v1, Kind=Deployment): .spec", Invalid),
        (500, "failed to create typed live object (default/a; pierhead.dev/v1, Kind=DeployedModel): .spec", Invalid),
        (500, 'etcd is away: value "failed to create typed patch object ("', ClusterError),
        (500, 'Internal error occurred: failed calling webhook "x": failed to call webhook', ClusterError),
        (500, "etcd is away", ClusterError),
        (429, "too many requests", ClusterError),
    ],
)
async def test_refusal_says_whether_another_try_may_help(api, server, status, message, error):
    server.answers = [(status, {"message": message})]
    with pytest.raises((Rejected, ClusterError)) as caught:
        await Cluster(api).update(SERVICE)
    assert caught.type is error


async def test_apply_without_a_live_object_creates_and_overwrites_nothing(api, server):
    """No object has the first of all versions: the API server refuses where there is one."""
    await Cluster(api).apply({**SERVICE, "metadata": {"name": "s", "namespace": "default"}})
    [(method, _, _, body)] = server.requests
    assert (method, body["metadata"]["resourceVersion"]) == ("PATCH", "1")
    server.answers = [(409, {"message": "there is one"})]
    with pytest.raises(Conflict):
        await Cluster(api).apply(SERVICE)


async def test_own_write_is_told_once(api, server, store):
    told = []
    cluster = Cluster(api, store=store, tell_written=lambda kind, live: told.append((kind, live["metadata"]["name"])))
    await cluster.apply(SERVICE, SERVICE)
    assert told == [("Service", "s")]


@pytest.mark.parametrize("spec", [{}, {"dedicatedResources": {"minReplicaCount": "many"}}], ids=["status", "both"])
def test_neighbour_goes_on_whose_status_is_of_a_later_release(spec):
    live = make_deployed_model(available=True, **spec)
    live["status"] |= {"availableReplicaCount": 2, "artifact": "of tomorrow"}
    assert parse_neighbour(live).status.available_replica_count == 2


async def test_resource_of_a_later_release_is_unreadable_and_its_neighbours_go_on(api, store):
    later, other = make_deployed_model(), make_deployed_model("photos-2")
    later["spec"]["dedicatedResources"] = {"autoscalingMetricSpecs": [{"metricName": "of/tomorrow"}]}
    for live in (later, other):
        live["metadata"]["resourceVersion"] = "8"
        store.put("DeployedModel", live)
    cluster = Cluster(api, store=store)
    with pytest.raises(UnreadableError, match=r"photos-1 cannot be read .*dedicatedResources.autoscalingMetricSpecs"):
        await cluster.get_resource(DeployedModel, "default", "photos-1")
    found = await cluster.list_deployed_models("default", names.LABEL_ENDPOINT, "photos")
    assert [dm.name for dm in found] == ["photos-1", "photos-2"]


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
