"""Who is behind a Model's own paths: in tables, and the operator's routes beside the REST API's."""

import pytest
from pierhead_api.errors import NotFoundError
from pierhead_api.predictions import Prediction
from pierhead_api.route_table import RouteTable
from pierhead_operator.cluster import Key
from pierhead_operator.reconcile import Reconciler
from pierhead_operator.routing import Server, find_serving, is_offered
from pierhead_operator.types import Endpoint

from tests.unit.operator.conftest import make_deployed_model, make_endpoint, make_model
from tests.unit.operator.fakes import Clock, FakeCluster, FakeProber


def _server(version="1", answering=1, endpoint="photos", model="photos"):
    return Server(model, version, endpoint, answering)


# DeployedModels -> the weights by version
SERVERS = {
    "nobody": ({}, {}),
    "one, whatever it has": ({"a": _server(answering=7)}, {"1": {"a": 1}}),
    "as many replicas each": ({"a": _server(answering=4), "b": _server(answering=4)}, {"1": {"a": 1, "b": 1}}),
    "by replicas": ({"a": _server(answering=20), "b": _server(answering=5)}, {"1": {"a": 4, "b": 1}}),
    "by replicas, no common divisor": ({"a": _server(answering=3), "b": _server(answering=2)}, {"1": {"a": 3, "b": 2}}),
    "two versions": ({"a": _server("1"), "b": _server("2", 3)}, {"1": {"a": 1}, "2": {"b": 1}}),
    "one does not answer": ({"a": _server(), "b": _server(answering=0)}, {"1": {"a": 1}}),
    "none answers": ({"a": _server(answering=0)}, {}),
    "its endpoint is not offered": ({"a": _server(), "b": _server(endpoint="secret")}, {"1": {"a": 1}}),
    "a version that the Model no longer has": ({"a": _server(), "b": _server("0")}, {"1": {"a": 1}}),
    "no version yet": ({"a": _server("")}, {}),
    "another Model's": ({"a": _server(model="other")}, {}),
}


@pytest.mark.parametrize(("servers", "serving"), SERVERS.values(), ids=SERVERS.keys())
def test_find_serving(servers, serving):
    assert find_serving("photos", ["1", "2"], servers, {"photos"}) == serving


@pytest.mark.parametrize(
    ("access", "leaves", "offers_private", "offered"),
    [
        ("Standard", False, False, True),
        ("Private", False, False, False),
        ("Private", False, True, True),
        ("Standard", True, False, False),
        ("Private", True, True, False),
    ],
)
def test_is_offered(access, leaves, offers_private, offered):
    endpoint = Endpoint.model_validate(leaving(_endpoint(access)) if leaves else _endpoint(access))
    assert is_offered(endpoint, offers_private=offers_private) is offered


def _endpoint(access):
    made = make_endpoint({"a": 100})
    return {**made, "spec": {**made["spec"], "access": access}}


def leaving(manifest):
    """What somebody's finalizer still holds."""
    return {**manifest, "metadata": {**manifest["metadata"], "deletionTimestamp": "2026-11-22T12:00:00Z"}}


def _serving_dm(version="1", replicas=1):
    made = make_deployed_model("a", available=True)
    return {**made, "status": {**made["status"], "modelVersion": version, "availableReplicaCount": replicas}}


# what there is -> who is behind the paths of version 1, on the public gateway and behind it
WORLDS = {
    "served": ([make_model(), make_endpoint(), _serving_dm(replicas=3)], {"a": 1}),
    "no Endpoint": ([make_model(), _serving_dm()], None),
    "a Private Endpoint, and no gateway for it": ([make_model(), _endpoint("Private"), _serving_dm()], None),
    "an Endpoint that cannot be read": ([make_model(), _endpoint("Lunar"), _serving_dm()], None),
    "an Endpoint that leaves": ([make_model(), leaving(make_endpoint()), _serving_dm()], None),
    "a Model that leaves": ([leaving(make_model()), make_endpoint(), _serving_dm()], None),
    "a DeployedModel that leaves": ([make_model(), make_endpoint(), leaving(_serving_dm())], None),
    "no pod answers": ([make_model(), make_endpoint(), _serving_dm(replicas=0)], None),
    "a version that is gone": ([make_model(), make_endpoint(), _serving_dm("0")], None),
}


@pytest.mark.parametrize(("there", "weights"), WORLDS.values(), ids=WORLDS.keys())
async def test_operator_and_api_agree_who_is_public(settings, there, weights):
    assert await _route(settings, there) == weights
    assert _forward(there) == weights


@pytest.mark.parametrize("change", [world for world in WORLDS if world != "served"])
async def test_path_is_taken_away_when_its_world_changes(settings, change):
    cluster, reconciler = await _serve(settings)
    cluster.objects = {
        key: live for key, live in cluster.objects.items() if live["kind"] not in ("Model", "Endpoint", "DeployedModel")
    } | FakeCluster(*WORLDS[change][0]).objects
    await reconciler.reconcile(Key("Model", "default", "photos"))
    assert ("HTTPRoute", "mdl-photos") not in cluster.objects


async def _serve(settings):
    cluster = FakeCluster(*WORLDS["served"][0])
    reconciler = Reconciler(cluster, FakeProber(), settings, Clock())
    await reconciler.reconcile(Key("Model", "default", "photos"))
    assert ("HTTPRoute", "mdl-photos") in cluster.objects
    return cluster, reconciler


async def _route(settings, there):
    """The weights in the public gateway's route."""
    cluster = FakeCluster(*there)
    await Reconciler(cluster, FakeProber(), settings, Clock()).reconcile(Key("Model", "default", "photos"))
    route = cluster.objects.get(("HTTPRoute", "mdl-photos"))
    if route is None:
        return None
    [rule] = route["spec"]["rules"]
    return {backend["name"].removeprefix("dm-"): backend["weight"] for backend in rule["backendRefs"]}


def _forward(there):
    """The weights of an API behind the public gateway."""
    table = RouteTable(offers_private=False)
    for manifest in there:
        table.put(manifest["kind"], manifest)
    try:
        return table.find(Prediction("models", "default", "photos", "predict", version="1"), "default").weights
    except NotFoundError:
        return None
