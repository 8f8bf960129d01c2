"""What a gateway would carry, had it a route: while nobody serves an endpoint, its predictions come here."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from pierhead_api.errors import (
    ApiError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnservedError,
    make_refusal,
)
from pierhead_api.names import Projects
from pierhead_api.predictions import Prediction
from pierhead_api.route_table import Route, RouteTable

_CARRIED_VERBS = ("predict", "rawPredict")
_CARRIED_PREFIX = "/v1/"


class Gateway(Enum):
    """What leads to the API what it has no route for."""

    NONE = "none"  # nothing does
    OPEN = "open"  # one that lets predictions pass without a question who asks
    ASKING = "asking"


class Unrouted:
    """Answers for a gateway that has no route yet, or none any more."""

    def __init__(self, table: RouteTable, projects: Projects, gateway: Gateway) -> None:
        self._table = table
        self._projects = projects
        self._gateway = gateway

    @property
    def asks(self) -> bool:
        """Whether the gateway asks who predicts."""
        return self._gateway is Gateway.ASKING

    def check_served(self, prediction: Prediction, path: str) -> None:
        """Raises ApiError where an open gateway would carry this prediction and nobody serves the endpoint.

        Before any question who asks: that a model is down must not look as if a token were missing.
        """
        route = self._find_open(prediction, path)
        if route and not route.weights:
            raise self._explain(prediction, route)

    @contextmanager
    def asking(self, prediction: Prediction, path: str) -> Iterator[None]:
        """Within, a caller whom an open gateway lets pass is told to come again instead of being refused."""
        try:
            yield
        except (UnauthenticatedError, PermissionDeniedError):
            route = self._find_open(prediction, path)
            if route is None:
                raise
            raise self._explain(prediction, route) from None

    def explain_private(self, prediction: Prediction, path: str) -> ApiError:
        """What the private gateway's clients are told of what it has no route for."""
        route = None if self._gateway is Gateway.NONE else self._find(prediction, path, private=True)
        return self._explain(prediction, route) if route else NotFoundError("there is no such path")

    def _find_open(self, prediction: Prediction, path: str) -> Route | None:
        return self._find(prediction, path, private=False) if self._gateway is Gateway.OPEN else None

    def _find(self, prediction: Prediction, path: str, *, private: bool) -> Route | None:
        """The route of a prediction by just the paths that the operator gives a gateway."""
        carried = prediction.verb in _CARRIED_VERBS and path.startswith(_CARRIED_PREFIX)
        if not carried or prediction.location is None:
            return None
        try:
            place = self._projects.find_place(prediction.project, prediction.location)
        except ApiError:
            return None
        if place.namespace != prediction.project:
            return None
        return self._table.find_carried(prediction.name, place.namespace, private=private)

    def _explain(self, prediction: Prediction, route: Route) -> ApiError:
        if route.weights:
            return UnservedError(f"the gateway has no route to {prediction.name} yet")
        return make_refusal(self._table.explain_unserved(prediction.name, route.namespace))
