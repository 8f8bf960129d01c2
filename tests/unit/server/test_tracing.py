"""Traces: sent where the environment says so, as children of the caller's, and never in the way of a request."""

import contextlib
import gzip
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pierhead_server import tracing
from pierhead_server.messages import Reply
from pierhead_server.tracing import make_tracer

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {b"traceparent": f"00-{TRACE}-b7ad6b7169203331-01".encode(), b"tracestate": b"gateway=1"}
ROUTE = "/v1/models/{model}:predict"
REPLY = Reply(200, b"", instances=3, parse_seconds=0.25, prepare_seconds=0.5, forward_seconds=1.0)


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP; while it is `closed` no answer comes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths = set()
        self.resources = []
        self.spans = []
        self.closed = threading.Event()
        self.opened = threading.Event()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self):
        self.server.paths.add(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        if self.server.closed.is_set():
            self.server.opened.wait()
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resources.append(read_attributes(part.resource.attributes))
            self.server.spans += [span for scope in part.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Tests speak for themselves."""


def read_attributes(attributes):
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in attributes}


@pytest.fixture
def collector(monkeypatch):
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        yield collector
        collector.opened.set()
        collector.shutdown()
        thread.join()


@contextlib.contextmanager
def making_tracer(collector, **attributes):
    tracer = make_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}, attributes)
    try:
        yield tracer
    finally:
        tracer.shutdown()


def predict(tracer, headers=HEADERS, code=200):
    with tracer.request(headers, ROUTE) as span:
        span.submitted()
        span.answered(msgspec.structs.replace(REPLY, batch=4))
        span.finished(code)
        return span.trace_id


def test_request_is_a_child_of_its_callers_span(collector):
    with making_tracer(collector, deployed="photos-2", empty="") as tracer:
        assert predict(tracer) == TRACE
    assert collector.paths == {"/v1/traces"}
    request = next(span for span in collector.spans if span.kind == span.SPAN_KIND_SERVER)
    assert (request.name, request.trace_id.hex(), request.parent_span_id.hex()) == (
        f"POST {ROUTE}",
        TRACE,
        "b7ad6b7169203331",
    )
    assert request.trace_state == "gateway=1"
    assert read_attributes(request.attributes) == {
        "http.request.method": "POST",
        "http.route": ROUTE,
        "http.response.status_code": 200,
        "pierhead.instances": 3,
    }
    assert request.status.code == request.status.STATUS_CODE_UNSET
    resource = collector.resources[0]
    assert (resource["service.name"], resource["deployed"], "empty" in resource) == (
        "pierhead-server",
        "photos-2",
        False,
    )


def test_queue_and_compute_are_its_children(collector):
    with making_tracer(collector) as tracer:
        predict(tracer)
    spans = {span.name: span for span in collector.spans}
    request, queue, compute = spans[f"POST {ROUTE}"], spans["queue"], spans["compute"]
    assert queue.parent_span_id == compute.parent_span_id == request.span_id
    moments = [request.start_time_unix_nano, queue.start_time_unix_nano, queue.end_time_unix_nano]
    moments += [compute.start_time_unix_nano, compute.end_time_unix_nano, request.end_time_unix_nano]
    assert moments == sorted(moments)
    assert read_attributes(compute.attributes) == {
        "pierhead.batch_size": 4,
        "pierhead.parse_seconds": 0.25,
        "pierhead.prepare_seconds": 0.5,
        "pierhead.forward_seconds": 1.0,
    }


def test_request_without_a_callers_span_is_a_root(collector):
    with making_tracer(collector) as tracer:
        traces = {predict(tracer, {}), predict(tracer, {b"traceparent": b"nonsense"})}
    roots = {span.trace_id.hex() for span in collector.spans if span.kind == span.SPAN_KIND_SERVER}
    assert roots == traces
    assert len(traces) == 2


def test_servers_error_is_an_error_and_a_callers_is_none(collector):
    with making_tracer(collector) as tracer:
        predict(tracer, code=400)
        predict(tracer, code=503)
    requests = [span for span in collector.spans if span.kind == span.SPAN_KIND_SERVER]
    status = {read_attributes(span.attributes)["http.response.status_code"]: span.status.code for span in requests}
    assert status == {400: requests[0].status.STATUS_CODE_UNSET, 503: requests[0].status.STATUS_CODE_ERROR}


def test_caller_that_wants_no_trace_gets_none(collector):
    with making_tracer(collector) as tracer:
        assert predict(tracer, {b"traceparent": HEADERS[b"traceparent"][:-1] + b"0"}) == TRACE
    assert collector.spans == []


def test_exception_is_recorded_and_raised(collector):
    with making_tracer(collector) as tracer, pytest.raises(ZeroDivisionError), tracer.request({}, ROUTE):
        raise ZeroDivisionError
    assert [event.name for event in collector.spans[0].events] == ["exception"]


def test_exit_does_not_wait_for_a_collector_that_is_stuck(collector, monkeypatch, caplog):
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.1)
    collector.closed.set()
    with making_tracer(collector) as tracer:
        predict(tracer)
    assert "the last traces are lost" in caplog.text


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_traced_where_nobody_asked(environ):
    tracer = make_tracer(environ)
    assert type(tracer) is tracing.Tracer
    assert predict(tracer) == TRACE  # for the log
    assert predict(tracer, {}) == predict(tracer, {b"traceparent": b"00-zz"}) == ""
    tracer.shutdown()


def test_unknown_protocol_is_warned_of(collector, caplog):
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    make_tracer(environ).shutdown()
    assert "http/protobuf, not by grpc" in caplog.text


def test_sdk_is_not_imported_where_nobody_asked():
    program = (
        "import sys; from pierhead_server.tracing import make_tracer; make_tracer({}).shutdown();"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
