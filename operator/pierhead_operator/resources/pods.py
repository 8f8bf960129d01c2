"""The pods that serve a DeployedModel. Pure."""

from dataclasses import dataclass

from pierhead_operator import names
from pierhead_operator.resources.machines import Machine, compute_machine
from pierhead_operator.resources.objects import Manifest, selector
from pierhead_operator.settings import OperatorSettings, ServerSettings
from pierhead_operator.types import VERSION_VARIABLES, DeployedModel, Endpoint, Model, ModelVersion

PORT = 8080
_SERVER_UID = 65532
_MODEL_DIR = "/models"
_COMPILED_DIR = "/compiled"
_DO_NOT_COMPILE = {"PIERHEAD_COMPILE": "false"}
# Longer than it takes a gateway to learn that the pod is leaving, or it still sends to a closed port.
_DRAIN_SECONDS = 5
# What the server allows by itself: an Endpoint that says the same says nothing new.
_PREDICT_SECONDS = 60
# A first start may fetch gigabytes; a pod that fails exits, so that only a slow one waits this long.
_STARTUP_SECONDS = 1800
_SPREAD_OVER = ("kubernetes.io/hostname", "topology.kubernetes.io/zone")


@dataclass(frozen=True)
class Serving:
    """A DeployedModel together with what it resolves to."""

    deployed_model: DeployedModel
    model: Model
    version: ModelVersion
    settings: OperatorSettings
    endpoint: Endpoint | None  # None until it is there: its limits come with it

    @property
    def name(self) -> str:
        return names.server(self.deployed_model.name)

    @property
    def labels(self) -> dict[str, str]:
        """The labels of all that belongs to it."""
        dm = self.deployed_model
        return {
            names.LABEL_NAME: "pierhead-server",
            names.LABEL_DEPLOYED_MODEL: dm.name,
            names.LABEL_ENDPOINT: dm.spec.endpoint,
            names.LABEL_MODEL: dm.spec.model,
        }

    @property
    def predict_seconds(self) -> int:
        """How long a prediction may take."""
        if self.endpoint is None:
            return _PREDICT_SECONDS
        return self.endpoint.spec.client_connection_config.inference_timeout_seconds


def make_pod_template(serving: Serving) -> Manifest:
    """What a Deployment makes its pods of."""
    overrides = serving.deployed_model.spec.pod_overrides
    metadata: Manifest = {
        "labels": {**overrides.labels, **names.OURS, **serving.labels},
        **({"annotations": overrides.annotations} if overrides.annotations else {}),
    }
    return {"metadata": metadata, "spec": _make_pod_spec(serving)}


def _make_pod_spec(serving: Serving) -> Manifest:
    dm = serving.deployed_model
    machine, overrides = compute_machine(dm, serving.settings), dm.spec.pod_overrides
    asked = {
        "serviceAccountName": dm.spec.service_account,
        "imagePullSecrets": [{"name": name} for name in overrides.image_pull_secrets],
        "priorityClassName": overrides.priority_class_name,
        "nodeSelector": {**machine.node_selector, **overrides.node_selector},
        "tolerations": [*machine.tolerations, *overrides.tolerations],
        "affinity": overrides.affinity,
        "resourceClaims": machine.resource_claims,
    }
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
        # The drain, then what is in flight. It is only waited for while there is something.
        "terminationGracePeriodSeconds": _DRAIN_SECONDS + max(serving.predict_seconds, _PREDICT_SECONDS),
        "topologySpreadConstraints": _make_spread(dm),
        "containers": [_make_container(serving, machine)],
        "volumes": [{"name": name, **source} for name, (_, source) in _volumes(serving).items()],
        **{field: value for field, value in asked.items() if value},
    }


def _make_spread(dm: DeployedModel) -> list[Manifest]:
    """Replicas on many nodes, in many zones, as far as there is room.

    For one replica as well: if the template told how many there are, to scale would be to restart them.
    """
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(dm.name)},
            # Each template by itself, or new pods would avoid the nodes of the old ones that they replace.
            "matchLabelKeys": ["pod-template-hash"],
        }
        for key in _SPREAD_OVER
    ]


def _make_container(serving: Serving, machine: Machine) -> Manifest:
    server = serving.settings.server
    resources = dict(machine.resources)
    if machine.resource_claims:
        resources["claims"] = [{"name": claim.get("name", "")} for claim in machine.resource_claims]
    return {
        "name": names.SERVER_CONTAINER,
        "image": server.image,
        "imagePullPolicy": server.image_pull_policy,
        "env": _env(serving, machine),
        **({"envFrom": server.env_from} if server.env_from else {}),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": resources,
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


def _probe(path: str, **timing: int) -> Manifest:
    return {"httpGet": {"path": path, "port": "http"}, **timing}


def _env(serving: Serving, machine: Machine) -> list[Manifest]:
    """The server's variables: the nearer to the DeployedModel the word, the more it counts."""
    overrides = serving.deployed_model.spec.pod_overrides.env
    env: dict[str, Manifest] = {}
    for variable in [
        *_own_env(serving),
        *_worker_env(machine),
        *serving.settings.server.env,
        *_limits_env(serving),
        *(variable for variable in overrides if variable.get("name") not in VERSION_VARIABLES),
    ]:
        # Kubernetes takes each name once. What refers to others, as $(NAME), has to come after them.
        name = variable.get("name", "")
        env.pop(name, None)
        env[name] = variable
    return list(env.values())


def _own_env(serving: Serving) -> list[Manifest]:
    dm, model, version = serving.deployed_model, serving.model, serving.version
    server = serving.settings.server
    return _variables(
        {
            "PIERHEAD_ARTIFACT_URI": version.artifact_uri,
            "PIERHEAD_ARTIFACT_DIGEST": version.digest or "",
            "PIERHEAD_ALLOW_CODE": "true" if version.allow_code else "",
            "PIERHEAD_MODEL_DIR": _MODEL_DIR,
            "PIERHEAD_MODEL_CACHE_BYTES": _cache_bytes(server),
            "PIERHEAD_DEPLOYED_MODEL_ID": dm.name,
            "PIERHEAD_MODEL": names.model_resource(dm.namespace, serving.settings.location, model.name),
            "PIERHEAD_MODEL_DISPLAY_NAME": model.display_name,
            "PIERHEAD_MODEL_VERSION_ID": version.name,
            # Compiling takes a minute of a CPU: once for all pods who share what comes of it, else not at all.
            **({"PIERHEAD_COMPILED_DIR": _COMPILED_DIR} if server.compiled_cache else _DO_NOT_COMPILE),
            "PIERHEAD_PORT": str(PORT),
            "PIERHEAD_DRAIN_SECONDS": str(_DRAIN_SECONDS),
        }
    )


def _cache_bytes(server: ServerSettings) -> str:
    """What may lie in the folder of artifacts unused: in one of a pod's own, nothing."""
    if not server.artifact_cache:
        return "0"
    return "" if server.artifact_cache_bytes is None else str(server.artifact_cache_bytes)


def _worker_env(machine: Machine) -> list[Manifest]:
    if not machine.computes_on_cpu:
        return []  # the server finds its devices by itself: one process computes for each
    # One process computes for each CPU that was asked for, rounded up.
    cpus = {"containerName": names.SERVER_CONTAINER, "resource": "requests.cpu", "divisor": "1"}
    return [{"name": "PIERHEAD_WORKERS", "valueFrom": {"resourceFieldRef": cpus}}]


def _limits_env(serving: Serving) -> list[Manifest]:
    """What the Endpoint says of its requests, where that is not what the server does anyway."""
    most = serving.endpoint.spec.max_request_bytes if serving.endpoint else None
    seconds = serving.predict_seconds
    return _variables(
        {
            "PIERHEAD_MAX_REQUEST_BYTES": str(most or ""),
            "PIERHEAD_PREDICT_TIMEOUT_SECONDS": str(seconds) if seconds != _PREDICT_SECONDS else "",
        }
    )


def _variables(values: dict[str, str]) -> list[Manifest]:
    return [{"name": name, "value": value} for name, value in values.items() if value]


def _volumes(serving: Serving) -> dict[str, tuple[str, Manifest]]:
    """The pod's volumes: where each is mounted, and what it is."""
    server = serving.settings.server
    volumes: dict[str, tuple[str, Manifest]] = {
        "model": (_MODEL_DIR, server.artifact_cache or {"emptyDir": {}}),
        "tmp": ("/tmp", {"emptyDir": {}}),  # noqa: S108 - the container's own
    }
    if server.compiled_cache:
        volumes["compiled"] = (_COMPILED_DIR, server.compiled_cache)
    return volumes
