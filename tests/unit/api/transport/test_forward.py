"""Predictions through a real listener to real pods."""

import asyncio
import json
import logging
from collections import Counter

import aiohttp
import pytest
from aiohttp import web
from pierhead_api import forward
from pierhead_api.forward import locate_service, make_headers

from tests.unit.api.transport.conftest import (
    MODEL_PREDICT,
    PREDICT,
    TOKEN,
    listening,
    make_deployed_model,
    make_endpoint,
    make_model,
    serving,
)

ALICE = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
BODY = json.dumps({"instances": [1]}).encode()


async def echo(request):
    """What came, as JSON."""
    body = await request.read()
    headers = {name.lower(): value for name, value in request.headers.items()}
    return web.json_response({"path": request.raw_path, "headers": headers, "size": len(body)}, headers={"X-Pod": "1"})


@pytest.fixture
async def api(world, pods):
    async with listening(world.make_app(pods)) as url, aiohttp.ClientSession(url) as client:
        yield client


@pytest.fixture
async def photos(world):
    """An endpoint with a pod that tells what came."""
    world.table.put("Endpoint", make_endpoint({"photos-1": 100}))
    async with serving(echo) as world.pods["photos-1"]:
        yield world


@pytest.mark.parametrize(
    ("path", "sent_on"),
    [
        (PREDICT, PREDICT),
        (f"{PREDICT}?a=b%20c", f"{PREDICT}?a=b%20c"),
        (PREDICT.replace(":", "%3A"), PREDICT),
        (PREDICT.replace(":predict", ":rawPredict"), PREDICT.replace(":predict", ":rawPredict")),
        (PREDICT.replace(":predict", ":explain"), PREDICT.replace(":predict", ":explain")),
        (PREDICT.replace("/v1/", "/v1beta1/"), PREDICT),
        (PREDICT.replace("local/", "us-central1/"), PREDICT.replace("local/", "us-central1/")),
        (PREDICT.replace("team-a", "mapped"), PREDICT.replace("team-a", "mapped")),
        (MODEL_PREDICT, MODEL_PREDICT),
        (MODEL_PREDICT.replace(":", "/versions/1:"), MODEL_PREDICT.replace(":", "/versions/1:")),
    ],
)
async def test_prediction_reaches_the_pod(api, photos, path, sent_on):
    photos.table.put("Model", make_model())
    photos.table.put("DeployedModel", make_deployed_model())
    async with api.post(path, data=BODY, headers=ALICE) as answer:
        seen = await answer.json()
    assert (answer.status, answer.headers["x-pod"], seen["path"], seen["size"]) == (200, "1", sent_on, len(BODY))


async def test_token_and_the_connections_own_headers_are_not_sent_on(api, photos):
    own = {"Connection": "keep-alive, X-Mine", "X-Mine": "1", "TE": "trailers", "X-Kept": "2", "Cookie": "a=b"}
    forwarded = {"X-Forwarded-For": "10.1.1.1", "X-Forwarded-Proto": "https"}
    async with api.post(PREDICT, data=BODY, headers={**ALICE, **own, **forwarded}) as answer:
        seen = (await answer.json())["headers"]
    assert not {"authorization", "x-mine", "te"} & seen.keys()
    assert (seen["x-kept"], seen["cookie"], seen["content-type"]) == ("2", "a=b", "application/json")
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("10.1.1.1, 127.0.0.1", "https")
    assert seen["host"] == seen["x-forwarded-host"] == api._base_url.authority


async def test_large_body_goes_both_ways_as_it_comes(api, world):
    async def mirror(request):
        answer = web.StreamResponse()
        await answer.prepare(request)
        async for piece in request.content.iter_any():
            await answer.write(piece)
        return answer

    async def pieces():
        for _ in range(64):
            yield b"x" * 65536

    world.table.put("Endpoint", make_endpoint({"photos-1": 100}, maxRequestBytes=2**30))
    async with serving(mirror) as world.pods["photos-1"], api.post(PREDICT, data=pieces(), headers=ALICE) as answer:
        assert len(await answer.read()) == 64 * 65536


async def test_first_of_an_answer_comes_before_its_end(api, world):
    go_on = asyncio.Event()

    async def slowly(request):
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"first")
        await go_on.wait()
        await answer.write(b"last")
        return answer

    world.table.put("Endpoint", make_endpoint({"photos-1": 100}))
    async with serving(slowly) as world.pods["photos-1"], api.post(PREDICT, data=BODY, headers=ALICE) as answer:
        assert await answer.content.readany() == b"first"
        go_on.set()
        assert await answer.read() == b"last"


async def test_split_is_followed_and_changes_at_once(api, photos):
    async def tell_second(_):
        return web.json_response({"path": "second"})

    async def count():
        answers = Counter()
        for _ in range(60):
            async with api.post(PREDICT, data=BODY, headers=ALICE) as answer:
                answers[(await answer.json())["path"]] += 1
        return answers

    async with serving(tell_second) as photos.pods["photos-2"]:
        photos.table.put("Endpoint", make_endpoint({"photos-1": 50, "photos-2": 50}))
        assert set(await count()) == {PREDICT, "second"}
        photos.table.put("Endpoint", make_endpoint({"photos-2": 100}))
        assert set(await count()) == {"second"}


async def test_connections_are_kept(api, world):
    peers = set()

    async def note(request):
        peers.add(request.transport.get_extra_info("peername"))
        return web.json_response({})

    world.table.put("Endpoint", make_endpoint({"photos-1": 100}))
    async with serving(note) as world.pods["photos-1"]:
        for _ in range(20):
            await (await api.post(PREDICT, data=BODY, headers=ALICE)).read()
    assert len(peers) <= 3  # some are given up by chance


async def test_answer_of_the_pod_is_the_answer(api, world):
    async def refuse(_):
        return web.json_response({"error": {"code": 429}}, status=429, headers={"Retry-After": "3"})

    world.table.put("Endpoint", make_endpoint({"photos-1": 100}))
    async with serving(refuse) as world.pods["photos-1"], api.post(PREDICT, data=BODY, headers=ALICE) as answer:
        assert (answer.status, answer.headers["retry-after"]) == (429, "3")
        assert len(answer.headers.getall("date")) == 1


async def expect_error(api, code, status, path=PREDICT, headers=ALICE, data=BODY):
    async with api.post(path, data=data, headers=headers) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"], error["status"]) == (code, code, status), error
        return answer.headers


async def test_who_may_not_predict_learns_nothing(api, photos):
    await expect_error(api, 401, "UNAUTHENTICATED", headers={})
    for path in (
        PREDICT.replace("photos", "x"),
        PREDICT.replace("team-a", "team-b"),
        MODEL_PREDICT.replace("-a", "-b"),
    ):
        await expect_error(api, 403, "PERMISSION_DENIED", path)


async def test_unknown_endpoint_is_told_to_who_may(api, world):
    await expect_error(api, 404, "NOT_FOUND")
    await expect_error(api, 404, "NOT_FOUND", PREDICT.replace("local/", "mars/"))
    await expect_error(api, 404, "NOT_FOUND", MODEL_PREDICT)


async def test_endpoint_that_nobody_serves_is_unavailable(api, world):
    world.table.put("Endpoint", make_endpoint())
    world.table.put("DeployedModel", make_deployed_model(replicas=0, cause="ImagePullFailed"))
    assert "retry-after" in await expect_error(api, 503, "UNAVAILABLE")
    async with api.post(PREDICT, data=BODY, headers=ALICE) as answer:
        message = (await answer.json())["error"]["message"]
    assert message == "no DeployedModel of the endpoint photos answers: photos-1 (ImagePullFailed)"


async def test_endpoint_that_nothing_is_deployed_on_is_not_in_the_state_for_it(api, world):
    world.table.put("Endpoint", make_endpoint())
    assert "retry-after" not in await expect_error(api, 400, "FAILED_PRECONDITION")


async def test_pod_that_refuses_connections_is_tried_once_more(api, world, unused_tcp_port, monkeypatch):
    tried = []
    connect = aiohttp.TCPConnector._create_connection

    async def count(self, request, *arguments):
        tried.append(request.url.port)
        return await connect(self, request, *arguments)

    world.table.put("Endpoint", make_endpoint({"photos-1": 100}))
    world.pods["photos-1"] = f"http://127.0.0.1:{unused_tcp_port}"
    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", count)
    assert "retry-after" in await expect_error(api, 503, "UNAVAILABLE")
    assert tried.count(unused_tcp_port) == 2


async def test_second_connection_answers(api, photos, unused_tcp_port, monkeypatch):
    urls = [f"http://127.0.0.1:{unused_tcp_port}", photos.pods["photos-1"]]

    class Pods(dict):
        def __getitem__(self, _):
            return urls.pop(0)

    photos.pods = Pods()
    async with api.post(PREDICT, data=BODY, headers=ALICE) as answer:
        assert (answer.status, (await answer.json())["size"]) == (200, len(BODY))


async def test_pod_that_breaks_off_is_not_tried_again(api, world):
    asked = []

    async def break_off(request):
        asked.append(1)
        request.transport.abort()
        return web.Response()

    world.table.put("Endpoint", make_endpoint({"photos-1": 100}))
    async with serving(break_off) as world.pods["photos-1"]:
        await expect_error(api, 503, "UNAVAILABLE")
    assert len(asked) == 1


async def test_prediction_that_takes_too_long_is_ended(api, world):
    async def never(_):
        await asyncio.Event().wait()

    world.table.put("Endpoint", make_endpoint({"photos-1": 100}, clientConnectionConfig={"inferenceTimeout": "1s"}))
    async with serving(never) as world.pods["photos-1"]:
        await expect_error(api, 504, "DEADLINE_EXCEEDED")


async def test_body_over_the_endpoints_limit_is_refused(api, photos):
    async def pieces():
        yield b"x" * 1000
        await asyncio.sleep(0.01)
        yield b"x" * 1000

    photos.table.put("Endpoint", make_endpoint({"photos-1": 100}, maxRequestBytes=1024))
    await expect_error(api, 413, "INVALID_ARGUMENT", data=b"x" * 1025)
    await expect_error(api, 413, "INVALID_ARGUMENT", data=pieces())
    async with api.post(PREDICT, data=b"x" * 1024, headers=ALICE) as answer:
        assert answer.status == 200


async def test_answer_that_breaks_off_breaks_the_clients_connection(api, world, caplog):
    async def break_off(request):
        answer = web.StreamResponse(headers={"Content-Length": "100"})
        await answer.prepare(request)
        await answer.write(b"first")
        request.transport.close()
        return answer

    world.table.put("Endpoint", make_endpoint({"photos-1": 100}))
    async with serving(break_off) as world.pods["photos-1"]:
        with pytest.raises(aiohttp.ClientError):
            async with api.post(PREDICT, data=BODY, headers=ALICE) as answer:
                await answer.read()


async def test_prediction_is_given_up_when_its_caller_goes(api, world):
    begun, given_up = asyncio.Event(), asyncio.Event()

    async def wait(_):
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.set()
            raise

    world.table.put("Endpoint", make_endpoint({"photos-1": 100}))
    runner = web.AppRunner(make_app(wait), handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    world.pods["photos-1"] = f"http://127.0.0.1:{runner.addresses[0][1]}"
    asking = asyncio.create_task(api.post(PREDICT, data=BODY, headers=ALICE))
    await begun.wait()
    asking.cancel()
    async with asyncio.timeout(10):
        await given_up.wait()
    await runner.cleanup()
    assert b'code="499"' in world.metrics.render()
    assert b"pierhead_api_forwarding 0.0" in world.metrics.render()


def make_app(handle):
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    return app


async def test_prediction_asked_for_otherwise_is_refused(api, photos):
    async with api.get(PREDICT, headers=ALICE) as answer:
        assert (answer.status, (await answer.json())["error"]["status"]) == (405, "UNIMPLEMENTED")


async def test_token_is_never_logged(api, photos, unused_tcp_port, caplog):
    caplog.set_level(logging.DEBUG)
    await (await api.post(PREDICT, data=BODY, headers=ALICE)).read()
    photos.pods["photos-1"] = f"http://127.0.0.1:{unused_tcp_port}"
    await (await api.post(f"{PREDICT}?access_token={TOKEN}", data=BODY, headers=ALICE)).read()
    assert any("503" in record.message for record in caplog.records)
    told = [
        record.getMessage() + str(record.__dict__) for record in caplog.records if record.name.startswith("pierhead")
    ]
    assert told
    assert not any(TOKEN in line for line in told)


def test_service_of_a_deployed_model():
    assert locate_service("team-a", "123") == "http://dm-123.team-a.svc:80"


def test_some_connections_are_given_up(monkeypatch):
    scope = {"headers": [], "scheme": "http"}
    monkeypatch.setattr(forward, "_REQUESTS_OF_A_CONNECTION", 1)
    assert ("connection", "close") in make_headers(scope)
