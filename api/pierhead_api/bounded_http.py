"""HTTP whose heads have a limit: whoever sends one without an end is nobody yet, and it is held as a whole."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_HEAD = 64 * 1024  # bytes: what gateways let pass


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, which by itself takes a path, headers and trailers of any length."""

    _without_body = 0  # bytes since a request began, or the last piece of its body came

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

    def on_body(self, body: bytes) -> None:
        """The parser's: a piece of a body."""
        super().on_body(body)
        self._without_body = 0
