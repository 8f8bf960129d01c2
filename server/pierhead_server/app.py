"""The listener's HTTP routes: transport only, no torch."""

import asyncio
import logging
from collections.abc import Sequence

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from pierhead_server.errors import ApiError, BodyTooLargeError, InternalError, QueueFullError, UnavailableError
from pierhead_server.metrics import Metrics
from pierhead_server.protocol import Ranking, ServedModel, parse_request, shape_answer, shape_error
from pierhead_server.settings import Settings
from pierhead_server.workers import Workers

logger = logging.getLogger(__name__)

_RETRY_AFTER_SECONDS = "1"
_CLIENT_GONE = 499  # what nginx made customary; nobody reads it but the metrics


class Listener:
    """The routes' handlers and what they share."""

    def __init__(self, settings: Settings, served: ServedModel, workers: Workers, metrics: Metrics) -> None:
        self._settings = settings
        self._served = served
        self._workers = workers
        self._metrics = metrics
        self.draining = False

    @property
    def was_ready(self) -> bool:
        """Whether a model was ever loaded, so that clients may have been sent here."""
        return self._workers.artifact is not None

    async def healthz(self) -> Response:
        """Alive: 200 from the first moment on, 503 once there will be no model again."""
        if self._workers.failure:
            return error_response(UnavailableError(self._workers.failure))
        return JSONResponse({"status": "ok"})

    async def readyz(self) -> Response:
        """200 while the model answers predictions and more of them are welcome."""
        reason = "the server is shutting down" if self.draining else self._workers.failure or self._workers.not_ready
        if reason:
            return error_response(UnavailableError(reason))
        return JSONResponse({"status": "ok"})

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(self._metrics.expose(), media_type=CONTENT_TYPE_LATEST)

    async def predict(self, request: Request) -> Response:
        """Vertex AI's `:predict`."""
        with self._metrics.request() as outcome:
            try:
                response = await self._predict(request)
            except ApiError as error:
                response = error_response(error)
            if self.draining:
                # The caller's next request goes to a new connection, and so to a server that stays.
                response.headers["Connection"] = "close"
            outcome.code = response.status_code
            return response

    async def _predict(self, request: Request) -> Response:
        body = await _read_body(request, self._settings.max_request_bytes)
        parsed = parse_request(body, max_instances=self._settings.max_instances)
        future = self._workers.submit(parsed)
        if not await _answered_in_time(future, request):
            return Response(status_code=_CLIENT_GONE)
        assert self._workers.artifact is not None
        return JSONResponse(shape_answer(future.result(), self._workers.artifact.labels, self._served))


async def _read_body(request: Request, limit: int) -> bytes:
    """The body; raises BodyTooLargeError, where its length is declared before any of it is read."""
    error = BodyTooLargeError(f"the body is over {limit} bytes: send fewer or smaller pictures in a request")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise error
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise error
    return bytes(body)


async def _answered_in_time(future: "asyncio.Future[Sequence[Ranking]]", request: Request) -> bool:
    """Wait for the answer, or for the caller to go; then the job is given up."""
    gone = asyncio.ensure_future(request.receive())  # after the body, only the disconnect is left to come
    try:
        await asyncio.wait((future, gone), return_when=asyncio.FIRST_COMPLETED)
        return future.done()
    finally:
        gone.cancel()
        future.cancel()


def error_response(error: ApiError) -> Response:
    """An error in the form of Google's APIs."""
    headers = {"Retry-After": _RETRY_AFTER_SECONDS} if isinstance(error, QueueFullError) else None
    return JSONResponse(shape_error(error), status_code=error.code, headers=headers)


async def _http_error(_: Request, error: Exception) -> Response:
    """404, 405 and the like, which the framework answers."""
    assert isinstance(error, HTTPException)
    status = {404: "NOT_FOUND", 405: "UNIMPLEMENTED"}.get(error.status_code, "UNKNOWN")
    body = {"error": {"code": error.status_code, "message": error.detail, "status": status}}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _bug(_: Request, __: Exception) -> Response:
    """An exception that nobody expected: the framework logs it, the caller learns no details."""
    return error_response(InternalError("an error inside the server; its log says more"))


def create_app(listener: Listener) -> FastAPI:
    """The application: four routes, and Google's error bodies for everything else."""
    app = FastAPI(title="Pierhead model server", openapi_url=None, redirect_slashes=False)
    app.add_api_route("/healthz", listener.healthz, methods=["GET"])
    app.add_api_route("/readyz", listener.readyz, methods=["GET"])
    app.add_api_route("/metrics", listener.metrics, methods=["GET"])
    predict = "/v1/projects/{project}/locations/{location}/endpoints/{endpoint}:predict"
    app.add_api_route(predict, listener.predict, methods=["POST"])
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    return app
