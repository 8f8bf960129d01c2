"""What is true of a resource, said in conditions: pure functions from what was observed to a status.

`Ready` is the summary. Its reasons are the constants below, each with when it is seen and who must act.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from pierhead_operator import names
from pierhead_operator.resources import Manifest, is_autoscaled
from pierhead_operator.routing import Split, count_needed, count_replicas
from pierhead_operator.schema import Condition, Resource, Status
from pierhead_operator.types import (
    DeployedModel,
    DeployedModelStatus,
    Endpoint,
    EndpointStatus,
    Model,
    ModelStatus,
    VersionRecord,
)
from pierhead_operator.versions import explain_versions, remember_versions

S = TypeVar("S", bound=Status)

READY = "Ready"  # all that the spec asks for is there and works
AVAILABLE = "Available"  # DeployedModel: at least one pod answers predictions, so that it may get traffic
PROGRESSING = "Progressing"  # what the spec asks for is on its way
STALLED = "Stalled"  # it will not come by itself: somebody must act (kstatus calls it failed)
TRAFFIC_APPLIED = "TrafficApplied"  # Endpoint: the gateway has taken the effective split
OPEN = "Open"  # Endpoint, and True where it is there: whoever reaches the gateway may predict
SCALING_ACTIVE = "ScalingActive"  # DeployedModel with an autoscaler: it can tell how many replicas are wanted

# Ready=True
REASON_ACCEPTED = "Accepted"  # Model: the spec is in order; nothing runs for a Model alone
REASON_SERVING = "Serving"  # DeployedModel: every replica of the wanted version answers predictions
REASON_TRAFFIC_APPLIED = "TrafficApplied"  # Endpoint: the gateway splits traffic as wanted
REASON_SUCCEEDED = "Succeeded"  # BatchPredictionJob: every instance has its prediction, or its error

# Ready=False, on its way: nobody must act
REASON_PROGRESSING = "Progressing"  # pods start, load the model or are replaced
REASON_WAITING_FOR_MODELS = "WaitingForDeployedModels"  # too few replicas of part of the wanted split answer; see those
REASON_MIRROR_NOT_SERVING = "MirrorNotServing"  # predictions go as wanted, but nobody gets the copies
REASON_ROUTE_PENDING = "RoutePending"  # the gateway's controller has not judged the route yet
REASON_WAITING_FOR_CAPACITY = "WaitingForCapacity"  # a new pod waits for room beside the old one, or takes its place
REASON_NOT_READY = "NotReady"  # a server that had started fails its readiness probe
REASON_PENDING = "Pending"  # BatchPredictionJob: the workers start
REASON_QUEUED = "Queued"  # BatchPredictionJob: a queue, or spec.suspend, keeps the workers from starting
REASON_RUNNING = "Running"  # BatchPredictionJob: the workers predict
REASON_CANCELLED = "Cancelled"  # BatchPredictionJob: by spec.cancel
REASON_PROBE_FAILED = "ProbeFailed"  # ready pods do not answer a prediction through their Service

# Ready=False, the author of the manifests must act
REASON_MODEL_NOT_FOUND = "ModelNotFound"  # no Model of that name in the namespace
REASON_MODEL_VERSION_NOT_FOUND = "ModelVersionNotFound"  # the Model has no such version
REASON_VERSION_CHANGED = "VersionChanged"  # a version was removed, and written again with another artifact
REASON_ENDPOINT_NOT_FOUND = "EndpointNotFound"  # no Endpoint of that name in the namespace
REASON_NO_DEPLOYED_MODEL = "NoDeployedModel"  # nothing is deployed on the endpoint
REASON_DEPLOYED_MODEL_NOT_FOUND = "DeployedModelNotFound"  # the split names what is not on the endpoint
REASON_TRAFFIC_SPLIT_MISSING = "TrafficSplitMissing"  # several DeployedModels and no split
REASON_TOO_MANY_DEPLOYED_MODELS = "TooManyDeployedModels"  # more get weight than the provider's rule can lead to
REASON_MACHINE_UNKNOWN = "MachineUnknown"  # the installation knows no such machineType or acceleratorType
REASON_ACCELERATOR_NOT_USED = "AcceleratorNotUsed"  # the version's runtime is OpenVINO, and the machine has devices
REASON_OVERRIDE_NOT_ALLOWED = "OverrideNotAllowed"  # podOverrides says what is not the author's to say
REASON_ACCESS_NOT_OFFERED = "AccessNotOffered"  # access Private, and the installation has no gateway for it
REASON_SPEC_TOO_LARGE = "SpecTooLarge"  # BatchPredictionJob: more addresses than a worker can be told
REASON_INPUT_NOT_FOUND = "InputNotFound"  # BatchPredictionJob: an address of the input names nothing
REASON_INPUT_INVALID = "InputInvalid"  # BatchPredictionJob: the input is not as instancesFormat says, or it changed
REASON_OUTPUT_NOT_WRITABLE = "OutputNotWritable"  # BatchPredictionJob: nothing can be written under outputUriPrefix
REASON_DEADLINE_EXCEEDED = "DeadlineExceeded"  # BatchPredictionJob: not done within spec.activeDeadlineSeconds
REASON_FAILED = "Failed"  # BatchPredictionJob: a worker ended for good; the message has its last words
REASON_INVALID = "Invalid"  # the API server cannot take an object that is needed: part of the spec has a wrong form
REASON_UNREADABLE = "Unreadable"  # this operator cannot read the resource, or one that it names; what runs stays
REASON_NOT_OWNED = "NotOwned"  # an object of a name that is needed belongs to somebody else; it is left alone
REASON_ARTIFACT_NOT_FOUND = "ArtifactNotFound"  # nothing in storage under artifactUri
REASON_ARTIFACT_INVALID = "ArtifactInvalid"  # the artifact is no model folder, or its digest differs
REASON_OUT_OF_MEMORY = "OutOfMemory"  # the server was killed at its memory limit
REASON_MODEL_PROCESS_DIED = "ModelProcessDied"  # the model's process dies at loading, or again and again
REASON_MODEL_PROCESS_DIES = "ModelProcessDies"  # it answers and dies, again and again: the pod left the traffic
REASON_CRASH_LOOPING = "CrashLooping"  # the server ends again and again; the message has its last words

# Ready=False, the platform team must act; retried meanwhile
REASON_SETTINGS_INVALID = "SettingsInvalid"  # an environment variable of the server is wrong: the chart's server.env
REASON_DRIVER_TOO_OLD = "DriverTooOld"  # the node's GPU driver is older than the server's CUDA needs
REASON_ARTIFACT_UNREACHABLE = "ArtifactUnreachable"  # storage does not answer, or refuses
REASON_STORAGE_UNREACHABLE = "StorageUnreachable"  # BatchPredictionJob: storage does not answer a worker
REASON_IMAGE_PULL_FAILED = "ImagePullFailed"  # a pod waits for its image
REASON_CONTAINER_CREATION_FAILED = "ContainerCreationFailed"  # the runtime cannot make the container
REASON_POD_CREATION_FAILED = "PodCreationFailed"  # the API server refuses the pods: quota, pod security, webhooks
REASON_REJECTED = "Rejected"  # the API server refuses an object that is needed
REASON_UNSCHEDULABLE = "Unschedulable"  # no node has room, such as a free nvidia.com/gpu
REASON_ROUTE_NOT_ACCEPTED = "RouteNotAccepted"  # the gateway refuses the route

# Those that the model server or a batch worker tells itself, as `Reason: message`.
SERVER_REASONS = (
    REASON_ARTIFACT_NOT_FOUND,
    REASON_ARTIFACT_INVALID,
    REASON_ARTIFACT_UNREACHABLE,
    REASON_MODEL_PROCESS_DIED,
    REASON_SETTINGS_INVALID,
    REASON_DRIVER_TOO_OLD,
    REASON_INPUT_NOT_FOUND,
    REASON_INPUT_INVALID,
    REASON_OUTPUT_NOT_WRITABLE,
    REASON_STORAGE_UNREACHABLE,
)
_PROGRESS_REASONS = (
    REASON_PROGRESSING,
    REASON_WAITING_FOR_MODELS,
    REASON_MIRROR_NOT_SERVING,
    REASON_ROUTE_PENDING,
    REASON_WAITING_FOR_CAPACITY,
    REASON_PROBE_FAILED,
    REASON_PENDING,
    REASON_QUEUED,
    REASON_RUNNING,
    REASON_CANCELLED,
)
# What no waiting mends. A reference that is missing may be on its way in the same commit, an image or a node may come.
_STALLING_REASONS = (
    REASON_MACHINE_UNKNOWN,
    REASON_ACCELERATOR_NOT_USED,
    REASON_TOO_MANY_DEPLOYED_MODELS,
    REASON_OVERRIDE_NOT_ALLOWED,
    REASON_VERSION_CHANGED,
    REASON_SPEC_TOO_LARGE,
    REASON_ACCESS_NOT_OFFERED,
    REASON_INVALID,
    REASON_UNREADABLE,
    REASON_NOT_OWNED,
    REASON_ARTIFACT_NOT_FOUND,
    REASON_ARTIFACT_INVALID,
    REASON_OUT_OF_MEMORY,
    REASON_MODEL_PROCESS_DIED,
    REASON_MODEL_PROCESS_DIES,
    REASON_CRASH_LOOPING,
    REASON_SETTINGS_INVALID,
    REASON_ROUTE_NOT_ACCEPTED,
)
# Those that a server tells by its readiness, as `Reason: message`, while it runs.
_READINESS_REASONS = (REASON_MODEL_PROCESS_DIES,)
_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_CREATION_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_MESSAGE_LIMIT = 1024
PROBE_UNDER_WAY = "a first prediction through the Service is under way"


@dataclass(frozen=True)
class Finding:
    """A cause: a reason for programs, a message for people."""

    reason: str
    message: str


@dataclass(frozen=True)
class Event:
    """A Kubernetes event about a resource."""

    type: str
    reason: str
    message: str


# Those that Pierhead writes: others may write conditions of their own beside them.
CONDITIONS = frozenset({READY, AVAILABLE, PROGRESSING, STALLED, TRAFFIC_APPLIED, OPEN, SCALING_ACTIVE})


def keep_own(status: S) -> S:
    """A status without the conditions that others wrote into it."""
    own = [condition for condition in status.conditions if condition.type in CONDITIONS]
    return status if len(own) == len(status.conditions) else status.model_copy(update={"conditions": own})


def judge(type_: str, good: bool, finding: Finding, resource: Resource, now: datetime) -> Condition:
    """The condition; its transition time is the earlier one's as long as its status stays."""
    status: Status = resource.status  # type: ignore[attr-defined]  # every kind has one
    before = status.condition(type_)
    value = "True" if good else "False"
    since = before.last_transition_time if before and before.status == value else now.replace(microsecond=0)
    return Condition(
        type=type_,
        status=value,
        reason=finding.reason,
        message=finding.message[:_MESSAGE_LIMIT],
        last_transition_time=since,
        observed_generation=resource.metadata.generation,
    )


class _Barely(Resource):
    """A resource of which only what all kinds have can be read."""

    KIND = ""
    PLURAL = ""
    SHORT_NAME = ""
    COLUMNS = ()

    status: Status = Field(default_factory=Status)


def compute_unreadable_status(live: Mapping[str, Any], problem: str, now: datetime) -> dict[str, Any]:
    """The status of a resource that cannot be parsed, or that names such a one, as Kubernetes stores it.

    All of it stays but for Ready and its companions: others go by it, and what runs goes on.
    """
    status = dict(live.get("status") or {})
    known = [condition for condition in status.get("conditions", []) if _is_condition(condition)]
    barely = _Barely.model_validate({"metadata": live["metadata"], "status": {"conditions": known}})
    finding = Finding(REASON_UNREADABLE, problem)
    judged = [judge(READY, False, finding, barely, now), *judge_progress(finding, barely, now)]
    kept = [condition for condition in known if condition["type"] not in {one.type for one in judged}]
    return {
        **status,
        "observedGeneration": barely.metadata.generation,
        "conditions": [one.dump() for one in judged] + kept,
    }


def _is_condition(value: Mapping[str, Any]) -> bool:
    try:
        Condition.model_validate(value)
    except ValidationError:
        return False
    return True


def judge_progress(
    failure: Finding | None, resource: Resource, now: datetime, *, final: bool = False
) -> list[Condition]:
    """Ready's two companions: whether it comes by itself, or somebody must act; `final`: nothing more will come."""
    stalled = failure is not None and (final or failure.reason in _STALLING_REASONS)
    moving = failure is not None and not stalled
    done = Finding("Done", "all that the spec asks for is there")
    well = Finding("NotStalled", "nobody must act")
    return [
        judge(PROGRESSING, moving, (failure if moving else None) or _stopped(failure) or done, resource, now),
        judge(STALLED, stalled, (failure if stalled else None) or well, resource, now),
    ]


def _stopped(failure: Finding | None) -> Finding | None:
    return Finding("Stopped", "see Stalled") if failure else None


def transition_event(before: Status, after: Status) -> Event | None:
    """The event that tells of the gravest change of the conditions; None where nothing changed that somebody must know.

    Nor where a resource is merely on its way: each step would be an event, and the condition tells.
    """
    return _explain_readiness(before, after) or _explain_scaling(before, after)


def _explain_scaling(before: Status, after: Status) -> Event | None:
    """That the autoscaler fails, or no longer does."""
    old, new = before.condition(SCALING_ACTIVE), after.condition(SCALING_ACTIVE)
    if new is None or new.status == (old.status if old else "True"):
        return None
    return Event(type="Normal" if new.status == "True" else "Warning", reason=new.reason, message=new.message)


def _explain_readiness(before: Status, after: Status) -> Event | None:
    """That Ready changed its status, or why it is not True."""
    old, new = before.condition(READY), after.condition(READY)
    if new is None or (old is not None and (old.status, old.reason) == (new.status, new.reason)):
        return None
    was_ready = old is not None and old.status == "True"
    on_its_way = new.status != "True" and new.reason in _PROGRESS_REASONS
    if on_its_way and not was_ready:
        return None
    normal = new.status == "True" or on_its_way
    return Event(type="Normal" if normal else "Warning", reason=new.reason, message=new.message)


# --- Model -----------------------------------------------------------------------------------------------------------


def compute_model_status(model: Model, problem: Finding | None, limit: str, now: datetime) -> ModelStatus:
    """The status of a Model. `problem`: what keeps its own paths from being routed, if anything.

    What the API server took is in order otherwise, but for what a version of the same name was before: its schema and
    rules say all else that can be said of a Model alone. `limit`: whom its own paths do not lead to; empty where they
    lead to all.
    """
    changed = explain_versions(model)
    failure = Finding(REASON_VERSION_CHANGED, changed) if changed else problem
    told = [f"the default version is {model.spec.default_version}", *filter(None, [limit])]
    accepted = Finding(REASON_ACCEPTED, "; ".join(told))
    return ModelStatus(
        observed_generation=model.metadata.generation,
        conditions=[
            judge(READY, failure is None, failure or accepted, model, now),
            *judge_progress(failure, model, now),
        ],
        versions=remember_versions(model.status.versions, model.spec.versions),
    )


# --- DeployedModel ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """What runs for a DeployedModel, as observed: its Deployment and that Deployment's pods."""

    deployment: Manifest | None
    pods: Sequence[Manifest]
    told: Mapping[str, Finding] = field(default_factory=dict)  # by pods that run and are not ready, of themselves

    def count(self, field: str) -> int:
        return int(self._status.get(field, 0))

    @property
    def _status(self) -> Mapping[str, Any]:
        status: Mapping[str, Any] = (self.deployment or {}).get("status", {})
        return status

    @property
    def rolled_out(self) -> bool:
        """Whether the Deployment's controller has seen its last change and only pods of the last template are left."""
        if self.deployment is None:
            return False
        seen = self._status.get("observedGeneration", 0) >= self.deployment["metadata"]["generation"]
        return bool(seen and self.count("updatedReplicas") == self.count("replicas"))

    def is_complete(self, dm: DeployedModel) -> bool:
        """Whether enough pods of the last template, and no others, answer predictions."""
        return self.rolled_out and self.count("availableReplicas") >= dm.spec.resources.min_replica_count

    @property
    def replacing(self) -> bool:
        """Whether pods of an earlier template are still there."""
        return self.count("updatedReplicas") < self.count("replicas")

    @property
    def updating(self) -> bool:
        """Whether pods of an earlier template still serve while those of the last one come."""
        return self.replacing and self.count("availableReplicas") > 0

    @property
    def in_place(self) -> bool:
        """Whether an old pod leaves before the new one comes."""
        strategy = ((self.deployment or {}).get("spec", {}).get("strategy") or {}).get("rollingUpdate") or {}
        return strategy.get("maxSurge") in (0, "0", "0%") and not self.rolled_out

    @property
    def refusal(self) -> str:
        """Why the API server refuses to make pods; empty where it does not."""
        for condition in self._status.get("conditions", []):
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                return str(condition.get("message", ""))
        return ""


@dataclass(frozen=True)
class Outcome:
    """What became of a DeployedModel's spec."""

    version: str  # that runs, or is on its way
    problem: Finding | None  # what kept its objects from being made as wanted, if anything
    workload: Workload
    silence: str | None = None  # why its pods, though ready, do not answer through their Service; None: they do
    scaling: Condition | None = None  # scaling.judge_scaling
    note: str = ""  # what else who looks after it has to know, though it serves
    versions: Sequence[VersionRecord] = ()  # versions.remember_run
    pins: Sequence[str] = ()  # pinning.find_told


def compute_deployed_model_status(dm: DeployedModel, outcome: Outcome, now: datetime) -> DeployedModelStatus:
    """The status of a DeployedModel."""
    workload = outcome.workload
    available = 0 if outcome.silence else workload.count("availableReplicas")
    failure = outcome.problem or explain_workload(dm, workload)
    if failure is None and outcome.silence:
        reason = REASON_PROGRESSING if outcome.silence == PROBE_UNDER_WAY else REASON_PROBE_FAILED
        failure = Finding(reason, outcome.silence)
    if failure is None and not workload.is_complete(dm):
        failure = _explain_progress(dm, workload)
    serves = f"version {outcome.version} answers predictions"
    summary = failure or Finding(REASON_SERVING, "; ".join(filter(None, (serves, outcome.note))))
    return DeployedModelStatus(
        observed_generation=dm.metadata.generation,
        conditions=[
            judge(READY, failure is None, summary, dm, now),
            judge(AVAILABLE, available > 0, _explain_availability(available, outcome), dm, now),
            *judge_progress(failure, dm, now),
            *([outcome.scaling] if outcome.scaling else []),
        ],
        model_version=outcome.version,
        versions=list(outcome.versions),
        pins=list(outcome.pins),
        replicas=workload.count("replicas"),
        ready_replicas=workload.count("readyReplicas"),
        available_replica_count=available,
        url=f"http://{names.server(dm.name)}.{dm.namespace}.svc" if workload.deployment or outcome.pins else "",
    )


def _explain_availability(available: int, outcome: Outcome) -> Finding:
    if available:
        return Finding("PodsAnswer", f"{available} answering")
    return Finding("NoPodAnswers", outcome.silence or "")


def _explain_progress(dm: DeployedModel, workload: Workload) -> Finding:
    if workload.in_place and dm.spec.rollout_options.surges:
        return Finding(REASON_WAITING_FOR_CAPACITY, "no room for a new pod beside the old one: it takes its place")
    wanted = dm.spec.resources.min_replica_count
    if is_autoscaled(dm):
        wanted = max(wanted, workload.count("replicas"))
    done = min(workload.count("updatedReplicas"), workload.count("availableReplicas"))
    return Finding(REASON_PROGRESSING, f"{done} of {wanted} replicas of this version answer predictions")


def explain_workload(dm: DeployedModel, workload: Workload) -> Finding | None:
    """Why a DeployedModel's pods do not all serve, from the pods themselves; None where nothing is wrong."""
    # One that was evicted, or whose node went, stays in the list: another one takes its place.
    pods = [pod for pod in workload.pods if pod.get("status", {}).get("phase") not in ("Failed", "Succeeded")]
    findings = [finding for pod in pods if (finding := explain_pod(pod, workload.told))]
    enough = workload.is_complete(dm)
    if enough:
        # What an autoscaler asks for beyond the minimum may wait for a node.
        findings = [finding for finding in findings if finding.reason != REASON_UNSCHEDULABLE]
    if workload.refusal and not enough:
        findings.append(Finding(REASON_POD_CREATION_FAILED, workload.refusal))
    if workload.updating:
        # A new pod that waits for what the old one holds: soon the old one makes room.
        findings = [_soften(finding) for finding in findings]
    # The same pods in another order must give the same status.
    return min(findings, key=lambda finding: (finding.reason, finding.message), default=None)


def _soften(finding: Finding) -> Finding:
    over_quota = finding.reason == REASON_POD_CREATION_FAILED and "exceeded quota" in finding.message
    if finding.reason != REASON_UNSCHEDULABLE and not over_quota:
        return finding
    message = f"a new pod waits for room beside the old one, which serves on ({finding.message})"
    return Finding(REASON_WAITING_FOR_CAPACITY, message)


def explain_pod(pod: Manifest, told: Mapping[str, Finding] = MappingProxyType({})) -> Finding | None:
    """Why a pod does not serve; None while it does, starts or leaves. `told`: what pods say of themselves."""
    status = pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp") or _is_true(status, "Ready"):
        return None
    if finding := told.get(pod["metadata"]["name"]):
        return finding
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return Finding(REASON_UNSCHEDULABLE, condition.get("message", ""))
    for container in status.get("containerStatuses", []):
        if container["name"] == names.SERVER_CONTAINER:
            return _explain_container(container)
    return None


def find_unready(pods: Iterable[Manifest]) -> dict[str, str]:
    """The pods whose server runs, had started, and is not ready: name to IP address. They know why."""
    return {
        pod["metadata"]["name"]: pod["status"]["podIP"]
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp") and pod.get("status", {}).get("podIP")
        for container in pod["status"].get("containerStatuses", [])
        if container["name"] == names.SERVER_CONTAINER and container.get("started") and not container.get("ready")
    }


def parse_readiness(message: str) -> Finding | None:
    """What a server that is not ready says of itself; None for what passes by itself within moments."""
    reason, _, rest = message.partition(": ")
    return Finding(reason, rest) if reason in _READINESS_REASONS else None


def _is_true(status: Mapping[str, Any], type_: str) -> bool:
    return any(c["type"] == type_ and c["status"] == "True" for c in status.get("conditions", []))


def _explain_container(container: Mapping[str, Any]) -> Finding | None:
    waiting = container.get("state", {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _IMAGE_REASONS:
        return Finding(REASON_IMAGE_PULL_FAILED, message or f"{container.get('image')}: {reason}")
    if reason in _CREATION_REASONS:
        return Finding(REASON_CONTAINER_CREATION_FAILED, message or reason)
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
    if ended:
        return _explain_end(ended)
    if container.get("started") and not container.get("ready"):
        return Finding(REASON_NOT_READY, "the server runs, but says that it is not ready: its log tells why")
    return None


def _explain_end(ended: Mapping[str, Any]) -> Finding:
    if ended.get("reason") == "OOMKilled":
        return Finding(REASON_OUT_OF_MEMORY, "the server was killed because it used more than its memory limit")
    message = str(ended.get("message", "")).strip()
    reason, _, rest = message.partition(": ")
    if reason in SERVER_REASONS:
        return Finding(reason, rest)
    last_words = message[-_MESSAGE_LIMIT // 2 :] or "it left no message"
    return Finding(REASON_CRASH_LOOPING, f"the server ended with exit code {ended.get('exitCode')}: {last_words}")


# --- Endpoint --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """The traffic of an endpoint: the split that is wanted (None where not told), the effective one, who is there."""

    wanted: Split | None
    effective: Split
    deployed_models: Mapping[str, DeployedModel]

    @property
    def missing(self) -> list[str]:
        return sorted(name for name in self.wanted or {} if name not in self.deployed_models)

    @property
    def waiting(self) -> list[str]:
        """Those that are wanted to get more than they get."""
        wanted = self.wanted or {}
        return sorted(name for name, weight in wanted.items() if self.effective.get(name, 0) < weight)

    def count_needed(self, name: str) -> int:
        """How many replicas of a DeployedModel that waits have to answer."""
        replicas = {there: count_replicas(dm) for there, dm in self.deployed_models.items()}
        return count_needed(name, self.wanted or {}, replicas, self.effective)


@dataclass(frozen=True)
class Carried:
    """What became of an endpoint's traffic, whatever was to become of it."""

    split: Split  # by which predictions go now
    problem: Finding | None  # what keeps the gateway from taking the effective split, if anything
    uncopied: Finding | None = None  # why nobody gets the copies that the spec asks for, if it does
    is_open: bool = False  # to whoever reaches the gateway


def compute_endpoint_status(
    endpoint: Endpoint, traffic: Traffic, carried: Carried, predict_path: str, now: datetime
) -> EndpointStatus:
    """The status of an Endpoint."""
    problem = carried.problem
    failure = _explain_traffic(endpoint, traffic, carried.split)
    # What waits for DeployedModels comes by itself: it must not hide what somebody has to mend.
    if failure is None or (problem and problem.reason in _STALLING_REASONS):
        failure = problem
    failure = failure or carried.uncopied
    applied = Finding(REASON_TRAFFIC_APPLIED, _render_split(carried.split) or "nobody serves")
    is_open = Finding("NotAuthorized", "whoever reaches the gateway may predict: the chart's api.authorization is none")
    return EndpointStatus(
        observed_generation=endpoint.metadata.generation,
        conditions=[
            judge(READY, failure is None, failure or applied, endpoint, now),
            judge(TRAFFIC_APPLIED, problem is None, problem or applied, endpoint, now),
            *([judge(OPEN, True, is_open, endpoint, now)] if carried.is_open else []),
            *judge_progress(failure, endpoint, now),
        ],
        predict_path=predict_path,
        traffic_split=carried.split,
    )


def _render_split(split: Split) -> str:
    return ", ".join(f"{name} {weight} %" for name, weight in sorted(split.items()))


def _explain_traffic(endpoint: Endpoint, traffic: Traffic, carried: Split) -> Finding | None:
    if not traffic.deployed_models:
        return Finding(REASON_NO_DEPLOYED_MODEL, f"no DeployedModel has spec.endpoint {endpoint.name}")
    if traffic.wanted is None:
        there = ", ".join(sorted(traffic.deployed_models))
        return Finding(REASON_TRAFFIC_SPLIT_MISSING, f"spec.trafficSplit must say how {there} share the traffic")
    if traffic.missing:
        return Finding(
            REASON_DEPLOYED_MODEL_NOT_FOUND,
            f"spec.trafficSplit names {', '.join(traffic.missing)}, which is no DeployedModel of this endpoint",
        )
    if traffic.waiting:
        causes = "; ".join(_explain_waiting(name, traffic) for name in traffic.waiting)
        now = _render_split(carried)
        meanwhile = f"traffic now goes to {now}" if now else "nobody answers yet"
        return Finding(REASON_WAITING_FOR_MODELS, f"{causes}; {meanwhile}")
    return None


def find_cause(dm: DeployedModel) -> str:
    """The reason why a DeployedModel does not serve; empty where it does."""
    if count_replicas(dm).answering:
        return ""
    ready = dm.status.condition(READY)
    return ready.reason if ready else REASON_PROGRESSING


def explain_mirror(endpoint: Endpoint, traffic: Traffic) -> Finding | None:
    """Why nobody gets the copies that an Endpoint's spec asks for; None where somebody does, or it asks for none."""
    if endpoint.spec.mirror is None:
        return None
    name = endpoint.spec.mirror.deployed_model
    dm = traffic.deployed_models.get(name)
    if dm is None:
        cause = f"spec.mirror names {name}, which is no DeployedModel of this endpoint"
    elif not count_replicas(dm).answering:
        cause = f"{name} does not serve yet{_explain_cause(dm)}"
    else:
        return None
    return Finding(REASON_MIRROR_NOT_SERVING, f"predictions are answered as ever, and nobody gets the copies: {cause}")


def _explain_waiting(name: str, traffic: Traffic) -> str:
    dm = traffic.deployed_models[name]
    answering = count_replicas(dm).answering
    if not answering:
        return f"{name} does not serve yet{_explain_cause(dm)}"
    return f"{name}: {answering} of {traffic.count_needed(name)} needed replicas answer{_explain_cause(dm)}"


def _explain_cause(dm: DeployedModel) -> str:
    ready = dm.status.condition(READY)
    if ready is None or ready.status == "True":
        return ""
    # What is on its way counts its replicas: that is no news of an Endpoint's.
    return f" ({ready.reason})" if ready.reason in _PROGRESS_REASONS else f" ({ready.reason}: {ready.message})"


def explain_route(route: Manifest | None, gateways: Iterable[tuple[str, str]]) -> Finding | None:
    """Why a route does not carry traffic on one of these gateways (namespace, name); None where it does."""
    if route is None:
        return None
    generation = route["metadata"].get("generation", 0)
    parents = route.get("status", {}).get("parents", [])
    for namespace, name in gateways:
        entry = next(
            (
                parent
                for parent in parents
                if (parent["parentRef"].get("namespace", namespace), parent["parentRef"]["name"]) == (namespace, name)
            ),
            None,
        )
        conditions = {c["type"]: c for c in entry["conditions"]} if entry else {}
        for type_ in ("Accepted", "ResolvedRefs"):
            condition = conditions.get(type_)
            if condition is None or condition.get("observedGeneration", generation) < generation:
                return Finding(REASON_ROUTE_PENDING, f"gateway {namespace}/{name} has not taken the route yet")
            if condition["status"] != "True":
                return Finding(REASON_ROUTE_NOT_ACCEPTED, f"{condition['reason']}: {condition.get('message', '')}")
    return None
