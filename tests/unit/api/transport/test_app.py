"""Paths, bodies and errors of management calls."""

import asyncio
import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from pierhead_api import app, errors
from pierhead_api.listing import ListRequest
from pierhead_api.names import Place
from pierhead_api.routes import VERBS, parse_seconds
from pierhead_api.wire import TYPE

from tests.unit.api.transport.conftest import TOKEN

ALICE = {"Authorization": f"Bearer {TOKEN}"}
AT = "/v1/projects/team-a/locations/local"
PLACE = Place("team-a", "local", "team-a")
LISTING = ListRequest()


class Services:
    """Every service: tells what it was asked, and answers or raises what the test says."""

    def __init__(self):
        self.asked = []
        self.answer = {"name": "x"}

    def __getattr__(self, service):
        return _Service(self, service)


class _Service:
    def __init__(self, services, name):
        self._services = services
        self._name = name

    def __getattr__(self, verb):
        async def answer(*arguments):
            self._services.asked.append((self._name, verb, *arguments))
            if isinstance(self._services.answer, Exception):
                raise self._services.answer
            return self._services.answer

        return answer


@pytest.fixture
async def client(world, pods):
    world.services = Services()
    transport = httpx.ASGITransport(world.make_app(pods))
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=ALICE) as client:
        yield client


BODY = {"displayName": "P"}
E, M, J = "endpoints/e", "models/m", "batchPredictionJobs/j"
# Below the project: AI Platform knows no location.
OLD_CALLS = [
    ("POST", "models", ("ai_platform", "create_model", "team-a", BODY)),
    ("GET", "models/m", ("ai_platform", "get_model", "team-a", "m")),
    ("PATCH", "models/m?updateMask=description", ("ai_platform", "patch_model", "team-a", "m", BODY, "description")),
    ("PATCH", "models/m/versions/v", ("ai_platform", "patch_version", "team-a", "m", "v", BODY, "")),
    ("DELETE", "models/m", ("ai_platform", "delete_model", "team-a", "m")),
    ("POST", "models/m/versions", ("ai_platform", "create_version", "team-a", "m", BODY)),
    ("GET", "models?pageSize=5", ("ai_platform", "list_models", "team-a", ListRequest(page_size=5))),
    ("GET", "models/m/versions", ("ai_platform", "list_versions", "team-a", "m", LISTING)),
    ("GET", "models/m/versions/v", ("ai_platform", "get_version", "team-a", "m", "v")),
    ("DELETE", "models/m/versions/v", ("ai_platform", "delete_version", "team-a", "m", "v")),
    ("POST", "models/m/versions/v:setDefault", ("ai_platform", "set_default", "team-a", "m", "v")),
    ("GET", "operations/o", ("ai_platform", "get_operation", "team-a", "o")),
]
CALLS = [
    ("POST", "endpoints?endpointId=e", ("endpoints", "create", PLACE, BODY, "e")),
    ("POST", "endpoints?endpoint_id=e", ("endpoints", "create", PLACE, BODY, "e")),
    ("POST", "endpoints", ("endpoints", "create", PLACE, BODY, "")),
    ("GET", "endpoints", ("endpoints", "list", PLACE, LISTING)),
    ("GET", E, ("endpoints", "get", PLACE, "e")),
    ("PATCH", f"{E}?updateMask=displayName,labels", ("endpoints", "patch", PLACE, "e", BODY, "displayName,labels")),
    ("DELETE", E, ("endpoints", "delete", PLACE, "e")),
    ("POST", f"{E}:deployModel", ("endpoints", "deploy_model", PLACE, "e", BODY)),
    ("POST", f"{E}%3AdeployModel", ("endpoints", "deploy_model", PLACE, "e", BODY)),
    ("POST", f"{E}:undeployModel", ("endpoints", "undeploy_model", PLACE, "e", BODY)),
    ("POST", f"{E}:mutateDeployedModel", ("endpoints", "mutate_deployed_model", PLACE, "e", BODY, "")),
    ("POST", "models:upload", ("models", "upload", PLACE, BODY)),
    ("GET", "models", ("models", "list", PLACE, LISTING)),
    ("GET", M, ("models", "get", PLACE, "m")),
    ("GET", f"{M}@2", ("models", "get", PLACE, "m@2")),
    ("GET", f"{M}%40candidate", ("models", "get", PLACE, "m@candidate")),
    ("PATCH", M, ("models", "patch", PLACE, "m", BODY, "")),
    ("DELETE", M, ("models", "delete", PLACE, "m")),
    ("GET", f"{M}:listVersions", ("models", "list_versions", PLACE, "m", LISTING)),
    ("POST", f"{M}@2:mergeVersionAliases", ("models", "merge_version_aliases", PLACE, "m@2", BODY)),
    ("DELETE", f"{M}@2:deleteVersion", ("models", "delete_version", PLACE, "m@2")),
    ("POST", "batchPredictionJobs", ("jobs", "create", PLACE, BODY)),
    ("GET", "batchPredictionJobs", ("jobs", "list", PLACE, LISTING)),
    ("GET", J, ("jobs", "get", PLACE, "j")),
    ("POST", f"{J}:cancel", ("jobs", "cancel", PLACE, "j")),
    ("DELETE", J, ("jobs", "delete", PLACE, "j")),
    ("GET", "operations", ("operations", "list", PLACE, "", LISTING)),
    ("GET", "operations/o", ("operations", "get", PLACE, "", "o")),
    ("GET", f"{E}/operations", ("operations", "list", PLACE, E, LISTING)),
    ("GET", f"{E}/operations/o", ("operations", "get", PLACE, E, "o")),
    ("GET", f"{M}/operations/o", ("operations", "get", PLACE, M, "o")),
    ("POST", f"{E}/operations/o:cancel", ("operations", "cancel", PLACE, E, "o")),
    ("POST", f"{E}/operations/o:wait?timeout=1.5s", ("operations", "wait", PLACE, E, "o", 1.5)),
    ("DELETE", f"{E}/operations/o", ("operations", "delete", PLACE, E, "o")),
]


@pytest.mark.parametrize(("method", "path", "asked"), CALLS)
async def test_verb_is_a_function_of_a_service(client, world, method, path, asked):
    body = {"json": BODY} if method in ("POST", "PATCH") else {}
    prefixes = ["/v1", "/v1beta1"] + (["/ui"] if "operations" in path else [])
    for prefix in prefixes:
        answer = await client.request(method, f"{prefix}/projects/team-a/locations/local/{path}", **body)
        assert (answer.status_code, answer.json()) == (200, {"name": "x"})
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
    service, verb, _, *rest = asked
    beta = (service, verb, replace(PLACE, beta=True), *rest)
    assert world.services.asked == [beta if prefix == "/v1beta1" else asked for prefix in prefixes]
    assert world.tokens == [TOKEN] * len(prefixes)


@pytest.mark.parametrize(("method", "path", "asked"), OLD_CALLS)
async def test_verb_of_ai_platform_is_a_function_of_its_service(client, world, method, path, asked):
    body = {"json": BODY} if method in ("POST", "PATCH") else {}
    answer = await client.request(method, f"/v1/projects/team-a/{path}", **body)
    assert (answer.status_code, answer.json()) == (200, {"name": "x"})
    assert world.services.asked == [asked]


def test_every_verb_is_tested():
    assert len({asked[:2] for *_, asked in CALLS + OLD_CALLS}) == len({verb.handle for verb in VERBS})


async def test_list_takes_googles_parameters(client, world):
    query = {"filter": 'display_name="x y"', "pageSize": "5", "pageToken": "t", "orderBy": "display_name desc"}
    await client.get(f"{AT}/endpoints", params={**query, "$alt": "json;enum-encoding=int"})
    await client.get(f"{AT}/endpoints", params={"page_size": "5", "page_token": "t", "order_by": "create_time"})
    assert [asked[3] for asked in world.services.asked] == [
        ListRequest('display_name="x y"', 5, "t", "display_name desc"),
        ListRequest("", 5, "t", "create_time"),
    ]


async def test_no_answer_is_an_empty_object(client, world):
    world.services.answer = None
    assert (await client.post(f"{AT}/batchPredictionJobs/j:cancel")).json() == {}


async def expect(client, code, status, method, path, **more):
    answer = await client.request(method, path, **more)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (code, code, status), error
    return answer


@pytest.mark.parametrize(
    ("method", "path", "code", "status"),
    [
        ("GET", "/", 404, "NOT_FOUND"),
        ("GET", "/v1/projects/team-a/locations/local/endpoints/", 404, "NOT_FOUND"),
        ("GET", f"{AT}/endpoints/a/b", 404, "NOT_FOUND"),
        ("POST", f"{AT}/endpoints/e:fly", 404, "NOT_FOUND"),
        ("GET", f"/ui{AT.removeprefix('/v1')}/endpoints", 404, "NOT_FOUND"),
        ("GET", f"{AT}/batchPredictionJobs/j/operations/o", 404, "NOT_FOUND"),
        ("PUT", f"{AT}/endpoints/e", 405, "UNIMPLEMENTED"),
        ("GET", f"{AT}/endpoints/e:deployModel", 405, "UNIMPLEMENTED"),
        ("GET", AT.replace("local", "mars") + "/endpoints", 404, "NOT_FOUND"),
        ("GET", AT.replace("team-a", "123") + "/endpoints", 403, "PERMISSION_DENIED"),
        ("GET", f"{AT}/endpoints?pageSize=many", 400, "INVALID_ARGUMENT"),
    ],
)
async def test_path_that_is_none_is_told_in_json(client, world, method, path, code, status):
    await expect(client, code, status, method, path)
    assert world.services.asked == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", 400),
        (b"[1]", 400),
        (b'"x"', 400),
        (b"\xff", 400),
        (b'{"a": NaN}', 400),
        (b"[" * 100_000, 400),
        (b" " * (1024 * 1024 + 1), 413),
        (b'{"a": [' + b"[]," * 10_000 + b"[]]}", 400),
    ],
)
async def test_broken_body_is_the_callers(client, world, body, code):
    await expect(client, code, "INVALID_ARGUMENT", "POST", f"{AT}/endpoints", content=body)

    async def pieces():
        yield body

    await expect(client, code, "INVALID_ARGUMENT", "POST", f"{AT}/endpoints", content=pieces())
    assert world.services.asked == []


async def test_body_of_nobody_is_not_read(client, world):
    async def body():
        read.append(1)
        yield b"{}"

    read = []
    nobody = {"Authorization": "Bearer nobodys"}
    await expect(client, 401, "UNAUTHENTICATED", "POST", f"{AT}/endpoints", content=body(), headers=nobody)
    assert not read
    assert not world.services.asked
    await expect(client, 401, "UNAUTHENTICATED", "GET", f"{AT}/endpoints", headers=nobody)
    assert world.known == ["nobodys"]


async def test_who_did_what_is_told(client, world, caplog):
    caplog.set_level(logging.INFO, "pierhead_api.audit")
    await client.post(f"{AT}/endpoints?endpointId=secret", json={"displayName": "secret"})
    world.services.answer = errors.PermissionDeniedError("secret")
    await client.delete(f"{AT}/endpoints/7")
    await client.get(f"{AT}/endpoints", headers={"Authorization": "Bearer nobodys"})
    await client.get(f"{AT}/customJobs")  # is nothing
    await client.post("/v1/projects/team-a/locations/local/endpoints/other:predict", content=b"secret")
    lines = [line for line in caplog.records if line.name == "pierhead_api.audit"]
    told = [(line.user, line.verb, line.code, line.getMessage()) for line in lines]
    assert told == [
        ("alice@example.com", "endpoints.create", 200, f"POST {AT}/endpoints by alice@example.com: 200"),
        ("alice@example.com", "endpoints.delete", 403, f"DELETE {AT}/endpoints/7 by alice@example.com: 403"),
        ("", "endpoints.list", 401, f"GET {AT}/endpoints by nobody: 401"),
        ("", "endpoints.predict", 403, f"POST {AT}/endpoints/other:predict by nobody: 403"),
    ]
    # Neither a body, nor a query, nor an error's words, nor a token.
    assert not any("secret" in str(vars(line)) for line in lines)


async def test_operation_of_v1beta1_is_polled_where_no_version_is_told(client, world):
    type_ = f"{TYPE}DeployModelOperationMetadata"
    world.services.answer = {"name": "projects/team-a/locations/local/operations/o", "metadata": {"@type": type_}}
    begun = (await client.post(f"{AT.replace('/v1/', '/v1beta1/')}/endpoints/e:deployModel", json={})).json()
    polled = (await client.get(f"/ui/{begun['name']}")).json()
    assert polled == begun
    assert polled["metadata"]["@type"] == type_.replace(".v1.", ".v1beta1.")
    assert world.services.asked[-1] == ("operations", "get", replace(PLACE, beta=True), "", "o")
    assert (await client.get(f"/ui/{AT.removeprefix('/v1/')}/operations/o")).json() == world.services.answer


async def test_wait_ends_with_its_caller(world, pods):
    waiting, ended = asyncio.Event(), asyncio.Event()

    class Operations:
        async def wait(self, *_):
            try:
                waiting.set()
                await asyncio.Event().wait()
            finally:
                ended.set()

    world.services = Services()
    world.services.operations = Operations()
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await waiting.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        raise AssertionError(message)

    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    path = f"{AT}/operations/o:wait"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await world.make_app(pods)({**scope, "headers": headers, "root_path": ""}, receive, send)
    async with asyncio.timeout(30):
        await ended.wait()


async def test_caller_is_asked_about_once_in_a_while(client, world):
    for _ in range(3):
        await client.post(f"{AT}/endpoints", json=BODY)
    assert world.known == [TOKEN]


async def test_without_a_token_there_is_no_entry(client, world):
    answer = await expect(
        client, 401, "UNAUTHENTICATED", "GET", f"{AT}/endpoints", headers={"Authorization": "Basic x"}
    )
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert world.tokens == []


async def test_anonymous_acts_as_its_service_account(client, world):
    async def token():
        return "laptop"

    world.anonymous = token
    app = world.make_app(None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as anonymous:
        assert (await anonymous.get(f"{AT}/endpoints")).status_code == 200
    assert world.tokens == ["laptop"]


@pytest.mark.parametrize("kind", sorted(errors.ApiError.__subclasses__(), key=str))
async def test_error_is_told_as_google_tells_it(client, world, kind):
    world.services.answer = kind("because")
    answer = await expect(client, kind.code, kind.status, "GET", f"{AT}/endpoints/e")
    assert answer.json()["error"]["message"] == "because"
    assert ("retry-after" in answer.headers) == (kind is errors.UnavailableError)


async def test_bug_is_logged_and_not_told(client, world, caplog):
    world.services.answer = KeyError("a secret detail")
    answer = await expect(client, 500, "INTERNAL", "GET", f"{AT}/endpoints/e")
    assert "secret" not in answer.text
    assert "a secret detail" in caplog.text
    assert TOKEN not in caplog.text


async def test_path_makes_no_lines_in_the_log(client, world, caplog):
    caplog.set_level(logging.WARNING)
    world.services.answer = errors.UnavailableError("away")
    await expect(client, 503, "UNAVAILABLE", "GET", f"{AT}/endpoints/e%0Afake?access_token={TOKEN}")
    assert [record.getMessage() for record in caplog.records] == [f"GET {AT}/endpoints/e%0Afake: 503: away"]


async def test_probes_and_metrics(client, world):
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).status_code == 200
    world.unready = "the API is shutting down"
    answer = await expect(client, 503, "UNAVAILABLE", "GET", "/readyz")
    assert answer.headers["connection"] == "close"
    assert (await client.get("/healthz")).status_code == 200
    await client.get(f"{AT}/endpoints/e")
    await client.get("/nowhere")
    text = (await client.get("/metrics")).text
    assert 'pierhead_api_requests_total{code="200",resource="endpoints",verb="get"} 1.0' in text
    assert 'pierhead_api_requests_total{code="404",resource="none",verb="unknown"} 1.0' in text


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, math.inf), ("", math.inf), ("30s", 30.0), ("1.5s", 1.5), ("0s", 0.0)]
)
def test_duration(value, seconds):
    assert parse_seconds(value, "timeout") == seconds


@pytest.mark.parametrize("value", ["30", "-1s", "s", "1e9s", "1.2.3s", 30, {}, "9" * 20 + "s"])
def test_duration_that_is_none_is_named(value):
    with pytest.raises(errors.InvalidArgumentError, match="timeout"):
        parse_seconds(value, "timeout")


async def test_few_lists_are_read_at_once_and_other_calls_go_on(world, client, monkeypatch):
    """Of each a page of Kubernetes is held, whoever asks."""
    monkeypatch.setattr(app, "_TURN_SECONDS", 0.05)
    begun, go_on = [], asyncio.Event()

    class Lists(Services):
        async def list(self, *_):
            begun.append(1)
            await go_on.wait()
            return {}

        @property
        def endpoints(self):
            return SimpleNamespace(list=self.list, get=self.jobs.get)

    world.services = Lists()
    waiting = {asyncio.create_task(client.get(f"{AT}/endpoints")) for _ in range(5)}
    refused = set()
    while len(refused) < 2:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        refused |= done
    assert [one.result().status_code for one in refused] == [429] * 2
    assert len(begun) == 3
    assert (await client.get(f"{AT}/{E}")).status_code == 200
    go_on.set()
    assert [one.status_code for one in await asyncio.gather(*waiting)] == [200] * 3
    assert (await client.get(f"{AT}/endpoints")).status_code == 200
