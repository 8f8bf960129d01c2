"""What the server tells Prometheus. `docs/model-server.md` lists the names."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from pierhead_server.logs import Tally, count_dropped
from pierhead_server.messages import Dialect, Reply
from pierhead_server.protocol import ServedModel

logger = logging.getLogger(__name__)

_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PART_SECONDS = (0.0001, 0.0005, *_REQUEST_SECONDS)  # of a request's parts, some of which take next to nothing
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)

# Refused by the server as it is, without a look at the instances.
_REJECTIONS = {408: "too_slow", 413: "too_large", 429: "queue_full", 503: "unavailable"}
_BYTES_FULL = "bytes_full"  # a 429, too
_MOST_REASON = 300  # characters of a label


class Outcome:
    """What became of one request; `code` is set before it ends."""

    def __init__(self, in_flight: Gauge) -> None:
        self.code = 500
        self.rejection: str | None = None  # where the code does not tell it
        self.start = time.perf_counter()
        self._in_flight = in_flight
        self._counts = False
        self.go_on()

    def wait_for_body(self) -> None:
        """How long that takes is the client's own affair: no reason for another replica, and no latency of ours."""
        if self._counts:
            self._counts = False
            self._in_flight.dec()

    def go_on(self) -> None:
        """There is nothing (more) to be waited for."""
        if not self._counts:
            self._counts = True
            self.start = time.perf_counter()
            self._in_flight.inc()

    def end(self) -> float:
        """It is answered; the seconds that it took."""
        if self._counts:
            self._in_flight.dec()
        return time.perf_counter() - self.start


class _FormReason(Collector):
    """Why the model stays in its quick form, which its label tells; without a series where there is no reason."""

    def __init__(self) -> None:
        self.read: Callable[[], str | None] = lambda: None

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Asked for whenever metrics are."""
        family = GaugeMetricFamily(
            "pierhead_model_not_compiled",
            "1 while the model stays in its quick form because there is no compiled one, with the reason.",
            labels=["reason"],
        )
        if reason := self.read():
            family.add_metric([reason[:_MOST_REASON]], 1)
        yield family


class _LinesDropped(Collector):
    """What of this process's log nobody took in time."""

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Asked for whenever metrics are."""
        text = "Lines of the log that were dropped because nobody took them in time."
        yield CounterMetricFamily("pierhead_log_lines_dropped", text, value=count_dropped())


class Metrics:
    """One server's metrics, in a registry of its own."""

    def __init__(self, served: ServedModel) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of when counting began
        self._served = served
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_LinesDropped())
        self._make_request_metrics()
        self._make_model_metrics()

    def _make_request_metrics(self) -> None:
        self._requests = Counter(
            "pierhead_predict_requests", "Predict requests answered.", ["code", "dialect"], registry=self.registry
        )
        self._latency = self._make_histogram(
            "pierhead_predict_request_duration_seconds",
            "From a predict request's last byte to its answer.",
            _REQUEST_SECONDS,
            ["dialect"],
        )
        self._rejected = Counter(
            "pierhead_predict_requests_rejected",
            "Predict requests refused without a look at their instances.",
            ["reason"],
            registry=self.registry,
        )
        for reason in (*_REJECTIONS.values(), _BYTES_FULL):
            self._rejected.labels(reason)
        self._in_flight = Gauge(
            "pierhead_predict_requests_in_flight", "Predict requests being answered.", registry=self.registry
        )
        self._reading = Gauge(
            "pierhead_predict_requests_reading", "Predict requests whose body is coming.", registry=self.registry
        )
        self._held_bytes = Gauge(
            "pierhead_predict_requests_bytes",
            "Bytes that requests take: while they are read, wait and are computed.",
            registry=self.registry,
        )
        self._instances = self._make_histogram(
            "pierhead_predict_instances", "Instances in a predict request that the model computed.", _COUNTS
        )
        self._queue_length = Gauge(
            "pierhead_queue_length", "Predict requests that wait for the model.", registry=self.registry
        )
        self._queue_seconds = self._make_histogram(
            "pierhead_queue_duration_seconds", "How long a predict request waited for the model.", _PART_SECONDS
        )

    def _make_model_metrics(self) -> None:
        self._batch = self._make_histogram(
            "pierhead_batch_size", "Of each predict request, how many requests were in its batch.", _COUNTS
        )
        seconds = self._make_histogram(
            "pierhead_model_duration_seconds",
            "What a predict request cost a worker, by stage; of the forward pass its share of the batch.",
            _PART_SECONDS,
            ["stage"],
        )
        # Looked up once: a request has microseconds for this.
        self._parse_seconds = seconds.labels("parse")
        self._prepare_seconds = seconds.labels("prepare")
        self._forward_seconds = seconds.labels("forward")
        self._non_finite = Counter(
            "pierhead_predict_non_finite_numbers",
            "NaN and Infinity that the model gave, which JSON has as null.",
            registry=self.registry,
        )
        self._non_finite_tally = Tally(logger.warning, "the model gave %d numbers that are NaN or Infinity")
        self.workers = Gauge("pierhead_workers", "Processes that compute.", registry=self.registry)
        self.restarts = Counter(
            "pierhead_model_process_restarts",
            "Times a process of the model died and was started anew.",
            registry=self.registry,
        )
        self._dies = Gauge(
            "pierhead_model_process_dies",
            "1 while the server is not ready because processes of the model die again and again.",
            registry=self.registry,
        )
        self._info = Gauge(
            "pierhead_model_info",
            "Always 1; the labels say what is served, and in which form.",
            ["deployed_model_id", "model", "model_version_id", "form"],
            registry=self.registry,
        )
        self._form_reason = _FormReason()
        self.registry.register(self._form_reason)

    def _make_histogram(
        self, name: str, help_text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(name, help_text, labels, buckets=buckets, registry=self.registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Read the queue's length from here whenever it is asked for."""
        self._queue_length.set_function(length)

    def watch_intake(self, reading: Callable[[], int], held: Callable[[], int]) -> None:
        """Read from here, whenever it is asked for, how many bodies are being read, and what all requests hold."""
        self._reading.set_function(reading)
        self._held_bytes.set_function(held)

    def watch_deaths(self, dies: Callable[[], bool]) -> None:
        """Read from here, whenever it is asked for, whether deaths of the model's processes keep the server away."""
        self._dies.set_function(dies)

    def watch_form_reason(self, reason: Callable[[], str | None]) -> None:
        """Read from here, whenever it is asked for, why the model stays in its quick form; None: it does not."""
        self._form_reason.read = reason

    def set_form(self, form: str) -> None:
        """What computes from now on: quick, compiled or cuda."""
        served = self._served
        self._info.clear()
        self._info.labels(served.deployed_model_id, served.model, served.model_version_id, form).set(1)

    @contextmanager
    def request(self, dialect: Dialect = "vertex") -> Iterator[Outcome]:
        """Measure one predict request."""
        outcome = Outcome(self._in_flight)
        try:
            yield outcome
        finally:
            self._latency.labels(dialect).observe(outcome.end())
            self._requests.labels(str(outcome.code), dialect).inc()
            if reason := outcome.rejection or _REJECTIONS.get(outcome.code):
                self._rejected.labels(reason).inc()

    def observe_reply(self, reply: Reply) -> None:
        """What one answered call cost, and how sound its answer was."""
        if reply.non_finite:
            self._non_finite.inc(reply.non_finite)
            self._non_finite_tally.add(reply.non_finite)
        self._queue_seconds.observe(reply.queue_seconds)
        self._batch.observe(reply.batch)
        self._parse_seconds.observe(reply.parse_seconds)
        if reply.instances:  # none where the request was wrong, and the model never saw it
            self._instances.observe(reply.instances)
            self._prepare_seconds.observe(reply.prepare_seconds)
            self._forward_seconds.observe(reply.forward_seconds)

    def expose(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
