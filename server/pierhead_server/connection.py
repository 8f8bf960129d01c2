"""uvicorn's HTTP/1.1 with bounds on what a client may cost, and a short way for requests that are refused.

- A request's head has a deadline, a size and a number of lines.
- What the head alone refuses is answered here: no task, no routing, and nobody reads its body.
- A body that is not wanted is skipped if it is short; else the connection is closed, without reading on.
- An answer that its caller does not take is given up.
- What is not HTTP is told so as JSON, and takes no answer from the request before it.
"""

import asyncio
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

from pierhead_server.budget import SLOW_AFTER_SECONDS, Budget, Progress, is_slow
from pierhead_server.messages import Reply
from pierhead_server.protocol import encode_error

SKIP_BYTES = 256 * 1024  # of a body that nobody wants, for the sake of the connection; as Go's server does
MAX_HEAD_BYTES = 64 * 1024
MAX_HEAD_LINES = 100  # as Envoy's default
_MOST_PIPELINED = 16  # requests in a connection that wait for the ones before them
_MOST_AROUND = 16  # bytes that a body's framing may take for each of its own, as in chunks of one byte
_LINGER_SECONDS = 1.0  # until a client has read the answer after which the connection ends
_LOOK_SECONDS = 1.0  # between two looks at whether a client is there whose connection is not read
_STALL_SECONDS = 30.0  # between two looks at whether a client takes its answer
_STALL_PACE = 1024  # bytes a second that it must take

Headers = Sequence[tuple[bytes, bytes]]


class Gate(Protocol):
    """What connections ask of the application."""

    @property
    def draining(self) -> bool:
        """Whether a connection is closed after its answer."""
        ...

    @property
    def head_seconds(self) -> float:
        """How long a request's head may take."""
        ...

    def refuse(self, method: bytes, url: bytes, headers: Headers) -> Reply | None:
        """The answer to a request that its head alone refuses; None for all that go on."""
        ...

    @property
    def budget(self) -> Budget:
        """The bytes of all requests, and so those of heads and of answers."""
        ...


@dataclass(frozen=True)
class Refusal:
    """Why what comes is no request."""

    code: int
    status: str
    message: str


class _RefusedError(Exception):
    """Raised into the parser, which then stops."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


_TOO_LARGE = Refusal(431, "INVALID_ARGUMENT", f"the headers are over {MAX_HEAD_BYTES} bytes: send less")
_TOO_MANY = Refusal(431, "INVALID_ARGUMENT", f"there are more than {MAX_HEAD_LINES} headers: send fewer")
_TOO_SLOW = Refusal(408, "DEADLINE_EXCEEDED", "the headers came too slowly: send them at once")
_PIPELINED = Refusal(429, "RESOURCE_EXHAUSTED", "too many requests at once in one connection: wait for answers")
_NO_ROOM = Refusal(429, "RESOURCE_EXHAUSTED", "requests hold all the bytes that they may: try again later")
_NOT_HTTP = Refusal(400, "INVALID_ARGUMENT", "this is not a valid HTTP request")


class _Answered:
    """Stands for the request that was answered before it became one of uvicorn's."""

    response_complete = True
    more_body = False
    keep_alive = True
    message_event = asyncio.Event()


_ANSWERED = cast(Any, _Answered())


class _Transport(asyncio.Transport):
    """A connection whose `close` lets the client read its answer first, where it has not sent all of its request."""

    def __init__(self, raw: asyncio.Transport, connection: "Connection") -> None:
        super().__init__()
        self.raw = raw
        self._connection = connection
        self._head = b""  # of an answer whose body comes next
        # What is called for each request, without a detour.
        self.get_extra_info = raw.get_extra_info  # type: ignore[method-assign]
        self.pause_reading = raw.pause_reading  # type: ignore[method-assign]
        self.resume_reading = raw.resume_reading  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """A head waits for its body: written one by one, both sides wake up twice for an answer."""
        if self._head:
            head, self._head = self._head, b""
            self.raw.writelines((head, data))
        elif data[:9] == b"HTTP/1.1 " and data[9:12] != b"100":
            self._head = bytes(data)
        else:
            self.raw.write(data)

    def flush(self) -> None:
        """There is no body."""
        if self._head:
            self.write(b"")

    def is_closing(self) -> bool:
        return self._connection.lingers or self.raw.is_closing()

    def close(self) -> None:
        self.flush()
        self._connection.end()

    def abort(self) -> None:
        self.raw.abort()


class _Head:
    """The head of a request, as far as it has come: one of the budget's transfers."""

    def __init__(self, connection: "Connection") -> None:
        self.begun = time.monotonic()
        self.held = 0
        self._connection = connection

    def measure(self) -> Progress:
        """Nobody knows how long it will be."""
        return Progress(self.held, None)

    def drop(self) -> None:
        """End it, for want of room."""
        self._connection.fail(_NO_ROOM)


class _Answer:
    """An answer that its caller does not take at once: one of the budget's transfers."""

    def __init__(self, connection: "Connection") -> None:
        self.begun = time.monotonic()
        self.held = self._most = connection.unsent
        self._connection = connection

    def measure(self) -> Progress:
        """What was sent of it since it did not go at once."""
        left = self._connection.unsent
        return Progress(max(0, self._most - left), left)

    def drop(self) -> None:
        """End it, for want of room."""
        self._connection.abort()


def _make_framing(headers: Headers) -> bytes:
    """A head that says of its body what `headers` say; empty where there is none."""
    framing = [header for header in headers if header[0] in (b"content-length", b"transfer-encoding")]
    if not framing:
        return b""
    return b"".join([b"POST / HTTP/1.1\r\n", *(b"%b: %b\r\n" % header for header in framing), b"\r\n"])


class Connection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, *, gate: Gate, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._gate = gate
        self._budget = gate.budget
        self._raw: asyncio.Transport
        self._ours: _Transport
        self._active = 0.0  # when it last was
        self._idle: asyncio.TimerHandle | None = None
        self._in_head = False  # a request has begun, and its head has not ended
        self._unfinished = False  # a request has begun and not ended
        self._found = 0  # bytes of bodies in what has come last
        self._ended = 0  # and of heads that ended in it
        self._head_bytes = 0  # of the one that was looked at last
        self._around = 0  # bytes of a message that are neither head nor body, beyond what a body excuses
        self._skipped = 0  # bytes of a body that nobody wants
        self._computed: RequestResponseCycle | None = None  # the request that is being answered, or was last
        self._head: _Head | None = None  # one that has come in part
        self._answer: _Answer | None = None  # what the client does not take at once
        self._timer: asyncio.TimerHandle | None = None  # for what the client alone is waited for
        self._stall: asyncio.TimerHandle | None = None  # while it does not take an answer
        self._lookout: asyncio.TimerHandle | None = None  # while requests wait for the one before them
        self._framing = b""  # a head, of the body that follows one with an Upgrade that nobody offers
        self._replays = False  # whether what the parser finds is that head, which was heard before
        self._deaf = False  # what comes is forgotten
        self.lingers = False  # it is closed, once the client has had time to read its answer

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._ours = _Transport(self._raw, self)
        super().connection_made(self._ours)
        self._active = self.loop.time()
        self._idle = self.loop.call_later(self.timeout_keep_alive, self._on_idle)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._skip(len(data))
            return
        self._active = self.loop.time()
        in_head, unfinished = self._in_head, self._unfinished
        self._found = self._ended = 0
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self.fail(cause.refusal if isinstance(cause, _RefusedError) else _NOT_HTTP)
        except httptools.HttpParserError:
            self.fail(_NOT_HTTP)
        if self._in_head and not self._deaf:
            self._take_head(len(data) if in_head else len(data) - self._found - self._ended)
        elif unfinished and self._unfinished:
            self._take_around(len(data))
        self._watch()

    def _take_head(self, count: int) -> None:
        """More of a head has come, and not the end of it."""
        if self._head is None:
            self._head = _Head(self)
            self._budget.begin(self._head)
        self._budget.resize(self._head, self._head.held + max(0, count))
        try:
            if self._head.held > MAX_HEAD_BYTES:
                raise _RefusedError(_TOO_LARGE)
            self._check_head()
        except _RefusedError as error:
            self.fail(error.refusal)

    def _end_head(self) -> None:
        if self._head:
            self._budget.end(self._head)
            self._head = None

    def _take_around(self, count: int) -> None:
        """More of a body has come, or of what may stand around it: sizes of chunks, their extensions, trailers."""
        self._around = max(0, self._around + count - self._found * (1 + _MOST_AROUND))
        if self._around > MAX_HEAD_BYTES:
            self.fail(_TOO_LARGE)

    def _check_head(self) -> None:
        """Raises _RefusedError."""
        if len(self.headers) > MAX_HEAD_LINES:
            raise _RefusedError(_TOO_MANY)
        # Of what has come of it, as far as it is in whole lines.
        self._head_bytes = len(self.url) + sum([len(name) + len(value) for name, value in self.headers])
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _RefusedError(_TOO_LARGE)

    def _feed(self, data: bytes) -> None:
        """To the parser, which stops after a head with an Upgrade that nobody offers.

        The request is answered as the ordinary one that it also is. The parser takes what follows such a head for
        another protocol's, be it a body: so it gets a head once more.
        """
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                framing, self._framing = self._framing, b""
                if framing:
                    self._replays = True
                    self.parser.feed_data(framing)
                    self._replays = False
            else:
                return

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        for timer in (self._timer, self._stall, self._idle, self._lookout):
            if timer:
                timer.cancel()
        self._end_head()
        self._end_answer()
        self.pipeline.clear()
        if self._computed and self._computed is not self.cycle:
            # uvicorn tells the request that came last.
            self._computed.disconnected = True
            self._computed.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.flow.pause_reading()  # or who reads no answers has more and more of them
        self._answer = _Answer(self)
        self._budget.begin(self._answer)
        self._stall = self.loop.call_later(SLOW_AFTER_SECONDS, self._on_stall, self.loop.time(), self.unsent)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.flow.resume_reading()
        self._end_answer()
        if self._stall:
            self._stall.cancel()
            self._stall = None
        if self.pipeline and not self._deaf and self._computed and self._computed.response_complete:
            self._start_asgi_task(*self.pipeline.pop())

    def _end_answer(self) -> None:
        if self._answer:
            self._budget.end(self._answer)
            self._answer = None

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._replays:
            return
        super().on_message_begin()
        self._in_head = self._unfinished = True
        self._skipped = self._around = 0

    def on_url(self, url: bytes) -> None:
        if not self._replays:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # and no trailer, which nobody reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._replays:
            return
        if self._deaf:
            raise _RefusedError(_NOT_HTTP)  # it comes after the end: nobody is told
        if self.parser.should_upgrade():
            self._framing = _make_framing(self.headers)
        self._check_head()
        self._in_head = False
        self._ended += self._head_bytes
        self._end_head()
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise _RefusedError(_PIPELINED)
        if not self._busy:
            reply = self._gate.refuse(self.parser.get_method(), self.url, self.headers)
            if reply is not None:
                self._refuse(reply)
                return
        super().on_headers_complete()
        if self.pipeline and self._lookout is None:
            self._lookout = self.loop.call_later(_LOOK_SECONDS, self._look_for_hang_up)

    def on_body(self, body: bytes) -> None:
        self._found += len(body)
        if self.cycle.response_complete:
            self._skip(len(body))
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._framing:
            return  # its body follows
        self._unfinished = False
        super().on_message_complete()

    # What uvicorn calls

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._ours.flush()
        if self._ours.is_closing():
            return
        if self._answer is None:  # else who takes no answer gets no other one made
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
        self._watch()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        self._computed = cycle
        super()._start_asgi_task(cycle, app)

    # What is ours

    @property
    def _busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """A deadline runs while the client is to go on with a request that is not being answered (yet)."""
        if self._deaf:
            return
        if not self._unfinished or self._busy:
            self._stop_waiting()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._gate.head_seconds, self._on_deadline)

    def _on_idle(self) -> None:
        """Whether it has been idle for long: one timer for a connection, not one for each of its requests."""
        left = self._active + self.timeout_keep_alive - self.loop.time()
        if self._busy:
            left = self.timeout_keep_alive
        if left <= 0:
            self.end()
        else:
            self._idle = self.loop.call_later(left, self._on_idle)

    def _look_for_hang_up(self) -> None:
        """Whether the client has left: while requests wait for the one before them, nothing is read, nor an end."""
        self._lookout = None
        if not self.pipeline or self._deaf:
            return
        ends = select.poll()
        ends.register(self._raw.get_extra_info("socket").fileno(), select.POLLRDHUP)
        if ends.poll(0):
            self.abort()
        else:
            self._lookout = self.loop.call_later(_LOOK_SECONDS, self._look_for_hang_up)

    def _stop_waiting(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _on_deadline(self) -> None:
        self._timer = None
        if self._in_head:
            self.fail(_TOO_SLOW)
        else:
            self.end()

    def _on_stall(self, since: float, before: int) -> None:
        """Whether the client has taken enough of its answer: since a while, or by now where others find no room."""
        answer, now = self._answer, self.loop.time()
        assert answer
        if self._budget.is_over and is_slow(answer.measure(), time.monotonic() - answer.begun, 0):
            self.abort()
            return
        self._budget.resize(answer, self.unsent)
        if now - since >= _STALL_SECONDS:
            if before - self.unsent < _STALL_PACE * _STALL_SECONDS:
                self.abort()
                return
            since, before = now, self.unsent
        self._stall = self.loop.call_later(SLOW_AFTER_SECONDS, self._on_stall, since, before)

    @property
    def unsent(self) -> int:
        """The bytes of answers that wait for the client to take them."""
        return self._raw.get_write_buffer_size()

    def abort(self) -> None:
        """End at once."""
        self._raw.abort()

    def _refuse(self, reply: Reply) -> None:
        """Answer a request of which there is nothing but its head."""
        headers = dict(self.headers)
        length = headers.get(b"content-length", b"0")
        chunked = b"transfer-encoding" in headers
        # Who waits for leave to send a body will send none after this answer; or it will, who knows.
        close = chunked or int(length) > SKIP_BYTES or self.expect_100_continue or self._gate.draining
        close = close or self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive()
        self.cycle = _ANSWERED
        self.server_state.total_requests += 1
        self._write(reply, close=close)
        if close:
            self.end()

    def _write(self, reply: Reply, *, close: bool) -> None:
        lines = [STATUS_LINE[reply.code]]
        lines += [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        lines += [f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in reply.headers.items()]
        lines.append(b"content-length: %d\r\n" % len(reply.body))
        if close:
            lines.append(b"connection: close\r\n")
        lines += [b"\r\n", reply.body]
        self._raw.write(b"".join(lines))

    def fail(self, refusal: Refusal) -> None:
        """What comes is no request that could be answered; nor can anything be that follows it."""
        if self._deaf:
            return
        self._deaf = self._unfinished = True
        if self.pipeline and self.cycle.more_body:
            # What is broken is the last of several, which waits for the ones before it.
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else cast(RequestResponseCycle, self._computed)
        if self._busy and (self.pipeline or not self.cycle.more_body):
            self.cycle.keep_alive = False  # those before it get their answers, and then the connection ends
            return
        if not self._busy or not self.cycle.response_started:
            body = encode_error("vertex", refusal.code, refusal.status, refusal.message)
            self._write(Reply(refusal.code, body), close=True)
        if self._busy:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.end()

    def end(self) -> None:
        """Close; where the client may still be sending, it reads its answer first.

        A connection that is closed with bytes in it that nobody has read is reset, and with it goes the answer.
        """
        if self.lingers or self._raw.is_closing():
            return
        self._stop_waiting()
        self._deaf = True
        if not self._unfinished:
            self._raw.close()
            return
        self.lingers = True
        self._raw.write_eof()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self._raw.abort)

    def _skip(self, count: int) -> None:
        """Read what nobody wants, as far as that is cheaper than another connection."""
        self._skipped += count
        if self._skipped > SKIP_BYTES and not self._raw.is_closing():
            self._raw.pause_reading()
            if not self._deaf:
                self.end()
