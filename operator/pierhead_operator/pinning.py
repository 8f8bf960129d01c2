"""What pods are made of stays as it was until their DeployedModel's spec changes: no upgrade restarts them. Pure.

The Deployment carries what it was made with: the server's settings and the version of the template, and what of the
DeployedModel it was made for. When that changes, or somebody asks for it, the installation's present settings count.
"""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ValidationError

from pierhead_operator import names
from pierhead_operator.resources import Manifest
from pierhead_operator.settings import MachineSettings, OperatorSettings, ServerSettings
from pierhead_operator.types import DeployedModel

TEMPLATE = 1  # of what resources/pods.py makes; a change that would restart pods is another version, beside this one


class Pin(BaseModel):
    """The annotation."""

    made_for: str  # describe_wish
    template: int
    server: ServerSettings
    machines: MachineSettings


_NOT_OF_PODS = frozenset({"display_name", "automatic_resources", "dedicated_resources"})


def describe_wish(dm: DeployedModel) -> str:
    """A digest of what of a DeployedModel its pods are made of, not how many, and of its annotation `renew`."""
    spec = dm.spec.model_dump(mode="json", exclude=set(_NOT_OF_PODS))
    dedicated = dm.spec.dedicated_resources
    machine = dedicated.machine_spec.model_dump(mode="json") if dedicated else None
    asked = dm.metadata.annotations.get(names.ANNOTATION_RENEW, "")
    return hashlib.sha256(json.dumps([spec, machine, asked], sort_keys=True).encode()).hexdigest()[:16]


def pin_settings(dm: DeployedModel, live: Manifest | None, settings: OperatorSettings) -> OperatorSettings:
    """The settings that a DeployedModel's pods are made with: those of their last change, if nothing changed since."""
    pin = _read(live)
    if pin is None or pin.made_for != describe_wish(dm) or pin.template != TEMPLATE:
        return settings
    return settings.model_copy(update={"server": pin.server, "machines": pin.machines})


def mark_pinned(manifest: Manifest, dm: DeployedModel, settings: OperatorSettings) -> Manifest:
    """The Deployment with what it was made with."""
    pin = Pin(made_for=describe_wish(dm), template=TEMPLATE, server=settings.server, machines=settings.machines)
    value = json.dumps(pin.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    metadata = manifest["metadata"]
    annotations: dict[str, Any] = {**metadata.get("annotations", {}), names.ANNOTATION_PINNED: value}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def _read(live: Manifest | None) -> Pin | None:
    value = (live or {}).get("metadata", {}).get("annotations", {}).get(names.ANNOTATION_PINNED)
    if value is None:
        return None
    try:
        return Pin.model_validate_json(value)
    except ValidationError:  # of a later operator, or changed by hand
        return None
