"""Whose failures Kubernetes shall not count any more, so that the next worker comes soon."""

from datetime import UTC, datetime, timedelta

import pytest
from pierhead_operator.batch_backoff import find_proven, make_reset

FAILURES = "batch.kubernetes.io/job-index-failure-count"
IGNORED = "batch.kubernetes.io/job-index-ignored-failure-count"
WORDS = '{"shard": 0, "successful": 200, "failed": 0, "bytesDone": 10, "bytesTotal": 20, "done": false}'
END = datetime(2026, 11, 22, 13, tzinfo=UTC)
DISRUPTED = [{"type": "DisruptionTarget", "status": "True", "lastTransitionTime": "2026-11-22T13:00:00Z"}]


def make_pod(annotations, *, minutes=60, words=WORDS, phase="Failed", conditions=(), lost=False):
    begin = (END - timedelta(minutes=minutes)).isoformat()
    state = {"running": {"startedAt": begin}}
    if not lost:
        state = {"terminated": {"startedAt": begin, "finishedAt": "2026-11-22T13:00:00Z", "message": words}}
    return {
        "kind": "Pod",
        "metadata": {"name": "worker", "namespace": "default", "annotations": annotations},
        "status": {
            "phase": phase,
            "conditions": [*conditions],
            "containerStatuses": [{"name": "server", "state": state}],
        },
    }


ROWS = {
    "an hour, and something committed": (make_pod({FAILURES: "5"}), True),
    "ignored ones count for the wait, too": (make_pod({FAILURES: "0", IGNORED: "6"}), True),
    "one minute": (make_pod({FAILURES: "5"}, minutes=1), True),
    "at once": (make_pod({FAILURES: "5"}, minutes=0), False),
    "nothing committed": (make_pod({FAILURES: "5"}, words=""), False),
    "an error in its last words": (make_pod({FAILURES: "5"}, words="StorageUnreachable: gs://b/x"), False),
    "taken away before its first chunk": (make_pod({FAILURES: "5"}, words="", conditions=DISRUPTED), True),
    "taken away at once": (make_pod({FAILURES: "5"}, minutes=0, words="", conditions=DISRUPTED), False),
    "its node is gone": (make_pod({IGNORED: "5"}, conditions=DISRUPTED, lost=True), True),
    "it still runs": (make_pod({FAILURES: "5"}, phase="Running", lost=True), False),
    "the first failure": (make_pod({FAILURES: "0"}), False),
    "no failure that Kubernetes tells of": (make_pod({}), False),
    "without a status": ({"metadata": {"annotations": {FAILURES: "5"}}}, False),
}


@pytest.mark.parametrize(("pod", "proven"), ROWS.values(), ids=ROWS.keys())
def test_worker_that_did_something_is_not_counted(pod, proven):
    assert find_proven([pod]) == ([pod] if proven else [])


def test_reset_leaves_nothing_to_reset():
    for annotations in ({FAILURES: "5"}, {FAILURES: "1", IGNORED: "6"}):
        pod = make_pod(annotations)
        changes = make_reset(pod)["metadata"]["annotations"]
        assert set(changes) == set(annotations)
        pod["metadata"]["annotations"] = {name: value for name, value in changes.items() if value is not None}
        assert find_proven([pod]) == []
        assert pod["metadata"]["annotations"] == {FAILURES: "0"}
