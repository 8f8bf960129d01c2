"""What one request leaves behind: numbers for Prometheus, a span, and for some a line in the log."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pierhead_server.errors import ApiError, RequestBytesFullError
from pierhead_server.logs import AnsweredRequest, RequestLog
from pierhead_server.messages import Call, Dialect, Reply
from pierhead_server.metrics import Metrics, Outcome
from pierhead_server.protocol import shape_error
from pierhead_server.tracing import RequestSpan, Tracer

_REQUEST_ID = re.compile(rb"[\w.:/+=-]{1,128}")  # a gateway's; a client may send anything


@dataclass(frozen=True)
class Asked:
    """A prediction request, before its body was read."""

    dialect: Dialect
    route: str  # a path with names in braces
    path: str
    headers: Mapping[bytes, bytes]
    location: str = ""  # that the path names, where it names one


class Seen:
    """What is known of one request by now."""

    def __init__(self, asked: Asked, outcome: Outcome, span: RequestSpan) -> None:
        self.code = 500  # until an answer says otherwise
        self.bytes_in = 0
        self.bytes_out = 0
        self.instances = 0
        self._asked = asked
        self._outcome = outcome
        self._span = span

    def reads(self) -> None:
        """Its body is waited for."""
        self._outcome.wait_for_body()

    def submitted(self, call: Call) -> None:
        """The call goes to the workers' queue now."""
        self.bytes_in = len(call.body)
        self._outcome.go_on()
        self._span.submitted()

    def refused(self, error: ApiError) -> Reply:
        """The answer is this error."""
        reply = shape_error(self._asked.dialect, error)
        self.sent(reply)
        if isinstance(error, RequestBytesFullError):
            self._outcome.rejection = "bytes_full"
        return reply

    def answered(self, reply: Reply) -> None:
        """A worker's answer is there now."""
        self.instances = reply.instances
        self._span.answered(reply)

    def sent(self, reply: Reply) -> None:
        """This is what the caller gets."""
        self.code, self.bytes_out = reply.code, len(reply.body)


class Telemetry:
    """Where requests are told of."""

    def __init__(self, metrics: Metrics, tracer: Tracer, log: RequestLog) -> None:
        self.metrics = metrics
        self._tracer = tracer
        self._log = log

    @contextmanager
    def request(self, asked: Asked) -> Iterator[Seen]:
        """Measure one request, from here to the end of the block."""
        start = time.perf_counter()
        with (
            self.metrics.request(asked.dialect) as outcome,
            self._tracer.request(asked.headers, asked.route) as span,
        ):
            seen = Seen(asked, outcome, span)
            try:
                yield seen
            finally:
                outcome.code = seen.code
                span.finished(seen.code)
                if self._log.wants(seen.code, asked.dialect):
                    seconds = time.perf_counter() - start
                    self._log.write(_describe(asked, seen, seconds, span.trace_id))

    def shutdown(self) -> None:
        """Send what is not yet sent; blocks for a few seconds at most."""
        self._tracer.shutdown()


def _describe(asked: Asked, seen: Seen, seconds: float, trace_id: str) -> AnsweredRequest:
    """What the log tells."""
    request_id = asked.headers.get(b"x-request-id", b"")
    return AnsweredRequest(
        method="POST",
        path=asked.path,
        dialect=asked.dialect,
        code=seen.code,
        seconds=seconds,
        instances=seen.instances,
        bytes_in=seen.bytes_in,
        bytes_out=seen.bytes_out,
        trace_id=trace_id,
        request_id=request_id.decode() if _REQUEST_ID.fullmatch(request_id) else "",
    )
