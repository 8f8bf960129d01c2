"""Traces by OpenTelemetry, where the environment says where to send them. Elsewhere nothing of its SDK is imported.

`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` turns them on, and the SDK reads its other
standard variables. They are sent as OTLP over HTTP by a thread of their own, out of a bounded queue: what the collector
does not take in time is lost, and no request waits for it.
"""

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from pierhead_server.messages import Reply

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0  # for what is not yet sent when the server ends

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_SERVER_ERROR = 500
_NANOSECONDS = 1_000_000_000


class RequestSpan(Protocol):
    """One request's span, while it is answered."""

    @property
    def trace_id(self) -> str:
        """The trace that it belongs to, its caller's where it said one, in 32 hexadecimal digits; else empty."""
        ...

    def submitted(self) -> None:
        """The call goes to the workers' queue now."""
        ...

    def answered(self, reply: Reply) -> None:
        """The workers' answer is there now."""
        ...

    def finished(self, code: int) -> None:
        """This is what the caller gets."""
        ...


class Tracer:
    """Traces nothing; yet a request's trace is known by what its caller sent."""

    @contextmanager
    def request(self, headers: Mapping[bytes, bytes], route: str, method: str = "POST") -> Iterator[RequestSpan]:
        """A span from here to the end of the block. `headers` by their lower-case names."""
        del route, method
        yield _NoSpan(headers.get(b"traceparent", b""))

    def shutdown(self) -> None:
        """Send what is not yet sent, for at most FLUSH_SECONDS. Blocks."""


class _NoSpan:
    def __init__(self, traceparent: bytes) -> None:
        self._traceparent = traceparent

    @property
    def trace_id(self) -> str:
        found = _TRACEPARENT.fullmatch(self._traceparent)
        return found[1].decode() if found else ""

    def submitted(self) -> None:
        pass

    def answered(self, reply: Reply) -> None:
        pass

    def finished(self, code: int) -> None:
        pass


def make_tracer(environ: Mapping[str, str], attributes: Mapping[str, str] | None = None) -> Tracer:
    """The tracer that the environment asks for; `attributes` describe this server."""
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or disabled or environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return Tracer()
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        logger.warning("traces are sent by http/protobuf, not by %s: see OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    return _SendingTracer(_make_provider(environ, attributes or {}))


def _make_provider(environ: Mapping[str, str], attributes: Mapping[str, str]) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    given = Resource.create({name: value for name, value in attributes.items() if value})
    # What the environment calls the service goes before.
    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = given if named else given.merge(Resource({SERVICE_NAME: "pierhead-server"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class _SendingTracer(Tracer):
    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("pierhead_server")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, headers: Mapping[bytes, bytes], route: str, method: str = "POST") -> Iterator[RequestSpan]:
        from opentelemetry.trace import SpanKind

        carrier = {
            name: headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in headers
        }
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        try:
            yield _RecordingSpan(self, span)
        except BaseException as error:
            span.record_exception(error)
            raise
        finally:
            span.end()

    def child(self, parent: "Span", name: str, start: int, end: int, attributes: Mapping[str, float]) -> None:
        """A span of what is over; times in nanoseconds of the clock of the day."""
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(
            name, context=set_span_in_context(parent), start_time=start, attributes=dict(attributes)
        )
        span.end(end)

    def shutdown(self) -> None:
        # In a thread, for a collector that does not answer would hold up the exit for half a minute.
        flush = threading.Thread(target=self._provider.shutdown, name="flush traces", daemon=True)
        flush.start()
        flush.join(FLUSH_SECONDS)
        if flush.is_alive():
            logger.warning("the last traces are lost: their collector did not take them in %g s", FLUSH_SECONDS)


class _RecordingSpan:
    def __init__(self, tracer: _SendingTracer, span: "Span") -> None:
        self._tracer = tracer
        self._span = span
        self._submitted = 0

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    def submitted(self) -> None:
        self._submitted = time.time_ns()

    def answered(self, reply: Reply) -> None:
        if not self._span.is_recording():
            return
        end = time.time_ns()
        given = min(self._submitted + round(reply.queue_seconds * _NANOSECONDS), end)
        self._tracer.child(self._span, "queue", self._submitted, given, {})
        # One span, for the stages are not moments: of the forward pass a request has a share.
        costs = {
            "pierhead.batch_size": reply.batch,
            "pierhead.parse_seconds": reply.parse_seconds,
            "pierhead.prepare_seconds": reply.prepare_seconds,
            "pierhead.forward_seconds": reply.forward_seconds,
        }
        self._tracer.child(self._span, "compute", given, end, costs)
        self._span.set_attribute("pierhead.instances", reply.instances)

    def finished(self, code: int) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("http.response.status_code", code)
        if code >= _SERVER_ERROR:
            self._span.set_attribute("error.type", str(code))
            self._span.set_status(StatusCode.ERROR)
