"""What the operator tells Prometheus. `docs/operator.md` lists the names."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

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

from pierhead_operator.types import KINDS

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

# Who must act on an error: whoever runs the cluster (it is retried), or Pierhead's authors.
ErrorReason = Literal["environment", "bug"]


class Metrics:
    """One operator's metrics, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of when counting began
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._make_work_metrics()
        self._make_cluster_metrics()

    def _make_work_metrics(self) -> None:
        self._queue_length = Gauge(
            "pierhead_operator_queue_length", "Resources that wait to be reconciled.", registry=self._registry
        )
        self._queue_seconds = Histogram(
            "pierhead_operator_queue_seconds",
            "How long a resource waited to be reconciled, from its event or its time.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._reconcile_seconds = Histogram(
            "pierhead_operator_reconcile_seconds",
            "How long a reconcile took.",
            ["kind"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._reconcile_errors = Counter(
            "pierhead_operator_reconcile_errors",
            "Reconciles that failed and are tried again.",
            ["kind", "reason"],
            registry=self._registry,
        )
        # The first of a kind is seen as an increase only where there was a 0 before.
        for kind in KINDS:
            for reason in get_args(ErrorReason):
                self._reconcile_errors.labels(kind.KIND, reason)

    def _make_cluster_metrics(self) -> None:
        self._api_requests = Counter(
            "pierhead_operator_api_requests",
            "Requests to the Kubernetes API, without those of watches.",
            ["verb", "kind", "code"],
            registry=self._registry,
        )
        self._api_request_seconds = Histogram(
            "pierhead_operator_api_request_seconds",
            "How long a request to the Kubernetes API took.",
            ["verb"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._leader = Gauge("pierhead_operator_leader", "1 while this process acts.", registry=self._registry)
        self._resync_age = Gauge(
            "pierhead_operator_resync_age_seconds",
            "Seconds since the last resync that went through, or since the start.",
            registry=self._registry,
        )
        self._left = Gauge(
            "pierhead_operator_resources_of_others",
            "Resources that another installation looks after.",
            registry=self._registry,
        )
        self._resources = Gauge(
            "pierhead_operator_resources", "Resources at the last resync.", ["kind"], registry=self._registry
        )

    def watch(
        self, queue_length: Callable[[], float], is_leader: Callable[[], bool], resync_age: Callable[[], float]
    ) -> None:
        """Where to look at each scrape."""
        self._queue_length.set_function(queue_length)
        self._leader.set_function(is_leader)
        self._resync_age.set_function(resync_age)

    def watch_others(self, count_left: Callable[[], float]) -> None:
        """Where to look, at each scrape, for the number of resources that are left to other installations."""
        self._left.set_function(count_left)

    def observe_wait(self, seconds: float) -> None:
        """A key left the queue."""
        self._queue_seconds.observe(seconds)

    @contextmanager
    def time_reconcile(self, kind: str) -> Iterator[None]:
        """Around a reconcile."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._reconcile_seconds.labels(kind).observe(time.monotonic() - start)

    def count_error(self, kind: str, reason: ErrorReason) -> None:
        """A reconcile failed."""
        self._reconcile_errors.labels(kind, reason).inc()

    def observe_request(self, verb: str, kind: str, code: str, seconds: float) -> None:
        """A request to the Kubernetes API is over; `code` is HTTP's, or `none` where no answer came."""
        self._api_requests.labels(verb, kind, code).inc()
        self._api_request_seconds.labels(verb).observe(seconds)

    def set_resources(self, kind: str, count: int) -> None:
        """So many resources of a kind were found."""
        self._resources.labels(kind).set(count)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)
