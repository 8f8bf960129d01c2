"""Sends a prediction on to a pod and its answer back, both as they come: for clusters and paths without a gateway."""

import random
from collections.abc import AsyncIterator, Callable, Mapping
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
from pierhead_api.streaming import HOP_BY_HOP, RequestBody, filter_headers, relay_answer, until_caller_gone
from pierhead_api.transport import CallerGoneError, check_length

_CONNECT_SECONDS = 2.0
_KEEP_ALIVE_SECONDS = 60.0
# Of the connections that are kept, one in so many is given up after a request: each leads to one pod for good, and
# pods that came later would never get their share.
_REQUESTS_OF_A_CONNECTION = 100

# The token is for the Kubernetes API: a model may be code of somebody else's.
_NOT_SENT_ON = HOP_BY_HOP | {b"authorization", b"expect"}
_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})

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
    body: RequestBody


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
        body = await RequestBody.begin(receive, route.max_request_bytes)
        with self._metrics.forwarding():
            async with until_caller_gone(body, receive):
                response = await self._open(_Exchange(route, prediction, scope, body))
                async with response:
                    await relay_answer(response, send)

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


def make_headers(scope: Scope) -> list[tuple[str, str]]:
    """The headers that are sent on, with those of a proxy."""
    given = dict(scope["headers"])
    kept = filter_headers(scope["headers"], _NOT_SENT_ON | _FORWARDED)
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
