"""Who callers are, and what they may predict: by the API server's word.

A caller's own token asks for itself. One that is for Pierhead alone (its audience is) the API server takes from nobody
but this process, which asks whose it is and what they may; whoever else gets hold of it can do nothing with it but
predict.
"""

import base64
import binascii
from typing import Any

from pierhead_operator import names
from pydantic_core import from_json

from pierhead_api.access import Asked
from pierhead_api.cluster import Cluster
from pierhead_api.errors import PermissionDeniedError, UnauthenticatedError, UnavailableError
from pierhead_api.kubernetes_api import Call, Kubernetes

_TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105
_ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_USER = ("username", "uid", "groups", "extra")


class Reviews:
    """Asks the API server."""

    def __init__(self, kubernetes: Kubernetes, audience: str = "") -> None:
        """`audience` is that of tokens which are for Pierhead alone; empty where there are none."""
        self._kubernetes = kubernetes
        self._audience = audience

    async def find_user(self, token: str) -> str:
        """The name of whom the API server takes a token for; raises UnauthenticatedError."""
        if self._is_for_us(token):
            raise UnauthenticatedError(
                f"a token of the audience {self._audience} is for predictions: this call needs one of Kubernetes'"
            )
        return await Cluster(self._kubernetes, token).find_user()

    async def may_predict(self, token: str, asked: Asked) -> bool:
        """Whether RBAC lets a token's owner do so; raises UnauthenticatedError where it is nobody's."""
        if not self._is_for_us(token):
            return await Cluster(self._kubernetes, token).may("predict", asked.resource, asked.namespace, asked.name)
        user = await self._find_owner(token)
        wanted = {"group": names.GROUP, "verb": "predict", "resource": asked.resource}
        attributes = {**wanted, "namespace": asked.namespace, "name": asked.name}
        # Reviews of tokens and of rights call the user's name differently.
        spec = {"user": user.pop("username", ""), **user, "resourceAttributes": attributes}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        return bool((await self._ask(_ACCESS_REVIEWS, review))["status"]["allowed"])

    async def _find_owner(self, token: str) -> dict[str, Any]:
        spec = {"token": token, "audiences": [self._audience]}
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        status = (await self._ask(_TOKEN_REVIEWS, review))["status"]
        # An API server that knows nothing of audiences answers without any: it has not looked.
        if not status.get("authenticated") or self._audience not in (status.get("audiences") or ()):
            raise UnauthenticatedError("the Kubernetes API does not take this token")
        return {key: status["user"][key] for key in _USER if key in status["user"]}

    async def _ask(self, path: str, review: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._kubernetes.request_as_self(Call("POST", path, body=review))
        except (PermissionDeniedError, UnauthenticatedError) as error:
            # The platform team's to put right, not the caller's.
            raise UnavailableError(f"tokens of the audience {self._audience} cannot be reviewed: {error}") from error

    def _is_for_us(self, token: str) -> bool:
        return bool(self._audience) and self._audience in read_audiences(token)


def read_audiences(token: str) -> list[str]:
    """Whom a JSON Web Token says that it is for; nobody where it is none. What it says is not checked here."""
    _, _, rest = token.partition(".")
    payload = rest.partition(".")[0]
    try:
        claims = from_json(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (binascii.Error, ValueError):
        return []
    found = claims.get("aud") if isinstance(claims, dict) else None
    listed = found if isinstance(found, list) else [found]
    return [one for one in listed if isinstance(one, str)]
