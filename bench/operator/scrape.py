"""What the operator tells of itself at `/metrics`. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

READING_VERBS = ("get", "list")
EVENTS_OF_IT = "Event of DeployedModel"
# What belongs to one DeployedModel.
OWN_KINDS = frozenset(
    {"DeployedModel", "Deployment", "Service", "Pod", EVENTS_OF_IT, "HorizontalPodAutoscaler", "PodDisruptionBudget"}
)
_LEASE = "Lease"

Requests = Mapping[tuple[str, str], float]  # (Kubernetes' verb, kind) -> how many; those of the Lease are left out


@dataclass(frozen=True)
class Scrape:
    """One look at an operator."""

    requests: Requests
    reconciles: Mapping[str, float]  # by kind
    errors: float
    queue_length: float
    leads: bool

    @property
    def writes(self) -> float:
        return count_writes(self.requests)

    def is_done_with(self, wanted: Mapping[str, int]) -> bool:
        """Whether so many of each kind were looked at, and nothing waits to be."""
        enough = all(self.reconciles.get(kind, 0) >= count for kind, count in wanted.items())
        return enough and self.leads and not self.queue_length


def parse(text: str) -> Scrape:
    """A look at what Prometheus would be told."""
    requests: Counter[tuple[str, str]] = Counter()
    reconciles: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "pierhead_operator_api_requests_total":
                requests[sample.labels["verb"], sample.labels["kind"]] += int(sample.value)
            elif sample.name == "pierhead_operator_reconcile_seconds_count":
                reconciles[sample.labels["kind"]] += int(sample.value)
            else:
                others[sample.name] += int(sample.value)
    return Scrape(
        requests={key: count for key, count in requests.items() if key[1] != _LEASE},
        reconciles=reconciles,
        errors=others["pierhead_operator_reconcile_errors_total"],
        queue_length=others["pierhead_operator_queue_length"],
        leads=bool(others["pierhead_operator_leader"]),
    )


def subtract(after: Requests, before: Requests) -> dict[tuple[str, str], float]:
    """The requests between two looks."""
    differences = {key: count - before.get(key, 0) for key, count in after.items()}
    return {key: count for key, count in differences.items() if count}


def count_writes(requests: Requests) -> float:
    return sum(count for (verb, _), count in requests.items() if verb not in READING_VERBS)


def count_own(requests: Requests) -> float:
    """Those of the kinds that belong to one DeployedModel; without lists, which the resync asks for all the time."""
    return sum(count for (verb, kind), count in requests.items() if kind in OWN_KINDS and verb != "list")


def divide_events(requests: Requests, told: Mapping[str, int]) -> dict[tuple[str, str], float]:
    """The same, with the Events that were created by the kind that they tell about: `told` of the operator's kinds."""
    others = {key: count for key, count in requests.items() if key != ("create", "Event")}
    return others | {("create", f"Event of {kind}"): told[kind] for kind in sorted(told) if told[kind]}
