"""Who asks: the bearer token of a request, or that of the ServiceAccount which stands for those without one."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from pierhead_operator.resources import Manifest

from pierhead_api.errors import PermissionDeniedError, UnauthenticatedError, UnavailableError
from pierhead_api.kubernetes_api import Call, Kubernetes

_LIFETIME_SECONDS = 3600
# A token that is given out is good for a while longer than any request takes.
_RENEW_SECONDS = 900

GetToken = Callable[[], Awaitable[str]]


class Identity:
    """Finds the token that a request acts with."""

    def __init__(self, anonymous: GetToken | None = None) -> None:
        """`anonymous` gives the token of those who bring none; without it they are refused."""
        self._anonymous = anonymous

    async def find_token(self, headers: Mapping[bytes, bytes]) -> str:
        """The bearer token; raises UnauthenticatedError where there is none. `headers` are in lower case."""
        given = headers.get(b"authorization")
        if given is None and self._anonymous:
            return await self._anonymous()
        scheme, _, token = (given or b"").decode("latin-1").strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise UnauthenticatedError("send the header Authorization: Bearer TOKEN, with a token of the cluster's")
        return token.strip()


class AnonymousToken:
    """The token of one ServiceAccount, asked for when it is needed and renewed in time."""

    def __init__(self, kubernetes: Kubernetes, account: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`account` is NAMESPACE/NAME."""
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
