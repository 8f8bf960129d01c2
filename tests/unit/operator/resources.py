"""Resources in a store, as the watches told of them."""

from typing import Any

from pierhead_operator import names
from pierhead_operator.store import Store

from tests.unit.operator.conftest import make_batch, make_deployed_model, make_endpoint

Live = dict[str, Any]
SCALING = {"type": "ScalingActive", "status": "True", "reason": "x", "lastTransitionTime": "2026-11-22T11:00:00Z"}


def make_empty_store() -> Store:
    return Store(["Endpoint", "DeployedModel", "Deployment", "BatchPredictionJob"])


def make_store() -> Store:
    """One of which everything is told that can be told."""
    store = make_empty_store()
    endpoint = make_endpoint({"photos-1": 100})
    endpoint["spec"]["mirror"] = {"deployedModel": "photos-1"}
    autoscaled = {**make_deployed_model(), "status": {"conditions": [SCALING]}}
    for live in (endpoint, autoscaled, make_ended("JOB_STATE_FAILED")):
        put(store, live)
    return store


def put(store: Store, live: Live, version: int = 1, **metadata: str) -> Live:
    live["metadata"] |= {"resourceVersion": str(version), **metadata}
    assert store.put(live["kind"], live)
    return live


def make_deployment(dm: str, replicas: int, updated: int, owner: str | None = None) -> Live:
    """As its controller left it."""
    reference = {"kind": "DeployedModel", "name": dm, "uid": owner or f"uid-{dm}", "controller": True}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": names.server(dm), "namespace": "default", "ownerReferences": [reference]},
        "spec": {"replicas": replicas},
        "status": {"replicas": replicas, "updatedReplicas": updated},
    }


def make_ended(state: str) -> Live:
    job = make_batch()
    return {**job, "status": {"state": state, "endTime": "2026-11-22T12:00:00Z"}}
