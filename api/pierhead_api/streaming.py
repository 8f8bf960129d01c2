"""HTTP that is sent on: a request's body as it comes, an answer as it comes, and who waits for it."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import aiohttp
from starlette.types import Receive, Send

from pierhead_api.errors import ApiError
from pierhead_api.transport import CallerGoneError, too_large

_SMALL = 64 * 1024  # bytes of an answer that is read as a whole: fewer packets

# What belongs to one connection and not to the message (RFC 9110, 7.6.1).
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_SENT_BACK = HOP_BY_HOP | {b"date", b"server"}


class BrokenAnswerError(Exception):
    """Who was asked began to answer and did not end."""


class RequestBody:
    """A request's body: bytes where it was there at once, else pieces as they come."""

    def __init__(self, receive: Receive, first: bytes, more: bool, limit: int | None) -> None:
        self._receive = receive
        self._first = first
        self._more = more
        self._limit = limit
        self._size = len(first)
        self.is_touched = False  # whether pieces of it were taken that nobody can take again
        self.failure: ApiError | CallerGoneError | None = None  # why its pieces ended
        self.ended = asyncio.Event()
        if not more:
            self.ended.set()

    @classmethod
    async def begin(cls, receive: Receive, limit: int | None) -> "RequestBody":
        """Waits for the first of it. Raises BodyTooLargeError, CallerGoneError."""
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerGoneError
        first = message.get("body", b"")
        if limit and len(first) > limit:
            raise too_large(limit)
        return cls(receive, first, message.get("more_body", False), limit)

    @property
    def content(self) -> bytes | AsyncIterator[bytes] | None:
        """What the client sends on."""
        return self._pieces() if self._more else self._first or None

    async def _pieces(self) -> AsyncIterator[bytes]:
        self.is_touched = True
        yield self._first
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.failure = CallerGoneError()
                raise self.failure
            piece = message.get("body", b"")
            self._size += len(piece)
            if self._limit and self._size > self._limit:
                self.failure = too_large(self._limit)
                raise self.failure
            self._more = message.get("more_body", False)
            yield piece
        self.ended.set()


@asynccontextmanager
async def until_caller_gone(body: RequestBody, receive: Receive) -> AsyncIterator[None]:
    """Gives up what is within when the caller goes: raises CallerGoneError then."""
    work = asyncio.current_task()
    assert work is not None
    under_way = True

    def give_up(done: asyncio.Task[None]) -> None:
        if under_way and not done.cancelled():
            work.cancel()

    gone = asyncio.create_task(_hear_disconnect(body, receive))
    gone.add_done_callback(give_up)
    try:
        yield
    except asyncio.CancelledError:
        if gone.done() and not gone.cancelled() and not work.uncancel():
            raise CallerGoneError from None
        raise
    finally:
        under_way = False
        gone.cancel()


async def _hear_disconnect(body: RequestBody, receive: Receive) -> None:
    # Until then it is the body's pieces that are received.
    await body.ended.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def relay_answer(response: aiohttp.ClientResponse, send: Send) -> None:
    """Sends an answer on. Raises BrokenAnswerError."""
    headers = filter_headers(response.raw_headers, _NOT_SENT_BACK)
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    try:
        if (response.content_length or _SMALL + 1) <= _SMALL:
            await send({"type": "http.response.body", "body": await response.read()})
            return
        async for piece in response.content.iter_any():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        # The client has the beginning of an answer: that its connection breaks is all that can be told.
        raise BrokenAnswerError(f"the answer broke off: {type(error).__name__}") from error
    await send({"type": "http.response.body", "body": b""})


def filter_headers(headers: Iterable[tuple[bytes, bytes]], left_out: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """Those that go on, in lower case: not those of `left_out`, nor those that `Connection` names."""
    found = [(name.lower(), value) for name, value in headers]
    named = {word.strip().lower() for name, value in found if name == b"connection" for word in value.split(b",")}
    return [(name, value) for name, value in found if name not in left_out and name not in named]
