"""A lean HTTP client that costs the server little of the cores they share: one process, raw sockets, ready-made bytes.

`python -m bench.server.client` reads a Job as JSON from standard input and writes an Outcome to standard output.

A closed loop keeps a number of connections busy: each sends its next request when its answer is there. An open loop
sends at given times whatever the server does, and counts a latency from the time at which a request was due, so that a
slow answer cannot hide the wait of those behind it.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import random
import re
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.server import tensors
from bench.server.processes import busy_seconds, cpu_seconds, family
from bench.server.stats import percentile

_SEND_BUFFER = 512 * 1024  # a request goes to the kernel in one call
_RECEIVE_BYTES = 64 * 1024
_CONNECT_SECONDS = 5.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")
_MOST_BROKEN = 200


class Job(msgspec.Struct, frozen=True):
    """What to send."""

    port: int
    path: str
    bodies: list[str]  # files, sent in turn
    seconds: float  # the window that is measured, after the warm-up
    connections: int = 1  # a closed loop's, or the most that an open loop opens
    warmup_seconds: float = 1.0
    rate: float | None = None  # requests a second of an open loop
    poisson: bool = False  # at random times, as many callers who know nothing of each other send; or evenly
    wait_seconds: float = 30.0  # for what is unanswered at the end
    server_pid: int = 0  # its family's CPU time is counted
    tensors: bool = False  # the files are JPEGs, each to be sent as a tensor of KServe's V2 protocol


class Outcome(msgspec.Struct):
    """What came back, of the window alone."""

    seconds: float
    codes: dict[int, int]  # answers by status code
    latencies: list[float]  # seconds, of the answers with 200
    refused_p50: float  # seconds until a 429
    retry_after: int  # answers with 429 that say when to try again
    broken: dict[str, int]  # requests without an answer, by cause
    offered: float  # requests that were due a second
    unsent: int  # requests that were due and found no connection until the end
    late_p99: float  # seconds from when a request was due until it was sent
    opened: int  # connections, warm-up included
    answers: dict[int, str]  # one answer with 200 for each of the bodies, warm-up included
    client_cpu: float  # CPU seconds a second
    server_cpu: float
    others_cpu: float


class _Connection:
    __slots__ = ("body", "due", "received", "rest", "socket")

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.rest: memoryview | None = None  # of the request, not yet taken by the kernel
        self.received = b""
        self.due: float | None = None  # of the request that waits for its answer
        self.body = 0


class _Cpu:
    """CPU seconds of us, the server and the whole machine."""

    def __init__(self, server_pid: int) -> None:
        self.at = time.perf_counter()
        self.client, self.machine = time.process_time(), busy_seconds()
        self.server = cpu_seconds(family(server_pid)) if server_pid else 0.0


class Client:
    """One run of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._requests = [memoryview(make_request(job, Path(body).read_bytes())) for body in job.bodies]
        self._next_body = 0
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._waiting: collections.deque[float] = collections.deque()  # due times that found no connection
        start = time.perf_counter()
        self._begin = start + job.warmup_seconds
        self._end = self._begin + job.seconds
        self._due = make_schedule(job, start)
        self._stopped = False

        self._codes: collections.Counter[int] = collections.Counter()
        self._latencies: list[float] = []
        self._refusals: list[float] = []
        self._lateness: list[float] = []
        self._retry_after = self._offered = self._opened = self._unsent = 0
        self._broken: collections.Counter[str] = collections.Counter()
        self._answers: dict[int, str] = {}

    def run(self) -> Outcome:
        """Send, then wait for what is unanswered."""
        if self._job.rate is None:
            for _ in range(self._job.connections):
                self._send(self._open(), time.perf_counter())
        before = self._loop(until=self._begin)
        after = self._loop(until=self._end)
        self._stopped = True
        self._unsent = len(self._waiting)
        self._wait_for_answers()
        return self._outcome(before, after)

    def _loop(self, until: float) -> _Cpu:
        upcoming = next(self._due)
        while (now := time.perf_counter()) < until and sum(self._broken.values()) < _MOST_BROKEN:
            while upcoming <= now:
                self._arrive(upcoming)
                upcoming = next(self._due)
                now = time.perf_counter()
            wait = min(upcoming, until) - now
            if wait > 0:
                # epoll's own timeout is rounded up to a millisecond, select's is not.
                select.select([self._epoll], [], [], wait)
            self._handle_events()
        self._due = _put_back(upcoming, self._due)
        return _Cpu(self._job.server_pid)

    def _wait_for_answers(self) -> None:
        deadline = time.perf_counter() + self._job.wait_seconds
        while any(one.due is not None for one in self._connections.values()) and time.perf_counter() < deadline:
            select.select([self._epoll], [], [], 0.1)
            self._handle_events()
        for one in list(self._connections.values()):
            if one.due is not None:
                self._count_broken("no answer", one.due)
            self._close(one)

    def _arrive(self, due: float) -> None:
        """A request of the open loop is due."""
        if self._begin <= due < self._end:
            self._offered += 1
        if self._idle:
            self._send(self._idle.pop(), due)
        elif len(self._connections) < self._job.connections:
            self._send(self._open(), due)
        else:
            self._waiting.append(due)

    def _handle_events(self) -> None:
        for number, events in self._epoll.poll(0):
            connection = self._connections.get(number)
            if connection is None:
                continue
            if events & select.EPOLLOUT:
                self._write(connection)
            # Unless the write has closed it, and its number is already another's.
            if events & ~select.EPOLLOUT and self._connections.get(number) is connection:
                self._read(connection)

    def _open(self) -> _Connection:
        opened = socket.create_connection(("127.0.0.1", self._job.port), timeout=_CONNECT_SECONDS)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setblocking(False)
        connection = _Connection(opened)
        self._connections[opened.fileno()] = connection
        self._epoll.register(opened.fileno(), select.EPOLLIN)
        self._opened += 1
        return connection

    def _close(self, connection: _Connection) -> None:
        number = connection.socket.fileno()
        self._epoll.unregister(number)
        del self._connections[number]
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        connection.socket.close()

    def _send(self, connection: _Connection, due: float) -> None:
        connection.body = self._next_body
        self._next_body = (self._next_body + 1) % len(self._requests)
        connection.due = due
        connection.rest = self._requests[connection.body]
        if self._begin <= due < self._end:
            self._lateness.append(time.perf_counter() - due)
        self._write(connection)

    def _write(self, connection: _Connection) -> None:
        if connection.rest is None:
            return
        watched = connection.rest is not self._requests[connection.body]
        try:
            sent = connection.socket.send(connection.rest)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            # The server may have answered, and closed, without reading all of it.
            connection.rest = None
            self._read(connection)
            return
        connection.rest = connection.rest[sent:] if sent < len(connection.rest) else None
        if connection.rest is not None or watched:
            wanted = select.EPOLLIN | (select.EPOLLOUT if connection.rest is not None else 0)
            self._epoll.modify(connection.socket.fileno(), wanted)
        if connection.rest is None and connection.due is None:
            self._answered(connection)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except ConnectionError as error:
            self._lose(connection, type(error).__name__)
            return
        if not data:
            self._lose(connection, "closed without an answer")
            return
        connection.received += data
        head_end = connection.received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = connection.received[:head_end].lower()
        length = _LENGTH.search(head)
        if length is None:
            raise ValueError(f"an answer without Content-Length: {head!r}")
        if len(connection.received) < head_end + 4 + int(length[1]):
            return
        self._count(connection, head, connection.received[head_end + 4 :])
        connection.received = b""
        if b"\r\nconnection: close" in head:
            self._close(connection)
            self._replace()
        elif connection.rest is None:
            self._answered(connection)

    def _replace(self) -> None:
        """A connection for one that is gone, where a request waits for it."""
        if not self._stopped and (self._job.rate is None or self._waiting):
            self._answered(self._open())

    def _answered(self, connection: _Connection) -> None:
        """The connection is free: for a request that waits, for the closed loop's next, or for the next that is due."""
        if self._stopped:
            return
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        elif self._job.rate is None:
            self._send(connection, time.perf_counter())
        else:
            self._idle.append(connection)

    def _lose(self, connection: _Connection, cause: str) -> None:
        idle = connection.due is None and connection.rest is None
        self._close(connection)
        if connection.due is not None:
            self._count_broken(cause, connection.due)
        if not idle:  # an idle one the server may close
            self._replace()

    def _count_broken(self, cause: str, due: float) -> None:
        if due >= self._begin:
            self._broken[cause] += 1

    def _count(self, connection: _Connection, head: bytes, body: bytes) -> None:
        now = time.perf_counter()
        due, connection.due = connection.due, None
        if due is None:
            raise ValueError(f"an answer that nobody asked for: {head!r}")
        code = int(head[9:12])
        in_window = self._begin <= due < self._end
        if self._begin <= now < self._end:
            self._codes[code] += 1
            self._retry_after += code == 429 and b"\r\nretry-after:" in head
        if code == 200:
            if connection.body not in self._answers:
                self._answers[connection.body] = body.decode()
            if in_window:
                self._latencies.append(now - due)
        elif in_window:
            self._refusals.append(now - due)

    def _outcome(self, before: _Cpu, after: _Cpu) -> Outcome:
        seconds = after.at - before.at
        client, server = after.client - before.client, after.server - before.server
        return Outcome(
            seconds=seconds,
            codes=dict(self._codes),
            latencies=self._latencies,
            refused_p50=percentile(self._refusals, 0.5) if self._refusals else 0.0,
            retry_after=self._retry_after,
            broken=dict(self._broken),
            offered=self._offered / self._job.seconds,
            unsent=self._unsent,
            late_p99=percentile(self._lateness, 0.99) if self._lateness else 0.0,
            opened=self._opened,
            answers=self._answers,
            client_cpu=client / seconds,
            server_cpu=server / seconds,
            others_cpu=max(0.0, after.machine - before.machine - client - server) / seconds,
        )


def make_request(job: Job, body: bytes) -> bytes:
    """A whole HTTP request."""
    kind = "Content-Type: application/json"
    if job.tensors:
        described = tensors.make_head(body)
        kind = f"Content-Type: application/octet-stream\r\n{tensors.HEAD_LENGTH}: {len(described)}"
        body = described + tensors.make_tensor(body)
    head = f"POST {job.path} HTTP/1.1\r\nHost: 127.0.0.1:{job.port}\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def make_schedule(job: Job, start: float) -> Iterator[float]:
    """When requests are due, without end; a closed loop's never are."""
    if job.rate is None:
        while True:
            yield float("inf")
    # Not random to an attacker, but the same in every round.
    source = random.Random(0)  # noqa: S311
    due = start
    while True:
        due += source.expovariate(job.rate) if job.poisson else 1 / job.rate
        yield due


def _put_back(first: float, rest: Iterator[float]) -> Iterator[float]:
    yield first
    yield from rest


def main() -> None:
    gc.disable()  # its pauses would be taken for the server's
    outcome = Client(msgspec.json.decode(sys.stdin.buffer.read(), type=Job)).run()
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()
