"""Logs on stderr: one JSON object a line, or plain text for a person at a terminal.

Only what happened is told: never what a request or an answer held.
"""

import contextlib
import logging
import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from queue import SimpleQueue
from types import TracebackType
from urllib.parse import quote

from pythonjsonlogger.json import JsonFormatter

logger = logging.getLogger(__name__)
_requests = logging.getLogger("pierhead_server.requests")

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_MOST_PATH = 500  # characters
_PROBE = "probe"  # the dialect of who asks whether the model answers
_SERVER_ERROR = 500
_MOST_LINES = 8192  # that wait to be written, some 4 MB
_FLUSH_SECONDS = 2.0  # for what waits when the process ends


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


class BoundedHandler(QueueHandler):
    """Hands lines to a thread that writes them: who logs never waits for whoever reads them.

    What finds no room is dropped, and counted. Half of the room is for warnings and errors alone.
    """

    def __init__(self, descriptor: int, most: int = _MOST_LINES) -> None:
        self._lines: SimpleQueue[str | threading.Event] = SimpleQueue()
        super().__init__(self._lines)
        # Not by sys.stderr: its lock, held by a thread that waits for a reader, would abort the process at its end.
        self._descriptor = descriptor
        self._most = most
        self._without_room = self._failed = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    @property
    def dropped(self) -> int:
        """Lines that were not written, and will not be."""
        return self._without_room + self._failed

    def emit(self, record: logging.LogRecord) -> None:
        most = self._most if record.levelno >= logging.WARNING else self._most // 2
        if self._lines.qsize() >= most:
            self._without_room += 1
        else:
            super().emit(record)

    def prepare(self, record: logging.LogRecord) -> str:
        """The line: what a record is made of may have changed when it is written."""
        return self.format(record)

    def flush(self) -> None:
        """Wait until what was logged is written, for a moment at most."""
        written = threading.Event()
        self._lines.put(written)
        written.wait(_FLUSH_SECONDS)

    def _write(self) -> None:
        tally = Tally(self._tell, "%d lines of the log were dropped: nobody took them in time")
        told = 0
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            try:
                _write_all(self._descriptor, f"{line}\n".encode(errors="backslashreplace"))
            except OSError:  # nobody is there
                self._failed += 1
            if (dropped := self.dropped) != told:
                tally.add(dropped - told)
                told = dropped

    def _tell(self, text: str, count: int) -> None:
        """Itself: who logs waits for this handler's lock, which whoever flushes it may hold."""
        record = logger.makeRecord(logger.name, logging.WARNING, __file__, 0, text, (count,), None)
        with contextlib.suppress(OSError):
            _write_all(self._descriptor, f"{self.format(record)}\n".encode(errors="backslashreplace"))


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def count_dropped() -> int:
    """Lines of this process's log that were dropped."""
    return sum(one.dropped for one in logging.getLogger().handlers if isinstance(one, BoundedHandler))


def flush_logging() -> None:
    """Wait until what this process logged is written, for a moment at most."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def configure_logging(*, level: str, json: bool, bounded: bool = False) -> None:
    """All that this process logs, from now on: also warnings, and exceptions that nobody caught.

    `bounded`: for a process that must not wait for whoever reads its log.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if bounded:
        handler = BoundedHandler(sys.stderr.fileno())
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
    dialect: str
    code: int
    seconds: float
    instances: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    trace_id: str = ""
    request_id: str = ""


class RequestLog:
    """One line for each of a fraction of the requests, and for all that ended in a server's error.

    `every`: for each but probes, whatever the level of other lines is.
    """

    def __init__(self, sample: float, *, every: bool = False) -> None:
        self._sample = sample
        self._every = every
        if every:
            _requests.setLevel(logging.INFO)

    def wants(self, code: int, dialect: str) -> bool:
        """Whether a request of this code and dialect is to be told; asked first, for most are not."""
        if code >= _SERVER_ERROR:
            return True
        if self._every:
            return dialect != _PROBE
        return random.random() < self._sample  # noqa: S311 - no secret

    def write(self, request: AnsweredRequest) -> None:
        """One line."""
        # As it was sent: what a client puts into a path must not make lines of its own.
        path = quote(request.path, safe="/:@!$&'()*+,;=~")[:_MOST_PATH]
        fields = {name: value for name, value in asdict(request).items() if value != ""}
        fields |= {"path": path, "seconds": round(request.seconds, 6)}
        _requests.log(
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
        self,
        tell: Callable[[str, int], object],
        text: str,
        *,
        seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell  # such as a logger's warning
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
            self._tell(self._text, self._count)
            self._count, self._told = 0, now
