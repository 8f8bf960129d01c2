"""What a gateway has no route for, as its clients are told it."""

import httpx
import pytest
from pierhead_api.route_table import RouteTable
from pierhead_api.serve import find_gateway
from pierhead_api.settings import ApiSettings
from pierhead_api.unrouted import Gateway

from tests.unit.api.transport.conftest import MODEL_PREDICT, PREDICT, TOKEN, make_deployed_model, make_endpoint

ALICE = {"Authorization": f"Bearer {TOKEN}"}
MALLORY = {"Authorization": "Bearer other"}
UNSERVED = "no DeployedModel of the endpoint photos answers: photos-1 (ImagePullFailed)"


@pytest.fixture
def world(world):
    """Behind a gateway that asks nobody; nobody serves its one endpoint."""
    world.gateway = Gateway.OPEN
    world.table = RouteTable(offers_private=False)
    world.table.put("DeployedModel", make_deployed_model(replicas=0, cause="ImagePullFailed"))
    world.table.put("Endpoint", make_endpoint())
    return world


async def ask(world, path=PREDICT, headers=None, method="POST"):
    """The answer, and Google's error in it."""
    transport = httpx.ASGITransport(world.make_app(None))
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        answer = await client.request(method, path, headers=headers, content=b"{}")
    assert answer.headers["content-type"].startswith("application/json")
    error = answer.json()["error"]
    assert error["code"] == answer.status_code
    return answer, error


@pytest.mark.parametrize("headers", [None, ALICE, MALLORY], ids=["no token", "the right", "no right"])
@pytest.mark.parametrize(
    "path",
    [
        PREDICT,
        PREDICT.replace(":", "%3A"),
        PREDICT.replace("local/", "us-central1/"),
        PREDICT.replace("predict", "rawPredict"),
    ],
)
async def test_nobody_is_asked_before_an_open_gateways_clients_hear_that_nobody_serves(world, path, headers):
    answer, error = await ask(world, path, headers)
    assert (answer.status_code, error["status"], error["message"]) == (503, "UNAVAILABLE", UNSERVED)
    assert answer.headers["retry-after"] == "2"
    assert world.asked == []


async def test_who_asks_an_unserved_endpoint_fills_no_log_and_raises_no_alert(world, caplog):
    await ask(world)
    assert not caplog.records
    assert b'code="503",resource="unserved",verb="predict"' in world.metrics.render()


async def test_endpoint_that_nothing_is_deployed_on_is_told_likewise(world):
    world.table.remove("DeployedModel", ("team-a", "photos-1"))
    answer, error = await ask(world)
    assert (answer.status_code, error["status"]) == (400, "FAILED_PRECONDITION")
    assert error["message"] == "nothing is deployed on the endpoint photos"


# What the gateway would not carry, whoever serves.
NEVER_CARRIED = {
    "another version of the API": PREDICT.replace("/v1/", "/v1beta1/"),
    "another verb": PREDICT.replace("predict", "explain"),
    "a mapped project": PREDICT.replace("team-a", "mapped"),
    "an unknown location": PREDICT.replace("local/", "mars/"),
    "an unknown endpoint": PREDICT.replace("photos", "nothing"),
    "another namespace": PREDICT.replace("team-a", "team-b"),
    "a Model": MODEL_PREDICT,
    "a Private endpoint": PREDICT.replace("photos", "inside"),
}


@pytest.mark.parametrize("path", NEVER_CARRIED.values(), ids=NEVER_CARRIED.keys())
async def test_what_no_gateway_carries_needs_a_token_as_ever(world, path):
    world.table.put("Endpoint", make_endpoint(name="inside", access="Private"))
    answer, _ = await ask(world, path)
    assert answer.status_code == 401


async def test_private_endpoint_is_not_found_on_the_public_gateway(world):
    world.rights.add((TOKEN, "endpoints", "team-a", "inside"))
    world.table.put("Endpoint", make_endpoint(name="inside", access="Private"))
    assert (await ask(world, PREDICT.replace("photos", "inside"), ALICE))[0].status_code == 404


@pytest.mark.parametrize("headers", [None, MALLORY], ids=["no token", "no right"])
async def test_who_comes_before_the_route_is_told_to_come_again(world, headers):
    world.table.put("Endpoint", make_endpoint({"photos-1": 100}))
    answer, error = await ask(world, headers=headers)
    assert (answer.status_code, error["status"]) == (503, "UNAVAILABLE")
    assert error["message"] == "the gateway has no route to photos yet"
    assert answer.headers["retry-after"] == "2"
    assert (await ask(world, PREDICT.replace("/v1/", "/v1beta1/"), headers))[0].status_code in (401, 403)


@pytest.mark.parametrize("gateway", [Gateway.NONE, Gateway.ASKING])
async def test_else_the_question_comes_first(world, gateway):
    world.gateway = gateway
    for headers, code in ((None, 401), (MALLORY, 403), (ALICE, 503)):
        assert (await ask(world, headers=headers))[0].status_code == code


PRIVATE = f"/private{PREDICT}"


@pytest.mark.parametrize(
    ("split", "message"), [({}, UNSERVED), ({"photos-1": 100}, "the gateway has no route to photos yet")]
)
async def test_private_gateways_clients_are_told_likewise(world, split, message):
    world.table.put("Endpoint", make_endpoint(split, access="Private"))
    answer, error = await ask(world, PRIVATE)
    assert (answer.status_code, error["status"], error["message"]) == (503, "UNAVAILABLE", message)
    assert "retry-after" in answer.headers


async def test_private_gateway_that_asks_lets_the_question_come_first(world):
    world.gateway = Gateway.ASKING
    world.table.put("Endpoint", make_endpoint(access="Private"))
    for headers, code in ((None, 401), (MALLORY, 403), (ALICE, 503)):
        assert (await ask(world, PRIVATE, headers))[0].status_code == code


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("POST", PRIVATE, 404),  # of access Standard
        ("POST", PRIVATE.replace("photos", "nothing"), 404),
        ("POST", PRIVATE.replace("predict", "explain"), 404),
        ("GET", PRIVATE, 405),
        ("GET", "/private/v1/projects/team-a/locations/local/endpoints", 404),
        ("POST", "/private/authorize", 404),
        ("GET", "/private/metrics", 404),
        ("GET", "/private/private/metrics", 404),
        ("GET", "/private", 404),
    ],
)
async def test_nothing_else_is_open_to_the_private_gateway(world, method, path, code):
    assert (await ask(world, path, ALICE, method))[0].status_code == code
    assert world.tokens == []


async def test_without_such_a_gateway_nobody_is_told_of_private_endpoints(world):
    world.gateway = Gateway.NONE
    world.table.put("Endpoint", make_endpoint(access="Private"))
    assert (await ask(world, PRIVATE, ALICE))[0].status_code == 404


@pytest.mark.parametrize(
    ("provider", "authorization", "expected"),
    [
        ("none", "none", Gateway.NONE),
        ("istio", "none", Gateway.NONE),
        ("istio", "gateway", Gateway.NONE),
        ("gateway-api", "none", Gateway.OPEN),
        ("gateway-api", "gateway", Gateway.ASKING),
    ],
)
def test_gateway_of_the_settings(provider, authorization, expected):
    assert find_gateway(ApiSettings(provider=provider, authorization=authorization)) is expected
