"""What becomes of the REST API's deployModel and mutateDeployedModel: judged once, and remembered. Pure.

An operation ends when all that was asked for serves, when that cannot come by itself, or when its time is over. It is
the Endpoint that remembers, since it outlives what was deployed on it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pierhead_operator.records import Operation, Record, find_finished, parse_records
from pierhead_operator.routing import count_replicas
from pierhead_operator.schema import Condition, Status
from pierhead_operator.status import (
    READY,
    REASON_CRASH_LOOPING,
    REASON_DEADLINE_EXCEEDED,
    REASON_DEPLOYED_MODEL_NOT_FOUND,
    REASON_MODEL_PROCESS_DIED,
    REASON_MODEL_PROCESS_DIES,
    REASON_OUT_OF_MEMORY,
    REASON_PROGRESSING,
    REASON_ROUTE_PENDING,
    REASON_UNREADABLE,
    REASON_WAITING_FOR_CAPACITY,
    REASON_WAITING_FOR_MODELS,
    STALLED,
    TRAFFIC_APPLIED,
    Finding,
    Traffic,
)
from pierhead_operator.types import DeployedModel, Endpoint, EndpointStatus, FinishedOperation

# On its way, and nothing is wrong.
ON_ITS_WAY = (
    REASON_PROGRESSING,
    REASON_ROUTE_PENDING,
    REASON_WAITING_FOR_CAPACITY,
    REASON_WAITING_FOR_MODELS,
)
# What another start may mend, though somebody must act if none does.
_MENDED_BY_A_START = (
    REASON_CRASH_LOOPING,
    REASON_MODEL_PROCESS_DIED,
    REASON_MODEL_PROCESS_DIES,
    REASON_OUT_OF_MEMORY,
)
ABORTED = "Aborted"  # why an operation failed whose call had not written all; no condition's reason
MARK_TIME = timedelta(minutes=10)  # longer than deployModel tries to mark its Endpoint
_STARTS = timedelta(minutes=5)
# An object that was made so long after its record was brought back by somebody: the record is about an earlier one.
_MARGIN = timedelta(minutes=10)
_FORGOTTEN = timedelta(hours=1)  # after its time was over, an operation whose end nobody knows
_SETTLED = timedelta(minutes=1)  # by then the watches have told of what a mark is about
_FRESH = timedelta(minutes=2)  # by then an operator that has just begun knows how DeployedModels are
_MOST_REMEMBERED = 50  # of those whose DeployedModel or record is gone
_AT_ONCE = datetime.min.replace(tzinfo=UTC)
_MESSAGE_LIMIT = 1024


@dataclass(frozen=True)
class Judged:
    """What became of an Endpoint's operations, and in how many seconds the next one's time is over."""

    finished: list[FinishedOperation]
    again: float | None


@dataclass(frozen=True)
class Moment:
    """When operations are judged, and since when this operator looks after anything."""

    now: datetime
    since: datetime


def judge_operations(endpoint: Endpoint, status: EndpointStatus, traffic: Traffic, moment: Moment) -> Judged:
    """Judges the operations on an Endpoint; `status` is the one that is about to be written."""
    known = {one.id: one for one in endpoint.status.operations or ()}
    marks = parse_records(endpoint.metadata.annotations)
    begun = [one for dm in traffic.deployed_models.values() for one in _find_begun(dm)]
    ends = []
    for one in begun:
        mark = marks.get(one.operation.serial)
        if one.operation.id in known or (mark and (mark.cancelled or mark.deleted)):
            continue
        lack = _find_unmarked(one, marks) or _find_lack(one, status, traffic, moment.since)
        if lack is None:
            known[one.operation.id] = _finish(one.operation, None, moment.now)
        elif _is_endless(one, endpoint, moment.now):
            continue
        elif lack.until <= moment.now:
            known[one.operation.id] = _finish(one.operation, lack.finding, moment.now, undone=one.is_to_be_undone)
        else:
            ends.append(lack.until)
    there = {dm.metadata.uid for dm in traffic.deployed_models.values()}
    for operation in _find_marked(endpoint, marks):
        if operation.uid in there or operation.id in known:
            continue
        if moment.now < (until := max(operation.create_time, moment.since) + _SETTLED):
            ends.append(until)
        else:
            gone = Finding(REASON_DEPLOYED_MODEL_NOT_FOUND, f"DeployedModel {operation.name} was deleted meanwhile")
            known[operation.id] = _finish(operation, gone, moment.now)
    finished = _forget(known, {one.operation.id for one in begun})
    return Judged(finished, max(1.0, (min(ends) - moment.now).total_seconds()) if ends else None)


def find_failed_deployment(endpoint: Endpoint, dm: DeployedModel, now: datetime) -> FinishedOperation | None:
    """How the operation failed that made a DeployedModel, if nothing is to be left of that.

    Its Endpoint has to know of it: who may write a DeployedModel alone cannot have it deleted.
    """
    marks = parse_records(endpoint.metadata.annotations)
    for one in _find_begun(dm):
        mark = marks.get(one.operation.serial)
        if mark is None or (mark.type, mark.uid, mark.name) != ("DeployModel", dm.metadata.uid, dm.name):
            continue
        finished = find_finished(endpoint, one.operation)
        if finished and finished.undone and now - finished.time < _FORGOTTEN:
            return finished
    return None


@dataclass(frozen=True)
class _Begun:
    operation: Operation
    record: Record
    dm: DeployedModel

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.record.timeout or 0)

    @property
    def deadline(self) -> datetime:
        return self.operation.create_time + self.timeout

    @property
    def is_to_be_undone(self) -> bool:
        """Whether nothing is left of it once it has failed: what answers predictions stays."""
        return self.operation.type == "DeployModel" and not count_replicas(self.dm).answering


@dataclass(frozen=True)
class _Lack:
    """What an operation waits for, and until when."""

    finding: Finding
    until: datetime


def _is_endless(begun: _Begun, endpoint: Endpoint, now: datetime) -> bool:
    """Whether an operation never fails: one of a release whose operations had no end, and one whose end was forgotten.

    An operator of such a release, a backup, and who makes an Endpoint again drop what this one knew. What has served
    since must not be undone.
    """
    made = endpoint.metadata.creation_timestamp
    is_of_another = made is not None and made > begun.operation.create_time + _SETTLED  # clocks differ
    return begun.record.timeout is None or is_of_another or now > begun.deadline + _FORGOTTEN


def _find_begun(dm: DeployedModel) -> Iterator[_Begun]:
    for serial, record in parse_records(dm.metadata.annotations).items():
        operation = record.identify(serial, dm.metadata.uid, dm.name)
        made = dm.metadata.creation_timestamp
        is_own = (operation.uid, operation.name) == (dm.metadata.uid, dm.name)
        is_its_age = made is None or made - operation.create_time < _MARGIN
        if is_own and is_its_age and operation.type in ("DeployModel", "MutateDeployedModel"):
            yield _Begun(operation, record, dm)


def _find_marked(endpoint: Endpoint, marks: Mapping[str, Record]) -> Iterator[Operation]:
    """The deployments that an Endpoint knows of and that end."""
    for serial, mark in marks.items():
        ends = mark.timeout is not None and not (mark.cancelled or mark.deleted)
        if mark.type == "DeployModel" and mark.name and mark.uid and ends:
            yield mark.identify(serial, endpoint.metadata.uid, endpoint.name)


def _find_unmarked(begun: _Begun, marks: Mapping[str, Record]) -> _Lack | None:
    """That a deployModel did not mark its Endpoint, and wrote no split, as after a crash of the API."""
    serial = begun.operation.serial
    dropped = bool(marks) and serial < min(marks)
    if begun.operation.type != "DeployModel" or begun.record.timeout is None or serial in marks or dropped:
        return None
    message = "the call ended before it wrote the traffic split"
    return _Lack(Finding(ABORTED, message), begun.operation.create_time + MARK_TIME)


def _find_lack(begun: _Begun, status: EndpointStatus, traffic: Traffic, since: datetime) -> _Lack | None:
    """What an operation waits for; None where every replica serves and, if it is wanted to, gets its traffic."""
    dm, record = begun.dm, begun.record
    asked = int(record.detail) if record.detail.isdecimal() else 0
    generation = min(asked or dm.metadata.generation, dm.metadata.generation)
    judged = dm.status if dm.status.observed_generation >= generation else Status()
    ready, stalled = judged.condition(READY), judged.condition(STALLED)
    if ready and ready.status == "True":
        if begun.operation.type != "DeployModel" or not _waits_for_traffic(dm, status, traffic):
            return None
        ready, stalled = status.condition(TRAFFIC_APPLIED), status.condition(STALLED)
    late = _Lack(_explain_lateness(ready, begun.timeout), max(begun.deadline, since + _FRESH))
    if stalled is None or stalled.status != "True" or stalled.reason == REASON_UNREADABLE:
        return late
    if stalled.reason not in _MENDED_BY_A_START:
        return _Lack(Finding(stalled.reason, stalled.message), _AT_ONCE)
    if count_replicas(dm).answering:
        return late
    until = min(late.until, stalled.last_transition_time + _STARTS)
    return _Lack(Finding(stalled.reason, stalled.message), until)


def _waits_for_traffic(dm: DeployedModel, status: EndpointStatus, traffic: Traffic) -> bool:
    weight = (traffic.wanted or {}).get(dm.name, 0)
    return bool(weight) and not (status.is_true(TRAFFIC_APPLIED) and status.traffic_split.get(dm.name, 0) >= weight)


def _explain_lateness(condition: Condition | None, timeout: timedelta) -> Finding:
    late = f"not done within {timeout.total_seconds():.0f} s"
    if condition is None or condition.status == "True" or condition.reason in ON_ITS_WAY:
        cause = f": {condition.message}" if condition and condition.status != "True" else ""
        return Finding(REASON_DEADLINE_EXCEEDED, late + cause)
    return Finding(condition.reason, f"{late}: {condition.message}")


def _finish(operation: Operation, failure: Finding | None, now: datetime, *, undone: bool = False) -> FinishedOperation:
    time = now.replace(microsecond=0)
    if failure is None:
        return FinishedOperation(id=operation.id, state="Succeeded", time=time)
    message = failure.message[:_MESSAGE_LIMIT]
    return FinishedOperation(
        id=operation.id, state="Failed", reason=failure.reason, message=message, time=time, undone=undone or None
    )


def _forget(known: Mapping[str, FinishedOperation], begun: set[str]) -> list[FinishedOperation]:
    """All that could be judged anew, and the newest of the others, by their age."""
    others = sorted(id_ for id_ in known if id_ not in begun)[-_MOST_REMEMBERED:]
    return [known[id_] for id_ in sorted({*others, *(begun & known.keys())})]
