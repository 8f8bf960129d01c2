"""The listener over real sockets, with workers that are none and clients that are rude.

They run on the loop that serves (see conftest.py), whose transports are its own.
"""

import asyncio
import contextlib
import json
import re
import socket

import pytest
from pierhead_server import connection
from pierhead_server.app import Listener, create_app
from pierhead_server.budget import SLOW_AFTER_SECONDS
from pierhead_server.connection import MAX_HEAD_BYTES, MAX_HEAD_LINES, SKIP_BYTES
from pierhead_server.errors import QueueFullError
from pierhead_server.intake import OVERHEAD_BYTES
from pierhead_server.logs import RequestLog
from pierhead_server.messages import Reply
from pierhead_server.metrics import Metrics
from pierhead_server.serve import Server, make_pool
from pierhead_server.settings import load_settings
from pierhead_server.telemetry import Telemetry
from pierhead_server.tracing import Tracer

from tests.unit.server.fake_workers import SERVED, FakeWorkers

PATH = "/v1/projects/p/locations/l/endpoints/e:predict"
BODY = json.dumps({"instances": [{"b64": "AAAA"}]}).encode()
SECONDS = 20
MAX_BYTES = 2_000_000
FIGURE = MAX_BYTES + OVERHEAD_BYTES  # the least: one request of the largest size finds room
FULL = QueueFullError("64 requests are waiting: try again later")


class Running:
    """A listener that listens."""

    def __init__(self, port, workers, listener, metrics, connections):
        self.port = port
        self.connections = connections
        self.workers = workers
        self.listener = listener
        self.clients = []
        self._metrics = metrics

    async def connect(self, **options):
        self.clients.append(Client(*await asyncio.open_connection("127.0.0.1", self.port, **options)))
        return self.clients[-1]

    def metric(self, name, **labels):
        lines = self._metrics.expose().decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = [line for line in lines if re.split(r"[{ ]", line)[0] == name and all(one in line for one in wanted)]
        return sum(float(line.rpartition(" ")[2]) for line in found)


class Client:
    """One connection, byte by byte."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def send(self, *parts):
        self.writer.write(b"".join(parts))
        async with asyncio.timeout(SECONDS):
            await self.writer.drain()

    async def answer(self):
        """The next answer: code, headers, body."""
        async with asyncio.timeout(SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            line, *rest = head.decode().strip().split("\r\n")
            headers = dict(one.lower().split(": ", 1) for one in rest)
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(line.split()[1]), headers, body

    async def end(self):
        """What comes until the server closes."""
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
        return b""


def post(body=BODY, *headers, path=PATH, length=None):
    lines = [f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


GET = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"


async def until(condition):
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - of the server's inside there are no events
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(**settings):
    given = load_settings(artifact_uri="file:///none", max_request_bytes=MAX_BYTES, device="cpu", **settings)
    workers, metrics = FakeWorkers(make_pool(given).most_bytes), Metrics(SERVED)
    listener = Listener(given, SERVED, workers, Telemetry(metrics, Tracer(), RequestLog(0)))
    server = Server(create_app(listener), listener, drain_seconds=0)
    # As `server.serve`, without its seconds of waiting between the stages of its end.
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    with socket.create_server(("127.0.0.1", 0)) as port:
        await server.startup(sockets=[port])
        running = Running(port.getsockname()[1], workers, listener, metrics, server.server_state.connections)
        try:
            yield running
        finally:
            for client in running.clients:
                client.writer.transport.abort()
            await until(lambda: not server.server_state.connections)
            for one in server.servers:
                one.close()


@pytest.fixture(autouse=True)
def short_farewell(monkeypatch):
    monkeypatch.setattr(connection, "_LINGER_SECONDS", 0.2)


@pytest.fixture
async def server():
    async with running() as server:
        yield server


# Heads


@pytest.mark.parametrize(
    "sent",
    [
        b"P",
        b"GET /healthz HTTP/1.1\r\nHost: h\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\nGET /he",
        post(path="/healthz", length=100)[:-10],
    ],
)
async def test_request_that_does_not_go_on_is_ended(sent):
    async with running(head_timeout_seconds=0.2) as server:
        client = await server.connect()
        await client.send(sent)
        said = await client.end()
        assert (b"HTTP/1.1 408 " in said) == (b"POST" not in sent)


async def test_head_byte_by_byte_is_ended():
    async with running(head_timeout_seconds=0.3) as server:
        client = await server.connect()

        async def trickle():
            await client.send(b"GET /healthz HTTP/1.1\r\n")
            while True:
                await client.send(b"x")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        code, headers, body = await client.answer()
        trickling.cancel()
        assert (code, headers["connection"], json.loads(body)["error"]["status"]) == (408, "close", "DEADLINE_EXCEEDED")


async def test_connection_that_is_silent_may_stay():
    async with running(head_timeout_seconds=0.1) as server:
        fresh, used = await server.connect(), await server.connect()
        await used.send(GET)
        assert (await used.answer())[0] == 200
        slow = await server.connect()
        await slow.send(b"G")
        await slow.end()  # by then the others have been silent for longer
        for client in (fresh, used):
            await client.send(GET)
            assert (await client.answer())[0] == 200


LONG_HEADERS = {
    "one line": b"X: " + b"x" * 20_000_000,
    "many long lines": b"\r\n".join(b"X%d: %s" % (number, b"x" * 1000) for number in range(80)) + b"\r\n\r\n",
    "many lines": b"".join(b"X%d: x\r\n" % number for number in range(MAX_HEAD_LINES + 1)) + b"\r\n",
    "a path": b"",
}


@pytest.mark.parametrize("name", LONG_HEADERS)
async def test_head_is_bounded(server, name):
    client = await server.connect()
    path = b"/" + b"x" * (MAX_HEAD_BYTES if name == "a path" else 1)
    sending = asyncio.create_task(client.send(b"GET %s HTTP/1.1\r\n" % path, LONG_HEADERS[name] or b"\r\n"))
    code, headers, body = await client.answer()
    assert (code, headers["connection"]) == (431, "close")
    assert json.loads(body)["error"]["message"].endswith((": send less", ": send fewer"))
    await client.end()
    with contextlib.suppress(ConnectionError):
        await sending
    await until(lambda: server.metric("pierhead_predict_requests_bytes") == 0)


@pytest.mark.parametrize(
    "around", [b"1;" + b"x" * 1_000_000, b"0\r\n" + b"X: x\r\n" * 100_000, b"0\r\nX: " + b"x" * 1_000_000]
)
@pytest.mark.parametrize("body", [b"", b"%x\r\n%b\r\n" % (1_500_000, b"x" * 1_500_000)])
async def test_what_stands_around_chunks_is_bounded(server, around, body):
    client = await server.connect()
    await client.send(f"POST {PATH} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode(), body)
    await until(lambda: server.metric("pierhead_predict_requests_reading") == 1)
    sending = asyncio.create_task(client.send(around))
    code, headers, _ = await client.answer()
    assert (code, headers["connection"]) == (431, "close")
    await client.end()
    with contextlib.suppress(ConnectionError):
        await sending
    assert server.metric("pierhead_predict_requests_reading") == 0


async def test_head_below_the_bounds_is_taken(server):
    client = await server.connect()
    lines = [f"X{number}: {'x' * 600}" for number in range(MAX_HEAD_LINES - 2)]
    request = post(BODY, *lines)
    for start in range(0, len(request), 10_000):
        await client.send(request[start : start + 10_000])
        await asyncio.sleep(0)
    assert (await client.answer())[0] == 200


LONG = b"X: " + b"x" * 50_000


@pytest.mark.parametrize("before", [b"", GET, post(b"x" * 40_000)])
async def test_head_counts_from_its_first_byte(server, before):
    client = await server.connect()
    await client.send(before + b"GET / HTTP/1.1\r\n" + LONG)
    await until(lambda: 50_000 < server.metric("pierhead_predict_requests_bytes") < 51_000)
    await client.send(b"\r\n\r\n")
    await until(lambda: server.metric("pierhead_predict_requests_bytes") == 0)
    assert [(await client.answer())[0] for _ in range(1 + bool(before))][-1] == 200


async def test_slow_heads_make_room():
    async with running(max_requests_bytes=FIGURE) as server:
        slow = [await server.connect() for _ in range(-(-FIGURE // 50_000))]
        for client in slow:
            await client.send(b"GET / HTTP/1.1\r\n" + LONG)
        await until(lambda: server.metric("pierhead_predict_requests_bytes") > FIGURE)
        quick = await server.connect()
        await quick.send(post())
        assert (await quick.answer())[0] == 429  # none of them is old enough to be called slow
        await asyncio.sleep(SLOW_AFTER_SECONDS)
        await quick.send(post())
        assert (await quick.answer())[0] == 200
        await until(lambda: server.metric("pierhead_predict_requests_bytes") < FIGURE)
        done, _ = await asyncio.wait([asyncio.create_task(client.answer()) for client in slow], timeout=1)
        assert {answer.result()[0] for answer in done} == {429}


@pytest.mark.parametrize("sent", [b"what?\r\n\r\n", b"GET / HTTP/1.1\r\nHost h\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
async def test_what_is_not_http_is_told_so_as_json(server, sent):
    client = await server.connect()
    await client.send(sent)
    code, headers, body = await client.answer()
    assert (code, headers["connection"], headers["content-type"]) == (400, "close", "application/json")
    assert json.loads(body)["error"]["status"] == "INVALID_ARGUMENT"
    assert await client.end() == b""


# Refused by the head


async def test_refused_body_is_skipped_and_the_connection_goes_on(server):
    client = await server.connect()
    server.workers.refusal = FULL
    await client.send(post(b"x" * 100_000), post(b"y" * 70_000), GET)
    for code in (429, 429, 200):
        answer = await client.answer()
        assert (answer[0], answer[1].get("connection")) == (code, None)
    server.workers.refusal = None
    await client.send(post())
    assert (await client.answer())[0] == 200
    assert server.metric("pierhead_predict_requests_total", code="429") == 2
    assert server.metric("pierhead_predict_requests_rejected_total", reason="queue_full") == 2


async def test_refusal_is_in_the_form_of_its_path(server):
    server.workers.refusal = FULL
    google = {"error": {"code": 429, "message": str(FULL), "status": "RESOURCE_EXHAUSTED"}}
    for path, error in {PATH: google, "/v1/models/m:predict": {"error": str(FULL)}}.items():
        client = await server.connect()
        await client.send(post(path=path))
        code, headers, body = await client.answer()
        assert (code, headers["retry-after"], json.loads(body)) == (429, "1", error)


@pytest.mark.parametrize("declared", [["Content-Length: 1000000"], ["Transfer-Encoding: chunked"]])
async def test_long_body_that_is_refused_is_not_read(server, declared):
    server.workers.refusal = FULL
    client = await server.connect()
    await client.send("\r\n".join([f"POST {PATH} HTTP/1.1", "Host: h", *declared, "", ""]).encode())
    code, headers, _ = await client.answer()
    assert (code, headers["connection"]) == (429, "close")
    assert await client.end() == b""  # while the client has sent nothing of it
    assert server.workers.calls == []


@pytest.mark.parametrize(("path", "refused"), [(PATH, True), (PATH, False), ("/healthz", True), ("/nowhere", True)])
async def test_client_that_goes_on_sending_is_cut_off(server, path, refused):
    """By what its head refuses, by the limit of a body, and where nobody reads bodies at all."""
    server.workers.refusal = FULL if refused else None
    client = await server.connect()
    await client.send(f"POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    answer = asyncio.create_task(client.answer())
    sent = 0
    chunk = b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(SECONDS):
            while True:
                await client.send(chunk)
                sent += len(chunk)
    # What the kernel holds for both sides is more than what was read.
    assert sent < MAX_BYTES + SKIP_BYTES + 20_000_000
    assert (await answer)[0] in (404, 405, 413, 429)


async def test_leave_to_send_is_given_to_who_may_come_in(server):
    client = await server.connect()
    await client.send(post(b"", "Expect: 100-continue", length=len(BODY)))
    assert (await client.answer())[0] == 100
    await client.send(BODY)
    assert (await client.answer())[0] == 200
    server.workers.refusal = FULL
    await client.send(post(b"", "Expect: 100-continue", length=len(BODY)))
    code, headers, _ = await client.answer()
    assert (code, headers["connection"]) == (429, "close")  # who knows whether the body comes


async def test_draining_server_closes_refused_connections(server):
    server.workers.refusal, server.listener.draining = FULL, True
    client = await server.connect()
    await client.send(post())
    code, headers, _ = await client.answer()
    assert (code, headers["connection"]) == (429, "close")
    assert await client.end() == b""


async def test_old_http_is_closed_after_a_refusal(server):
    server.workers.refusal = FULL
    client = await server.connect()
    await client.send(post().replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (await client.answer())[0] == 429
    assert await client.end() == b""


# Bodies


async def test_body_longer_than_declared_spoils_no_answer(server):
    client = await server.connect()
    server.workers.held = True
    await client.send(post(), b"and more, which is no request\r\n\r\n")
    await server.workers.called.wait()
    server.workers.futures[0].set_result(Reply(200, b"here"))
    code, headers, body = await client.answer()
    assert (code, headers["connection"], body) == (200, "close", b"here")
    assert await client.end() == b""


async def test_body_may_come_in_chunks(server):
    client = await server.connect()
    await client.send(f"POST {PATH} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    for byte in BODY:
        await client.send(b"1\r\n%c\r\n" % byte)
    await client.send(b"0\r\n\r\n", GET)
    assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
    assert server.workers.calls[0].body == BODY


async def test_chunks_that_are_none_are_an_error(server):
    client = await server.connect()
    await client.send(f"POST {PATH} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n".encode())
    assert (await client.answer())[0] == 400
    await client.end()
    await until(lambda: server.metric("pierhead_predict_requests_total", code="499") == 1)


async def test_upgrade_that_nobody_offers_is_an_ordinary_request(server):
    """As Java's own client asks for HTTP/2 with its first request."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB")
    client = await server.connect()
    request = post(BODY, *upgrade)
    await client.send(request[:-5])
    await until(lambda: server.metric("pierhead_predict_requests_reading") == 1)
    await client.send(request[-5:], GET.replace(b"\r\n\r\n", "\r\n".join(["", *upgrade, "", ""]).encode()), post())
    assert [(await client.answer())[0] for _ in range(3)] == [200] * 3
    assert [call.body for call in server.workers.calls] == [BODY, BODY]


async def test_body_behind_an_upgrade_is_no_head(server):
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB")
    client = await server.connect()
    request = post(BODY + b" " * 300_000, *upgrade)
    for start in range(0, len(request), 50_000):
        await client.send(request[start : start + 50_000])
        await asyncio.sleep(0)
    assert (await client.answer())[0] == 200
    assert server.metric("pierhead_predict_requests_bytes") == 0
    await client.send(post())
    assert (await client.answer())[0] == 200
    assert server.workers.calls[0].body == BODY + b" " * 300_000


async def test_trailers_are_no_headers(server):
    client = await server.connect()
    await client.send(
        f"POST {PATH} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
        b"%x\r\n%b\r\n0\r\nContent-Encoding: gzip\r\n\r\n" % (len(BODY), BODY),
        post(),
    )
    assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
    assert {call.encoding for call in server.workers.calls} == {""}


async def test_who_takes_no_answer_gets_no_other_one_made(server):
    server.workers.held = True
    client = await server.connect(limit=1024)
    client.writer.transport.pause_reading()
    await client.send(post(), post())
    await server.workers.called.wait()
    server.workers.futures[0].set_result(Reply(200, b"x" * 20_000_000))
    await until(lambda: server.metric("pierhead_predict_requests_bytes") > 1_000_000)
    assert len(server.workers.calls) == 1
    client.writer.transport.resume_reading()
    first = asyncio.create_task(client.answer())
    await until(lambda: len(server.workers.calls) == 2)
    server.workers.futures[1].set_result(Reply(200, b"second"))
    assert len((await first)[2]) == 20_000_000
    assert (await client.answer())[2] == b"second"


async def test_broken_request_behind_others_costs_them_nothing(server):
    server.workers.held = True
    client = await server.connect()
    chunked = f"POST {PATH} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    await client.send(post(), chunked, b"no number\r\n")
    await server.workers.called.wait()
    server.workers.futures[0].set_result(Reply(200, b"here"))
    code, headers, body = await client.answer()
    assert (code, headers["connection"], body) == (200, "close", b"here")
    assert await client.end() == b""


async def test_pipelined_requests_are_answered_in_order_and_bounded(server):
    client = await server.connect()
    await client.send(GET * 5)
    assert [(await client.answer())[0] for _ in range(5)] == [200] * 5
    server.workers.held = True
    await client.send(post(), GET * 1000)
    await server.workers.called.wait()
    server.workers.futures[0].set_result(Reply(200, b"here"))
    assert (await client.answer())[2] == b"here"
    assert 1 <= (await client.end()).count(b"HTTP/1.1 200 OK") < 100


async def test_refusals_that_nobody_reads_are_not_heaped_up(server):
    server.workers.refusal = FULL
    client = await server.connect(limit=1024)
    client.writer.transport.pause_reading()
    requests = 100_000
    client.writer.write(post(b"") * requests)
    most = 0
    async with asyncio.timeout(SECONDS):
        while client.writer.transport.get_write_buffer_size():
            before = client.writer.transport.get_write_buffer_size()
            await asyncio.sleep(0.1)
            most = max(most, server.metric("pierhead_predict_requests_bytes"))
            if client.writer.transport.get_write_buffer_size() == before and most:
                break
    assert 0 < most < 5_000_000
    assert server.metric("pierhead_predict_requests_total", code="429") < requests


@pytest.mark.parametrize("refused", [True, False])
async def test_what_follows_the_last_request_is_not_answered(server, refused, caplog):
    server.workers.refusal = FULL if refused else None
    client = await server.connect()
    await client.send(post(BODY, "Connection: close"), GET * 3, post(b"x" * 300_000))
    assert (await client.answer())[0] == (429 if refused else 200)
    assert await client.end() == b""
    assert not caplog.records


async def test_many_upgrades_at_once_are_answered(server):
    server.workers.refusal = FULL
    client = await server.connect()
    await client.send(post(BODY, "Connection: Upgrade", "Upgrade: h2c") * 1500)
    assert {(await client.answer())[0] for _ in range(1500)} == {429}


@pytest.mark.parametrize("leave", ["half-close", "close", "reset"])
async def test_caller_that_leaves_is_forgotten(server, leave):
    server.workers.held = True
    client = await server.connect()
    await client.send(post())
    await server.workers.called.wait()
    if leave == "half-close":
        client.writer.write_eof()
    elif leave == "close":
        client.writer.close()
    else:
        client.writer.transport.abort()
    await until(server.workers.futures[0].cancelled)
    await until(lambda: server.metric("pierhead_predict_requests_in_flight") == 0)
    assert server.metric("pierhead_predict_requests_total", code="499") == 1


@pytest.mark.parametrize("leave", ["close", "half-close"])
async def test_caller_that_leaves_later_with_more_requests_in_the_pipeline_is_forgotten(server, leave):
    """By then nothing of the connection is read."""
    server.workers.held = True
    client = await server.connect()
    await client.send(post())
    await server.workers.called.wait()
    await client.send(post(), GET)
    await until(lambda: any(connection.pipeline for connection in server.connections))
    client.writer.close() if leave == "close" else client.writer.write_eof()
    await until(server.workers.futures[0].cancelled)


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_caller_that_leaves_with_more_requests_in_the_pipeline_is_forgotten(server, leave, caplog):
    server.workers.held = True
    client = await server.connect()
    await client.send(post(), post(), GET)
    await server.workers.called.wait()
    await client.writer.drain()
    client.writer.close() if leave == "close" else client.writer.transport.abort()
    await until(server.workers.futures[0].cancelled)
    await until(lambda: server.metric("pierhead_predict_requests_in_flight") == 0)
    assert server.metric("pierhead_predict_requests_total", code="499") == 1
    assert len(server.workers.calls) == 1
    assert not caplog.records


async def test_caller_that_leaves_in_its_body_is_forgotten(server):
    client = await server.connect()
    await client.send(post(BODY, length=1000))
    await until(lambda: server.metric("pierhead_predict_requests_reading") == 1)
    client.writer.close()
    await until(lambda: server.metric("pierhead_predict_requests_reading") == 0)
    assert server.metric("pierhead_predict_requests_bytes") == 0


async def test_answer_that_nobody_takes_is_given_up(server, monkeypatch):
    monkeypatch.setattr(connection, "_STALL_SECONDS", 0.1)
    server.workers.held = True
    client = await server.connect(limit=1024)
    client.writer.transport.pause_reading()
    await client.send(post())
    await server.workers.called.wait()
    server.workers.futures[0].set_result(Reply(200, b"x" * 50_000_000))
    await until(lambda: server.metric("pierhead_predict_requests_bytes") > 1_000_000)
    await until(lambda: server.metric("pierhead_predict_requests_bytes") == 0)


async def test_answers_that_nobody_takes_make_room():
    async with running(max_requests_bytes=FIGURE) as server:
        server.workers.held = True
        idle = await server.connect(limit=1024)
        idle.writer.transport.pause_reading()
        await idle.send(post())
        await server.workers.called.wait()
        server.workers.held = False
        server.workers.futures[0].set_result(Reply(200, b"x" * 50_000_000))
        await until(lambda: server.metric("pierhead_predict_requests_bytes") > FIGURE)
        quick = await server.connect()
        await quick.send(post())
        assert (await quick.answer())[0] == 429
        await asyncio.sleep(SLOW_AFTER_SECONDS)
        await quick.send(post())
        assert (await quick.answer())[0] == 200
        assert server.metric("pierhead_predict_requests_bytes") == 0


async def test_answers_that_nobody_takes_end_where_there_are_too_many():
    async with running(max_requests_bytes=FIGURE) as server:
        server.workers.held = True
        for _ in range(3):
            idle = await server.connect(limit=1024)
            idle.writer.transport.pause_reading()
            await idle.send(post())
        await until(lambda: len(server.workers.futures) == 3)
        for future in server.workers.futures:
            future.set_result(Reply(200, b"x" * 20_000_000))
        await until(lambda: server.metric("pierhead_predict_requests_bytes") > FIGURE)
        await until(lambda: server.metric("pierhead_predict_requests_bytes") < FIGURE)  # though nobody asks for room


# Slow uploads


async def test_large_upload_that_takes_long_makes_room_for_a_small_one():
    async with running(max_requests_bytes=FIGURE) as server:
        large = await server.connect()
        await large.send(post(b"x" * 150_000, length=MAX_BYTES))
        await until(lambda: server.metric("pierhead_predict_requests_reading") == 1)
        await asyncio.sleep(SLOW_AFTER_SECONDS)  # by then it is faster than what is called slow, of any size
        quick = await server.connect()
        await quick.send(post())
        assert (await quick.answer())[0] == 200
        assert (await large.answer())[0] == 429


async def test_slow_uploads_take_no_place_from_others():
    async with running(queue_size=4, upload_grace_seconds=1.0) as server:
        slow = [await server.connect() for _ in range(80)]
        for client in slow:
            await client.send(post(BODY[:1], length=80_000))
        await until(lambda: server.metric("pierhead_predict_requests_reading") == 80)
        quick = await server.connect()
        for _ in range(10):
            await quick.send(post())
            assert (await quick.answer())[0] == 200
        assert server.metric("pierhead_predict_requests_in_flight") == 0
        await quick.send(b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await quick.answer())[0] == 200
        for client in slow:
            code, headers, body = await client.answer()
            assert (code, headers["connection"]) == (408, "close")
            assert json.loads(body)["error"]["message"].startswith("the body came too slowly, 1 bytes of it: send at")
        assert server.metric("pierhead_predict_requests_rejected_total", reason="too_slow") == 80
        assert server.metric("pierhead_predict_requests_bytes") == 0


async def test_upload_that_keeps_its_pace_is_answered():
    async with running(upload_grace_seconds=0.4, min_upload_rate=50) as server:
        client = await server.connect()
        await client.send(post(b"", length=len(BODY)))
        began = asyncio.get_running_loop().time()
        for byte in BODY:
            await client.send(b"%c" % byte)
            await asyncio.sleep(0.02)
        assert asyncio.get_running_loop().time() - began > 0.4
        assert (await client.answer())[0] == 200


async def test_slowest_uploads_go_first_where_bytes_are_short():
    async with running(max_requests_bytes=FIGURE) as server:
        slower, slow = await server.connect(), await server.connect()
        await slower.send(post(BODY[:1], length=900_000))
        await slow.send(post(BODY[:9], length=900_000))
        await until(lambda: server.metric("pierhead_predict_requests_reading") == 2)
        third = await server.connect()
        await third.send(post(b"x", length=900_000))
        code, headers, body = await third.answer()  # none of them is old enough to be called slow
        assert (code, headers["retry-after"]) == (429, "1")
        assert json.loads(body)["error"]["message"] == f"requests hold {FIGURE} bytes: try again later"
        await asyncio.sleep(SLOW_AFTER_SECONDS)
        quick = await server.connect()
        await quick.send(post(BODY + b" " * 900_000))
        assert (await quick.answer())[0] == 200
        assert (await slower.answer())[0] == 429
        assert server.metric("pierhead_predict_requests_reading") == 1
        assert server.metric("pierhead_predict_requests_rejected_total", reason="bytes_full") == 2


async def test_bytes_of_requests_that_wait_count_too():
    async with running(max_requests_bytes=MAX_BYTES) as server:
        server.workers.held_bytes = MAX_BYTES - 100_000
        client = await server.connect()
        await client.send(post(b"x" * 200_000))
        assert (await client.answer())[0] == 429
        await client.send(post())
        assert (await client.answer())[0] == 200


async def test_body_without_a_length_takes_bytes_as_it_comes():
    async with running(max_requests_bytes=500_000) as server:
        client = await server.connect()
        await client.send(f"POST {PATH} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(20):
            await client.send(b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000))
        assert (await client.answer())[0] == 429
        await until(lambda: server.metric("pierhead_predict_requests_bytes") == 0)
