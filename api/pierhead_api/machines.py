"""Machines and replicas: what deployed models and batch prediction jobs ask for. Pure."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pierhead_api.errors import InvalidArgumentError
from pierhead_api.wire import BETA_ONLY, AcceleratorType, Body, Labels, Message, Number, Whatever, drop_empty, refuse

_NO_RESERVATION = (None, "", 0, 1, "TYPE_UNSPECIFIED", "NO_RESERVATION")


def _refuse_zero(value: Any) -> Any:
    if value == 0:
        raise ValueError("must be at least 1: there is no scaling to zero yet")
    return value


class ReservationAffinity(Message):
    reservation_affinity_type: Whatever = None
    key: str = ""
    values: list[str] = Field(default_factory=list)
    use_reservation_pool: bool = False


class MachineSpec(Message):
    machine_type: str = ""
    accelerator_type: AcceleratorType = None
    accelerator_count: Number = None
    gpu_partition_size: str = ""
    tpu_topology: str = ""
    reservation_affinity: ReservationAffinity = ReservationAffinity()
    min_gpu_driver_version: Annotated[str | None, BETA_ONLY] = None
    multihost_gpu_node_count: Annotated[Number, BETA_ONLY] = None


class AutoscalingMetricSpec(Message):
    metric_name: str
    target: Number = None
    monitored_resource_labels: Annotated[Labels, BETA_ONLY] = Field(default_factory=dict)


class AutomaticResources(Message):
    min_replica_count: Number = None
    max_replica_count: Number = None


class FlexStart(Message):
    """Of v1beta1 alone, as the next. That one is there asks for it, whatever it holds."""

    max_runtime_duration: str = ""


class ScaleToZeroSpec(Message):
    min_scaleup_period: str = ""
    idle_scaledown_period: str = ""


class DedicatedResources(Message):
    machine_spec: MachineSpec = MachineSpec()
    min_replica_count: Annotated[int | None, BeforeValidator(_refuse_zero)] = None
    max_replica_count: Number = None
    required_replica_count: Number = None
    autoscaling_metric_specs: list[AutoscalingMetricSpec] = Field(default_factory=list)
    spot: bool = False
    scale_to_zero_spec: Annotated[ScaleToZeroSpec | None, BETA_ONLY] = None
    initial_replica_count: Annotated[Number, BETA_ONLY] = None
    flex_start: Annotated[FlexStart | None, BETA_ONLY] = None


class BatchDedicatedResources(Message):
    machine_spec: MachineSpec = MachineSpec()
    starting_replica_count: Number = None
    max_replica_count: Number = None
    spot: Annotated[bool, BETA_ONLY] = False
    flex_start: Annotated[FlexStart | None, BETA_ONLY] = None


_SPOT = "is not supported: spot nodes are a machineType of the chart's machines"
_FLEX_START = "is not supported: a pod waits for its machine as long as there is none"
_REFUSED_MACHINE = {
    "gpu_partition_size": "is not supported: give the slice a name among the chart's machines.acceleratorTypes",
    "tpu_topology": "is not supported: TPUs are not",
    "min_gpu_driver_version": "is not supported: a node's driver is its own",
    "multihost_gpu_node_count": "is not supported: a replica is on one node",
}
_REFUSED_DEDICATED = {
    "spot": _SPOT,
    "scale_to_zero_spec": "is not supported: leave it out, and give a minReplicaCount of at least 1",
    "initial_replica_count": "is not supported: there is no scaling to zero; give minReplicaCount",
    "flex_start": _FLEX_START,
}


def make_machine_spec(machine: MachineSpec) -> Body:
    """The spec's machineSpec; raises InvalidArgumentError for what a cluster's nodes are chosen otherwise by."""
    refuse(machine, _REFUSED_MACHINE)
    if machine.reservation_affinity.reservation_affinity_type not in _NO_RESERVATION:
        raise InvalidArgumentError(
            "is not supported: a machine's nodes are the chart's machines", "reservationAffinity"
        )
    return drop_empty(
        {
            "machineType": machine.machine_type,
            "acceleratorType": machine.accelerator_type,
            "acceleratorCount": machine.accelerator_count,
        }
    )


def make_dedicated_resources(dedicated: DedicatedResources) -> Body:
    """The spec's dedicatedResources; raises InvalidArgumentError."""
    refuse(dedicated, _REFUSED_DEDICATED)
    if dedicated.required_replica_count not in (None, dedicated.min_replica_count or 1):
        raise InvalidArgumentError(
            "must be minReplicaCount or left out: a deployment is done when all of these serve", "requiredReplicaCount"
        )
    return drop_empty(
        {
            "machineSpec": make_machine_spec(dedicated.machine_spec),
            **make_automatic_resources(dedicated),
            "autoscalingMetricSpecs": make_metric_specs(dedicated.autoscaling_metric_specs),
        }
    )


def make_automatic_resources(resources: AutomaticResources | DedicatedResources) -> Body:
    """The spec's replica counts."""
    return drop_empty({"minReplicaCount": resources.min_replica_count, "maxReplicaCount": resources.max_replica_count})


def make_metric_specs(metrics: list[AutoscalingMetricSpec]) -> list[Body]:
    """The spec's autoscalingMetricSpecs; raises InvalidArgumentError."""
    for metric in metrics:
        refuse(metric, {"monitored_resource_labels": "is not supported"})
    return [drop_empty({"metricName": metric.metric_name, "target": metric.target}) for metric in metrics]


def make_batch_resources(dedicated: BatchDedicatedResources) -> Body:
    """The spec's dedicatedResources of a BatchPredictionJob; raises InvalidArgumentError."""
    refuse(dedicated, {"spot": _SPOT, "flex_start": _FLEX_START})
    return drop_empty(
        {
            "machineSpec": make_machine_spec(dedicated.machine_spec),
            "startingReplicaCount": dedicated.starting_replica_count,
            "maxReplicaCount": dedicated.max_replica_count,
        }
    )
