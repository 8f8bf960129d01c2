"""What pods are made of stays as it was until what they run changes: nothing else restarts them. Pure.

The Deployment carries, as an annotation, a digest of what its pods run and what else they were made with. While the
digest stays, pods are made with the same again. A pin of settings holds from the moment in which one of the pods
answered: what never served is made with the installation's present settings.

Whoever may edit the Deployment may write the annotation. So the status, which nobody but operators writes, holds a
digest of the settings before any Deployment is made with them: others are not followed.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from pierhead_operator import names
from pierhead_operator.resources import (
    Limits,
    Manifest,
    Serving,
    find_limits,
    has_served,
    is_never_allowed,
    separate_cache,
)
from pierhead_operator.settings import MachineSettings, OperatorSettings, ServerSettings
from pierhead_operator.types import DeployedModel, MachineSpec, Model

TEMPLATE = 1  # of what resources/pods.py makes; a change that would restart pods is another version, beside this one

# What of the server's settings is in a pod.
_SERVER_OF_PODS = frozenset(
    {
        "image",
        "image_pull_policy",
        "env",
        "env_from",
        "resources",
        "arbitrary_user",
        "compiled_cache",
        "artifact_cache",
        "artifact_cache_bytes",
    }
)
_SERVER_NOT_OF_PODS = ServerSettings.model_fields.keys() - _SERVER_OF_PODS
# What of a DeployedModel's spec is not in a pod, or is there in another form: see `describe_wish`.
_NOT_OF_PODS = frozenset(
    {"display_name", "model_version", "automatic_resources", "dedicated_resources", "rollout_options"}
)


class Pin(BaseModel):
    """The annotation. Release 0.1.0 reads the first four fields, and writes no others."""

    made_for: str  # _describe_as_0_1
    template: int
    server: ServerSettings
    machines: MachineSettings  # those that the DeployedModel asks for
    runs: str = ""  # describe_wish
    location: str = ""
    display_name: str = ""  # the Model's
    limits: Limits | None = None

    @property
    def is_of_0_1(self) -> bool:
        return not self.runs


def describe_wish(serving: Serving) -> str:
    """A digest of what a DeployedModel's pods run and where, not how many, and of its annotation `renew`.

    Of what has its default nothing is in it: a field that a later release adds leaves it as it is.
    """
    dm = serving.deployed_model
    spec = dm.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=set(_NOT_OF_PODS))
    machine = dm.spec.machine_spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return _digest([spec, serving.version.name, machine, _renewal(dm)])


def describe_settings(serving: Serving) -> str:
    """A digest of the settings that a DeployedModel's pods are made with."""
    return _describe_settings(serving.deployed_model, serving.settings.server, serving.settings.machines)


def find_told(dm: DeployedModel, live: Manifest | None, settings: OperatorSettings) -> list[str]:
    """The digests of `describe_settings` that the status tells: a pin of other settings is not followed.

    Release 0.1.0 tells none: of what it made the pin is taken as it is, once.
    """
    if dm.status.pins is not None:
        return dm.status.pins
    found = _read(live) if dm.status.model_version else None
    if found is None or not _is_plain(found.server, settings.server):
        return []
    return [_describe_settings(dm, found.server, found.machines)]


def add_told(told: Sequence[str], serving: Serving) -> list[str]:
    """The same with the settings that pods are about to be made with, beside those that they are made with."""
    present = describe_settings(serving)
    return [*told] if present in told else [*told[:1], present]


def pin(serving: Serving, live: Manifest | None) -> Serving:
    """A DeployedModel as its pods are to be made: as those of its live Deployment, while they run the same."""
    found = _read(live)
    present = separate_cache(serving.version, serving.settings)
    if live is None or found is None or not _is_made_for(found, serving) or not _is_told(found, serving, live):
        return replace(serving, settings=present)
    served = has_served(live)
    settings = _pin_settings(found, present) if served else present
    return replace(
        serving,
        settings=settings.model_copy(update={"location": found.location or settings.location}),
        model=_pin_display_name(found, serving.model),
        limits=_pin_limits(found, serving, served),
    )


def explain_limits(serving: Serving) -> str:
    """What the pods do not know of their Endpoint, as a sentence; empty where they know all."""
    present = find_limits(serving.endpoint)
    if serving.limits is not None or present in (None, Limits()):
        return ""
    return (
        f"its pods were there before Endpoint {serving.deployed_model.spec.endpoint}, whose inferenceTimeout and"
        f" maxRequestBytes they learn once they are renewed: set the annotation {names.ANNOTATION_RENEW}"
    )


def mark_pinned(manifest: Manifest, serving: Serving) -> Manifest:
    """The Deployment with what its pods are made with."""
    dm, settings = serving.deployed_model, serving.settings
    made = Pin(
        made_for=_describe_as_0_1(dm),
        template=TEMPLATE,
        server=settings.server,
        machines=_select_machines(dm.spec.machine_spec, settings.machines),
        runs=describe_wish(serving),
        location=settings.location,
        display_name=serving.model.display_name,
        limits=serving.limits,
    )
    dumped = made.model_dump(mode="json", exclude={"server": _SERVER_NOT_OF_PODS}, exclude_defaults=True)
    value = json.dumps(dumped, sort_keys=True, separators=(",", ":"))
    metadata = manifest["metadata"]
    annotations: dict[str, Any] = {**metadata.get("annotations", {}), names.ANNOTATION_PINNED: value}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def _is_made_for(found: Pin, serving: Serving) -> bool:
    if found.template != TEMPLATE:
        return False
    if found.is_of_0_1:
        return found.made_for == _describe_as_0_1(serving.deployed_model)
    return found.runs == describe_wish(serving)


def _is_told(found: Pin, serving: Serving, live: Manifest) -> bool:
    dm = serving.deployed_model
    return _describe_settings(dm, found.server, found.machines) in find_told(dm, live, serving.settings)


def _describe_settings(dm: DeployedModel, server: ServerSettings, machines: MachineSettings) -> str:
    """Of what has its default nothing is in it, as in `describe_wish`."""
    selected = _select_machines(dm.spec.machine_spec, machines)
    return _digest(
        [
            server.model_dump(mode="json", exclude=set(_SERVER_NOT_OF_PODS), exclude_defaults=True),
            selected.model_dump(mode="json", exclude_defaults=True),
        ]
    )


def _pin_settings(found: Pin, settings: OperatorSettings) -> OperatorSettings:
    server = settings.server.model_copy(update={field: getattr(found.server, field) for field in _SERVER_OF_PODS})
    return settings.model_copy(update={"server": server, "machines": found.machines})


def _pin_display_name(found: Pin, model: Model) -> Model:
    spec = model.spec.model_copy(update={"display_name": found.display_name or model.display_name})
    return model.model_copy(update={"spec": spec})


def _pin_limits(found: Pin, serving: Serving, served: bool) -> Limits | None:
    """The limits of the Endpoint, whose author changes them; that it comes or goes restarts nothing that served."""
    if serving.limits is None:
        return found.limits
    came_later = found.limits is None and not found.is_of_0_1
    return None if came_later and served else serving.limits


def _select_machines(asked: MachineSpec, machines: MachineSettings) -> MachineSettings:
    """Of the installation's machines those that are asked for: all of them are kilobytes in each Deployment."""
    types, accelerators = machines.machine_types, machines.accelerator_types
    return MachineSettings(
        machine_types={name: found for name, found in types.items() if name == asked.machine_type},
        accelerator_types={name: found for name, found in accelerators.items() if name == asked.accelerator_type},
    )


def _renewal(dm: DeployedModel) -> str:
    return dm.metadata.annotations.get(names.ANNOTATION_RENEW, "")


def _digest(wish: list[Any]) -> str:
    return hashlib.sha256(json.dumps(wish, sort_keys=True).encode()).hexdigest()[:16]


def _read(live: Manifest | None) -> Pin | None:
    value = (live or {}).get("metadata", {}).get("annotations", {}).get(names.ANNOTATION_PINNED)
    if live is None or value is None:
        return None
    try:
        found = Pin.model_validate_json(value)
    except ValidationError:  # of a later operator, or changed by hand
        return None
    return _complete(found, live) if found.is_of_0_1 else found


# --- release 0.1.0 ---------------------------------------------------------------------------------------------------
# It reads what is written here, and what it wrote is read here: neither an upgrade nor the way back restarts a pod.

_SPEC_OF_0_1 = frozenset({"endpoint", "model", "model_version", "service_account"})
_OVERRIDES_OF_0_1 = frozenset(
    {
        "labels",
        "annotations",
        "env",
        "node_selector",
        "tolerations",
        "affinity",
        "priority_class_name",
        "image_pull_secrets",
    }
)
_MACHINE_OF_0_1 = frozenset({"machine_type", "accelerator_type", "accelerator_count", "resource_claims"})
_MODEL_RESOURCE = re.compile(r"projects/[^/]+/locations/([^/]+)/models/.+")


def _is_plain(found: ServerSettings, present: ServerSettings) -> bool:
    """Whether settings that no status tells run no other code and mount no folder of a node, but as the present do."""
    known = {variable["name"] for variable in present.env}
    asked = {variable["name"] for variable in found.env}
    volumes = ((found.artifact_cache, present.artifact_cache), (found.compiled_cache, present.compiled_cache))
    return not any(is_never_allowed(name) for name in asked - known) and all(
        "hostPath" not in volume or volume == own for volume, own in volumes
    )


def _describe_as_0_1(dm: DeployedModel) -> str:
    """Its digest of what pods are made for: of all fields that it knows, those with their defaults, too."""
    spec = dm.spec.model_dump(mode="json", include=set(_SPEC_OF_0_1))
    spec["pod_overrides"] = dm.spec.pod_overrides.model_dump(mode="json", include=set(_OVERRIDES_OF_0_1))
    dedicated = dm.spec.dedicated_resources
    machine = dedicated.machine_spec.model_dump(mode="json", include=set(_MACHINE_OF_0_1)) if dedicated else None
    return _digest([spec, machine, _renewal(dm)])


def _complete(found: Pin, live: Manifest) -> Pin:
    """Its pin with what it only wrote into the template."""
    told = _find_variables(live)
    resource = _MODEL_RESOURCE.fullmatch(told.get("PIERHEAD_MODEL", ""))
    return found.model_copy(
        update={
            "location": resource[1] if resource else "",
            "display_name": told.get("PIERHEAD_MODEL_DISPLAY_NAME", ""),
        }
    )


def _find_variables(live: Manifest) -> Mapping[str, str]:
    containers = live.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
    return {
        variable["name"]: variable["value"]
        for container in containers
        for variable in container.get("env", [])
        if container["name"] == names.SERVER_CONTAINER and "value" in variable
    }
