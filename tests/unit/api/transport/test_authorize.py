"""The external authorization that a gateway asks."""

import httpx
import pytest

from tests.unit.api.transport.conftest import MODEL_PREDICT, PREDICT, TOKEN, make_endpoint

ALICE = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
async def client(world, pods):
    transport = httpx.ASGITransport(world.make_app(pods))
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        yield client


@pytest.mark.parametrize("path", [PREDICT, PREDICT.replace(":", "%3A"), f"{PREDICT}?x=1", MODEL_PREDICT])
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_who_may_predict_passes(client, path, method):
    answer = await client.request(method, f"/authorize{path}", headers=ALICE)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("path", "headers", "code", "status"),
    [
        (PREDICT, {}, 401, "UNAUTHENTICATED"),
        (PREDICT, {"Authorization": "Bearer other"}, 403, "PERMISSION_DENIED"),
        (PREDICT.replace("team-a", "team-b"), ALICE, 403, "PERMISSION_DENIED"),
        (PREDICT.replace("photos", "nothing"), ALICE, 403, "PERMISSION_DENIED"),
        (MODEL_PREDICT.replace("team-a", "team-b"), ALICE, 403, "PERMISSION_DENIED"),
        (PREDICT.replace("team-a", "99"), ALICE, 403, "PERMISSION_DENIED"),
        (f"/{PREDICT}", ALICE, 404, "NOT_FOUND"),
        (f"{PREDICT}/", ALICE, 404, "NOT_FOUND"),
        (PREDICT.replace(":", "%253A"), ALICE, 404, "NOT_FOUND"),
    ],
)
async def test_who_may_not_is_told_as_google_tells(client, path, headers, code, status):
    answer = await client.post(f"/authorize{path}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["status"]) == (code, status)
    assert answer.json()["error"]["code"] == code
    assert ("www-authenticate" in answer.headers) == (code == 401)


@pytest.mark.parametrize("model", ["my_Model", "my--model---8"])
async def test_right_is_asked_for_by_the_name_that_kubernetes_has(client, world, model):
    path = f"/authorize/v1/projects/team-a/models/{model}/versions/v1_2:predict"
    assert (await client.post(path, headers=ALICE)).status_code == 403
    world.rights.add(("token-of-bob", "models", "team-a", "my--model---8"))
    assert (await client.post(path, headers={"Authorization": "Bearer token-of-bob"})).status_code == 200


@pytest.mark.parametrize("path", ["", "/", "/v1/projects/team-a/locations/local/endpoints", "/healthz", "/elsewhere"])
async def test_other_paths_are_not_asked_about(client, world, path):
    answer = await client.get(f"/authorize{path}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert world.asked == []


async def test_mapped_project_needs_the_right_in_each_namespace_that_its_path_may_lead_to(client, world):
    path = f"/authorize{PREDICT.replace('team-a', 'mapped')}"
    assert (await client.post(path, headers=ALICE)).status_code == 200
    # A gateway's route of a namespace that is called as the project is.
    there = make_endpoint()
    there["metadata"]["namespace"] = "mapped"
    world.table.put("Endpoint", there)
    assert (await client.post(path, headers=ALICE)).status_code == 403


async def test_project_number_is_its_namespace(client):
    assert (await client.post(f"/authorize{PREDICT.replace('team-a', '12345')}", headers=ALICE)).status_code == 200


HOSTILE = {
    "long name": PREDICT.replace("photos", "x" * 50_000),
    "name": PREDICT.replace("photos", "Photos"),
    "long project": PREDICT.replace("team-a", "x" * 50_000),
    "long version": MODEL_PREDICT.replace(":", f"/versions/{'x' * 50_000}:"),
    "version": MODEL_PREDICT.replace(":", "/versions/1_2:"),
    "long model": MODEL_PREDICT.replace("photos", "x" * 64),
}


@pytest.mark.parametrize("prefix", ["", "/authorize"])
@pytest.mark.parametrize("path", HOSTILE.values(), ids=HOSTILE.keys())
async def test_what_nothing_can_be_called_is_not_asked_about(client, world, prefix, path):
    """A verdict would be remembered under a name of any length, for somebody whom nobody knows."""
    answer = await client.post(f"{prefix}{path}", headers={"Authorization": "Bearer nobody"})
    assert answer.status_code in (403, 404)
    assert world.asked == []
    assert len(answer.content) < 10_000
