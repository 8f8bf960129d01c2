"""Who may predict: for the predictions that are forwarded here, and for those that a gateway asks about."""

from collections.abc import Mapping

from pierhead_api.access import Access, Asked
from pierhead_api.errors import NotFoundError
from pierhead_api.identity import Identity
from pierhead_api.names import Projects, check_id, check_version
from pierhead_api.predictions import Prediction, looks_like_prediction, parse_prediction
from pierhead_api.route_table import RouteTable

_Headers = Mapping[bytes, bytes]


class Authorizer:
    """Checks the right to predict."""

    def __init__(self, identity: Identity, access: Access, projects: Projects, table: RouteTable) -> None:
        self._identity = identity
        self._access = access
        self._projects = projects
        self._table = table

    async def check(self, prediction: Prediction, headers: _Headers) -> str:
        """The namespace of a prediction that the caller may have forwarded. Raises ApiError."""
        token = await self._identity.find_token(headers)
        _check_names(prediction)
        namespace = self._projects.find_namespace(prediction.project)
        await self._access.check(token, Asked(prediction.resource, namespace, prediction.name))
        if prediction.location is not None:
            # After the right: what locations there are is for those who may predict.
            self._projects.find_place(prediction.project, prediction.location)
        return namespace

    async def check_for_gateway(self, path: str, headers: _Headers) -> None:
        """Raises ApiError where a path, without its query, is a prediction that the caller may not have.

        Other paths are for this API, which asks Kubernetes itself.
        """
        prediction = parse_prediction(path)
        if prediction is None:
            if looks_like_prediction(path):
                raise NotFoundError("there is no such path")
            return
        token = await self._identity.find_token(headers)
        _check_names(prediction)
        for namespace in self._meant(prediction):
            await self._access.check(token, Asked(prediction.resource, namespace, prediction.name))

    def _meant(self, prediction: Prediction) -> set[str]:
        """The namespaces that a path may lead to: a gateway's routes know nothing of mapped projects."""
        mapped = self._projects.find_mapped(prediction.project)
        return {mapped, prediction.project} if self._table.knows(prediction, prediction.project) else {mapped}


def _check_names(prediction: Prediction) -> None:
    """Raises NotFoundError for what nothing can be called: it is not asked about, and so not remembered either."""
    check_id(prediction.name)
    if prediction.version is not None:
        check_version(prediction.version)
