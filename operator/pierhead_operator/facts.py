"""What of a resource other resources and the metrics go by: read once when it is told, and small. Pure.

A resource of thousands must not be parsed again for each look at its neighbours.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import ValidationError

from pierhead_operator import names
from pierhead_operator.records import RECORD_PREFIX, SplitMark, find_marks
from pierhead_operator.resources import Manifest
from pierhead_operator.routing import Server, describe_server, is_offered
from pierhead_operator.schema import Resource
from pierhead_operator.status import AVAILABLE, READY, REASON_MIRROR_NOT_SERVING, SCALING_ACTIVE
from pierhead_operator.types import BatchPredictionJob, DeployedModel, Endpoint, JobState, Model

_NOBODY = Server("", "", "", 0)


@dataclass(frozen=True, slots=True)
class Facts:
    """Of any object. Of Pierhead's own kinds it tells whether somebody has to look at a change."""

    asked: str = ""  # what somebody asks of the resource itself: generation, deletion, another try, Kueue's labels
    told: str = ""  # what others read of it


@dataclass(frozen=True, slots=True)
class Unreadable(Facts):
    """Of a resource that this operator cannot parse, such as one of a later release."""


@dataclass(frozen=True, slots=True)
class UnreadableDeployedModel(Unreadable):
    """The same of a DeployedModel: whom it names is told all the same."""

    server: Server = _NOBODY


@dataclass(frozen=True, slots=True)
class DeployedModelFacts(Facts):
    """Of a DeployedModel."""

    uid: str = ""
    server: Server = _NOBODY
    ready: bool = False
    min_replicas: int = 1
    available_replicas: int = 0
    scaling_active: bool | None = None  # None where no condition says so


@dataclass(frozen=True, slots=True)
class EndpointFacts(Facts):
    """Of an Endpoint."""

    is_public: bool = False
    ready: bool = False
    given: Mapping[str, int] | None = None  # the split of the spec
    marks: tuple[SplitMark, ...] = ()  # and who wrote it, where that matters
    effective: Mapping[str, int] = field(default_factory=dict)
    waits_for_mirror: bool | None = None  # whether it is not Ready for its mirror alone; None where it has none


@dataclass(frozen=True, slots=True)
class BatchFacts(Facts):
    """Of a BatchPredictionJob."""

    model: str = ""
    state: JobState = "JOB_STATE_PENDING"
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeploymentFacts(Facts):
    """Of a Deployment that Pierhead made."""

    owner: str = ""  # the uid of who controls it; empty where nobody does
    replicas: int = 0
    updated: int = 0


def read_facts(kind: str, live: Manifest) -> Facts:
    """The facts of an object."""
    readers: Mapping[str, Callable[[Manifest], Facts]] = {
        "Deployment": _read_deployment,
        Model.KIND: _read_model,
        Endpoint.KIND: _read_endpoint,
        DeployedModel.KIND: _read_deployed_model,
        BatchPredictionJob.KIND: _read_batch,
    }
    if kind not in readers:
        return _NONE
    try:
        return readers[kind](live)
    except ValidationError:
        asked, told = _describe_asked(live), _digest(live["metadata"].get("generation"), live.get("status"))
        if kind != DeployedModel.KIND:
            return Unreadable(asked, told)
        spec = live["spec"] if isinstance(live.get("spec"), dict) else {}
        server = Server(model=str(spec.get("model")), version="", endpoint=str(spec.get("endpoint")), answering=0)
        return UnreadableDeployedModel(asked, told, server)


_NONE = Facts()
_ASKED = ("uid", "generation", "deletionTimestamp")


def explain_unreadable(error: ValidationError) -> str:
    """Why a resource does not parse, field by field, without its contents."""
    causes = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(str(part) for part in cause['loc'])}: {cause['msg']}" for cause in causes)


def _read_model(live: Manifest) -> Facts:
    model = Model.model_validate(live)
    remembered = model.status.model_dump(mode="json", exclude={"conditions", "observed_generation", "installation"})
    return Facts(_describe_asked(live), _digest(model.metadata.generation, _leaves(model), remembered))


def _read_endpoint(live: Manifest) -> EndpointFacts:
    endpoint = Endpoint.model_validate(live)
    return EndpointFacts(
        _describe_asked(live),
        _digest(endpoint.metadata.generation, _leaves(endpoint), _failed(endpoint)),
        is_public=is_offered(endpoint, offers_private=False),
        ready=endpoint.status.is_true(READY),
        given=endpoint.spec.traffic_split,
        marks=find_marks(endpoint),
        effective=endpoint.status.traffic_split,
        waits_for_mirror=_waits_for_mirror(endpoint),
    )


def _failed(endpoint: Endpoint) -> list[str]:
    """The operations that failed: whom they deployed is to go."""
    return [one.id for one in endpoint.status.operations or () if one.state == "Failed"]


def _waits_for_mirror(endpoint: Endpoint) -> bool | None:
    if endpoint.spec.mirror is None:
        return None
    ready = endpoint.status.condition(READY)
    return ready is not None and ready.reason == REASON_MIRROR_NOT_SERVING


def _read_deployed_model(live: Manifest) -> DeployedModelFacts:
    dm = DeployedModel.model_validate(live)
    status, ready = dm.status, dm.status.condition(READY)
    told = _digest(
        dm.metadata.generation,
        _leaves(dm),
        status.model_version,
        status.available_replica_count,
        status.is_true(AVAILABLE),
        ready and (ready.status, ready.reason, ready.message),
        sorted(key for key in dm.metadata.annotations if key.startswith(RECORD_PREFIX)),
    )
    return DeployedModelFacts(
        _describe_asked(live),
        told,
        uid=dm.metadata.uid,
        server=describe_server(dm),
        ready=status.is_true(READY),
        min_replicas=dm.spec.resources.min_replica_count,
        available_replicas=status.available_replica_count,
        scaling_active=status.is_true(SCALING_ACTIVE) if status.condition(SCALING_ACTIVE) else None,
    )


def _read_batch(live: Manifest) -> BatchFacts:
    batch = BatchPredictionJob.model_validate(live)
    state = batch.status.state or "JOB_STATE_PENDING"
    return BatchFacts(_describe_asked(live), model=batch.spec.model, state=state, end=batch.status.end_time)


def _read_deployment(live: Manifest) -> DeploymentFacts:
    owners = live["metadata"].get("ownerReferences", [])
    return DeploymentFacts(
        owner=next((owner["uid"] for owner in owners if owner.get("controller")), ""),
        replicas=live.get("spec", {}).get("replicas", 1),
        updated=live.get("status", {}).get("updatedReplicas", 0),
    )


def _leaves(resource: Resource) -> bool:
    return resource.metadata.deletion_timestamp is not None


def _describe_asked(live: Manifest) -> str:
    """Of labels and annotations only those that a reconcile reads: anybody may change others, as often as they like."""
    metadata = live["metadata"]
    renewed = metadata.get("annotations", {}).get(names.ANNOTATION_RENEW)
    queue = {name: value for name, value in metadata.get("labels", {}).items() if name.startswith(names.KUEUE)}
    return _digest(*(metadata.get(name) for name in _ASKED), renewed, queue)


def _digest(*parts: object) -> str:
    return format(hash(json.dumps(parts, sort_keys=True, default=str)), "x")
