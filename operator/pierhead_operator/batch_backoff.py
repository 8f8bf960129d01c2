"""How soon Kubernetes makes a batch worker again: its count of a shard's failures begins anew after progress. Pure.

The Job controller waits 10 s, 20 s and so on up to ten minutes before it makes the next pod of an index. It reads the
count from annotations of the last failed pod, never lowers it, and counts the failures that `podFailurePolicy` ignores
for the wait as well. So a worker of a long job that loses its spot node once an hour would wait ten minutes each time.
A worker that has done something before it ended says nothing about the one that follows.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from pierhead_operator import names
from pierhead_operator.batch_status import parse_progress
from pierhead_operator.resources import Manifest

# Of a run: a worker that loads its model, commits a chunk and dies, again and again, still waits longer each time.
PROVEN = timedelta(seconds=60)


def find_proven(pods: Sequence[Manifest]) -> list[Manifest]:
    """Of the failed workers those whose failures Kubernetes shall not count any more."""
    return [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed" and _counts(pod) and _is_proven(pod)]


def make_reset(pod: Manifest) -> Manifest:
    """What of a pod changes, as a merge patch."""
    ignored = {names.ANNOTATION_INDEX_IGNORED: None} if names.ANNOTATION_INDEX_IGNORED in _annotations(pod) else {}
    return {"metadata": {"annotations": {names.ANNOTATION_INDEX_FAILURES: "0", **ignored}}}


def _annotations(pod: Manifest) -> Manifest:
    annotations: Manifest = pod["metadata"].get("annotations", {})
    return annotations


def _counts(pod: Manifest) -> bool:
    """Whether anything is counted against a shard from before this pod."""
    counts = (names.ANNOTATION_INDEX_FAILURES, names.ANNOTATION_INDEX_IGNORED)
    return any(_annotations(pod).get(name, "0") != "0" for name in counts)


def _is_proven(pod: Manifest) -> bool:
    """Whether it ran for a while, and has committed something or was taken away by the cluster."""
    begin, end = _find_begin(pod), _find_end(pod)
    ran = begin is not None and end is not None and end - begin >= PROVEN
    # Of a node that is lost no last words come.
    return ran and (parse_progress(pod) is not None or _find_disruption(pod) is not None)


def _find_begin(pod: Manifest) -> datetime | None:
    return min(_find_moments(pod, "startedAt"), default=None)


def _find_end(pod: Manifest) -> datetime | None:
    """Of a pod whose node is gone: when that was noticed."""
    return max(_find_moments(pod, "finishedAt"), default=_find_disruption(pod))


def _find_moments(pod: Manifest, field: str) -> Iterator[datetime]:
    for container in pod.get("status", {}).get("containerStatuses", []):
        states: Manifest = container.get("state", {})
        for state in states.values():
            if moment := _parse(state.get(field)):
                yield moment


def _find_disruption(pod: Manifest) -> datetime | None:
    conditions: list[dict[str, Any]] = pod.get("status", {}).get("conditions", [])
    found = (one for one in conditions if one["type"] == "DisruptionTarget" and one["status"] == "True")
    return next((_parse(one.get("lastTransitionTime")) for one in found), None)


def _parse(moment: str | None) -> datetime | None:
    return datetime.fromisoformat(moment) if moment else None
