"""Requests without an end, and long ones that have one."""

import asyncio
import contextlib

import pytest
from pierhead_api.bounded_http import BoundedHttpProtocol

from tests.unit.api.transport.conftest import listening

POST = b"POST / HTTP/1.1\r\nHost: api\r\n"
ENDLESS = {
    "path": (b"GET /", b"x" * 10_000),
    "header": (POST + b"X: ", b"x" * 10_000),
    "headers": (POST, b"X: y\r\n" * 1000),
    "trailer": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: ", b"x" * 10_000),
    "trailers": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X: y\r\n" * 1000),
}


async def count(scope, receive, send):
    """Answers with the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message["body"]), message["more_body"]
    body = str(length).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, port)


@pytest.mark.parametrize(("start", "more"), ENDLESS.values(), ids=ENDLESS.keys())
async def test_head_without_an_end_is_not_held(start, more):
    async with listening(count) as url, asyncio.timeout(30):
        reader, writer = await connect(url)
        writer.write(start)
        sent = 0
        # The connection breaks while the sender still sends, or ends after the answer.
        try:
            while not reader.at_eof() and not writer.is_closing() and sent < 50_000_000:
                writer.write(more)
                await writer.drain()
                await asyncio.sleep(0)
                sent += len(more)
        except ConnectionError:
            pass
        writer.close()
    assert sent < 50_000_000


async def test_long_body_in_small_pieces_is_no_head():
    async with listening(count) as url, asyncio.timeout(30):
        reader, writer = await connect(url)
        writer.write(POST + b"X: " + b"x" * 30_000 + b"\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
        answer = await reader.read()
        writer.close()
    assert answer.endswith(b"50000")


async def test_connection_takes_many_requests():
    async with listening(count) as url, asyncio.timeout(30):
        reader, writer = await connect(url)
        for _ in range(20):
            writer.write(b"GET / HTTP/1.1\r\nHost: api\r\nX: " + b"x" * 10_000 + b"\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200 ")
        writer.close()


@pytest.mark.parametrize("start", [b"", b"POST / HTT", POST + b"X: y\r\n"], ids=["nothing", "line", "headers"])
async def test_head_that_does_not_come_ends_the_connection(monkeypatch, start):
    monkeypatch.setattr(BoundedHttpProtocol, "head_seconds", 0.02)
    async with listening(count) as url, asyncio.timeout(30):
        reader, writer = await connect(url)
        writer.write(start)
        assert await reader.read() == b""
        writer.close()


async def test_second_head_has_its_deadline_too_and_silence_between_has_none(monkeypatch):
    monkeypatch.setattr(BoundedHttpProtocol, "head_seconds", 0.5)
    async with listening(count) as url, asyncio.timeout(30):
        reader, writer = await connect(url)
        for _ in range(2):
            writer.write(POST + b"Content-Length: 1\r\n\r\nx")
            assert (await reader.readuntil(b"\r\n\r\n1")).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.7)  # a gateway keeps its connections
        writer.write(b"POST / H")
        assert await reader.read() == b""
        writer.close()


async def test_slow_body_is_no_slow_head(monkeypatch):
    monkeypatch.setattr(BoundedHttpProtocol, "head_seconds", 0.5)
    async with listening(count) as url, asyncio.timeout(30):
        reader, writer = await connect(url)
        writer.write(POST + b"Content-Length: 2\r\n\r\nx")
        await asyncio.sleep(0.7)
        writer.write(b"x")
        assert (await reader.readuntil(b"\r\n\r\n2")).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_connections_have_a_limit(monkeypatch):
    monkeypatch.setattr(BoundedHttpProtocol, "most_connections", 2)
    begun = asyncio.Event()

    async def count_and_tell(scope, receive, send):
        begun.set()
        await count(scope, receive, send)

    async with listening(count_and_tell) as url, asyncio.timeout(30):
        # One that is being answered, and one that is idle: that one gives way.
        (first, one), (second, two) = await connect(url), await connect(url)
        one.write(POST + b"Content-Length: 1\r\n\r\n")
        await begun.wait()
        third, three = await connect(url)
        with contextlib.suppress(ConnectionError):
            assert await second.read() == b""
        for reader, writer, body in ((first, one, b"x"), (third, three, POST + b"Content-Length: 1\r\n\r\nx")):
            writer.write(body)
            assert (await reader.readuntil(b"\r\n\r\n1")).startswith(b"HTTP/1.1 200 ")
        for each in (one, two, three):
            each.close()


REFUSED = {
    "rest of a body": (POST + b"Content-Length: 10\r\n\r\n", b"x"),
    "rest of a body that never comes": (POST + b"Content-Length: 10\r\n\r\n", b""),
    "empty line": (b"GET / HTTP/1.1\r\nHost: api\r\n\r\n", b"\r\n"),
}


@pytest.mark.parametrize(("head", "rest"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_follows_an_answer_and_is_no_request_has_its_deadline(monkeypatch, head, rest):
    monkeypatch.setattr(BoundedHttpProtocol, "head_seconds", 0.5)
    async with listening(refuse) as url, asyncio.timeout(30):
        reader, writer = await connect(url)
        writer.write(head)
        await reader.readuntil(b"\r\n\r\nno")
        writer.write(rest)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


async def refuse(scope, receive, send):
    """Answers without reading the body."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


async def test_client_that_reads_nothing_is_left(monkeypatch):
    monkeypatch.setattr(BoundedHttpProtocol, "read_seconds", 0.05)
    ended = asyncio.Event()

    async def flood(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with contextlib.suppress(OSError):
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        ended.set()

    async with listening(flood) as url, asyncio.timeout(30):
        _, writer = await connect(url)
        writer.transport.pause_reading()
        writer.write(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n")
        await ended.wait()
        writer.transport.abort()


async def test_head_that_comes_at_once_has_its_limit_too():
    async with listening(count) as url, asyncio.timeout(30):
        reader, writer = await connect(url)
        writer.write(POST + b"X: " + b"x" * 70_000 + b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
