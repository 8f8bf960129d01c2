"""What Prometheus is told of the resources themselves: splits, readiness, rollouts, batch prediction jobs.

It is read at each scrape from what the watches told: that costs no request, and what is gone is told no more.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pierhead_operator import names
from pierhead_operator.facts import BatchFacts, DeployedModelFacts, DeploymentFacts, EndpointFacts, Unreadable
from pierhead_operator.routing import compute_wanted_split, take_back
from pierhead_operator.store import Store
from pierhead_operator.types import KINDS, BatchPredictionJob, DeployedModel, Endpoint, JobState

_ENDPOINT = ("namespace", "endpoint")
_DEPLOYED_MODEL = (*_ENDPOINT, "deployed_model")
_FAILED = ("JOB_STATE_FAILED", "JOB_STATE_PARTIALLY_SUCCEEDED")


class ResourceMetrics(Collector):
    """Reads the facts of the resources at each scrape.

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
        yield self._make_unreadable_metric()
        yield from self._make_deployed_model_metrics()
        yield from self._make_endpoint_metrics()
        yield self._make_mirror_metric()
        yield from self._make_batch_metrics()

    def _make_unreadable_metric(self) -> Metric:
        family = GaugeMetricFamily(
            "pierhead_operator_unreadable_resources",
            "Resources that this operator cannot read, such as those of a later release.",
            labels=("kind",),
        )
        for kind in KINDS:
            if kind.KIND in self._store.kinds:
                count = sum(isinstance(facts, Unreadable) for _, _, facts in self._store.facts(kind.KIND))
                family.add_metric([kind.KIND], count)
        return family

    def _make_endpoint_metrics(self) -> Iterator[Metric]:
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
        for namespace, name, facts in self._store.facts(Endpoint.KIND):
            if not isinstance(facts, EndpointFacts):
                continue
            ready.add_metric([namespace, name], facts.ready)
            there = self._store.names(DeployedModel.KIND, namespace, names.LABEL_ENDPOINT, name)
            split = compute_wanted_split(take_back(facts.given, facts.marks, there), there)
            for one in sorted({*(split or {}), *facts.effective}):
                effective.add_metric([namespace, name, one], facts.effective.get(one, 0))
                if split is not None:
                    wanted.add_metric([namespace, name, one], split.get(one, 0))
        return iter((ready, wanted, effective))

    def _make_mirror_metric(self) -> Metric:
        family = GaugeMetricFamily(
            "pierhead_operator_endpoint_mirror_not_serving",
            "1 where nothing but its mirror keeps an Endpoint, which has one, from being Ready.",
            labels=_ENDPOINT,
        )
        for namespace, name, facts in self._store.facts(Endpoint.KIND):
            if isinstance(facts, EndpointFacts) and facts.waits_for_mirror is not None:
                family.add_metric([namespace, name], facts.waits_for_mirror)
        return family

    def _make_deployed_model_metrics(self) -> Iterator[Metric]:
        """Whether each DeployedModel is Ready and its autoscaler works, and how far its Deployment is."""
        ready, *replicas = (
            GaugeMetricFamily(f"pierhead_operator_deployed_model_{name}", text, labels=_DEPLOYED_MODEL)
            for name, text in (
                ("ready", "1 where a DeployedModel's condition Ready is True."),
                ("replicas_wanted", "Replicas that a DeployedModel or its autoscaler asks for."),
                ("replicas_updated", "Replicas of what a DeployedModel asks for now; the others are to be replaced."),
                ("replicas_available", "Replicas of a DeployedModel that answer predictions."),
            )
        )
        scaling = GaugeMetricFamily(
            "pierhead_operator_deployed_model_scaling_active",
            "1 where the autoscaler of a DeployedModel works, as the condition ScalingActive says.",
            labels=_DEPLOYED_MODEL,
        )
        for namespace, name, facts in self._store.facts(DeployedModel.KIND):
            if not isinstance(facts, DeployedModelFacts):
                continue
            labels = [namespace, facts.server.endpoint, name]
            ready.add_metric(labels, facts.ready)
            if facts.scaling_active is not None:
                scaling.add_metric(labels, facts.scaling_active)
            found = self._store.find_facts("Deployment", namespace, names.server(name))
            rollout = found if isinstance(found, DeploymentFacts) and found.owner == facts.uid else None
            wanted, updated = (rollout.replicas, rollout.updated) if rollout else (facts.min_replicas, 0)
            for family, count in zip(replicas, (wanted, updated, facts.available_replicas), strict=True):
                family.add_metric(labels, count)
        return iter((ready, scaling, *replicas))

    def _make_batch_metrics(self) -> Iterator[Metric]:
        """How many BatchPredictionJobs there are, in each namespace that has any, and when those that failed did."""
        jobs = GaugeMetricFamily(
            "pierhead_operator_batch_prediction_jobs",
            "BatchPredictionJobs by their state.",
            labels=("namespace", "state"),
        )
        failed = GaugeMetricFamily(
            "pierhead_operator_batch_prediction_job_failed_timestamp_seconds",
            "When a BatchPredictionJob ended without all of its predictions, without being cancelled.",
            labels=("namespace", "batch_prediction_job"),
        )
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for namespace, name, facts in self._store.facts(BatchPredictionJob.KIND):
            if not isinstance(facts, BatchFacts):
                continue
            counts[namespace][facts.state] += 1
            if facts.state in _FAILED and facts.end:
                failed.add_metric([namespace, name], facts.end.timestamp())
        for namespace, by_state in sorted(counts.items()):
            for state in get_args(JobState):
                jobs.add_metric([namespace, state], by_state[state])
        return iter((jobs, failed))
