"""What of HTTP all parts of the API share: the length of a body, and answering with JSON or with an error."""

import logging
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from pierhead_api.errors import (
    ApiError,
    BodyTooLargeError,
    InternalError,
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
