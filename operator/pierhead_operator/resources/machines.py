"""What a machine of Vertex AI's names means on this cluster: what a pod asks of its node. Pure."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass

from pierhead_operator.resources.objects import Manifest
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import MachineSpec, ModelVersion

# Names of accelerators begin alike: what is less alike than this is another one.
_ALIKE = 0.8


@dataclass(frozen=True)
class Machine:
    """What a replica needs of its node."""

    resources: Manifest
    resource_claims: list[Manifest]
    node_selector: dict[str, str]
    tolerations: list[Manifest]

    @property
    def computes_on_cpu(self) -> bool:
        """Whether it asks for CPUs, and for no device."""
        return any("cpu" in amounts for amounts in self.resources.values()) and not self.devices

    @property
    def devices(self) -> list[str]:
        """The devices that it asks for: resources and claims, by their names."""
        asked = {name for amounts in self.resources.values() for name in amounts}
        # The resources of devices are named DOMAIN/NAME, Kubernetes' own are not.
        claims = [claim.get("name", "") for claim in self.resource_claims]
        return sorted(name for name in asked if "/" in name) + claims


def compute_machine(spec: MachineSpec, settings: OperatorSettings) -> Machine:
    """What the machine that is asked for means here; `unknown_machine` was asked before."""
    machines = settings.machines
    resources, node_selector, tolerations = settings.server.resources, dict[str, str](), list[Manifest]()
    if spec.machine_type:
        machine = machines.machine_types[spec.machine_type]
        resources = machine.resources or resources
        node_selector, tolerations = {**machine.node_selector}, [*machine.tolerations]
    resources = {key: dict(amounts) for key, amounts in resources.items()}
    if spec.accelerator_type:
        accelerator = machines.accelerator_types[spec.accelerator_type]
        # The resource of a device is given whole: its limit is its request.
        resources.setdefault("limits", {})[accelerator.resource] = str(spec.accelerator_count or 1)
        node_selector |= accelerator.node_selector
        tolerations += accelerator.tolerations
    return Machine(resources, spec.resource_claims, node_selector, tolerations)


def unknown_machine(spec: MachineSpec, settings: OperatorSettings) -> str | None:
    """Why a machine cannot be had: the installation does not know it. None where it does."""
    machines = settings.machines
    asked: list[tuple[str, str | None, Collection[str]]] = [
        ("machineType", spec.machine_type, machines.machine_types),
        ("acceleratorType", spec.accelerator_type, machines.accelerator_types),
    ]
    problems = [
        f"dedicatedResources.machineSpec.{field}: {name} is unknown to this installation:"
        f" {_suggest(name, sorted(known))} (the chart's machines.{field}s)"
        for field, name, known in asked
        if name and name not in known
    ]
    return "; ".join(problems) or None


def unused_devices(spec: MachineSpec, version: ModelVersion, settings: OperatorSettings) -> str | None:
    """Why a version makes no use of the devices of a machine that is known; None where it does, or there are none."""
    devices = compute_machine(spec, settings).devices
    if version.runtime != "OpenVINO" or not devices:
        return None
    return (
        f"dedicatedResources.machineSpec: the machine has {', '.join(devices)}, and version {version.name} has runtime"
        " OpenVINO, which computes on CPUs: take the devices out, or name a version with runtime PyTorch"
    )


def select_image(version: ModelVersion, settings: OperatorSettings) -> OperatorSettings:
    """The settings with the server's image that computes a version."""
    server = settings.server
    if version.runtime != "OpenVINO" or not server.openvino_image:
        return settings
    return _change_server(settings, image=server.openvino_image)


def separate_cache(version: ModelVersion, settings: OperatorSettings) -> OperatorSettings:
    """The settings with a folder of compiled forms for each pod, where a version brings code: others' compute."""
    if not version.allow_code or not settings.server.compiled_cache:
        return settings
    return _change_server(settings, compiled_cache={"emptyDir": {}})


def _change_server(settings: OperatorSettings, **fields: object) -> OperatorSettings:
    return settings.model_copy(update={"server": settings.server.model_copy(update=fields)})


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)
    there = f"known are {', '.join(known)}" if known else "none is known"
    return f"did you mean {near[0]}? {there}" if near else there
