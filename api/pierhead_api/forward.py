"""Sends a prediction on to a pod and its answer back, both as they come: for clusters and paths without a gateway."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from pierhead_operator import names
from pierhead_operator.routing.rules import RETRY_AFTER_SECONDS, SERVICE_PORT
from starlette.types import Receive, Scope, Send
from yarl import URL

from pierhead_api.errors import ApiError, DeadlineExceededError, UnavailableError, make_refusal
from pierhead_api.metrics import Metrics
from pierhead_api.predictions import Prediction
from pierhead_api.route_table import Route, RouteTable
from pierhead_api.transport import CallerGoneError, check_length, too_large

_CONNECT_SECONDS = 2.0
_KEEP_ALIVE_SECONDS = 60.0
# Of the connections that are kept, one in so many is given up after a request: each leads to one pod for good, and
# pods that came later would never get their share.
_REQUESTS_OF_A_CONNECTION = 100
_SMALL = 64 * 1024  # bytes of an answer that is read as a whole: fewer packets

# What belongs to one connection and not to the message (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset(
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
# The token is for the Kubernetes API: a model may be code of somebody else's.
_NOT_SENT_ON = _HOP_BY_HOP | {b"authorization", b"expect"}
_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})
_NOT_SENT_BACK = _HOP_BY_HOP | {b"date", b"server"}

# Where the pods of a DeployedModel answer, by its namespace and its name.
Locate = Callable[[str, str], str]
_Headers = Mapping[bytes, bytes]


def locate_service(namespace: str, deployed_model: str) -> str:
    """The Service of a DeployedModel."""
    return f"http://{names.server(deployed_model)}.{namespace}.svc:{SERVICE_PORT}"


@dataclass(frozen=True)
class _Exchange:
    """One prediction on its way."""

    route: Route
    prediction: Prediction
    scope: Scope
    body: "_Body"


class BrokenAnswerError(Exception):
    """A pod began to answer and did not end."""


class Forwarder:
    """Keeps connections to the pods."""

    def __init__(
        self, session: aiohttp.ClientSession, table: RouteTable, metrics: Metrics, locate: Locate = locate_service
    ) -> None:
        self._session = session
        self._table = table
        self._metrics = metrics
        self._locate = locate

    async def forward(self, prediction: Prediction, namespace: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Has a prediction answered. Raises ApiError while nothing is answered yet, and CallerGoneError."""
        route = self._table.find(prediction, namespace)
        if not route.weights:
            raise make_refusal(self._table.explain_unserved(prediction.name, route.namespace))
        headers = dict(scope["headers"])
        if route.max_request_bytes:
            check_length(headers, route.max_request_bytes)
        body = await _Body.begin(receive, route.max_request_bytes)
        with self._metrics.forwarding():
            async with _until_caller_gone(body, receive):
                response = await self._open(_Exchange(route, prediction, scope, body))
                async with response:
                    await _relay(response, send)

    async def _open(self, exchange: _Exchange) -> aiohttp.ClientResponse:
        try:
            try:
                return await self._send(exchange)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                if exchange.body.is_touched:
                    raise
                # Nothing was sent. Another connection leads to another pod, if there is one.
                return await self._send(exchange)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _explain(error, exchange) from error

    async def _send(self, exchange: _Exchange) -> aiohttp.ClientResponse:
        route = exchange.route
        [deployed_model] = random.choices(list(route.weights), list(route.weights.values()))  # noqa: S311
        query = exchange.scope["query_string"].decode("latin-1")
        path = exchange.prediction.path + (f"?{query}" if query else "")
        return await self._session.request(
            exchange.scope["method"],
            URL(f"{self._locate(route.namespace, deployed_model)}{path}", encoded=True),
            data=exchange.body.content,
            headers=make_headers(exchange.scope),
            timeout=aiohttp.ClientTimeout(total=route.timeout_seconds, sock_connect=_CONNECT_SECONDS),
            allow_redirects=False,
        )


class _Body:
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
    async def begin(cls, receive: Receive, limit: int | None) -> "_Body":
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
async def _until_caller_gone(body: _Body, receive: Receive) -> AsyncIterator[None]:
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


async def _hear_disconnect(body: _Body, receive: Receive) -> None:
    # Until then it is the body's pieces that are received.
    await body.ended.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _relay(response: aiohttp.ClientResponse, send: Send) -> None:
    headers = _filter(response.raw_headers, _NOT_SENT_BACK)
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    try:
        if (response.content_length or _SMALL + 1) <= _SMALL:
            await send({"type": "http.response.body", "body": await response.read()})
            return
        async for piece in response.content.iter_any():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        # The client has the beginning of an answer: that its connection breaks is all that can be told.
        raise BrokenAnswerError(f"a pod's answer broke off: {type(error).__name__}") from error
    await send({"type": "http.response.body", "body": b""})


def make_headers(scope: Scope) -> list[tuple[str, str]]:
    """The headers that are sent on, with those of a proxy."""
    given = dict(scope["headers"])
    kept = _filter(scope["headers"], _NOT_SENT_ON | _FORWARDED)
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in kept]
    peer = scope["client"][0] if scope.get("client") else ""
    way = ", ".join(part for part in (given.get(b"x-forwarded-for", b"").decode("latin-1"), peer) if part)
    headers.append(("x-forwarded-for", way))
    headers.append(("x-forwarded-host", _first(given, b"x-forwarded-host", b"host")))
    headers.append(("x-forwarded-proto", _first(given, b"x-forwarded-proto") or scope.get("scheme", "http")))
    if not random.randrange(_REQUESTS_OF_A_CONNECTION):  # noqa: S311  # spreads load, guards nothing
        headers.append(("connection", "close"))
    return headers


def _first(headers: _Headers, *names_: bytes) -> str:
    return next((headers[name].decode("latin-1") for name in names_ if name in headers), "")


def _filter(headers: Iterable[tuple[bytes, bytes]], left_out: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """Those that go on, in lower case: not those of `left_out`, nor those that `Connection` names."""
    found = [(name.lower(), value) for name, value in headers]
    named = {word.strip().lower() for name, value in found if name == b"connection" for word in value.split(b",")}
    return [(name, value) for name, value in found if name not in left_out and name not in named]


def _explain(error: Exception, exchange: _Exchange) -> ApiError | CallerGoneError:
    """What the caller is told."""
    if exchange.body.failure:
        return exchange.body.failure
    what = exchange.prediction.told_name
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
        return DeadlineExceededError(f"{what} did not answer within {exchange.route.timeout_seconds:g} s")
    return UnavailableError(f"no pod of {what} answers: {type(error).__name__}", RETRY_AFTER_SECONDS)


@asynccontextmanager
async def connect_pods() -> AsyncIterator[aiohttp.ClientSession]:
    """Connections to pods, which are kept, and which carry nothing of one caller to another."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS)
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
    ) as session:
        yield session
