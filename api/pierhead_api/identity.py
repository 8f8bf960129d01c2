"""Who asks: the bearer token of a request, or that of the ServiceAccount which stands for those without one."""

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from pierhead_operator.resources import Manifest

from pierhead_api.errors import PermissionDeniedError, UnauthenticatedError, UnavailableError
from pierhead_api.kubernetes_api import Call, Kubernetes

_LIFETIME_SECONDS = 3600
# A token that is given out is good for a while longer than any request takes.
_RENEW_SECONDS = 900
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 9110, 11.2
_MOST_TOKEN = 16 * 1024  # characters

_FIX = "send the header Authorization: Bearer TOKEN, with a token of the cluster's"
# What a browser sends for a page of anybody's, without asking whether it may.
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")

GetToken = Callable[[], Awaitable[str]]


def make_fingerprint(token: str) -> bytes:
    """What stands for a caller where something is kept: the token itself is kept nowhere."""
    return hashlib.sha256(token.encode()).digest()


class Identity:
    """Finds the token that a request acts with."""

    def __init__(self, anonymous: GetToken | None = None, host: bytes = b"host") -> None:
        """`anonymous` gives the token of those who bring none; without it they are refused.

        `host` is the header with the host that a caller asked.
        """
        self._anonymous = anonymous
        self._host = host

    async def find_token(self, headers: Mapping[bytes, bytes]) -> str:
        """The bearer token; raises UnauthenticatedError where there is none. `headers` are in lower case."""
        given = headers.get(b"authorization")
        if given is None and self._anonymous:
            check_own_machine({**headers, b"host": headers.get(self._host, b"")})
            return await self._anonymous()
        scheme, _, token = (given or b"").decode("latin-1").strip().partition(" ")
        # Of words behind it Kubernetes takes no notice: one caller would be as many as it has words.
        if scheme.lower() != "bearer" or len(token) > _MOST_TOKEN or not _TOKEN.fullmatch(token.strip()):
            raise UnauthenticatedError(_FIX)
        return token.strip()


def check_own_machine(headers: Mapping[bytes, bytes]) -> None:
    """Raises UnauthenticatedError where a request without a token may be that of somebody else's web page.

    A browser says which page asks (`Origin`, `Sec-Fetch-Site`), and cannot send JSON for a page without leave; a name
    that a page had lead here stands in `Host`.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    if not _is_loopback(f"//{host}"):
        raise UnauthenticatedError(f"without a token only localhost is answered, not {host!r}: {_FIX}")
    origin = headers.get(b"origin", b"").decode("latin-1")
    foreign = headers.get(b"sec-fetch-site", b"") in (b"cross-site", b"same-site")
    if (origin and not _is_loopback(origin)) or foreign:
        raise UnauthenticatedError(f"without a token no web page of another place is answered: {_FIX}")
    kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if kind in _FORMS:
        raise UnauthenticatedError("without a token a body must be sent as Content-Type: application/json")


def _is_loopback(url: str) -> bool:
    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


class AnonymousToken:
    """The token of one ServiceAccount, asked for when it is needed and renewed in time."""

    def __init__(self, kubernetes: Kubernetes, account: str, clock: Callable[[], float] = time.time) -> None:
        """`account` is NAMESPACE/NAME. `clock` goes on while a laptop sleeps: its token then runs out, too."""
        self._kubernetes = kubernetes
        self._namespace, _, self._name = account.partition("/")
        self._clock = clock
        self._token, self._renew_at = "", 0.0
        self._asking = asyncio.Lock()

    async def get(self) -> str:
        """The token. Raises UnavailableError while there is none to be had."""
        async with self._asking:
            if not self._token or self._clock() >= self._renew_at:
                started = self._clock()
                status = (await self._ask())["status"]
                self._token, self._renew_at = status["token"], started + _LIFETIME_SECONDS - _RENEW_SECONDS
        return self._token

    async def _ask(self) -> Manifest:
        path = f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{self._name}/token"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": _LIFETIME_SECONDS},
        }
        try:
            return await self._kubernetes.request_as_self(Call("POST", path, body=body))
        except PermissionDeniedError as error:
            # The platform team's to put right, not the caller's.
            raise UnavailableError(f"no token for callers without one: {error}") from error
