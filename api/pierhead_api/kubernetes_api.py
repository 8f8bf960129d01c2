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
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

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
# Of objects. Each can have 1.5 MB of what others wrote on it, such as annotations, and a page is held as a whole.
_PAGE = 20


@dataclass(frozen=True)
class Call:
    """A request to the API server."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Manifest | None = None
    content_type: str = JSON


class Kubernetes:
    """The API server, for many callers at once over the same connections."""

    def __init__(self, own: ApiClient, callers: ApiClient) -> None:
        """`own` has this process' credentials, `callers` has none at all."""
        self._own = own
        self._callers = callers

    async def request(self, call: Call, token: str) -> Manifest:
        """The answer to a caller with this bearer token. Raises ApiError."""
        headers = {"Accept": JSON, "Content-Type": call.content_type, "Authorization": f"Bearer {token}"}
        return await _request(self._callers, call, headers)

    async def request_as_self(self, call: Call) -> Manifest:
        """The answer to this process itself. Raises ApiError."""
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


async def read_pages(
    request: Callable[[Call], Awaitable[Manifest]], path: str, query: Mapping[str, str] | None = None
) -> AsyncIterator[Manifest]:
    """A list, page by page, as `request` has it answered. Raises ApiError."""
    wanted = {**(query or {}), "limit": str(_PAGE)}
    while True:
        page = await request(Call("GET", path, wanted))
        token = page["metadata"].get("continue")
        yield page
        if not token:
            return
        wanted = {**wanted, "continue": token}


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
        case 422:
            return InvalidArgumentError(_tell_causes(answer) or message)
        case 429:
            return ResourceExhaustedError(message, _retry_after(headers))
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
        data: bytes = await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _unreachable(error) from error
    if not 200 <= response.status < 300:
        raise make_error(response.status, data, response.headers)
    answer: Manifest = from_json(data)
    return answer


async def _send(api: ApiClient, call: Call, headers: dict[str, str], limit: aiohttp.ClientTimeout) -> Any:
    url = f"{api.configuration.host}{call.path}" + (f"?{urlencode(call.query)}" if call.query else "")
    return await api.call_api(call.method, url, headers, call.body, _request_timeout=limit)


async def _read_lines(response: aiohttp.ClientResponse) -> AsyncIterator[Manifest]:
    async for line in response.content:
        try:
            event: Manifest = from_json(line)
        except ValueError as error:
            raise UnavailableError("the Kubernetes API broke off in the middle of an event") from error
        yield event


def _unreachable(error: Exception) -> UnavailableError:
    return UnavailableError(f"the Kubernetes API cannot be reached: {type(error).__name__}")
