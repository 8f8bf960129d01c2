"""The listener's HTTP routes: transport only, no torch, no numpy, and no look into a body."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pierhead_server import VERSION
from pierhead_server.budget import Budget
from pierhead_server.compression import COMPRESSED_BYTES, accepts_gzip, compress, parse_content_encoding
from pierhead_server.connection import SKIP_BYTES, Headers
from pierhead_server.errors import (
    ApiError,
    InternalError,
    InvalidArgumentError,
    SlowUploadError,
    UnavailableError,
)
from pierhead_server.intake import Body, CallerGoneError, Intake, IntakePolicy
from pierhead_server.messages import Call, Dialect, Reply
from pierhead_server.openapi import describe_api
from pierhead_server.protocol import ServedModel, encode_error, shape_error
from pierhead_server.settings import Settings
from pierhead_server.signature import describe_model
from pierhead_server.telemetry import Asked, Telemetry
from pierhead_server.workers import Workers

# How a reason begins that the operator puts into the DeployedModel's conditions, as those of a StartupError.
DIES = "ModelProcessDies"
_USUAL_URL = 1024  # bytes; longer ones are not remembered
_CLIENT_GONE = 499  # what nginx made customary; nobody reads it but the metrics


class Listener:
    """The routes' handlers and what they share."""

    def __init__(self, settings: Settings, served: ServedModel, workers: Workers, telemetry: Telemetry) -> None:
        self._intake = Intake(_make_policy(settings), workers)
        self._openapi = msgspec.json.encode(describe_api(VERSION, max_instances=settings.max_instances))
        self._served = served
        self._workers = workers
        self._telemetry = telemetry
        telemetry.metrics.watch_intake(lambda: self._intake.reading, lambda: workers.budget.held)
        telemetry.metrics.watch_form_reason(lambda: workers.form_reason)
        self.draining = False
        self.head_seconds = settings.head_timeout_seconds

    @property
    def was_ready(self) -> bool:
        """Whether a model was ever loaded, so that clients may have been sent here."""
        return self._workers.signature is not None

    # Probes and descriptions

    async def healthz(self, request: Request) -> Response:
        """Alive: 200 from the first moment on, 503 once there will be no model again."""
        if self._workers.failure:
            return _refuse(request, UnavailableError(self._workers.failure))
        return _json({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """200 while the model answers predictions and more of them are welcome."""
        return self._when_ready(request, {"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        """Prometheus' text format."""
        return Response(self._telemetry.metrics.expose(), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, _: Request) -> Response:
        """The description of all routes."""
        return Response(self._openapi, media_type="application/json")

    async def kserve_live(self, request: Request) -> Response:
        """KServe V1: as `healthz`."""
        if self._workers.failure:
            return _refuse(request, UnavailableError(self._workers.failure))
        return _json({"status": "alive"})

    async def kserve_models(self, _: Request) -> Response:
        """KServe V1: the models, of which there is one."""
        return _json({"models": [self._served.name]})

    async def kserve_model(self, request: Request) -> Response:
        """KServe V1: whether the model is ready."""
        return self._when_ready(request, {"name": self._served.name, "ready": True})

    async def oip_server(self, _: Request) -> Response:
        """OIP: what this server is."""
        extensions = ["binary_tensor_data", "classification"]
        return _json({"name": "pierhead", "version": VERSION, "extensions": extensions})

    async def oip_live(self, request: Request) -> Response:
        """OIP: as `healthz`."""
        if self._workers.failure:
            return _refuse(request, UnavailableError(self._workers.failure))
        return _json({"live": True})

    async def oip_ready(self, request: Request) -> Response:
        """OIP: as `readyz`."""
        return self._when_ready(request, {"ready": True})

    async def oip_model_ready(self, request: Request) -> Response:
        """OIP: as `readyz`."""
        return self._when_ready(request, {"name": self._served.name, "ready": True})

    async def oip_model(self, request: Request) -> Response:
        """OIP: the model's inputs and outputs, known once it is loaded; and why it stays in its quick form."""
        if not self._workers.signature:
            return _refuse(request, UnavailableError(self._workers.failure or self._workers.not_ready or ""))
        described = describe_model(self._served.name, self._served.version, self._workers.signature)
        if reason := self._workers.form_reason:
            described["parameters"] = {"form_reason": reason}
        return _json(described)

    def _when_ready(self, request: Request, body: Mapping[str, object]) -> Response:
        reason = self._explain_unready()
        return _refuse(request, UnavailableError(reason)) if reason else _json(body)

    def _explain_unready(self) -> str | None:
        if self.draining:
            return "the server is shutting down"
        if self._workers.failure:
            return self._workers.failure
        # Before what a process that is away just now makes of it: the operator shall not read a new cause each time.
        return f"{DIES}: {dying}" if (dying := self._workers.dying) else self._workers.not_ready

    # Predictions

    def refuse(self, headers: Mapping[bytes, bytes]) -> ApiError | None:
        """Why a request is refused before anything is done for it; None: it may go on, and may still be refused."""
        try:
            self._workers.check_capacity()
            self._intake.check(_parse_length(headers))
        except ApiError as error:
            return error
        return None

    def tell(self, asked: Asked, error: ApiError) -> Reply:
        """The answer to a request that was refused so."""
        with self._telemetry.request(asked) as seen:
            return seen.refused(error)

    async def predict(self, asked: Asked, body: Body) -> Reply:
        """Answer one prediction request of any dialect."""
        with self._telemetry.request(asked) as seen:
            try:
                if asked.dialect == "probe":
                    call = self._make_probe()
                else:
                    call = self._check(asked)
                    seen.reads()
                    call = msgspec.structs.replace(call, body=await self._intake.read(body))
                seen.submitted(call)
                reply = await _wait(self._workers.submit(call), body.receive)
                seen.answered(reply)
                if reply.joined and call.accepts_gzip:
                    reply = await asyncio.to_thread(compress, reply)
            except ApiError as error:
                return seen.refused(error)
            except CallerGoneError:
                reply = Reply(_CLIENT_GONE, b"")
            seen.sent(reply)
            return reply

    @property
    def budget(self) -> Budget:
        """The bytes of all requests."""
        return self._workers.budget

    def _make_probe(self) -> Call:
        """The worker puts the model's own sample into it. A model that is away is not waited for."""
        if reason := self._workers.failure or self._workers.not_ready:
            raise UnavailableError(reason)
        return Call("probe", b"")

    def _check(self, asked: Asked) -> Call:
        """The call without its body. What can be refused without one, is: it is not even asked for."""
        headers = asked.headers
        self._workers.check_capacity()
        content_type = headers.get(b"content-type", b"application/json").decode("latin-1")
        length = _parse_header_length(headers) if asked.dialect == "oip" else None
        encoding = parse_content_encoding(headers[b"content-encoding"]) if b"content-encoding" in headers else ""
        gzip = b"accept-encoding" in headers and accepts_gzip(headers[b"accept-encoding"])
        return Call(asked.dialect, b"", content_type, length, asked.location, encoding, gzip)


def _by_name(headers: Headers) -> dict[bytes, bytes]:
    """The last of each name; but an encoding that is told in several lines is a list."""
    by_name = dict(headers)
    if len(by_name) < len(headers) and b"content-encoding" in by_name:
        by_name[b"content-encoding"] = b",".join(value for name, value in headers if name == b"content-encoding")
    return by_name


def _make_policy(settings: Settings) -> IntakePolicy:
    return IntakePolicy(
        queue_size=settings.queue_size,
        body_bytes=settings.max_request_bytes,
        least_pace=settings.min_upload_rate,
        grace_seconds=settings.upload_grace_seconds,
    )


def _parse_length(headers: Mapping[bytes, bytes]) -> int | None:
    """How long the body is; None where that is not said."""
    declared = headers.get(b"content-length", b"")
    return int(declared) if declared.isdigit() else None


def _parse_header_length(headers: Mapping[bytes, bytes]) -> int | None:
    """Of OIP's binary extension: how much of the body is JSON."""
    value = headers.get(b"inference-header-content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise InvalidArgumentError("Inference-Header-Content-Length: must be a whole number of bytes")
    return int(value)


async def _wait(future: "asyncio.Future[Reply]", receive: Receive) -> Reply:
    """The answer; or, when the caller goes first, the job is given up. Raises CallerGoneError."""
    gone = asyncio.ensure_future(_hear_disconnect(receive))
    gone.add_done_callback(lambda _: future.cancel())
    try:
        return await future
    except asyncio.CancelledError:
        if gone.done():
            raise CallerGoneError from None
        raise
    finally:
        gone.cancel()


async def _hear_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Predict:
    """One prediction route, as an ASGI application: a Request and a Response cost more than all else here."""

    def __init__(self, listener: Listener, dialect: Dialect, route: str) -> None:
        self._listener = listener
        self._dialect = dialect
        self._route = route

    @property
    def reads(self) -> bool:
        """Whether a request here has a body."""
        return self._dialect != "probe"

    def ask(self, path: str, location: str, headers: Mapping[bytes, bytes]) -> Asked:
        """What a request to this route asks for."""
        return Asked(self._dialect, self._route, path, headers, location)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, predict, answer."""
        asked = self.ask(scope["path"], scope["path_params"].get("location", ""), _by_name(scope["headers"]))
        body = Body(_parse_length(asked.headers), receive)
        reply = await self._listener.predict(asked, body)
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()]
        headers.append((b"content-length", b"%d" % len(reply.body)))
        # The next request of a draining server's caller goes to a new connection, and so to a server that stays.
        if self._listener.draining or body.left > SKIP_BYTES or reply.code == SlowUploadError.code:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.code, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})


class Gate:
    """What connections ask before they make a request of what comes."""

    def __init__(self, listener: Listener, app: Starlette) -> None:
        self._listener = listener
        self._routes = [
            (route.path_regex, route.endpoint)
            for route in app.routes
            if isinstance(route, Route) and isinstance(route.endpoint, Predict) and route.endpoint.reads
        ]
        self._find = lru_cache(maxsize=1024)(self._match)  # clients ask the same few paths again and again

    @property
    def draining(self) -> bool:
        """Whether a connection is closed after its answer."""
        return self._listener.draining

    @property
    def head_seconds(self) -> float:
        """How long a request's head may take."""
        return self._listener.head_seconds

    def refuse(self, method: bytes, url: bytes, headers: Headers) -> Reply | None:
        """The answer to a prediction request that its headers alone refuse; None for all that go on."""
        if method != b"POST" or (found := self._find(url) if len(url) < _USUAL_URL else self._match(url)) is None:
            return None
        by_name = _by_name(headers)
        error = self._listener.refuse(by_name)
        if error is None:
            return None
        route, path, location = found
        return self._listener.tell(route.ask(path, location, by_name), error)

    @property
    def budget(self) -> Budget:
        """The bytes of all requests."""
        return self._listener.budget

    def _match(self, url: bytes) -> tuple[Predict, str, str] | None:
        path = url.partition(b"?")[0].decode("latin-1")
        for regex, endpoint in self._routes:
            if found := regex.match(path):
                return endpoint, path, found.groupdict().get("location", "")
        return None  # or it is written in a way that the router understands: it refuses as well


def _json(body: Mapping[str, object]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


def _refuse(request: Request, error: ApiError) -> Response:
    reply = shape_error(_dialect_of(request.scope["path"]), error)
    return Response(reply.body, status_code=reply.code, headers=reply.headers)


def _dialect_of(path: str) -> Dialect:
    """Whose form of error a path's client expects, where no route is reached."""
    if path == "/v2" or path.startswith("/v2/"):
        return "oip"
    if path.startswith("/v1/models"):
        return "kserve"
    if path.startswith("/v1/projects/") and "/locations/" not in path:
        return "aiplatform"
    return "vertex"


async def _http_error(request: Request, error: Exception) -> Response:
    """404, 405 and the like, which the framework answers."""
    assert isinstance(error, HTTPException)
    status = {404: "NOT_FOUND", 405: "UNIMPLEMENTED"}.get(error.status_code, "UNKNOWN")
    dialect = _dialect_of(request.scope["path"])
    if dialect == "aiplatform":
        dialect = "vertex"  # AI Platform tells errors of predictions by a message; all others are Google's objects
    body = encode_error(dialect, error.status_code, status, error.detail)
    return Response(body, error.status_code, error.headers, media_type="application/json")


async def _bug(request: Request, _: Exception) -> Response:
    """An exception that nobody expected: the framework logs it, the caller learns no details."""
    return _refuse(request, InternalError("an error inside the server; its log says more"))


class _NameConvertor(Convertor[str]):
    """A resource's name in a path: what follows a colon is a verb."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("name", _NameConvertor())

_VERTEX = "/v1/projects/{project}/locations/{location}/endpoints/{endpoint:name}"
_AI_PLATFORM = "/v1/projects/{project}/models/{model:name}"
_KSERVE = "/v1/models/{model:name}"
_OIP = "/v2/models/{model:name}"


def create_app(listener: Listener) -> Starlette:
    """The application. Predictions come first: a request is compared with one route after another."""
    predictions: dict[str, Dialect] = {
        f"{_VERTEX}:predict": "vertex",
        f"{_VERTEX}:rawPredict": "raw",
        f"{_AI_PLATFORM}:predict": "aiplatform",
        f"{_AI_PLATFORM}/versions/{{version:name}}:predict": "aiplatform",
        f"{_KSERVE}:predict": "kserve",
        f"{_OIP}/infer": "oip",
        f"{_OIP}/versions/{{version:name}}/infer": "oip",
        "/v1/probe": "probe",
    }
    descriptions: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/healthz": listener.healthz,
        "/readyz": listener.readyz,
        "/metrics": listener.metrics,
        "/openapi.json": listener.openapi,
        "/": listener.kserve_live,
        "/v1/models": listener.kserve_models,
        _KSERVE: listener.kserve_model,
        "/v2": listener.oip_server,
        "/v2/health/live": listener.oip_live,
        "/v2/health/ready": listener.oip_ready,
        _OIP: listener.oip_model,
        f"{_OIP}/ready": listener.oip_model_ready,
        f"{_OIP}/versions/{{version:name}}": listener.oip_model,
        f"{_OIP}/versions/{{version:name}}/ready": listener.oip_model_ready,
    }
    compressed = [Middleware(GZipMiddleware, minimum_size=COMPRESSED_BYTES, compresslevel=1)]
    routes = [
        Route(path, Predict(listener, dialect, path.replace(":name}", "}")), methods=["POST"])
        for path, dialect in predictions.items()
    ]
    routes += [Route(path, answer, methods=["GET"], middleware=compressed) for path, answer in descriptions.items()]
    handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _bug}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app
