"""The objects that serve a DeployedModel: its Deployment and what stands around it. Pure."""

from pierhead_operator import names
from pierhead_operator.resources.network import NETWORK_POLICY, make_network_policy
from pierhead_operator.resources.objects import INSIDE, Manifest, make_metadata, selector
from pierhead_operator.resources.pods import Serving, make_pod_template
from pierhead_operator.resources.rollout import make_rolling_update
from pierhead_operator.settings import NetworkPolicySettings, OperatorSettings
from pierhead_operator.types import DedicatedResources, DeployedModel

_CPU, _GPU, _REQUESTS = "cpu/utilization", "gpu/dutyCycle", "requests/inFlight"
# Vertex AI's own names of the metrics.
_SAME_METRICS = {
    "aiplatform.googleapis.com/prediction/online/cpu/utilization": _CPU,
    "aiplatform.googleapis.com/prediction/online/accelerator/duty_cycle": _GPU,
}
_UNAVAILABLE_PERCENTAGE = 10
_DEFAULT_TARGETS = {_CPU: 60}


def is_autoscaled(dm: DeployedModel) -> bool:
    """Whether an autoscaler, and not the manifest, says how many replicas run."""
    return dm.spec.resources.max_replicas > dm.spec.resources.min_replica_count


def make_deployment(serving: Serving, in_place: bool = False) -> Manifest:
    """The pods. Without `replicas` where an autoscaler owns them; `in_place` is what `decide_in_place` says."""
    dm = serving.deployed_model
    spec: Manifest = {
        "selector": {"matchLabels": selector(dm.name)},
        "revisionHistoryLimit": 2,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": make_rolling_update(dm, in_place)},
        "template": make_pod_template(serving),
    }
    if not is_autoscaled(dm):
        spec["replicas"] = dm.spec.resources.min_replica_count
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": make_metadata(serving.name, dm, serving.labels),
        "spec": spec,
    }


def make_service(serving: Serving) -> Manifest:
    """The address of a DeployedModel's pods: one Service each, never subsets of one."""
    dm = serving.deployed_model
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": make_metadata(serving.name, dm, serving.labels),
        "spec": {
            **INSIDE,
            "selector": selector(dm.name),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}],
        },
    }


def make_pod_disruption_budget(serving: Serving) -> Manifest:
    """Whoever empties nodes takes one replica after the other; of many a share, or it would take hours."""
    dm = serving.deployed_model
    # Kubernetes rounds it up: of so few it is 1, too.
    few = dm.spec.resources.max_replicas <= 100 // _UNAVAILABLE_PERCENTAGE
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": make_metadata(serving.name, dm, serving.labels),
        "spec": {
            "maxUnavailable": 1 if few else f"{_UNAVAILABLE_PERCENTAGE}%",
            # A pod that is broken serves nobody: it must not keep its node from being emptied.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector(dm.name)},
        },
    }


def make_horizontal_pod_autoscaler(serving: Serving) -> Manifest:
    """The autoscaler between minReplicaCount and maxReplicaCount."""
    dm = serving.deployed_model
    resources = dm.spec.resources
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": make_metadata(serving.name, dm, serving.labels),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": serving.name},
            "minReplicas": resources.min_replica_count,
            "maxReplicas": resources.max_replicas,
            "metrics": _make_metrics(serving),
            "behavior": {
                "scaleDown": {
                    # Kubernetes' default, all that is too much within 15 s, suits what starts at once. A model takes
                    # minutes to fetch and load: let go slowly, after Kubernetes' own five minutes without need.
                    "policies": [
                        {"type": "Pods", "value": 1, "periodSeconds": 60},
                        {"type": "Percent", "value": 10, "periodSeconds": 60},
                    ]
                }
            },
        },
    }


def _make_metrics(serving: Serving) -> list[Manifest]:
    resources, autoscaling = serving.deployed_model.spec.resources, serving.settings.autoscaling
    specs = resources.autoscaling_metric_specs if isinstance(resources, DedicatedResources) else []
    # A metric may be given by both of its names: the last one counts.
    targets = {_SAME_METRICS.get(spec.metric_name, spec.metric_name): spec.target for spec in specs}
    of_pods = {_GPU: autoscaling.gpu_duty_cycle_metric, _REQUESTS: autoscaling.requests_in_flight_metric}
    return [
        _make_pods_metric(of_pods[name], target) if name in of_pods else _make_cpu_metric(target)
        for name, target in (targets or _DEFAULT_TARGETS).items()
    ]


def _make_cpu_metric(target: int) -> Manifest:
    return {
        "type": "ContainerResource",  # of the server alone, whatever else is in its pods
        "containerResource": {
            "name": "cpu",
            "container": names.SERVER_CONTAINER,
            "target": {"type": "Utilization", "averageUtilization": target},
        },
    }


def _make_pods_metric(name: str, target: int) -> Manifest:
    return {
        "type": "Pods",
        "pods": {"metric": {"name": name}, "target": {"type": "AverageValue", "averageValue": str(target)}},
    }


def make_serving_policy(serving: Serving, policy: NetworkPolicySettings) -> Manifest:
    """Who sends predictions to a DeployedModel's pods, or asks them how they are, and nobody else."""
    dm = serving.deployed_model
    metadata = make_metadata(serving.name, dm, serving.labels)
    return make_network_policy(metadata, selector(dm.name), [*policy.gateways, *policy.monitoring], policy.egress)


# What may come at the same time once the pods are on their way.
BESIDE_PODS = frozenset({"Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"})
# All that may exist for one, whatever the installation's settings are.
SERVING_KINDS = frozenset({"Deployment", *BESIDE_PODS})


def serving_kinds(settings: OperatorSettings) -> frozenset[str]:
    """All that may exist for one in this installation."""
    return SERVING_KINDS | {NETWORK_POLICY} if settings.network_policy else SERVING_KINDS


def desired_objects(serving: Serving, in_place: bool = False) -> list[Manifest]:
    """All that should exist for a DeployedModel, in the order in which it is applied."""
    dm = serving.deployed_model
    # What takes longest to be of use comes first, but no pod comes before what says who may reach it.
    policy = serving.settings.network_policy
    objects = [make_serving_policy(serving, policy)] if policy else []
    objects += [make_deployment(serving, in_place), make_service(serving)]
    # Of one that is alone it takes away nothing from whoever empties its node.
    if dm.spec.resources.max_replicas > 1:
        objects.append(make_pod_disruption_budget(serving))
    if is_autoscaled(dm):
        objects.append(make_horizontal_pod_autoscaler(serving))
    return objects
