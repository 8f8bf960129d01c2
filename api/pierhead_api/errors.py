"""Everything that can go wrong with a request, as Google tells it. No transport."""

from typing import Any, ClassVar

from pierhead_operator.routing.rules import RETRY_AFTER_SECONDS, Refusal

# Characters of a message. It may repeat what the caller sent, which can be megabytes.
_MOST_MESSAGE = 4000


class ApiError(Exception):
    """The answer to one request: `code` is HTTP's, `status` the name of google.rpc's code."""

    code: ClassVar[int]
    status: ClassVar[str]

    def __init__(self, message: str = "") -> None:
        super().__init__(_shorten(message))

    def to_body(self) -> dict[str, Any]:
        """Google's error body."""
        details = self.details()
        body = {"code": self.code, "message": str(self), "status": self.status}
        return {"error": {**body, "details": details} if details else body}

    def details(self) -> list[dict[str, Any]]:
        """Google's messages that say more, if any."""
        return []


class InvalidArgumentError(ApiError):
    """The request is wrong: the message names the field and the fix. The caller must act."""

    code = 400
    status = "INVALID_ARGUMENT"

    def __init__(self, message: str, field: str = "") -> None:
        field, message = _shorten(field), _shorten(message)
        super().__init__(f"{field}: {message}" if field else message)
        self._violation = {"field": field, "description": message} if field else None

    def details(self) -> list[dict[str, Any]]:
        if self._violation is None:
            return []
        return [{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [self._violation]}]


class FailedPreconditionError(ApiError):
    """The request is in order and the resource is not in the state for it. The caller must act."""

    code = 400
    status = "FAILED_PRECONDITION"


class UnauthenticatedError(ApiError):
    """There is no token, or none that Kubernetes takes. The caller must act."""

    code = 401
    status = "UNAUTHENTICATED"


class PermissionDeniedError(ApiError):
    """RBAC does not let the caller do it. The caller must ask for the right."""

    code = 403
    status = "PERMISSION_DENIED"


class NotFoundError(ApiError):
    """There is no such resource."""

    code = 404
    status = "NOT_FOUND"


class RequestTimeoutError(ApiError):
    """The caller takes too long to send its request."""

    code = 408
    status = "DEADLINE_EXCEEDED"


class AlreadyExistsError(ApiError):
    """There is a resource of that name."""

    code = 409
    status = "ALREADY_EXISTS"


class AbortedError(ApiError):
    """Somebody else changed the resource since the caller read it, or meanwhile. The caller reads it again."""

    code = 409
    status = "ABORTED"


class ExpiredError(AbortedError):
    """What Kubernetes knew of a list or a watch is too old. `rest` is its token of what is left as it is now, if any.

    Who reads goes on with that, or begins anew.
    """

    def __init__(self, message: str, rest: str = "") -> None:
        super().__init__(message)
        self.rest = rest


class BodyTooLargeError(ApiError):
    """The body is over the limit. The caller must send less at once."""

    code = 413
    status = "INVALID_ARGUMENT"


class ResourceExhaustedError(ApiError):
    """A quota or a limit is reached. The caller tries again, after `retry_after` seconds if told, or asks for more."""

    code = 429
    status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InternalError(ApiError):
    """A bug of ours; the log says more."""

    code = 500
    status = "INTERNAL"


class UnimplementedError(ApiError):
    """Vertex AI has it and Pierhead does not."""

    code = 501
    status = "UNIMPLEMENTED"


class UnavailableError(ApiError):
    """What is needed does not answer now. The caller tries again, after `retry_after` seconds."""

    code = 503
    status = "UNAVAILABLE"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnservedError(UnavailableError):
    """Nobody serves the endpoint now, which its conditions tell: neither the API's fault nor news for its log."""

    def __init__(self, message: str) -> None:
        super().__init__(message, RETRY_AFTER_SECONDS)


def make_refusal(refusal: Refusal) -> ApiError:
    """The error of an endpoint that nobody serves."""
    if refusal.is_temporary:
        return UnservedError(refusal.message)
    return FailedPreconditionError(refusal.message)


class DeadlineExceededError(ApiError):
    """It took longer than it may."""

    code = 504
    status = "DEADLINE_EXCEEDED"


def _shorten(message: str) -> str:
    """`message`, without its middle where it is too long: the field is named first, and the fix last."""
    half = _MOST_MESSAGE // 2
    return message if len(message) <= _MOST_MESSAGE else f"{message[:half]} ... {message[-half:]}"
