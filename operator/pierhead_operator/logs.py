"""Logs on stderr: one JSON object a line, or plain text for a person at a terminal.

What is logged while a resource is looked after names it. Objects' contents are never told.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from pythonjsonlogger.json import JsonFormatter

logger = logging.getLogger(__name__)

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# What kopf adds to the records of its own: its settings, and a reference to the object that its message names anyway.
_KOPF_FIELDS = ("settings", "k8s_ref", "k8s_skip")

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default={})  # noqa: B039  # nobody writes into it


@contextmanager
def about(kind: str, namespace: str, name: str) -> Iterator[None]:
    """What this task logs inside is about this resource."""
    token = _about.set({"kind": kind, "namespace": namespace, "name": name})
    try:
        yield
    finally:
        _about.reset(token)


class _Formatter(JsonFormatter):
    """`time`, `severity`, `logger` and `message`; `kind`, `namespace` and `name` of a resource; `exception`."""

    def __init__(self) -> None:
        super().__init__(
            ["asctime", "levelname", "name", "message"],
            rename_fields={"asctime": "time", "levelname": "severity", "name": "logger", "exc_info": "exception"},
            reserved_attrs=[*vars(logging.makeLogRecord({})), *_KOPF_FIELDS, "asctime", "message"],
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - logging's
        """RFC 3339, in UTC and milliseconds."""
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """A line's fields, with the resource that it is about."""
        return {**log_data, **_about.get()}


def configure_logging(*, json: bool) -> None:
    """All that this process logs, from now on: also warnings, and exceptions that nobody caught."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter() if json else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # Else a line for each event of each object.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logger.critical("the process ends by an exception", exc_info=(kind, error, trace))
