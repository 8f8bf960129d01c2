"""Everything that can go wrong, by who must act.

A `StartupError` ends the process: its reason and message go to the termination log, from where the operator puts them
into the DeployedModel's conditions. An `ApiError` is the answer to one request, a `ValueTensorError` a part of one.
"""

from typing import ClassVar


class StartupError(Exception):
    """The server cannot serve: `Reason: message` is reported and the process exits with 1."""

    reason: ClassVar[str]


class SettingsInvalidError(StartupError):
    """An environment variable is missing or wrong. Whoever wrote the pod must act."""

    reason = "SettingsInvalid"


class ArtifactNotFoundError(StartupError):
    """Nothing lies under the artifact's URI, or its bucket does not exist. The model's owner must act."""

    reason = "ArtifactNotFound"


class ArtifactInvalidError(StartupError):
    """The artifact is there but cannot be served; the message names the field or file. The model's owner must act."""

    reason = "ArtifactInvalid"


class ArtifactUnreachableError(StartupError):
    """Storage did not answer, or refused, after retries. The environment's owner must act; a restart tries again."""

    reason = "ArtifactUnreachable"


class ModelProcessDiedError(StartupError):
    """The model's process died while loading, or again and again while serving: out of memory, a crash in torch."""

    reason = "ModelProcessDied"


class DriverTooOldError(StartupError):
    """The node's GPU driver is older than torch's CUDA needs. Whoever runs the cluster must act."""

    reason = "DriverTooOld"


class ApiError(Exception):
    """The answer to one request: `{"error": {"code", "message", "status"}}` with Google's status names."""

    code: ClassVar[int]
    status: ClassVar[str]


class InvalidArgumentError(ApiError):
    """The request is wrong: the message names the field and the fix. The caller must act."""

    code = 400
    status = "INVALID_ARGUMENT"


class InstanceError(InvalidArgumentError):
    """One instance is wrong, and with it the whole request; `field` is where inside it, such as `.image[3]`."""

    def __init__(self, index: int, field: str, cause: str) -> None:
        super().__init__(f"instances[{index}]{field}: {cause}")
        self.index = index
        self.field = field
        self.cause = cause

    def behind(self, count: int) -> "InstanceError":
        """The same error, where so many instances come before those it was counted in."""
        return InstanceError(count + self.index, self.field, self.cause)


class BodyTooLargeError(ApiError):
    """The body is over the limit. The caller must send less at once."""

    code = 413
    status = "INVALID_ARGUMENT"


class SlowUploadError(ApiError):
    """The body came too slowly. The caller tries again over a better connection, or sends less."""

    code = 408
    status = "DEADLINE_EXCEEDED"


class UnsupportedEncodingError(ApiError):
    """The body is compressed in a way that the server does not know. The caller sends gzip, or the body as it is."""

    code = 415
    status = "INVALID_ARGUMENT"


class QueueFullError(ApiError):
    """As many requests wait as may wait. The caller tries again after `Retry-After`."""

    code = 429
    status = "RESOURCE_EXHAUSTED"


class RequestBytesFullError(QueueFullError):
    """The requests that are read, wait or are computed take as many bytes as they may together."""


class InternalError(ApiError):
    """The model or its process failed on this request."""

    code = 500
    status = "INTERNAL"


class InstanceFailedError(InternalError):
    """The model failed at one instance, which is not wrong, and with it the whole request."""

    def __init__(self, index: int, cause: str) -> None:
        super().__init__(f"instances[{index}]: {cause}")
        self.index = index
        self.cause = cause

    def behind(self, count: int) -> "InstanceFailedError":
        """The same error, where so many instances come before those it was counted in."""
        return InstanceFailedError(count + self.index, self.cause)


class UnavailableError(ApiError):
    """No model is loaded (yet, or any more). The caller tries again."""

    code = 503
    status = "UNAVAILABLE"


class ValueTensorError(ValueError):
    """A value is not what an input takes; `field` is where inside it, such as `[0][2]`, or empty for all of it.

    Whoever knows the instance it is part of makes an InstanceError of it.
    """

    def __init__(self, field: str, cause: str) -> None:
        super().__init__(f"{field}: {cause}" if field else cause)
        self.field = field
        self.cause = cause

    def within(self, field: str) -> "ValueTensorError":
        """The same error, seen from the value that holds this one as `field`."""
        return ValueTensorError(f"{field}{self.field}", self.cause)


class DeadlineExceededError(ApiError):
    """The model did not answer in time. The caller may try something smaller."""

    code = 504
    status = "DEADLINE_EXCEEDED"


def make_startup_error(reason: str, message: str) -> StartupError:
    """The error that another process reported."""
    known = {family.reason: family for family in StartupError.__subclasses__()}
    return known[reason](message)


_KINDS = {
    bool: "a boolean",
    dict: "an object",
    list: "a list",
    str: "a string",
    bytes: "binary data",
    type(None): "null",
}


def describe_kind(value: object) -> str:
    """What JSON calls the type of a parsed value, for messages."""
    return _KINDS.get(type(value), "a number")
