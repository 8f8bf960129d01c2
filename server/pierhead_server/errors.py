"""Everything that can go wrong, by who must act.

A `StartupError` ends the process: its reason and message go to the termination log, from where the operator puts them
into the DeployedModel's conditions. An `ApiError` is the answer to one request.
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


class ApiError(Exception):
    """The answer to one request: `{"error": {"code", "message", "status"}}` with Google's status names."""

    code: ClassVar[int]
    status: ClassVar[str]


class InvalidArgumentError(ApiError):
    """The request is wrong: the message names the field and the fix. The caller must act."""

    code = 400
    status = "INVALID_ARGUMENT"


class BodyTooLargeError(ApiError):
    """The body is over the limit. The caller must send less at once."""

    code = 413
    status = "INVALID_ARGUMENT"


class QueueFullError(ApiError):
    """As many requests wait as may wait. The caller tries again after `Retry-After`."""

    code = 429
    status = "RESOURCE_EXHAUSTED"


class InternalError(ApiError):
    """The model or its process failed on this request."""

    code = 500
    status = "INTERNAL"


class UnavailableError(ApiError):
    """No model is loaded (yet, or any more). The caller tries again."""

    code = 503
    status = "UNAVAILABLE"
