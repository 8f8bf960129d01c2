"""Hands management calls on to the processes that answer them: what these take, they take from no prediction."""

import aiohttp
from starlette.types import Receive, Scope, Send
from yarl import URL

from pierhead_api.errors import ResourceExhaustedError, UnavailableError
from pierhead_api.streaming import HOP_BY_HOP, RequestBody, filter_headers, relay_answer, until_caller_gone

# Half of the connections that there may be: the others are for predictions.
MOST_CALLS = 1024
_CONNECT_SECONDS = 2.0
_RETRY_AFTER_SECONDS = 1


class Management:
    """All paths of management, as an ASGI application."""

    def __init__(self, session: aiohttp.ClientSession, url: str, most_calls: int = MOST_CALLS) -> None:
        """`url` is where management calls are answered, as `http://HOST[:PORT]`."""
        self._session = session
        self._url = url
        self._most_calls = most_calls
        self._calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Has a call answered. Raises ApiError while nothing is answered yet, and CallerGoneError."""
        if self._calls >= self._most_calls:
            raise ResourceExhaustedError("too many calls are being answered: try again later", _RETRY_AFTER_SECONDS)
        self._calls += 1
        try:
            body = await RequestBody.begin(receive, limit=None)
            async with until_caller_gone(body, receive):
                response = await self._send(scope, body)
                scope["pierhead"].relayed = True
                async with response:
                    await relay_answer(response, send)
        finally:
            self._calls -= 1

    async def _send(self, scope: Scope, body: RequestBody) -> aiohttp.ClientResponse:
        query = scope["query_string"].decode("latin-1")
        path = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        headers = filter_headers(scope["headers"], HOP_BY_HOP)  # with the token, and as whom it was asked: Host, Origin
        try:
            return await self._session.request(
                scope["method"],
                URL(f"{self._url}{path}", encoded=True),
                data=body.content,
                headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers],
                # It bounds itself what a call may take.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if body.failure:
                raise body.failure from error
            message = f"management calls are not answered at the moment: {type(error).__name__}"
            raise UnavailableError(message, _RETRY_AFTER_SECONDS) from error
