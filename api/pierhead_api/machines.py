"""Machines and replicas: what deployed models and batch prediction jobs ask for. Pure."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pierhead_api.errors import InvalidArgumentError
from pierhead_api.wire import AcceleratorType, Body, Labels, Message, Number, Whatever, drop_empty, refuse

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


class AutoscalingMetricSpec(Message):
    metric_name: str
    target: Number = None
    monitored_resource_labels: Labels = Field(default_factory=dict)


class AutomaticResources(Message):
    min_replica_count: Number = None
    max_replica_count: Number = None


class DedicatedResources(Message):
    machine_spec: MachineSpec = MachineSpec()
    min_replica_count: Annotated[int | None, BeforeValidator(_refuse_zero)] = None
    max_replica_count: Number = None
    required_replica_count: Number = None
    autoscaling_metric_specs: list[AutoscalingMetricSpec] = Field(default_factory=list)
    spot: bool = False


class BatchDedicatedResources(Message):
    machine_spec: MachineSpec = MachineSpec()
    starting_replica_count: Number = None
    max_replica_count: Number = None


def make_machine_spec(machine: MachineSpec) -> Body:
    """The spec's machineSpec; raises InvalidArgumentError for what a cluster's nodes are chosen otherwise by."""
    refuse(
        machine,
        {
            "gpu_partition_size": "is not supported: give the slice a name among the chart's machines.acceleratorTypes",
            "tpu_topology": "is not supported: TPUs are not",
        },
    )
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
    refuse(dedicated, {"spot": "is not supported: spot nodes are a machineType of the chart's machines"})
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
    return drop_empty(
        {
            "machineSpec": make_machine_spec(dedicated.machine_spec),
            "startingReplicaCount": dedicated.starting_replica_count,
            "maxReplicaCount": dedicated.max_replica_count,
        }
    )
