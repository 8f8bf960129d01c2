"""Connections to the API server of Kubernetes, on which nobody's identity is taken for another's."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from pierhead_operator.cluster import load_configuration
from pierhead_operator.resources import Manifest
from pydantic_core import from_json

from pierhead_api.errors import (
    AbortedError,
    AlreadyExistsError,
    ApiError,
    ExpiredError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from pierhead_api.pages import PAGE

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
_CONNECT_SECONDS = 5.0
_TIMEOUT_SECONDS = 30.0
_MOST_CONNECTIONS = 100
_RETRY_AFTER_SECONDS = 1
# What of a kubeconfig says where the API server is and how it is known, and nothing of who asks.
_WHERE = ("host", "ssl_ca_cert", "ca_cert_data", "verify_ssl", "tls_server_name", "proxy", "proxy_headers")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_MOST_NAME = 253
# As etcd says it of a revision that is to come: it was put back to what it once was, or a token is made up.
_UNKNOWN_REVISION = "required revision is a future revision"
# Of a page of a list, which is held as a whole: an object can have 1.5 MB of what others wrote on it.
_MOST_PAGE_BYTES = 4 * 1024 * 1024
_FEWER = 4  # times fewer objects, where a page is larger


@dataclass(frozen=True)
class Call:
    """A request to the API server."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Manifest | None = None
    content_type: str = JSON
    most_bytes: int | None = None  # of the answer


Request = Callable[[Call], Awaitable[Manifest]]


class AnswerTooLargeError(Exception):
    """The answer has more bytes than it may: ask for less."""


class Kubernetes:
    """The API server, for many callers at once over the same connections."""

    def __init__(self, own: ApiClient, callers: ApiClient) -> None:
        """`own` has this process' credentials, `callers` has none at all."""
        self._own = own
        self._callers = callers

    async def request(self, call: Call, token: str) -> Manifest:
        """The answer to a caller with this bearer token. Raises ApiError, AnswerTooLargeError."""
        headers = {"Accept": JSON, "Content-Type": call.content_type, "Authorization": f"Bearer {token}"}
        return await _request(self._callers, call, headers)

    async def request_as_self(self, call: Call) -> Manifest:
        """The answer to this process itself. Raises ApiError, AnswerTooLargeError."""
        return await _request(self._own, call, await self._own_headers(call))

    @asynccontextmanager
    async def watch_as_self(self, call: Call, silence: float) -> AsyncIterator[AsyncIterator[Manifest]]:
        """The events of a watch; raises ApiError, also where nothing came for `silence` seconds."""
        limit = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence)
        try:
            response = await _send(self._own, call, await self._own_headers(call), limit)
            if response.status != 200:
                raise make_error(response.status, await response.response.read(), response.headers)
            try:
                yield _read_lines(response.response)
            finally:
                response.response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(error) from error

    async def _own_headers(self, call: Call) -> dict[str, str]:
        headers = {"Accept": JSON, "Content-Type": call.content_type}
        await self._own.update_params_for_auth(headers, None, ["BearerToken"], call.path, call.method, call.body)
        return headers


@asynccontextmanager
async def connect() -> AsyncIterator[Kubernetes]:
    """As the pod's own service account; outside a cluster as the kubeconfig says."""
    configuration = await load_configuration()
    async with ApiClient(configuration) as own, ApiClient(make_nobodys(configuration)) as callers:
        yield Kubernetes(own, callers)


async def read_pages(request: Request, path: str) -> AsyncIterator[Manifest]:
    """A list, page by page, as `request` has it answered. Raises ApiError."""
    query: dict[str, str] = {}
    limit = PAGE
    while True:
        page, limit = await read_page(request, path, query, limit)
        yield page
        token = page["metadata"].get("continue")
        if not token:
            return
        query, limit = {"continue": token}, min(PAGE, 2 * limit)


async def read_page(request: Request, path: str, query: Mapping[str, str], limit: int) -> tuple[Manifest, int]:
    """A page of a list, and the limit that it came by: of fewer objects where these are large. Raises ApiError."""
    while True:
        most = _MOST_PAGE_BYTES if limit > 1 else None  # one object is what the API server takes
        try:
            page = await request(Call("GET", path, {**query, "limit": str(limit)}, most_bytes=most))
        except AnswerTooLargeError:
            limit = max(1, limit // _FEWER)
        else:
            return page, limit


def make_nobodys(configuration: Configuration) -> Configuration:
    """The way to the same API server without any credentials.

    With a client certificate on the connection, every caller would be whom that names, whatever its token says.
    """
    nobodys = Configuration()
    for name in _WHERE:
        setattr(nobodys, name, getattr(configuration, name))
    nobodys.disable_strict_ssl_verification = configuration.disable_strict_ssl_verification
    nobodys.connection_pool_maxsize = _MOST_CONNECTIONS
    # A cookie of one caller's answer must not come with another's request.
    nobodys.client_session_kwargs = {"cookie_jar": aiohttp.DummyCookieJar()}
    return nobodys


def check_name(name: str) -> str:
    """`name`, if an object can have it; raises NotFoundError, so that no name leads to another path."""
    if len(name) > _MOST_NAME or not _NAME.fullmatch(name):
        raise NotFoundError(f"{name[:_MOST_NAME]!r} is not the name of anything")
    return name


def make_error(status: int, data: bytes, headers: Mapping[str, str]) -> ApiError:
    """What an answer of the API server means to whoever asked."""
    answer = _read_status(data)
    message, reason = answer.get("message") or f"the Kubernetes API answered {status}", answer.get("reason")
    match status:
        case 401:
            return UnauthenticatedError("the Kubernetes API does not take this token")
        case 403 if "exceeded quota" in message:
            return ResourceExhaustedError(message)
        case 403:
            return PermissionDeniedError(message)
        case 404:
            return NotFoundError(message)
        case 409 if reason == "AlreadyExists":
            return AlreadyExistsError(message)
        case 409:
            return AbortedError(message)
        case 410:
            return ExpiredError(message, (answer.get("metadata") or {}).get("continue") or "")
        case 422:
            return InvalidArgumentError(_tell_causes(answer) or message)
        case 429:
            return ResourceExhaustedError(message, _retry_after(headers))
        case 500 if _UNKNOWN_REVISION in message:
            return ExpiredError(message)
        case _ if 400 <= status < 500:
            return InvalidArgumentError(message)
    return UnavailableError(f"the Kubernetes API answered {status}: {message}", _retry_after(headers))


def _tell_causes(answer: Mapping[str, Any]) -> str:
    """Each field that is wrong, with what is wrong about it."""
    causes = (answer.get("details") or {}).get("causes") or []
    # Of a value that is of the wrong type, the rules that could not be checked are told too.
    told = dict.fromkeys(f"{cause.get('field', '')}: {cause.get('message', '')}" for cause in causes)
    return "; ".join(told)


def _read_status(data: bytes) -> dict[str, Any]:
    """Kubernetes' Status; of anything else, such as a proxy's page, what it says."""
    try:
        answer = from_json(data)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and answer.get("kind") == "Status":
        return answer
    return {"message": data[:200].decode(errors="replace").strip()}


def _retry_after(headers: Mapping[str, str]) -> int:
    value = headers.get("Retry-After", "")
    return int(value) if value.isdigit() else _RETRY_AFTER_SECONDS


async def _request(api: ApiClient, call: Call, headers: dict[str, str]) -> Manifest:
    limit = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS, sock_connect=_CONNECT_SECONDS)
    try:
        response = await _send(api, call, headers, limit)
        data = await _read(response.response, call.most_bytes)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _unreachable(error) from error
    if not 200 <= response.status < 300:
        raise make_error(response.status, data, response.headers)
    answer: Manifest = from_json(data)
    return answer


async def _send(api: ApiClient, call: Call, headers: dict[str, str], limit: aiohttp.ClientTimeout) -> Any:
    url = f"{api.configuration.host}{call.path}" + (f"?{urlencode(call.query)}" if call.query else "")
    return await api.call_api(call.method, url, headers, call.body, _request_timeout=limit)


async def _read(response: aiohttp.ClientResponse, most: int | None) -> bytes:
    """The body; raises AnswerTooLargeError, and leaves the rest unread, once it has more bytes than that."""
    data = bytearray()
    async with response:  # a connection with something unread is closed
        async for piece in response.content.iter_any():
            data += piece
            if most is not None and len(data) > most:
                raise AnswerTooLargeError
    return bytes(data)


async def _read_lines(response: aiohttp.ClientResponse) -> AsyncIterator[Manifest]:
    async for line in response.content:
        try:
            event: Manifest = from_json(line)
        except ValueError as error:
            raise UnavailableError("the Kubernetes API broke off in the middle of an event") from error
        yield event


def _unreachable(error: Exception) -> UnavailableError:
    return UnavailableError(f"the Kubernetes API cannot be reached: {type(error).__name__}")
