"""The pods of the model server: those that serve a DeployedModel, and what they share with batch workers. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from pierhead_operator import names
from pierhead_operator.resources.machines import Machine, compute_machine
from pierhead_operator.resources.objects import Manifest, selector
from pierhead_operator.resources.overrides import is_never_allowed, is_reserved
from pierhead_operator.settings import OperatorSettings, ServerSettings
from pierhead_operator.types import DeployedModel, Endpoint, Model, ModelVersion, PodOverrides

PORT = 8080
_IMAGES_USER = 65532
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
class Limits:
    """What an Endpoint says of its requests; without an Endpoint, what the server does by itself."""

    predict_seconds: int = _PREDICT_SECONDS
    max_request_bytes: int | None = None


def find_limits(endpoint: Endpoint | None) -> Limits | None:
    """The limits of an Endpoint, if it is there."""
    if endpoint is None:
        return None
    spec = endpoint.spec
    return Limits(spec.client_connection_config.inference_timeout_seconds, spec.max_request_bytes)


@dataclass(frozen=True)
class Serving:
    """A DeployedModel together with what it resolves to."""

    deployed_model: DeployedModel
    model: Model
    version: ModelVersion
    settings: OperatorSettings
    endpoint: Endpoint | None  # None until it is there
    limits: Limits | None = None  # of its Endpoint; None where its pods were made without one

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


@dataclass(frozen=True)
class ServerPod:
    """A pod of the model server, as far as all of them are alike."""

    server: ServerSettings
    machine: Machine
    overrides: PodOverrides
    service_account: str | None
    env: Sequence[Manifest]  # what it runs
    own_env: Sequence[Manifest] = ()  # what its resource says that the installation says, too


def make_pod_metadata(overrides: PodOverrides, labels: dict[str, str]) -> Manifest:
    """A pod's metadata: Pierhead's own, and beside it what was asked for."""
    asked = {key: value for key, value in overrides.labels.items() if not is_reserved(key)}
    annotations = {key: value for key, value in overrides.annotations.items() if not is_reserved(key)}
    return {
        "labels": {**asked, **names.OURS, **labels},
        **({"annotations": annotations} if annotations else {}),
    }


def make_pod_spec(pod: ServerPod, container: Manifest, **fields: object) -> Manifest:
    """A pod of one container; `fields` are the pod's beside what all have."""
    machine, overrides = pod.machine, pod.overrides
    asked = {
        "serviceAccountName": pod.service_account,
        "imagePullSecrets": [{"name": name} for name in overrides.image_pull_secrets],
        "priorityClassName": overrides.priority_class_name,
        "nodeSelector": {**machine.node_selector, **overrides.node_selector},
        "tolerations": [*machine.tolerations, *overrides.tolerations],
        "affinity": overrides.affinity,
        "resourceClaims": machine.resource_claims,
    }
    return {
        # They need nothing of the Kubernetes API.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            **_make_user(pod.server),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **fields,
        "containers": [container],
        "volumes": [{"name": name, **source} for name, (_, source) in _volumes(pod.server).items()],
        **{field: value for field, value in asked.items() if value},
    }


def _make_user(server: ServerSettings) -> Manifest:
    """As whom a pod runs, and whose group its volumes are; nothing where the cluster chooses."""
    return {} if server.arbitrary_user else dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), _IMAGES_USER)


def make_container(pod: ServerPod, **fields: object) -> Manifest:
    """The container of a pod; `fields` are its own beside what all have."""
    server, machine = pod.server, pod.machine
    resources = dict(machine.resources)
    if machine.resource_claims:
        resources["claims"] = [{"name": claim.get("name", "")} for claim in machine.resource_claims]
    return {
        "name": names.SERVER_CONTAINER,
        "image": server.image,
        "imagePullPolicy": server.image_pull_policy,
        "env": _env(pod),
        **({"envFrom": server.env_from} if server.env_from else {}),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": resources,
        **fields,
        # The server writes why it cannot start; where it could not even do that, its last lines tell.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in _volumes(server).items()],
    }


def make_probe(path: str, **timing: int) -> Manifest:
    """A probe of the server's own."""
    return {"httpGet": {"path": path, "port": "http"}, **timing}


def make_variables(values: dict[str, str]) -> list[Manifest]:
    """Environment variables of these very values; none for an empty one."""
    # Elsewhere a dollar stays as release 0.1.0 wrote it: another template would be another pod.
    return [
        {"name": name, "value": escape(value) if "$(" in value else value} for name, value in values.items() if value
    ]


def escape(value: str) -> str:
    """A value in which Kubernetes sees no $(NAME), for which it would put another variable's value, such as a key."""
    return value.replace("$", "$$")


def _env(pod: ServerPod) -> list[Manifest]:
    """The container's variables: the nearer to the resource the word, the more it counts."""
    env: dict[str, Manifest] = {}
    for variable in [
        *pod.env,
        *_worker_env(pod.machine),
        *pod.server.env,
        *pod.own_env,
        *(variable for variable in pod.overrides.env if not is_never_allowed(variable.get("name", ""))),
    ]:
        # Kubernetes takes each name once. What refers to others, as $(NAME), has to come after them.
        name = variable.get("name", "")
        env.pop(name, None)
        env[name] = variable
    return list(env.values())


def make_model_env(
    model: Model, version: ModelVersion, settings: OperatorSettings, deployed_model: str = ""
) -> list[Manifest]:
    """The variables that tell the server what it runs."""
    server = settings.server
    return make_variables(
        {
            "PIERHEAD_ARTIFACT_URI": version.artifact_uri,
            "PIERHEAD_ARTIFACT_DIGEST": version.digest or "",
            "PIERHEAD_ALLOW_CODE": "true" if version.allow_code else "",
            "PIERHEAD_MODEL_DIR": _MODEL_DIR,
            "PIERHEAD_MODEL_CACHE_BYTES": _cache_bytes(server),
            "PIERHEAD_DEPLOYED_MODEL_ID": deployed_model,
            "PIERHEAD_MODEL": names.model_resource(model.namespace, settings.location, model.name),
            "PIERHEAD_MODEL_DISPLAY_NAME": model.display_name,
            "PIERHEAD_MODEL_VERSION_ID": version.name,
            # The chart always names a folder. Release 0.1.0 did not: another template would be another pod.
            **({"PIERHEAD_COMPILED_DIR": _COMPILED_DIR} if server.compiled_cache else _DO_NOT_COMPILE),
            "PIERHEAD_PORT": str(PORT),
            "PIERHEAD_DRAIN_SECONDS": str(_DRAIN_SECONDS),
        }
    )


def make_log_env(*, access: bool = False, errors_alone: bool) -> list[Manifest]:
    """The variables that tell the server what to log, where that is not for the installation to say."""
    return make_variables(
        {"PIERHEAD_ACCESS_LOG": "true" if access else "", "PIERHEAD_LOG_LEVEL": "error" if errors_alone else ""}
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


def _volumes(server: ServerSettings) -> dict[str, tuple[str, Manifest]]:
    """The pod's volumes: where each is mounted, and what it is."""
    volumes: dict[str, tuple[str, Manifest]] = {
        "model": (_MODEL_DIR, server.artifact_cache or {"emptyDir": {}}),
        "tmp": ("/tmp", {"emptyDir": {}}),  # noqa: S108 - the container's own
    }
    if server.compiled_cache:
        volumes["compiled"] = (_COMPILED_DIR, server.compiled_cache)
    return volumes


# --- of a DeployedModel ----------------------------------------------------------------------------------------------


def make_pod_template(serving: Serving) -> Manifest:
    """What a Deployment makes its pods of."""
    spec, limits = serving.deployed_model.spec, serving.limits or Limits()
    pod = ServerPod(
        server=serving.settings.server,
        machine=compute_machine(spec.machine_spec, serving.settings),
        overrides=spec.pod_overrides,
        service_account=spec.service_account,
        env=make_model_env(serving.model, serving.version, serving.settings, serving.deployed_model.name),
        own_env=[
            *_limits_env(limits),
            *make_log_env(access=spec.enable_access_logging, errors_alone=spec.disable_container_logging),
        ],
    )
    container = make_container(
        pod,
        # Liveness is asked only once the model is loaded: a slow start is not a dead server.
        startupProbe=make_probe("/readyz", periodSeconds=1, timeoutSeconds=2, failureThreshold=_STARTUP_SECONDS),
        readinessProbe=make_probe("/readyz", periodSeconds=2, timeoutSeconds=2, failureThreshold=2),
        livenessProbe=make_probe("/healthz", periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
    )
    return {
        "metadata": make_pod_metadata(spec.pod_overrides, serving.labels),
        "spec": make_pod_spec(
            pod,
            container,
            # The drain, then what is in flight. It is only waited for while there is something.
            terminationGracePeriodSeconds=_DRAIN_SECONDS + max(limits.predict_seconds, _PREDICT_SECONDS),
            topologySpreadConstraints=_make_spread(serving.deployed_model),
        ),
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


def _limits_env(limits: Limits) -> list[Manifest]:
    """What the Endpoint says of its requests, where that is not what the server does anyway."""
    most, seconds = limits.max_request_bytes, limits.predict_seconds
    return make_variables(
        {
            "PIERHEAD_MAX_REQUEST_BYTES": str(most or ""),
            "PIERHEAD_PREDICT_TIMEOUT_SECONDS": str(seconds) if seconds != _PREDICT_SECONDS else "",
        }
    )
