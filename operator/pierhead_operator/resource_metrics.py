"""What Prometheus is told of the resources themselves: splits, readiness, rollouts, batch prediction jobs.

It is read at each scrape from what the watches told: that costs no request, and what is gone is told no more.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pierhead_operator import names
from pierhead_operator.resources import Manifest, is_owned
from pierhead_operator.routing import Split, wanted_split
from pierhead_operator.schema import Resource
from pierhead_operator.status import READY, Workload
from pierhead_operator.store import Store
from pierhead_operator.types import BatchPredictionJob, DeployedModel, Endpoint, JobState

R = TypeVar("R", bound=Resource)

_ENDPOINT = ("namespace", "endpoint")
_DEPLOYED_MODEL = (*_ENDPOINT, "deployed_model")
_FAILED = ("JOB_STATE_FAILED", "JOB_STATE_PARTIALLY_SUCCEEDED")


class ResourceMetrics(Collector):
    """Reads the resources at each scrape, one after the other: thousands of them parsed at once would fill the memory.

    Only who acts tells of them: of several operators one is enough, and sums count nothing twice.
    """

    def __init__(self, store: Store, is_leader: Callable[[], bool]) -> None:
        self._store = store
        self._is_leader = is_leader

    def render(self) -> bytes:
        """The text that Prometheus scrapes. With thousands of resources it takes a moment: not for the event loop."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        if not self._is_leader():
            return
        yield from make_deployed_model_metrics((dm, self._find_deployment(dm)) for dm in self._parse(DeployedModel))
        yield from make_endpoint_metrics((endpoint, self._find_wanted(endpoint)) for endpoint in self._parse(Endpoint))
        yield from make_batch_metrics(self._parse(BatchPredictionJob))

    def _parse(self, kind: type[R]) -> Iterator[R]:
        return (kind.model_validate(live) for live in self._store.scan(kind.KIND))

    def _find_deployment(self, dm: DeployedModel) -> Manifest | None:
        found = self._store.get("Deployment", dm.namespace, names.server(dm.name))
        return found if found and is_owned(found, dm) else None

    def _find_wanted(self, endpoint: Endpoint) -> Split | None:
        there = self._store.names(DeployedModel.KIND, endpoint.namespace, names.LABEL_ENDPOINT, endpoint.name)
        return wanted_split(endpoint, there)


def make_endpoint_metrics(found: Iterable[tuple[Endpoint, Split | None]]) -> Iterator[Metric]:
    """Whether each Endpoint is Ready, the wanted split, where it is told, and the effective one.

    A DeployedModel that is in one of the splits is in both.
    """
    ready = GaugeMetricFamily(
        "pierhead_operator_endpoint_ready", "1 where an Endpoint's condition Ready is True.", labels=_ENDPOINT
    )
    wanted, effective = (
        GaugeMetricFamily(f"pierhead_operator_traffic_split_{name}_percent", text, labels=_DEPLOYED_MODEL)
        for name, text in (
            ("wanted", "The share of its Endpoint's traffic that a DeployedModel is wanted to get."),
            ("effective", "The share of its Endpoint's traffic that a DeployedModel gets."),
        )
    )
    for endpoint, split in found:
        labels, now = [endpoint.namespace, endpoint.name], endpoint.status.traffic_split
        ready.add_metric(labels, endpoint.status.is_true(READY))
        for name in sorted({*(split or {}), *now}):
            effective.add_metric([*labels, name], now.get(name, 0))
            if split is not None:
                wanted.add_metric([*labels, name], split.get(name, 0))
    return iter((ready, wanted, effective))


def make_deployed_model_metrics(found: Iterable[tuple[DeployedModel, Manifest | None]]) -> Iterator[Metric]:
    """Whether each DeployedModel is Ready, and how far its Deployment is, which may not be there."""
    ready, *replicas = (
        GaugeMetricFamily(f"pierhead_operator_deployed_model_{name}", text, labels=_DEPLOYED_MODEL)
        for name, text in (
            ("ready", "1 where a DeployedModel's condition Ready is True."),
            ("replicas_wanted", "Replicas that a DeployedModel or its autoscaler asks for."),
            ("replicas_updated", "Replicas of what a DeployedModel asks for now; the others are to be replaced."),
            ("replicas_available", "Replicas of a DeployedModel that answer predictions."),
        )
    )
    for dm, deployment in found:
        labels = [dm.namespace, dm.spec.endpoint, dm.name]
        ready.add_metric(labels, dm.status.is_true(READY))
        wanted = deployment["spec"]["replicas"] if deployment else dm.spec.resources.min_replica_count
        counts = (wanted, Workload(deployment, ()).count("updatedReplicas"), dm.status.available_replica_count)
        for family, count in zip(replicas, counts, strict=True):
            family.add_metric(labels, count)
    return iter((ready, *replicas))


def make_batch_metrics(batches: Iterable[BatchPredictionJob]) -> Iterator[Metric]:
    """How many BatchPredictionJobs there are, in each namespace that has any, and when those that failed did."""
    jobs = GaugeMetricFamily(
        "pierhead_operator_batch_prediction_jobs", "BatchPredictionJobs by their state.", labels=("namespace", "state")
    )
    failed = GaugeMetricFamily(
        "pierhead_operator_batch_prediction_job_failed_timestamp_seconds",
        "When a BatchPredictionJob ended without all of its predictions, without being cancelled.",
        labels=("namespace", "batch_prediction_job"),
    )
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for batch in batches:
        state, end = batch.status.state or "JOB_STATE_PENDING", batch.status.end_time
        counts[batch.namespace][state] += 1
        if state in _FAILED and end:
            failed.add_metric([batch.namespace, batch.name], end.timestamp())
    for namespace, by_state in sorted(counts.items()):
        for state in get_args(JobState):
            jobs.add_metric([namespace, state], by_state[state])
    return iter((jobs, failed))
