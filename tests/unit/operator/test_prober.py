"""A real HTTP server in place of a Service: what counts as an answer."""

import asyncio
import socket

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from pierhead_operator import names, prober
from pierhead_operator.prober import Prober


class ToPort(AbstractResolver):
    """Every name is this machine, every port this one."""

    def __init__(self, port):
        self.port = port
        self.asked = []

    async def resolve(self, host, port=0, family=socket.AF_INET):
        self.asked.append(host)
        return [{"hostname": host, "host": "127.0.0.1", "port": self.port, "family": family, "proto": 0, "flags": 0}]

    async def close(self):
        pass


@pytest.fixture
async def ask():
    """Asks pods that answer as they are told; returns what the prober says, and the name that it asked for."""
    runners, released = [], asyncio.Event()

    async def run(answer):
        async def handle(request):
            assert (request.method, request.path) == ("POST", names.PROBE_PATH)
            return await (answer() if answer else released.wait())

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runners.append(runner := web.AppRunner(app, shutdown_timeout=0))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        resolver = ToPort(site._server.sockets[0].getsockname()[1])
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver)) as session:
            said = await Prober(session).ask("team", "photos-1")
        assert set(resolver.asked) == {"dm-photos-1.team.svc"}
        return said

    yield run
    released.set()
    for runner in runners:
        await runner.cleanup()


@pytest.mark.parametrize("status", [200, 404], ids=["answered", "a server of before the route"])
async def test_pods_that_answer_are_well(ask, status):
    async def answer():
        return web.json_response({"predictions": []}, status=status)

    assert await ask(answer) is None


async def test_error_is_told(ask):
    async def answer():
        return web.json_response({"error": {"code": 500, "message": "the model raised ValueError"}}, status=500)

    said = await ask(answer)
    assert "answered with 500" in said
    assert "the model raised ValueError" in said


async def test_long_answer_is_cut(ask):
    async def answer():
        return web.Response(text="x" * 10**6, status=503)

    assert len(await ask(answer)) < 500


async def test_silence_is_told(ask, monkeypatch):
    monkeypatch.setattr(prober, "_SECONDS", 0.05)
    assert "not answered within" in await ask(None)


async def test_nobody_there_is_told():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        resolver = ToPort(free.getsockname()[1])
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver)) as session:
            assert "failed" in await Prober(session).ask("team", "photos-1")
