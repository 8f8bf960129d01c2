"""HTTP whose heads and connections have limits: whoever sends a head without an end is nobody yet.

Bodies are bounded by who reads them.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_HEAD = 64 * 1024  # bytes: what gateways let pass
# As long as a connection may have sent no whole head, counted from its begin or from a head's first byte.
HEAD_SECONDS = 10.0
# A gateway needs one for each prediction that it waits for; each may hold a head.
MOST_CONNECTIONS = 2048


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, which by itself takes a path, headers and trailers of any length, and waits for them for ever."""

    head_seconds = HEAD_SECONDS
    most_connections = MOST_CONNECTIONS
    _without_body = 0  # bytes since a request began, or the last piece of its body came
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """asyncio's: somebody has connected. One too many is sent away."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            self.transport.close()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: nobody is there any more."""
        self._end_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """asyncio's: bytes came. Closes the connection once a head is over the limit."""
        self._without_body += len(data)
        super().data_received(data)
        if self._without_body > _MOST_HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """The parser's: a request begins."""
        super().on_message_begin()
        self._without_body = 0
        if self._deadline is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The parser's: the head is there."""
        self._end_deadline()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The parser's: a piece of a body."""
        super().on_body(body)
        self._without_body = 0

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self.head_seconds, self._give_up)

    def _end_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        self.transport.close()
