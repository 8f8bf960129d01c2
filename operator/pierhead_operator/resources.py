"""What should exist for a DeployedModel: pure functions from plain data to Kubernetes manifests."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pierhead_operator import names
from pierhead_operator.schema import Resource
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import DedicatedResources, DeployedModel, Model, ModelVersion

Manifest = dict[str, Any]

PORT = 8080
_SERVER_UID = 65532
_MODEL_DIR = "/models"
_COMPILED_DIR = "/compiled"
_DO_NOT_COMPILE = {"PIERHEAD_COMPILE": "false"}
_DEFAULT_CPU_TARGET = 60
# Longer than it takes a gateway to learn that the pod is leaving, or it still sends to a closed port.
_DRAIN_SECONDS = 5
# The drain, then what is in flight: Vertex AI's longest prediction takes a minute.
_TERMINATION_GRACE_SECONDS = _DRAIN_SECONDS + 60
# A first start may fetch gigabytes; a pod that fails exits, so that only a slow one waits this long.
_STARTUP_SECONDS = 1800


@dataclass(frozen=True)
class Serving:
    """A DeployedModel together with what it resolves to."""

    deployed_model: DeployedModel
    model: Model
    version: ModelVersion
    settings: OperatorSettings

    @property
    def name(self) -> str:
        return names.server(self.deployed_model.name)


def selector(deployed_model: str) -> dict[str, str]:
    """The labels that a DeployedModel's pods, and nobody else's, carry."""
    return {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_DEPLOYED_MODEL: deployed_model}


def make_owner_reference(owner: Resource) -> Manifest:
    """The reference by which Kubernetes deletes an object with its owner."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": owner.KIND,
        "name": owner.name,
        "uid": owner.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def make_metadata(name: str, owner: Resource, labels: dict[str, str]) -> Manifest:
    """The metadata of an object that belongs to `owner`."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY, **labels},
        "ownerReferences": [make_owner_reference(owner)],
    }


def _labels(dm: DeployedModel) -> dict[str, str]:
    return {
        names.LABEL_NAME: "pierhead-server",
        names.LABEL_DEPLOYED_MODEL: dm.name,
        names.LABEL_ENDPOINT: dm.spec.endpoint,
        names.LABEL_MODEL: dm.spec.model,
    }


def _env(serving: Serving) -> list[Manifest]:
    dm, model, version = serving.deployed_model, serving.model, serving.version
    values = {
        "PIERHEAD_ARTIFACT_URI": version.artifact_uri,
        "PIERHEAD_ARTIFACT_DIGEST": version.digest or "",
        "PIERHEAD_ALLOW_CODE": "true" if version.allow_code else "",
        "PIERHEAD_MODEL_DIR": _MODEL_DIR,
        "PIERHEAD_DEPLOYED_MODEL_ID": dm.name,
        "PIERHEAD_MODEL": names.model_resource(dm.namespace, serving.settings.location, model.name),
        "PIERHEAD_MODEL_DISPLAY_NAME": model.display_name,
        "PIERHEAD_MODEL_VERSION_ID": version.name,
        # Compiling takes a minute of a CPU: once for all pods who share what comes of it, else not at all.
        **({"PIERHEAD_COMPILED_DIR": _COMPILED_DIR} if serving.settings.server.compiled_cache else _DO_NOT_COMPILE),
        "PIERHEAD_PORT": str(PORT),
        "PIERHEAD_DRAIN_SECONDS": str(_DRAIN_SECONDS),
    }
    env: list[Manifest] = [{"name": name, "value": value} for name, value in values.items() if value]
    if not _accelerator_count(dm):
        # One process computes for each CPU that was asked for, rounded up; of a GPU pod, one for each GPU.
        cpus = {"containerName": names.SERVER_CONTAINER, "resource": "requests.cpu", "divisor": "1"}
        env.append({"name": "PIERHEAD_WORKERS", "valueFrom": {"resourceFieldRef": cpus}})
    given = {variable["name"] for variable in serving.settings.server.env}
    # The installation's own word counts, and Kubernetes takes each name once.
    return [variable for variable in env if variable["name"] not in given] + serving.settings.server.env


def _resources(serving: Serving) -> Manifest:
    resources: Manifest = {key: dict(value) for key, value in serving.settings.server.resources.items()}
    if count := _accelerator_count(serving.deployed_model):
        # An extended resource is given whole: its limit is its request.
        resources.setdefault("limits", {})["nvidia.com/gpu"] = str(count)
    return resources


def _accelerator_count(dm: DeployedModel) -> int:
    dedicated = dm.spec.dedicated_resources
    return (dedicated.machine_spec.accelerator_count or 0) if dedicated else 0


def _volumes(serving: Serving) -> dict[str, tuple[str, Manifest]]:
    """The pod's volumes: where each is mounted, and what it is."""
    volumes: dict[str, tuple[str, Manifest]] = {
        "model": (_MODEL_DIR, {"emptyDir": {}}),
        "tmp": ("/tmp", {"emptyDir": {}}),  # noqa: S108 - the container's own
    }
    if serving.settings.server.compiled_cache:
        volumes["compiled"] = (_COMPILED_DIR, serving.settings.server.compiled_cache)
    return volumes


def _probe(path: str, **timing: int) -> Manifest:
    return {"httpGet": {"path": path, "port": "http"}, **timing}


def _make_container(serving: Serving) -> Manifest:
    return {
        "name": names.SERVER_CONTAINER,
        "image": serving.settings.server.image,
        "imagePullPolicy": serving.settings.server.image_pull_policy,
        "env": _env(serving),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": _resources(serving),
        # Liveness is asked only once the model is loaded: a slow start is not a dead server.
        "startupProbe": _probe("/readyz", periodSeconds=1, timeoutSeconds=2, failureThreshold=_STARTUP_SECONDS),
        "readinessProbe": _probe("/readyz", periodSeconds=2, timeoutSeconds=2, failureThreshold=2),
        "livenessProbe": _probe("/healthz", periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
        # The server writes why it cannot start; where it could not even do that, its last lines tell.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in _volumes(serving).items()],
    }


def _make_pod_spec(serving: Serving) -> Manifest:
    return {
        # Serving pods need nothing of the Kubernetes API.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _SERVER_UID,
            "runAsGroup": _SERVER_UID,
            "fsGroup": _SERVER_UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": _TERMINATION_GRACE_SECONDS,
        "containers": [_make_container(serving)],
        "volumes": [{"name": name, **source} for name, (_, source) in _volumes(serving).items()],
    }


def is_autoscaled(dm: DeployedModel) -> bool:
    """Whether an autoscaler, and not the manifest, says how many replicas run."""
    return dm.spec.resources.max_replicas > dm.spec.resources.min_replica_count


def make_deployment(serving: Serving) -> Manifest:
    """The pods. Without `replicas` where an autoscaler owns them."""
    dm = serving.deployed_model
    spec: Manifest = {
        "selector": {"matchLabels": selector(dm.name)},
        "revisionHistoryLimit": 2,
        # Make before break: a new pod answers before an old one leaves.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {
            "metadata": {"labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY, **_labels(dm)}},
            "spec": _make_pod_spec(serving),
        },
    }
    if not is_autoscaled(dm):
        spec["replicas"] = dm.spec.resources.min_replica_count
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": make_metadata(serving.name, dm, _labels(dm)),
        "spec": spec,
    }


def make_service(serving: Serving) -> Manifest:
    """The address of a DeployedModel's pods: one Service each, never subsets of one."""
    dm = serving.deployed_model
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": make_metadata(serving.name, dm, _labels(dm)),
        "spec": {
            "selector": selector(dm.name),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}],
        },
    }


def make_horizontal_pod_autoscaler(serving: Serving) -> Manifest:
    """The autoscaler between minReplicaCount and maxReplicaCount."""
    dm = serving.deployed_model
    resources = dm.spec.resources
    metrics = resources.autoscaling_metric_specs if isinstance(resources, DedicatedResources) else []
    target = metrics[0].target if metrics else _DEFAULT_CPU_TARGET
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": make_metadata(serving.name, dm, _labels(dm)),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": serving.name},
            "minReplicas": resources.min_replica_count,
            "maxReplicas": resources.max_replicas,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": target}},
                }
            ],
        },
    }


SERVING_KINDS = frozenset({"Service", "Deployment", "HorizontalPodAutoscaler"})  # all that may exist for one


def desired_objects(serving: Serving) -> list[Manifest]:
    """All that should exist for a DeployedModel, in the order in which it is applied."""
    objects = [make_service(serving), make_deployment(serving)]
    if is_autoscaled(serving.deployed_model):
        objects.append(make_horizontal_pod_autoscaler(serving))
    return objects


def mark_applied(desired: Manifest) -> Manifest:
    """`desired` with a digest of itself as an annotation, so that a later look tells whether it was applied."""
    digest = hashlib.sha256(json.dumps(desired, sort_keys=True).encode()).hexdigest()[:16]
    metadata = desired["metadata"]
    annotations = {**metadata.get("annotations", {}), names.ANNOTATION_APPLIED: digest}
    return {**desired, "metadata": {**metadata, "annotations": annotations}}


def needs_apply(marked: Manifest, live: Manifest | None) -> bool:
    """Whether a manifest of `mark_applied` has to be sent: it changed, or somebody changed what it says.

    The annotation finds what was removed from the manifest, the comparison what was changed by hand.
    """
    return live is None or not _contains(live, marked)


def _contains(live: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(key in live and _contains(live[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(_contains(*pair) for pair in zip(live, wanted, strict=True))
        )
    return bool(live == wanted)


def is_owned(live: Manifest, owner: Resource) -> bool:
    """Whether an object belongs to this very owner, and not to a namesake or to somebody else."""
    references = live.get("metadata", {}).get("ownerReferences", [])
    return any(reference.get("controller") and reference["uid"] == owner.metadata.uid for reference in references)


def owns_replicas(deployment: Manifest) -> bool:
    """Whether `spec.replicas` of a live Deployment is still a field of ours.

    If it is left out of the next apply while nobody else owns it, Kubernetes resets it to 1.
    """
    entries = deployment.get("metadata", {}).get("managedFields", [])
    return any(
        entry.get("manager") == names.FIELD_MANAGER
        and "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        and not entry.get("subresource")
        for entry in entries
    )
