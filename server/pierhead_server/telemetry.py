"""What one request leaves behind: numbers for Prometheus, a span, and for some a line in the log."""

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
        self.code = reply.code
        if isinstance(error, RequestBytesFullError):
            self._outcome.rejection = "bytes_full"
        return reply

    def answered(self, reply: Reply) -> None:
        """A worker's answer is there now."""
        self.instances = reply.instances
        self._span.answered(reply)


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
                if self._log.wants(seen.code):
                    seconds = time.perf_counter() - start
                    self._log.write(
                        AnsweredRequest(
                            "POST", asked.path, seen.code, seconds, seen.instances, seen.bytes_in, span.trace_id
                        )
                    )

    def shutdown(self) -> None:
        """Send what is not yet sent; blocks for a few seconds at most."""
        self._tracer.shutdown()
