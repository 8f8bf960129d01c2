"""Everything that can end a batch worker or fail one of its lines, by who must act.

A `StartupError` ends the worker, with `EXIT_USER` where no retry would help and `EXIT_ENVIRONMENT` where one may.
A `LineError` becomes one line of the errors file.
"""

from pierhead_server.errors import (
    ArtifactInvalidError,
    ArtifactNotFoundError,
    SettingsInvalidError,
    StartupError,
)

EXIT_USER = 65  # sysexits' EX_DATAERR: Kubernetes shall not try again
EXIT_ENVIRONMENT = 75  # sysexits' EX_TEMPFAIL: it shall


class InputNotFoundError(StartupError):
    """An input URI names nothing, or its pattern matches nothing. The job's owner must act."""

    reason = "InputNotFound"


class InputInvalidError(StartupError):
    """An input file cannot be read as what it should be, or is another one than at the start. The job's owner acts."""

    reason = "InputInvalid"


class OutputNotWritableError(StartupError):
    """The output's bucket does not exist, or refuses; or other output is there. The job's owner must act."""

    reason = "OutputNotWritable"


class StorageUnreachableError(StartupError):
    """Storage did not answer, after retries. The environment's owner must act; a restart tries again."""

    reason = "StorageUnreachable"


_USERS = (
    SettingsInvalidError,
    ArtifactNotFoundError,
    ArtifactInvalidError,
    InputNotFoundError,
    InputInvalidError,
    OutputNotWritableError,
)


def exit_code(error: StartupError) -> int:
    """What the process ends with: whether Kubernetes shall try again."""
    return EXIT_USER if isinstance(error, _USERS) else EXIT_ENVIRONMENT


class RefusedError(Exception):
    """Storage answers, and not to us; or it cannot do what is asked; or the installation does not allow it.

    Who asked makes one of the others of it.
    """


class MalformedError(RefusedError):
    """What was asked for is no object that can be read: its address or its size is wrong."""


class LineError(Exception):
    """One line cannot be predicted; `code` is one of google.rpc.Code, and `told` the line, if it is JSON."""

    def __init__(self, code: int, message: str, told: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.told = told


INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
INTERNAL = 13
UNAVAILABLE = 14

_CODES = {400: INVALID_ARGUMENT, 413: INVALID_ARGUMENT, 429: RESOURCE_EXHAUSTED, 503: UNAVAILABLE}


def to_rpc_code(http: int) -> int:
    """google.rpc.Code of what the model answered."""
    return DEADLINE_EXCEEDED if http == 504 else _CODES.get(http, INTERNAL)
