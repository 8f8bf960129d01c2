"""HTTP whose heads, silence and connections have limits: whoever sends or reads nothing is nobody yet.

Bodies are bounded by who reads them.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_HEAD = 64 * 1024  # bytes: what gateways let pass
# As long as a connection may take for a head: from its begin, a head's first byte, or any byte that is of no request.
HEAD_SECONDS = 10.0
# As long as a client may read nothing of an answer.
READ_SECONDS = 60.0
# A gateway needs one for each prediction that it waits for; each may hold a head.
MOST_CONNECTIONS = 2048


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, which by itself takes a path, headers and trailers of any length, and waits for them for ever."""

    head_seconds = HEAD_SECONDS
    read_seconds = READ_SECONDS
    most_connections = MOST_CONNECTIONS
    _without_body = 0  # bytes since a request began, or the last piece of its body came
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _idle_since = 0.0  # by the loop's clock, where it is idle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """asyncio's: somebody has connected. One too many takes the place of who has been idle for longest."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._expect_head()
        if len(self.connections) > self.most_connections:
            idle = [one for one in self.connections if isinstance(one, BoundedHttpProtocol) and one.is_idle]
            min(idle, key=lambda one: one._idle_since).transport.abort()  # this one is idle, too

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is being answered."""
        return (self.cycle is None or self.cycle.response_complete) and not self.pipeline

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: nobody is there any more."""
        self._end_deadline()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """asyncio's: bytes came. Closes the connection once a head is over the limit."""
        self._without_body += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._without_body > _MOST_HEAD:
            self.send_400_response("The head of the request is too large.")
        elif self._deadline is None and self.is_idle:
            # The rest of a body that nobody read, or empty lines: any byte ends uvicorn's own waiting.
            self._expect_head()

    def on_message_begin(self) -> None:
        """The parser's: a request begins."""
        super().on_message_begin()
        self._without_body = 0
        if self._deadline is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The parser's: the head is there. One that came at once was not counted until now."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > _MOST_HEAD:
            raise ValueError("the head of the request is too large")
        self._end_deadline()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The parser's: a piece of a body."""
        super().on_body(body)
        self._without_body = 0

    def on_response_complete(self) -> None:
        """uvicorn's: an answer was sent."""
        self._idle_since = self.loop.time()
        unread = self.cycle is not None and self.cycle.response_complete and self.cycle.more_body
        super().on_response_complete()
        if unread and self.is_idle and not self.transport.is_closing():
            self.cycle.body.clear()
            if self._deadline is None:
                self._expect_head()

    def pause_writing(self) -> None:
        """asyncio's: the client does not read as quickly as it is answered."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """asyncio's: it has read."""
        if self._unread:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self.head_seconds, self._give_up)

    def _end_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.is_idle:
            self.transport.abort()
        else:
            self.transport.close()  # what is being answered is sent first
