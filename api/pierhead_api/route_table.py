"""Who serves which predictions, as the watches have told."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from pierhead_operator.resources import Manifest
from pierhead_operator.routing import (
    Refusal,
    Server,
    describe_server,
    explain_refusal,
    find_serving,
    is_offered,
    name_versions,
)
from pierhead_operator.schema import Resource
from pierhead_operator.status import find_cause
from pierhead_operator.types import ClientConnectionConfig, DeployedModel, Endpoint, Model
from pydantic import ValidationError

from pierhead_api.errors import NotFoundError
from pierhead_api.predictions import Prediction

logger = logging.getLogger(__name__)

WATCHED: tuple[type[Resource], ...] = (Endpoint, DeployedModel, Model)

_Key = tuple[str, str]  # namespace, name


@dataclass(frozen=True)
class Route:
    """Where predictions go, as a gateway would be told it."""

    namespace: str
    weights: dict[str, int]  # by DeployedModel; empty while nobody serves
    timeout_seconds: float
    max_request_bytes: int | None  # None: the server's own limit is all


@dataclass(frozen=True, slots=True)
class _DeployedModel:
    """What is kept of a DeployedModel, for whoever asks where to, or why to nobody."""

    server: Server
    leaves: bool
    cause: str  # why it does not serve


@dataclass(frozen=True)
class _Endpoint:
    endpoint: Endpoint
    route: Route
    is_offered: bool  # to those who ask here


class RouteTable:
    """The routes of all that is watched."""

    def __init__(self, *, offers_private: bool) -> None:
        """`offers_private`: whether Private endpoints are routed too; behind a gateway others carry those."""
        self._offers_private = offers_private
        self._endpoints: dict[_Key, _Endpoint] = {}
        self._models: dict[_Key, dict[str, str]] = {}  # versions by all their names; the default one by ""
        self._deployed_models: dict[_Key, _DeployedModel] = {}
        self._of_model: dict[_Key, set[str]] = {}  # DeployedModels by their Model
        self._of_endpoint: dict[_Key, set[str]] = {}  # and by their Endpoint

    def put(self, kind: str, live: Manifest) -> None:
        """An object of one of WATCHED is there, as it is now."""
        key = _key(live)
        self.remove(kind, key)
        try:
            self._take(kind, key, live)
        except ValidationError as error:
            # Of a newer version of Pierhead's, perhaps: better that one without a route than none with one.
            causes = error.errors(include_url=False, include_context=False, include_input=False)
            logger.error("%s %s/%s cannot be read: %s", kind, *key, causes)

    def _take(self, kind: str, key: _Key, live: Manifest) -> None:
        match kind:
            case Endpoint.KIND:
                self._endpoints[key] = _parse_endpoint(live, self._offers_private)
            case Model.KIND:
                self._models[key] = _parse_versions(live)
            case DeployedModel.KIND:
                self._deployed_models[key] = taken = _parse_deployed_model(live)
                self._of_model.setdefault((key[0], taken.server.model), set()).add(key[1])
                self._of_endpoint.setdefault((key[0], taken.server.endpoint), set()).add(key[1])

    def remove(self, kind: str, key: _Key) -> None:
        """An object is gone."""
        match kind:
            case Endpoint.KIND:
                self._endpoints.pop(key, None)
            case Model.KIND:
                self._models.pop(key, None)
            case DeployedModel.KIND:
                if gone := self._deployed_models.pop(key, None):
                    _discard(self._of_model, (key[0], gone.server.model), key[1])
                    _discard(self._of_endpoint, (key[0], gone.server.endpoint), key[1])

    def remove_missing(self, kind: str, namespace: str | None, there: Collection[_Key]) -> None:
        """A list of one namespace, or of all, has told what is there: the rest is gone."""
        shelves: dict[str, Iterable[_Key]] = {
            Endpoint.KIND: self._endpoints,
            Model.KIND: self._models,
            DeployedModel.KIND: self._deployed_models,
        }
        for key in [key for key in shelves[kind] if namespace in (None, key[0]) and key not in there]:
            self.remove(kind, key)

    def find(self, prediction: Prediction, namespace: str) -> Route:
        """Raises NotFoundError where a gateway would have no route."""
        if prediction.resource == "endpoints":
            endpoint = self._endpoints.get((namespace, prediction.name))
            if endpoint is None or not endpoint.is_offered:
                raise NotFoundError(f"there is no endpoint {prediction.name} in the project {prediction.project}")
            return self._leave_out_others(endpoint)
        return self._find_model_route(prediction, namespace)

    def find_carried(self, name: str, namespace: str, *, private: bool) -> Route | None:
        """The route of an endpoint that the public gateway carries, or the private one; None where there is none."""
        found = self._endpoints.get((namespace, name))
        return self._leave_out_others(found) if found and _is_carried(found.endpoint, private=private) else None

    def explain_unserved(self, name: str, namespace: str) -> Refusal:
        """What is told of an endpoint whose route has no weights."""
        found = {one: self._deployed_models[namespace, one] for one in self._of_endpoint.get((namespace, name), ())}
        causes = {one: deployed_model.cause for one, deployed_model in found.items() if not deployed_model.leaves}
        return explain_refusal(self._endpoints[namespace, name].endpoint, causes)

    def knows(self, prediction: Prediction, namespace: str) -> bool:
        """Whether there is such an endpoint or model, be it served or not."""
        shelf = self._endpoints if prediction.resource == "endpoints" else self._models
        return (namespace, prediction.name) in shelf

    def _leave_out_others(self, found: _Endpoint) -> Route:
        """An endpoint's route without DeployedModels that are another one's by now, which its status learns later.

        One that is gone stays: its pods answer until the status says otherwise.
        """
        route, name = found.route, found.endpoint.name
        there = {one: self._deployed_models.get((route.namespace, one)) for one in route.weights}
        others = {
            one for one, deployed_model in there.items() if deployed_model and deployed_model.server.endpoint != name
        }
        if not others:
            return route
        return replace(route, weights={one: weight for one, weight in route.weights.items() if one not in others})

    def _find_model_route(self, prediction: Prediction, namespace: str) -> Route:
        versions = self._models.get((namespace, prediction.name), {})
        version = versions.get(prediction.version or "", "")
        weights = self._find_serving(namespace, prediction.name, versions.values()).get(version)
        if not weights:
            what = f"version {prediction.version}" if prediction.version else "the default version"
            raise NotFoundError(f"nobody serves {what} of the model {prediction.told_name}")
        timeout = ClientConnectionConfig().inference_timeout_seconds
        return Route(namespace, weights, timeout, max_request_bytes=None)

    def _find_serving(self, namespace: str, model: str, versions: Collection[str]) -> Mapping[str, dict[str, int]]:
        there = self._of_model.get((namespace, model), ())
        servers = {name: self._deployed_models[namespace, name].server for name in there}
        found = {server.endpoint: self._endpoints.get((namespace, server.endpoint)) for server in servers.values()}
        offered = {name for name, endpoint in found.items() if endpoint and endpoint.is_offered}
        return find_serving(model, versions, servers, offered)


def _is_carried(endpoint: Endpoint, *, private: bool) -> bool:
    """Whether an endpoint is the public gateway's, or the private one's."""
    return is_offered(endpoint, offers_private=private) and (endpoint.spec.access == "Private") == private


def _discard(index: dict[_Key, set[str]], place: _Key, name: str) -> None:
    index[place].discard(name)
    if not index[place]:
        del index[place]


def _key(live: Manifest) -> _Key:
    return live["metadata"]["namespace"], live["metadata"]["name"]


def _parse_endpoint(live: Manifest, offers_private: bool) -> _Endpoint:
    endpoint = Endpoint.model_validate(_strip(live))
    spec = endpoint.spec
    route = Route(
        endpoint.namespace,
        {name: weight for name, weight in endpoint.status.traffic_split.items() if weight},
        spec.client_connection_config.inference_timeout_seconds,
        spec.max_request_bytes,
    )
    return _Endpoint(endpoint, route, is_offered(endpoint, offers_private=offers_private))


def _strip(live: Manifest) -> Manifest:
    """`live` without what others write on it: it stays in memory."""
    unread = ("annotations", "labels", "managedFields")
    return {**live, "metadata": {name: value for name, value in live["metadata"].items() if name not in unread}}


def _parse_versions(live: Manifest) -> dict[str, str]:
    model = Model.model_validate(live)
    if model.metadata.deletion_timestamp:
        return {}
    return {**name_versions(model), "": model.spec.default_version}


def _parse_deployed_model(live: Manifest) -> _DeployedModel:
    dm = DeployedModel.model_validate(live)
    return _DeployedModel(describe_server(dm), dm.metadata.deletion_timestamp is not None, find_cause(dm))
