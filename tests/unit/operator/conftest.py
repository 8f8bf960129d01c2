"""Resources and settings for the operator's tests."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import DeployedModel, Endpoint, Model

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture
def settings() -> OperatorSettings:
    return OperatorSettings.model_validate(
        {
            "location": "local",
            "server": {
                "image": "pierhead/server:test",
                "env": [{"name": "STORAGE_EMULATOR_HOST", "value": "http://storage:4443"}],
                "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
            },
            "machines": {"acceleratorTypes": {"NVIDIA_L4": {}}},
            "routing": {"provider": "gateway-api", "gateway": {"namespace": "gateways", "name": "public"}},
        }
    )


# Of an installation that makes NetworkPolicies.
NETWORK_POLICY = {
    "gateways": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}}],
    "monitoring": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "pierhead-operator"}}}],
    "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.7/32"}}], "ports": [{"port": 443}]}],
}


# Of a Deployment, as its controller leaves it: all of its one pod's template answer, or none did yet.
SERVED = {
    "observedGeneration": 1,
    "replicas": 1,
    "updatedReplicas": 1,
    "readyReplicas": 1,
    "availableReplicas": 1,
    "conditions": [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}],
}
STARTING = {
    "observedGeneration": 1,
    "replicas": 1,
    "updatedReplicas": 1,
    "conditions": [{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}],
}


def manifest(kind: str, name: str, spec: dict[str, Any], **status: Any) -> dict[str, Any]:
    """A custom resource as the API server gives it."""
    return {
        "apiVersion": "pierhead.dev/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "generation": 3},
        "spec": spec,
        "status": status,
    }


def make_model(**spec: Any) -> dict[str, Any]:
    versions = [
        {"name": "1", "artifactUri": "gs://models/photos/1"},
        {"name": "2", "artifactUri": "gs://models/photos/2", "digest": "sha256:" + "0" * 64},
    ]
    return manifest("Model", "photos", {"displayName": "Photos", "defaultVersion": "1", "versions": versions, **spec})


def make_endpoint(split: dict[str, int] | None = None, **status: Any) -> dict[str, Any]:
    return manifest("Endpoint", "photos", {"trafficSplit": split} if split else {}, **status)


def make_deployed_model(name: str = "photos-1", available: bool | None = None, **spec: Any) -> dict[str, Any]:
    """A DeployedModel; `available` is what its status says of it, nothing where None."""
    status: dict[str, Any] = {}
    if available is not None:
        value = "True" if available else "False"
        since = "2026-11-22T11:00:00Z"
        status["availableReplicaCount"] = int(available)
        status["conditions"] = [
            {"type": "Ready", "status": value, "reason": "Progressing", "message": "m", "lastTransitionTime": since},
            {"type": "Available", "status": value, "reason": "PodsAnswer", "message": "", "lastTransitionTime": since},
        ]
    return manifest("DeployedModel", name, {"endpoint": "photos", "model": "photos", **spec}, **status)


@pytest.fixture
def model() -> Model:
    return Model.model_validate(make_model())


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint.model_validate(make_endpoint())


@pytest.fixture
def deployed_model() -> DeployedModel:
    return DeployedModel.model_validate(make_deployed_model())


def make_batch(
    labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    made = manifest(
        "BatchPredictionJob",
        "nightly",
        {
            "model": "photos",
            "inputConfig": {"gcsSource": {"uris": ["gs://in/photos.jsonl"]}},
            "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://out/photos/"}},
            **spec,
        },
    )
    made["metadata"] |= {"creationTimestamp": "2026-11-22T12:00:00Z", "labels": labels or {}}
    made["metadata"]["annotations"] = annotations or {}
    return made
