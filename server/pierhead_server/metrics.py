"""What the server tells Prometheus. `docs/model-server.md` lists the names."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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

from pierhead_server.messages import Reply
from pierhead_server.protocol import ServedModel

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class Outcome:
    """What became of one request; `code` is set before it ends."""

    code: int = 500


class Metrics:
    """One server's metrics, in a registry of its own."""

    def __init__(self, served: ServedModel) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of when counting began
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "pierhead_predict_requests", "Predict requests answered.", ["code"], registry=self._registry
        )
        self._latency = Histogram(
            "pierhead_predict_request_duration_seconds",
            "From a predict request's first byte in the server to its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._in_flight = Gauge(
            "pierhead_predict_requests_in_flight", "Predict requests being answered.", registry=self._registry
        )
        self._queue_length = Gauge(
            "pierhead_queue_length", "Predict requests that wait for the model.", registry=self._registry
        )
        self.model_seconds = Histogram(
            "pierhead_model_duration_seconds",
            "Decoding, preprocessing and the model's forward pass, for one batch.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.restarts = Counter(
            "pierhead_model_process_restarts",
            "Times the model's process died and was started anew.",
            registry=self._registry,
        )
        self.workers = Gauge("pierhead_workers", "Processes that compute.", registry=self._registry)
        self._served = served
        self._info = Gauge(
            "pierhead_model_info",
            "Always 1; the labels say what is served, and in which form.",
            ["deployed_model_id", "model", "model_version_id", "form"],
            registry=self._registry,
        )

    def set_form(self, form: str) -> None:
        """What computes from now on: quick, compiled or cuda."""
        served = self._served
        self._info.clear()
        self._info.labels(served.deployed_model_id, served.model, served.model_version_id, form).set(1)

    def observe_reply(self, reply: Reply, queue_seconds: float, batch: int) -> None:
        """What one answered call cost."""
        del queue_seconds, batch
        self.model_seconds.observe(reply.prepare_seconds + reply.forward_seconds)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Read the queue's length from here whenever it is asked for."""
        self._queue_length.set_function(length)

    @contextmanager
    def request(self) -> Iterator[Outcome]:
        """Measure one predict request."""
        outcome, start = Outcome(), time.perf_counter()
        self._in_flight.inc()
        try:
            yield outcome
        finally:
            self._in_flight.dec()
            self._latency.observe(time.perf_counter() - start)
            self._requests.labels(str(outcome.code)).inc()

    def expose(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
