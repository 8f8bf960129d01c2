"""What of HTTP all parts of the API share: reading a body, and answering with JSON or with an error."""

import logging
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json, to_json
from starlette.responses import Response
from starlette.types import Receive

from pierhead_api.errors import (
    ApiError,
    BodyTooLargeError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnauthenticatedError,
)

logger = logging.getLogger(__name__)

_JSON = "application/json; charset=utf-8"
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="kubernetes"'}


class MethodNotAllowedError(ApiError):
    """The path is one of ours, and is not asked for that way."""

    code = 405
    status = "UNIMPLEMENTED"


class CallerGoneError(Exception):
    """Nobody waits for the answer any more."""


def make_answer(body: Mapping[str, Any]) -> Response:
    """200 with this."""
    return Response(to_json(body), media_type=_JSON)


def make_error_answer(error: ApiError) -> Response:
    """The error as Google tells it."""
    headers: dict[str, str] = _CHALLENGE if isinstance(error, UnauthenticatedError) else {}
    if seconds := getattr(error, "retry_after", None):
        headers = {"Retry-After": str(seconds)}
    return Response(to_json(error.to_body()), error.code, headers, media_type=_JSON)


def explain(error: Exception) -> ApiError:
    """What the caller is told of an exception; one that nobody expected is logged."""
    if isinstance(error, ApiError):
        return error
    logger.error("a request failed by a bug", exc_info=error)
    return InternalError("an error inside the API; its log says more")


def check_length(headers: Mapping[bytes, bytes], limit: int) -> None:
    """Raises BodyTooLargeError where the declared length is over the limit, before any of the body is read."""
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise too_large(limit)


def too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is over {limit} bytes: send less in a request")


class BodyReader:
    """Reads the bodies of management calls, which are held as a whole while they come."""

    def __init__(self, limit: int, most_held: int) -> None:
        """`limit` is of one body, `most_held` of all that are being read, of clients however slow: both in bytes."""
        self._limit = limit
        self._most_held = most_held
        self._held = 0

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive) -> dict[str, Any]:
        """The object that a body holds, an empty one of no body.

        Raises InvalidArgumentError, BodyTooLargeError, ResourceExhaustedError.
        """
        check_length(headers, self._limit)
        pieces: list[bytes] = []
        more = True
        try:
            while more:
                more = await self._receive(receive, pieces)
                if sum(map(len, pieces)) > self._limit:
                    raise too_large(self._limit)
        finally:
            self._held -= sum(map(len, pieces))
        return parse_object(b"".join(pieces))

    async def _receive(self, receive: Receive, pieces: list[bytes]) -> bool:
        """Adds the next piece; whether there are more."""
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerGoneError
        pieces.append(message.get("body", b""))
        self._held += len(pieces[-1])
        if self._held > self._most_held:
            raise ResourceExhaustedError("too many large requests are being read: try again later")
        return bool(message.get("more_body", False))


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in a body; an empty one of nothing. Raises InvalidArgumentError."""
    if not data.strip():
        return {}
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidArgumentError(f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidArgumentError("the body must be a JSON object")
    return body
