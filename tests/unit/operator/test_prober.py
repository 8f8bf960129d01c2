"""A real HTTP server in place of a Service: what counts as an answer."""

import asyncio
import contextlib
import socket

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from pierhead_operator import names, prober
from pierhead_operator.__main__ import _make_session
from pierhead_operator.cluster import Key
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


# Readiness

KEY = Key("DeployedModel", "team", "photos-1")


async def open_site(stack, handle):
    """The port where every path and every method is answered by a handler, until the stack is closed."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return site._server.sockets[0].getsockname()[1]


@pytest.fixture
async def ask_readiness(monkeypatch):
    """Asks a pod that answers as it is told, or not at all."""
    async with contextlib.AsyncExitStack() as stack:
        released = asyncio.Event()

        async def run(answer):
            async def handle(request):
                assert (request.method, request.path) == ("GET", "/readyz")
                return await (answer() if answer else released.wait())

            monkeypatch.setattr(prober, "_SERVER_PORT", await open_site(stack, handle))
            async with aiohttp.ClientSession() as session:
                return (await Prober(session).ask_readiness(KEY, {"p": "127.0.0.1"})).get("p")

        yield run
        released.set()


def refuse(message):
    async def answer():
        error = {"code": 503, "message": message, "status": "UNAVAILABLE"}
        return web.json_response({"error": error}, status=503)

    return answer


async def test_pod_that_is_not_ready_says_why(ask_readiness):
    words = "ModelProcessDies: " + "\u00fc" * 800
    assert await ask_readiness(refuse(words)) == words


async def test_pod_that_is_ready_by_now_says_nothing(ask_readiness):
    async def answer():
        return web.json_response({"status": "ok"})

    assert await ask_readiness(answer) is None


@pytest.mark.parametrize(
    "body",
    [b"", b"no JSON", b'{"error": "no object"}', b'{"error": {"message": 7}}', b"\xff", b"[" * 4000, b"x" * 10**6],
)
async def test_nonsense_says_nothing(ask_readiness, body):
    async def answer():
        return web.Response(body=body, status=503)

    assert await ask_readiness(answer) is None


async def test_pod_that_does_not_answer_says_nothing(ask_readiness, monkeypatch):
    monkeypatch.setattr(prober, "_READINESS_SECONDS", 0.05)
    assert await ask_readiness(None) is None


async def test_pod_that_is_gone_says_nothing(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(prober, "_SERVER_PORT", free.getsockname()[1])
        async with aiohttp.ClientSession() as session:
            assert await Prober(session).ask_readiness(KEY, {"p": "127.0.0.1"}) == {}


async def test_pod_that_does_not_say_once_is_known_by_what_it_said_last(monkeypatch):
    said = [{"p": "loading", "q": "loading"}, {"q": "dies"}, {}]

    async def read(self, pods):
        return said.pop(0)

    monkeypatch.setattr(Prober, "_read_readiness", read)
    one, pods = Prober(None), {"p": "10.0.0.1", "q": "10.0.0.2"}
    assert await one.ask_readiness(KEY, pods) == {"p": "loading", "q": "loading"}
    assert await one.ask_readiness(KEY, pods) == {"p": "loading", "q": "dies"}
    assert await one.ask_readiness(KEY, {"q": "10.0.0.2"}) == {"q": "dies"}
    assert await one.ask_readiness(KEY, {}) == {}
    assert not one._words


async def test_no_worker_of_the_queue_waits_for_a_slow_pod(monkeypatch):
    go_on, answered = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def read(self, pods):
        await go_on.wait()
        return {"p": "dies"}

    monkeypatch.setattr(Prober, "_read_readiness", read)
    monkeypatch.setattr(prober, "_PATIENCE_SECONDS", 0.01)
    one = Prober(None, answered.set_result)
    assert await one.ask_readiness(KEY, {"p": "10.0.0.1"}) == {}
    go_on.set()
    assert await asyncio.wait_for(answered, 30) == KEY
    assert await one.ask_readiness(KEY, {"p": "10.0.0.1"}) == {"p": "dies"}


# What a pod answers to a question must reach nobody but who asked


@pytest.fixture
async def serve(monkeypatch):
    """Serves every path and every method by a handler: at every port of a pod that is asked by its address."""
    async with contextlib.AsyncExitStack() as stack:

        async def run(handle):
            port = await open_site(stack, handle)
            monkeypatch.setattr(prober, "_SERVER_PORT", port)
            monkeypatch.setattr(prober, "_WORKER_PORT", port)
            return ToPort(port)

        yield run


QUESTIONS = {
    "prediction": lambda one: one.ask("team", "photos-1"),
    "readiness": lambda one: one.ask_readiness(KEY, {"p": "127.0.0.1"}),
    "progress": lambda one: one.ask_progress("127.0.0.1"),
}


@pytest.mark.parametrize("ask_pod", QUESTIONS.values(), ids=QUESTIONS.keys())
async def test_pod_leads_the_operator_nowhere_else(serve, ask_pod):
    asked = []

    async def lead_elsewhere(request):
        asked.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    connector = aiohttp.TCPConnector(resolver=await serve(lead_elsewhere))
    async with aiohttp.ClientSession(connector=connector) as session:
        await ask_pod(Prober(session))
    assert len(asked) == 1
    assert asked != ["/elsewhere"]


async def test_cookie_of_one_tenants_pod_does_not_reach_anothers(serve):
    cookies = []

    async def set_cookie(request):
        cookies.append(request.headers.get("Cookie"))
        return web.Response(headers={"Set-Cookie": "c=1; Domain=svc; Path=/"})

    async with _make_session() as session:
        session.connector._resolver = await serve(set_cookie)
        for namespace in ("theirs", "ours"):
            await Prober(session).ask(namespace, "photos-1")
    assert cookies == [None, None]
