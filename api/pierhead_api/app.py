"""The API over HTTP: paths, bodies and errors. What it answers, services say that know nothing of HTTP."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, quote

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pierhead_api.access import Authentication
from pierhead_api.authorize import Authorizer
from pierhead_api.bodies import Bodies
from pierhead_api.errors import (
    ApiError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
    UnservedError,
)
from pierhead_api.forward import Forwarder
from pierhead_api.identity import Identity
from pierhead_api.metrics import Metrics
from pierhead_api.names import Place, Projects
from pierhead_api.predictions import Prediction, parse_prediction
from pierhead_api.routes import OPERATION_VERBS, VERBS, Body, Request, Services, Verb
from pierhead_api.streaming import BrokenAnswerError
from pierhead_api.transport import (
    CallerGoneError,
    MethodNotAllowedError,
    explain,
    make_answer,
    make_error_answer,
)
from pierhead_api.unrouted import Unrouted
from pierhead_api.unsupported import find_unsupported
from pierhead_api.wire import BETA_MARK, to_beta

logger = logging.getLogger(__name__)
audit = logging.getLogger("pierhead_api.audit")

_CLIENT_GONE = 499  # what nginx made customary; nobody reads it but the metrics
_SERVER_ERROR = 500
_REFUSALS = (401, 403)
_UNSERVED = "unserved"  # a resource for the metrics, and for the alert that does not mean it
_LISTS_AT_ONCE = 3  # of each a page of Kubernetes and an answer are held
_TURN_SECONDS = 20.0
_MOST_PATH = 500  # characters of a path in a line of the log
_AUTHORIZE = "/authorize"
_PRIVATE = "/private"  # where the private gateway leads, to which nothing else of the API is open
_PROBES = ("/healthz", "/readyz", "/metrics")
_PROJECT = "/projects/{project:part}"
_BETA = "/v1beta1/"
_PREFIXES = {"/v1": VERBS, "/v1beta1": VERBS, "/ui": OPERATION_VERBS}

MakeServices = Callable[[str], Services]


class _PartConvertor(Convertor[str]):
    """A resource's id in a path: what follows a colon is a verb."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _ParentConvertor(_PartConvertor):
    """What an operation is about, as its name has it."""

    regex = "(?:endpoints|models)/[^/:]+"


register_url_convertor("part", _PartConvertor())
register_url_convertor("parent", _ParentConvertor())


@dataclass(frozen=True)
class Parts:
    """What the API is made of."""

    identity: Identity
    authentication: Authentication
    projects: Projects
    authorizer: Authorizer
    unrouted: Unrouted
    forwarder: Forwarder
    metrics: Metrics
    make_services: MakeServices  # of a token
    explain_unready: Callable[[], str]  # empty once requests are welcome
    management: ASGIApp | None = None  # who answers all else than predictions; None: this process itself


@dataclass
class _Seen:
    """What becomes of a request."""

    verb: str = "unknown"
    resource: str = "none"
    code: int = 0  # 0 while nothing was answered
    user: str = ""  # as Kubernetes knows the caller, where it was asked
    managed: bool = False  # whether it is no prediction
    relayed: bool = False  # whether another process answered, which tells of it


class Application:
    """The whole API, as an ASGI application."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._probes = _make_probes(parts)
        self._management = parts.management or _make_management(parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, whatever happens."""
        started, seen = time.monotonic(), _Seen()

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.code = message["status"]
                if self.parts.explain_unready():
                    # The caller's next request goes to a new connection, and so to a process that stays.
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        scope["pierhead"] = seen
        scope["app"] = self  # has the framework raise what it would answer by itself
        try:
            await self._answer(scope, receive, tell)
        except CallerGoneError:
            seen.code = seen.code or _CLIENT_GONE
        except BrokenAnswerError as error:
            # The server closes a connection on which an answer was not ended.
            logger.warning("%s: %s", _show(scope), error)
        except Exception as error:
            if seen.code:
                raise
            if isinstance(error, UnservedError):
                seen.resource = _UNSERVED
            await _refuse(error, scope, receive, tell)
        finally:
            if not seen.relayed:
                self.parts.metrics.observe(seen.verb, seen.resource, seen.code, time.monotonic() - started)
                if seen.managed or seen.code in _REFUSALS:
                    _audit(scope, seen)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        # Predictions come first: they are the many.
        if prediction := parse_prediction(path):
            await self._predict(prediction, scope, receive, send)
        elif path.startswith(f"{_PRIVATE}/"):
            await self._refuse_private(path.removeprefix(_PRIVATE), scope)
        elif path == _AUTHORIZE or path.startswith(f"{_AUTHORIZE}/"):
            await self._authorize(path.removeprefix(_AUTHORIZE), scope, receive, send)
        elif path in _PROBES:
            await self._probes(scope, receive, send)
        else:
            await self._management(scope, receive, send)

    async def _predict(self, prediction: Prediction, scope: Scope, receive: Receive, send: Send) -> None:
        seen: _Seen = scope["pierhead"]
        seen.verb, seen.resource = prediction.verb, prediction.resource
        _check_method(scope)
        unrouted, path = self.parts.unrouted, scope["path"]
        unrouted.check_served(prediction, path)
        with unrouted.asking(prediction, path):
            namespace = await self.parts.authorizer.check(prediction, dict(scope["headers"]))
        await self.parts.forwarder.forward(prediction, namespace, scope, receive, send)

    async def _refuse_private(self, path: str, scope: Scope) -> None:
        """Why the private gateway has no route for a path: raises ApiError."""
        prediction = parse_prediction(path)
        if prediction is None:
            raise NotFoundError("there is no such path")
        seen: _Seen = scope["pierhead"]
        seen.verb, seen.resource = prediction.verb, prediction.resource
        _check_method(scope)
        if self.parts.unrouted.asks:
            await self.parts.authorizer.check(prediction, dict(scope["headers"]))
        raise self.parts.unrouted.explain_private(prediction, path)

    async def _authorize(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """What a gateway asks before it sends a request on."""
        seen: _Seen = scope["pierhead"]
        seen.verb, seen.resource = "authorize", "predictions"
        await self.parts.authorizer.check_for_gateway(path, dict(scope["headers"]))
        await Response()(scope, receive, send)


def _audit(scope: Scope, seen: _Seen) -> None:
    """Who did what, and what came of it: never a body, an error's words or a token."""
    verb = f"{seen.resource}.{seen.verb}"
    user = seen.user.encode("unicode_escape").decode()  # an identity provider's: no line of its own
    fields = {"user": user, "verb": verb, "request": _show(scope), "code": seen.code}
    audit.info("%s by %s: %d", fields["request"], user or "nobody", seen.code, extra=fields)


def _check_method(scope: Scope) -> None:
    if scope["method"] != "POST":
        raise MethodNotAllowedError("predictions are asked for by POST")


def _make_probes(parts: Parts) -> Router:
    """What Kubernetes and Prometheus ask."""

    async def healthz(_: HttpRequest) -> Response:
        return make_answer({"status": "ok"})

    async def readyz(_: HttpRequest) -> Response:
        if reason := parts.explain_unready():
            raise UnavailableError(reason)
        return make_answer({"status": "ok"})

    async def metrics(_: HttpRequest) -> Response:
        return Response(parts.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    answers = zip(_PROBES, (healthz, readyz, metrics), strict=True)
    return Router([Route(path, answer, methods=["GET"]) for path, answer in answers], redirect_slashes=False)


def _make_management(parts: Parts) -> Router:
    """Everything but predictions. What it cannot answer, it raises."""
    bodies, lists = Bodies(), asyncio.Semaphore(_LISTS_AT_ONCE)
    return Router(
        [
            Route(f"{prefix}{_PROJECT}{verb.path}", _Managed(verb, parts, bodies, lists), methods=[verb.method])
            for prefix, served in _PREFIXES.items()
            for verb in served
        ],
        redirect_slashes=False,
    )


class _Managed:
    """One verb, as an ASGI application."""

    def __init__(self, verb: Verb, parts: Parts, bodies: Bodies, lists: asyncio.Semaphore) -> None:
        self._verb = verb
        self._parts = parts
        self._bodies = bodies
        self._lists = lists

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen: _Seen = scope["pierhead"]
        seen.verb, seen.resource, seen.managed = self._verb.name, self._verb.resource, True
        headers, names = dict(scope["headers"]), scope["path_params"]
        token = await self._parts.identity.find_token(headers)
        seen.user = await self._parts.authentication.find_user(token)
        beta = scope["path"].startswith(_BETA) or names.get("id", "").endswith(BETA_MARK)
        place = replace(_find_place(self._parts.projects, names), beta=beta)
        names = {key: value.removesuffix(BETA_MARK) for key, value in names.items()}
        request = Request(place, names, dict(parse_qsl(scope["query_string"].decode("latin-1"))), {})
        services = self._parts.make_services(token)
        if self._verb.method in ("POST", "PATCH"):
            # By now it is somebody's: nobody's bytes are held.
            async with self._bodies.read(seen.user, headers, receive) as body:
                answering = self._verb.handle(services, replace(request, body=body))
                # What writes is done to its end, whoever waits for it.
                answer = await (_unless_gone(answering, receive) if self._verb.name == "wait" else answering)
        elif self._verb.name.startswith("list"):
            async with _take_turn(self._lists):
                answer = await self._verb.handle(services, request)
        else:
            answer = await self._verb.handle(services, request)
        if beta:
            answer = to_beta(answer)
        await make_answer(answer or {})(scope, receive, send)


@asynccontextmanager
async def _take_turn(turns: asyncio.Semaphore) -> AsyncIterator[None]:
    """Within, one of so many; raises ResourceExhaustedError where the others take long."""
    try:
        async with asyncio.timeout(_TURN_SECONDS):
            await turns.acquire()
    except TimeoutError as error:
        raise ResourceExhaustedError("too many lists are being read: try again later") from error
    try:
        yield
    finally:
        turns.release()


async def _unless_gone(answering: Awaitable[Body | None], receive: Receive) -> Body | None:
    """The answer; raises CallerGoneError, and ends the work, once nobody waits for it. The body was received."""
    work, gone = asyncio.ensure_future(answering), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise CallerGoneError
        return work.result()
    finally:
        work.cancel()
        gone.cancel()


def _find_place(projects: Projects, names: Mapping[str, str]) -> Place:
    """Where a path leads; AI Platform's know no location."""
    if "location" in names:
        return projects.find_place(names["project"], names["location"])
    return projects.find_default_place(names["project"])


async def _refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    told = _tell_framework(error, scope) if isinstance(error, HTTPException) else explain(error)
    if told.code >= _SERVER_ERROR and not isinstance(told, UnservedError | UnimplementedError):
        logger.warning("%s: %d: %s", _show(scope), told.code, told)
    await make_error_answer(told)(scope, receive, send)


def _tell_framework(error: HTTPException, scope: Scope) -> ApiError:
    """404 and 405, which the framework finds; 501 for what Vertex AI has at such a path."""
    if name := find_unsupported(scope["path"]):
        return UnimplementedError(f"{name} of Vertex AI is not supported: docs/api.md has the list of what is")
    if error.status_code == MethodNotAllowedError.code:
        return MethodNotAllowedError(f"{scope['method']} is not what this path is asked for by")
    return NotFoundError("there is no such path")


def _show(scope: Scope) -> str:
    """A request, for the log: without its query, and as it was sent, so that no path makes lines of its own."""
    return f"{scope['method']} {quote(scope['path'], safe='/:@')[:_MOST_PATH]}"
