"""Logs on stderr: one JSON object a line, or plain text for a person at a terminal.

Only what happened is told: never what a request or an answer held.
"""

import logging
import math
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType
from urllib.parse import quote

from pythonjsonlogger.json import JsonFormatter

logger = logging.getLogger(__name__)

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_MOST_PATH = 500  # characters
_SERVER_ERROR = 500


class _JsonFormatter(JsonFormatter):
    """`time`, `severity`, `logger`, `message` and `pid`; then a record's own fields, and `exception`."""

    def __init__(self) -> None:
        super().__init__(
            ["asctime", "levelname", "name", "message", "process"],
            rename_fields={
                "asctime": "time",
                "levelname": "severity",
                "name": "logger",
                "process": "pid",
                "exc_info": "exception",
            },
            # uvicorn's messages come a second time, with colours.
            reserved_attrs=[*vars(logging.makeLogRecord({})), "color_message", "asctime", "message"],
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - logging's
        """RFC 3339, in UTC and milliseconds."""
        moment = datetime.fromtimestamp(record.created, UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def configure_logging(*, level: str, json: bool) -> None:
    """All that this process logs, from now on: also warnings, and exceptions that nobody caught."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if json else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None, thread: str = "the process"
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logger.critical("%s ends by an exception", thread, exc_info=(kind, error, trace))


def _log_uncaught_in_thread(caught: threading.ExceptHookArgs) -> None:
    error = caught.exc_value or caught.exc_type()
    _log_uncaught(caught.exc_type, error, caught.exc_traceback, f"thread {caught.thread.name if caught.thread else ''}")


@dataclass(frozen=True)
class AnsweredRequest:
    """What the log tells of one request."""

    method: str
    path: str  # without its query
    code: int
    seconds: float
    instances: int = 0
    bytes_in: int = 0
    trace_id: str = ""


class RequestLog:
    """One line for each of a fraction of the requests, and for all that ended in a server's error."""

    def __init__(self, sample: float) -> None:
        self._sample = sample

    def wants(self, code: int) -> bool:
        """Whether a request of this code is to be told; asked first, for most are not."""
        return code >= _SERVER_ERROR or random.random() < self._sample  # noqa: S311 - no secret

    def write(self, request: AnsweredRequest) -> None:
        """One line."""
        # As it was sent: what a client puts into a path must not make lines of its own.
        path = quote(request.path, safe="/:@!$&'()*+,;=~")[:_MOST_PATH]
        fields = {name: value for name, value in asdict(request).items() if value != ""}
        fields |= {"path": path, "seconds": round(request.seconds, 6)}
        logging.getLogger("pierhead_server.requests").log(
            logging.ERROR if request.code >= _SERVER_ERROR else logging.INFO,
            "%s %s: %d in %.3f s",
            request.method,
            path,
            request.code,
            request.seconds,
            extra=fields,
        )


class Tally:
    """Tells how many of something there were, at once and then at most once in a while."""

    def __init__(
        self, told_by: logging.Logger, text: str, *, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = told_by
        self._text = text  # with a %d for how many since it was told last
        self._seconds = seconds
        self._clock = clock
        self._count = 0
        self._told = -math.inf

    def add(self, count: int) -> None:
        """So many more."""
        self._count += count
        now = self._clock()
        if now - self._told >= self._seconds:
            self._logger.warning(self._text, self._count)
            self._count, self._told = 0, now
