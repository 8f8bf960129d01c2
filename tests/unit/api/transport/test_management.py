"""Predictions and management in processes of their own: what one hands on to the other."""

import asyncio
import logging
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web
from pierhead_api.app import Application
from pierhead_api.management import Management

from tests.unit.api.transport.conftest import MODEL_PREDICT, TOKEN, World, listening, serving

PATH = "/v1/projects/team-a/locations/local/endpoints"
CALLER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
async def client():
    async with aiohttp.ClientSession() as session:
        yield session


class Front(World):
    """An API whose management calls another one answers, at this address."""

    def __init__(self, session, url, **settings):
        super().__init__()
        self._session, self._url, self._settings = session, url, settings

    def make_app(self, session):
        parts = super().make_app(session).parts
        return Application(replace(parts, management=Management(self._session, self._url, **self._settings)))


async def test_call_is_handed_on_as_it_came(pods, client):
    seen = []

    async def answer(request):
        seen.append((request.method, request.raw_path, dict(request.headers), await request.text()))
        return web.json_response({"a": 1}, status=409, headers={"Retry-After": "3"})

    headers = {
        **CALLER,
        "Host": "models.example.com",
        "x-pierhead-host": "localhost",
        "Origin": "http://x",
        "Content-Type": "application/json",
    }
    async with serving(answer) as url, listening(Front(pods, url).make_app(pods)) as api:
        path = f"{PATH}/7%3AdeployModel?updateMask=a%2Cb"
        async with client.post(aiohttp.client.URL(f"{api}{path}", encoded=True), data="{}", headers=headers) as got:
            assert (got.status, await got.json(), got.headers["Retry-After"]) == (409, {"a": 1}, "3")
    [(method, raw, sent, body)] = seen
    assert (method, raw, body) == ("POST", path, "{}")
    del headers["x-pierhead-host"]  # is not a caller's to say
    asked = {**headers, "x-pierhead-host": headers["Host"], "Host": url.removeprefix("http://")}
    assert {name: sent[name] for name in asked} == asked


async def test_other_process_tells_of_the_call(pods, client, caplog):
    world = World()
    caplog.set_level(logging.INFO, "pierhead_api.audit")
    async with listening(world.make_app(pods)) as url:
        front = Front(pods, url)
        async with listening(front.make_app(pods)) as api:
            assert (await client.get(f"{api}/v1/projects/nowhere/x", headers=CALLER)).status == 404
            assert (await client.get(f"{api}{PATH}")).status == 401
    assert b'code="401"' in world.metrics.render()
    assert b"pierhead_api_requests_total{" not in front.metrics.render()
    assert len([one for one in caplog.records if one.code == 401]) == 1


async def test_predictions_and_probes_are_its_own(pods, client):
    async with listening(Front(pods, "http://127.0.0.1:1").make_app(pods)) as api:
        assert (await client.get(f"{api}/readyz")).status == 200
        assert (await client.get(f"{api}/metrics")).status == 200
        assert (await client.post(f"{api}{MODEL_PREDICT}", headers=CALLER)).status == 404
        refused = await client.get(f"{api}{PATH}", headers=CALLER)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert "management calls are not answered" in await refused.text()


async def test_calls_have_a_limit_and_predictions_go_on(pods, client):
    begun, held = asyncio.Event(), asyncio.Event()

    async def wait(_):
        begun.set()
        await held.wait()
        return web.json_response({})

    async with serving(wait) as url, listening(Front(pods, url, most_calls=1).make_app(pods)) as api:
        first = asyncio.create_task(client.get(f"{api}{PATH}", headers=CALLER))
        await begun.wait()
        second = await client.get(f"{api}{PATH}/7", headers=CALLER)
        assert (second.status, "try again later" in await second.text()) == (429, True)
        assert (await client.post(f"{api}{MODEL_PREDICT}", headers=CALLER)).status == 404
        held.set()
        assert (await first).status == 200
        assert (await client.get(f"{api}{PATH}", headers=CALLER)).status == 200


async def test_body_that_never_comes_takes_nobodys_place(pods, client):
    async with (
        listening(World().make_app(pods)) as url,
        listening(Front(pods, url, most_calls=1, body_seconds=1).make_app(pods)) as api,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(api.rpartition(":")[2]))
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode())
        assert (await client.get(f"{api}{PATH}")).status == 401
        async with asyncio.timeout(10):
            assert b" 408 " in await reader.readline()
        writer.close()


async def test_caller_who_leaves_ends_the_call(pods, client):
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait(request):
        begun.set()
        try:
            await request.read()  # which never ends by itself
        finally:
            ended.set()

    async def send():
        yield b"{"
        await asyncio.Event().wait()

    async with serving(wait) as url, listening(Front(pods, url).make_app(pods)) as api:
        call = asyncio.create_task(client.post(f"{api}{PATH}", data=send(), headers=CALLER))
        await begun.wait()
        call.cancel()
        await asyncio.wait({call})
        async with asyncio.timeout(10):
            await ended.wait()
