"""Hands management calls on to the processes that answer them: what these take, they take from no prediction."""

import asyncio
from collections import Counter

import aiohttp
from starlette.types import Receive, Scope, Send
from yarl import URL

from pierhead_api.errors import RequestTimeoutError, ResourceExhaustedError, UnavailableError
from pierhead_api.identity import make_fingerprint
from pierhead_api.streaming import HOP_BY_HOP, RequestBody, filter_headers, relay_answer, until_caller_gone

# Half of the connections that there may be: the others are for predictions.
MOST_CALLS = 1024
_PART_OF_A_CALLER = 4  # of all calls, one in so many: whoever waits for many operations leaves others their places
_BODY_SECONDS = 20.0  # until the first of a body is there; who answers bounds the rest
_CONNECT_SECONDS = 2.0
_SILENCE_SECONDS = 330.0  # longer than a call waits for an operation
_RETRY_AFTER_SECONDS = 1
# By whom a call was sent to us: what the part that manages has in Host is its own address.
ASKED_HOST = b"x-pierhead-host"


class Management:
    """All paths of management, as an ASGI application."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        most_calls: int = MOST_CALLS,
        body_seconds: float = _BODY_SECONDS,
    ) -> None:
        """`url` is where management calls are answered, as `http://HOST[:PORT]`."""
        self._session = session
        self._url = url
        self._most_calls = most_calls
        self._body_seconds = body_seconds
        self._calls: Counter[bytes] = Counter()  # by who says to send them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Has a call answered. Raises ApiError while nothing is answered yet, and CallerGoneError."""
        seen = scope["pierhead"]
        seen.verb, seen.resource, seen.managed = "call", "management", True
        try:
            # Before it counts: who sends nothing takes nobody's place.
            async with asyncio.timeout(self._body_seconds):
                body = await RequestBody.begin(receive, limit=None)
        except TimeoutError as error:
            raise RequestTimeoutError(f"the body did not come within {self._body_seconds:g} s") from error
        caller = make_fingerprint(dict(scope["headers"]).get(b"authorization", b"").decode("latin-1"))
        share = max(1, self._most_calls // _PART_OF_A_CALLER)
        if self._calls.total() >= self._most_calls or self._calls[caller] >= share:
            raise ResourceExhaustedError("too many calls are being answered: try again later", _RETRY_AFTER_SECONDS)
        self._calls[caller] += 1
        try:
            async with until_caller_gone(body, receive):
                seen.relayed = True
                response = await self._send(scope, body)
                async with response:
                    await relay_answer(response, send)
        finally:
            self._calls[caller] -= 1
            if not self._calls[caller]:
                del self._calls[caller]

    async def _send(self, scope: Scope, body: RequestBody) -> aiohttp.ClientResponse:
        query = scope["query_string"].decode("latin-1")
        path = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        try:
            return await self._session.request(
                scope["method"],
                URL(f"{self._url}{path}", encoded=True),
                data=body.content,
                headers=make_headers(scope),
                # It bounds itself what a call may take; it may be gone without a word.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS),
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            if body.failure:
                raise body.failure from error
            scope["pierhead"].relayed = False
            message = f"management calls are not answered at the moment: {type(error).__name__}"
            raise UnavailableError(message, _RETRY_AFTER_SECONDS) from error


def make_headers(scope: Scope) -> list[tuple[str, str]]:
    """Those that are sent on: with the token, and as whom it was asked. A mesh would go by the caller's own Host."""
    kept = filter_headers(scope["headers"], HOP_BY_HOP | {b"host", b"expect", ASKED_HOST})
    host = dict(scope["headers"]).get(b"host", b"")
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in [*kept, (ASKED_HOST, host)]]
