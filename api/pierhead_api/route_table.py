"""Who serves which predictions, as the watches have told."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from pierhead_operator.resources import Manifest
from pierhead_operator.routing import Refusal, explain_refusal
from pierhead_operator.schema import Resource
from pierhead_operator.status import AVAILABLE, find_cause
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


@dataclass(frozen=True)
class _Serving:
    """What of a DeployedModel the paths of its Model need, and who asks why nobody serves."""

    model: str
    version: str
    endpoint: str
    serves: bool
    leaves: bool
    cause: str  # why it does not serve


@dataclass(frozen=True)
class _Endpoint:
    endpoint: Endpoint
    route: Route
    private: bool


class RouteTable:
    """The routes of all that is watched."""

    def __init__(self, *, offers_private: bool) -> None:
        """`offers_private`: whether Private endpoints are routed too; behind a gateway others carry those."""
        self._offers_private = offers_private
        self._endpoints: dict[_Key, _Endpoint] = {}
        self._models: dict[_Key, dict[str, str]] = {}  # versions by their names and aliases; the default one by ""
        self._serving: dict[_Key, _Serving] = {}
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
                self._endpoints[key] = _parse_endpoint(live)
            case Model.KIND:
                self._models[key] = _parse_versions(live)
            case DeployedModel.KIND:
                self._serving[key] = serving = _parse_serving(live)
                self._of_model.setdefault((key[0], serving.model), set()).add(key[1])
                self._of_endpoint.setdefault((key[0], serving.endpoint), set()).add(key[1])

    def remove(self, kind: str, key: _Key) -> None:
        """An object is gone."""
        match kind:
            case Endpoint.KIND:
                self._endpoints.pop(key, None)
            case Model.KIND:
                self._models.pop(key, None)
            case DeployedModel.KIND:
                if gone := self._serving.pop(key, None):
                    _discard(self._of_model, (key[0], gone.model), key[1])
                    _discard(self._of_endpoint, (key[0], gone.endpoint), key[1])

    def replace(self, kind: str, namespace: str | None, there: Iterable[Manifest]) -> None:
        """A list's word, of one namespace or of all: what it does not have is gone."""
        found = {_key(live): live for live in there}
        shelves: dict[str, Iterable[_Key]] = {
            Endpoint.KIND: self._endpoints,
            Model.KIND: self._models,
            DeployedModel.KIND: self._serving,
        }
        for key in [key for key in shelves[kind] if namespace in (None, key[0]) and key not in found]:
            self.remove(kind, key)
        for live in found.values():
            self.put(kind, live)

    def find(self, prediction: Prediction, namespace: str) -> Route:
        """Raises NotFoundError where a gateway would have no route."""
        if prediction.resource == "endpoints":
            endpoint = self._endpoints.get((namespace, prediction.name))
            if endpoint is None or not self._is_offered(endpoint):
                raise NotFoundError(f"there is no endpoint {prediction.name} in the project {prediction.project}")
            return endpoint.route
        return self._find_model_route(prediction, namespace)

    def find_carried(self, name: str, namespace: str, *, private: bool) -> Route | None:
        """The route of an endpoint that the public gateway carries, or the private one; None where there is none."""
        endpoint = self._endpoints.get((namespace, name))
        return endpoint.route if endpoint and endpoint.private == private else None

    def explain_unserved(self, name: str, namespace: str) -> Refusal:
        """What is told of an endpoint whose route has no weights."""
        there = self._of_endpoint.get((namespace, name), set())
        found = {name: self._serving[namespace, name] for name in there}
        causes = {name: serving.cause for name, serving in found.items() if not serving.leaves}
        return explain_refusal(self._endpoints[namespace, name].endpoint, causes)

    def knows(self, prediction: Prediction, namespace: str) -> bool:
        """Whether there is such an endpoint or model, be it served or not."""
        shelf = self._endpoints if prediction.resource == "endpoints" else self._models
        return (namespace, prediction.name) in shelf

    def _find_model_route(self, prediction: Prediction, namespace: str) -> Route:
        versions = self._models.get((namespace, prediction.name), {})
        version = versions.get(prediction.version or "")
        of_model = self._of_model.get((namespace, prediction.name), set())
        serving = {name: 1 for name in sorted(of_model) if version and self._serves((namespace, name), version)}
        if not serving:
            what = f"version {prediction.version}" if prediction.version else "the default version"
            raise NotFoundError(f"nobody serves {what} of the model {prediction.name}")
        timeout = ClientConnectionConfig().inference_timeout_seconds
        return Route(namespace, serving, timeout, max_request_bytes=None)

    def _serves(self, key: _Key, version: str) -> bool:
        serving = self._serving[key]
        if not serving.serves or serving.version != version:
            return False
        endpoint = self._endpoints.get((key[0], serving.endpoint))
        return endpoint is not None and self._is_offered(endpoint)

    def _is_offered(self, endpoint: _Endpoint) -> bool:
        return self._offers_private or not endpoint.private


def _discard(index: dict[_Key, set[str]], place: _Key, name: str) -> None:
    index[place].discard(name)
    if not index[place]:
        del index[place]


def _key(live: Manifest) -> _Key:
    return live["metadata"]["namespace"], live["metadata"]["name"]


def _parse_endpoint(live: Manifest) -> _Endpoint:
    endpoint = Endpoint.model_validate(live)
    spec = endpoint.spec
    route = Route(
        endpoint.namespace,
        {name: weight for name, weight in endpoint.status.traffic_split.items() if weight},
        spec.client_connection_config.inference_timeout_seconds,
        spec.max_request_bytes,
    )
    return _Endpoint(endpoint, route, spec.access == "Private")


def _parse_versions(live: Manifest) -> dict[str, str]:
    spec = Model.model_validate(live).spec
    named = {name: version.name for version in spec.versions for name in (version.name, *version.aliases)}
    return {**named, "": spec.default_version}


def _parse_serving(live: Manifest) -> _Serving:
    dm = DeployedModel.model_validate(live)
    leaves = dm.metadata.deletion_timestamp is not None
    serves = dm.status.is_true(AVAILABLE) and not leaves
    return _Serving(dm.spec.model, dm.status.model_version, dm.spec.endpoint, serves, leaves, find_cause(dm))
