"""What the operator is to look after, and the machines that it is to run on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pierhead_operator import names
from pierhead_operator.resources import Serving, desired_objects
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import DeployedModel, Model

Manifest = dict[str, Any]

NAMESPACES = tuple(f"bench-{number}" for number in range(10))
OPERATOR_NAMESPACE = "pierhead-system"
GATEWAY = {"namespace": "gateways", "name": "fake"}
MODELS = 50
NODES = 50
FRESH = 200
_PODS_OF_A_NODE = 500


@dataclass(frozen=True)
class Fleet:
    """So many Endpoints, each with as many DeployedModels, spread evenly over the namespaces and the Models."""

    endpoints: int
    models_per_endpoint: int

    @property
    def deployed_models(self) -> int:
        return self.endpoints * self.models_per_endpoint

    def make_models(self) -> list[Manifest]:
        return [make_model(NAMESPACES[number % len(NAMESPACES)], f"model-{number}") for number in range(MODELS)]

    def make_endpoints(self) -> list[Manifest]:
        made = []
        for number in range(self.endpoints):
            split = compute_split([f"e{number}-{part}" for part in range(self.models_per_endpoint)])
            made.append(make_endpoint(_namespace(number), f"e{number}", split))
        return made

    def make_children(self) -> list[Manifest]:
        """The Deployments and Services that the operator makes of it, as if somebody else had made them."""
        settings = OperatorSettings.model_validate(make_settings())
        return [child for manifest in self.make_deployed_models() for child in _make_children(manifest, settings)]

    def make_deployed_models(self) -> list[Manifest]:
        return [
            make_deployed_model(number, f"e{number}", f"e{number}-{part}")
            for number in range(self.endpoints)
            for part in range(self.models_per_endpoint)
        ]


def _make_children(manifest: Manifest, settings: OperatorSettings) -> list[Manifest]:
    deployed_model = DeployedModel.model_validate(manifest)
    model = Model.model_validate(make_model(deployed_model.namespace, deployed_model.spec.model))
    children = desired_objects(Serving(deployed_model, model, model.spec.versions[0], settings, None))
    for child in children:
        # Nobody is there who owns them: Kubernetes would take them away.
        del child["metadata"]["ownerReferences"]
    return children


def make_fresh() -> list[tuple[Manifest, Manifest]]:
    """Endpoints beside the fleet's, each with the one DeployedModel that is put there."""
    return [
        (make_endpoint(_namespace(number), f"f{number}"), make_deployed_model(number, f"f{number}", f"f{number}-0"))
        for number in range(FRESH)
    ]


def compute_split(deployed_models: Sequence[str]) -> dict[str, int]:
    """Equal parts of 100; what does not divide goes to the first ones."""
    least, left = divmod(100, len(deployed_models))
    return {name: least + (position < left) for position, name in enumerate(deployed_models)}


def make_namespace(name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def make_node(number: int) -> Manifest:
    """A machine that kwok plays."""
    name = f"kwok-{number}"
    room = {"cpu": "1k", "memory": "1Ti", "pods": str(_PODS_OF_A_NODE)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": room, "capacity": room},
    }


def make_model(namespace: str, name: str) -> Manifest:
    version = {"name": "1", "artifactUri": f"gs://models/{name}/1"}
    return _make("Model", namespace, name, {"defaultVersion": "1", "versions": [version]})


def make_endpoint(namespace: str, name: str, split: dict[str, int] | None = None) -> Manifest:
    return _make("Endpoint", namespace, name, {"trafficSplit": split} if split else {})


def make_deployed_model(number: int, endpoint: str, name: str) -> Manifest:
    """`number` is its Endpoint's: both are in one namespace, and so is one of the Models."""
    here, of = number % len(NAMESPACES), len(NAMESPACES)
    model = here + of * (number // of % (MODELS // of))
    return _make("DeployedModel", NAMESPACES[here], name, {"endpoint": endpoint, "model": f"model-{model}"})


def make_job(namespace: str, name: str) -> Manifest:
    """A BatchPredictionJob of a Model that is in the first namespace."""
    spec = {
        "displayName": f"Nightly {name}",
        "model": "model-0",
        "modelParameters": {"confidenceThreshold": 0.5, "maxPredictions": 10},
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [f"gs://in/{name}.jsonl"]}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": f"gs://out/{name}"}},
        "dedicatedResources": {"startingReplicaCount": 2, "maxReplicaCount": 8},
    }
    return _make("BatchPredictionJob", namespace, name, spec)


def make_settings() -> Manifest:
    """The operator's settings, as the chart writes them. No image is pulled: no pod runs anything."""
    return {
        "server": {
            "image": "images.invalid/pierhead/server:bench",
            "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        },
        "routing": {"provider": "gateway-api", "gateway": GATEWAY, "envoyGateway": False, "apiAnswers": True},
    }


def _namespace(number: int) -> str:
    return NAMESPACES[number % len(NAMESPACES)]


def _make(kind: str, namespace: str, name: str, spec: Manifest) -> Manifest:
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
