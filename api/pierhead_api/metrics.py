"""What the API tells Prometheus. `docs/api.md` lists the names."""

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

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """One process' metrics, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of when counting began
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "pierhead_api_requests",
            "Requests that were answered.",
            ["verb", "resource", "code"],
            registry=self._registry,
        )
        self._request_seconds = Histogram(
            "pierhead_api_request_seconds",
            "How long an answer took.",
            ["verb", "resource"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.forwarding = Gauge(
            "pierhead_api_forwarding", "Predictions that pods are computing.", registry=self._registry
        ).track_inprogress

    def observe(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """A request was answered; `code` is HTTP's, 499 where the caller had left."""
        self._requests.labels(verb, resource, str(code)).inc()
        self._request_seconds.labels(verb, resource).observe(seconds)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)
