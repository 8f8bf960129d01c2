"""The custom resources, as one caller may use them: each request carries the caller's own token, and RBAC decides."""

from collections.abc import Mapping
from types import MappingProxyType

from pierhead_operator import names
from pierhead_operator.resources import Manifest
from pierhead_operator.schema import Resource
from pierhead_operator.types import KINDS

from pierhead_api.errors import AbortedError, ExpiredError, FailedPreconditionError, NotFoundError
from pierhead_api.kubernetes_api import MERGE_PATCH, Call, Kubernetes, check_name, read_page
from pierhead_api.objects import drop_unread, weigh
from pierhead_api.pages import Ask, Page, follow

FIELD_MANAGER = "pierhead-api"
_MOST_BYTES = 32 * 1024 * 1024  # of objects that are listed at once
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_WHO = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
_BY_KIND = {kind.KIND: kind for kind in KINDS}
_ALL: Mapping[str, str] = MappingProxyType({})
Manifests = list[Manifest]


class Cluster:
    """The Kubernetes API for one bearer token.

    Every method raises UnauthenticatedError, PermissionDeniedError and UnavailableError, and what it names.
    """

    def __init__(self, kubernetes: Kubernetes, token: str) -> None:
        self._kubernetes = kubernetes
        self._token = token

    async def get(self, kind: type[Resource], namespace: str, name: str) -> Manifest:
        """The object; raises NotFoundError."""
        return await self._request(Call("GET", _path(kind, namespace, name)))

    async def list(
        self,
        kind: type[Resource],
        namespace: str,
        *,
        fields: Mapping[str, str] = _ALL,
        labels: Mapping[str, str] = _ALL,
    ) -> Manifests:
        """The objects of a namespace whose fields and labels have these values, with what the API reads of them.

        Raises FailedPreconditionError where they are too large to be held at once.
        """
        pages = follow(lambda ask: self.list_page(kind, namespace, ask), Ask(fields=fields, labels=labels))
        found: Manifests = []
        weight = 0
        async for manifests in pages:
            weight += sum(map(weigh, manifests))
            if weight > _MOST_BYTES:
                raise FailedPreconditionError(f"the {kind.PLURAL} are too large to be looked at together")
            found += manifests
        return found

    async def list_page(self, kind: type[Resource], namespace: str, ask: Ask) -> Page:
        """Some of the objects of a namespace, in the order of their names; where the token is too old, as they are now.

        Raises InvalidArgumentError for a token that is none, ExpiredError where Kubernetes cannot go on.
        """
        try:
            return await self._read_page(kind, namespace, ask, ask.token)
        except ExpiredError as error:
            if not error.rest:
                raise
            return await self._read_page(kind, namespace, ask, error.rest)

    async def _read_page(self, kind: type[Resource], namespace: str, ask: Ask, token: str) -> Page:
        asked = {"fieldSelector": _select(ask.fields), "labelSelector": _select(ask.labels), "continue": token}
        query = {name: value for name, value in asked.items() if value}
        page, limit = await read_page(self._request, _path(kind, namespace), query, ask.limit)
        # The items of a list do not say what they are.
        known = {"apiVersion": page["apiVersion"], "kind": kind.KIND}
        manifests = [{**known, **drop_unread(item)} for item in page["items"]]
        return Page(manifests, page["metadata"].get("continue") or "", limit)

    async def create(self, manifest: Manifest) -> Manifest:
        """The object as it was made; raises AlreadyExistsError, InvalidArgumentError with the field's name."""
        path = _path(_BY_KIND[manifest["kind"]], manifest["metadata"]["namespace"])
        return await self._request(Call("POST", path, _writing(), manifest))

    async def patch(self, kind: type[Resource], namespace: str, name: str, patch: Manifest) -> Manifest:
        """The object after a JSON merge patch; raises NotFoundError, InvalidArgumentError.

        With `metadata.resourceVersion` in the patch, an object that changed since raises AbortedError.
        """
        call = Call("PATCH", _path(kind, namespace, name), _writing(), patch, MERGE_PATCH)
        return await self._request(call)

    async def delete(self, kind: type[Resource], namespace: str, name: str, *, uid: str | None = None) -> None:
        """Has the object deleted, with a uid only that very one; raises NotFoundError."""
        body: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self._request(Call("DELETE", _path(kind, namespace, name), body=body))
        except AbortedError as error:
            raise NotFoundError(f"{kind.KIND} {name} is another one by now") from error

    async def find_user(self) -> str:
        """The name of the caller, as RBAC and the API server's audit log know it; raises UnauthenticatedError."""
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = await self._request(Call("POST", _WHO, body=review))
        return str(answer["status"]["userInfo"]["username"])

    async def may(self, verb: str, resource: str, namespace: str, name: str) -> bool:
        """Whether RBAC lets the caller do this with that resource of Pierhead's group."""
        asked = {"group": names.GROUP, "verb": verb, "resource": resource, "namespace": namespace, "name": name}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        answer = await self._request(Call("POST", _REVIEWS, body=review))
        return bool(answer["status"]["allowed"])

    async def _request(self, call: Call) -> Manifest:
        return await self._kubernetes.request(call, self._token)


def _path(kind: type[Resource], namespace: str, name: str = "") -> str:
    path = f"/apis/{names.API_VERSION}/namespaces/{check_name(namespace)}/{kind.PLURAL}"
    return f"{path}/{check_name(name)}" if name else path


def _select(wanted: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in wanted.items())


def _writing() -> dict[str, str]:
    # A field that the schema does not know would be dropped without a word.
    return {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
