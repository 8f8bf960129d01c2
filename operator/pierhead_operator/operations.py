"""What becomes of the REST API's deployModel and mutateDeployedModel: judged once, and remembered. Pure.

An operation ends when all that was asked for serves, when that cannot come by itself, or when its time is over. It is
the Endpoint that remembers, since it outlives what was deployed on it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pierhead_operator.records import Operation, Record, find_finished, parse_records
from pierhead_operator.routing import Split, given_split
from pierhead_operator.schema import Condition, Status
from pierhead_operator.status import (
    READY,
    REASON_DEADLINE_EXCEEDED,
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
ABORTED = "Aborted"  # why an operation failed whose call had not written all; no condition's reason
SPLIT_TIME = timedelta(minutes=10)  # longer than deployModel tries to write a split
# An object that was made so long after its record was brought back by somebody: the record is about an earlier one.
_MARGIN = timedelta(minutes=10)
_FORGOTTEN = timedelta(hours=1)  # after its time was over, an operation whose end nobody knows
_MOST_REMEMBERED = 50  # of those whose DeployedModel or record is gone
_AT_ONCE = datetime.min.replace(tzinfo=UTC)
_MESSAGE_LIMIT = 1024


@dataclass(frozen=True)
class Judged:
    """What became of an Endpoint's operations, and in how many seconds the next one's time is over."""

    finished: list[FinishedOperation]
    again: float | None


def judge_operations(endpoint: Endpoint, status: EndpointStatus, traffic: Traffic, now: datetime) -> Judged:
    """Judges the operations on an Endpoint; `status` is the one that is about to be written."""
    begun = [one for dm in traffic.deployed_models.values() for one in _find_begun(dm)]
    known = {one.id: one for one in endpoint.status.operations or ()}
    written = parse_records(endpoint.metadata.annotations)
    given = given_split(endpoint, traffic.deployed_models)
    ends = []
    for one in begun:
        mark = written.get(one.operation.serial)
        if one.operation.id in known or (mark and (mark.cancelled or mark.deleted)):
            continue
        lack = _find_unwritten(one, given, written) or _find_lack(one, status, traffic)
        if lack is None:
            known[one.operation.id] = _finish(one.operation, None, now)
        elif one.is_endless(now):
            continue
        elif lack.until <= now:
            known[one.operation.id] = _finish(one.operation, lack.finding, now)
        else:
            ends.append(lack.until)
    finished = _forget(known, {one.operation.id for one in begun})
    return Judged(finished, max(1.0, (min(ends) - now).total_seconds()) if ends else None)


def find_failed_deployment(endpoint: Endpoint, dm: DeployedModel) -> FinishedOperation | None:
    """How the operation failed that made a DeployedModel, if it did: nothing is to be left of that."""
    deployments = (one.operation for one in _find_begun(dm) if one.operation.type == "DeployModel")
    finished = (find_finished(endpoint, operation) for operation in deployments)
    return next((one for one in finished if one and one.state == "Failed"), None)


@dataclass(frozen=True)
class _Begun:
    operation: Operation
    record: Record
    dm: DeployedModel

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.record.timeout or 0)

    def is_endless(self, now: datetime) -> bool:
        """Whether it never fails: one of a release whose operations had no end, and one whose end was forgotten.

        An operator of such a release, or a backup, drops what this one knew: what has served since must not be undone.
        """
        return self.record.timeout is None or now - self.operation.create_time > self.timeout + _FORGOTTEN


@dataclass(frozen=True)
class _Lack:
    """What an operation waits for, and until when."""

    finding: Finding
    until: datetime


def _find_begun(dm: DeployedModel) -> Iterator[_Begun]:
    for serial, record in parse_records(dm.metadata.annotations).items():
        operation = record.identify(serial, dm.metadata.uid, dm.name)
        made = dm.metadata.creation_timestamp
        is_own = operation.uid == dm.metadata.uid and (made is None or made - operation.create_time < _MARGIN)
        if is_own and operation.type in ("DeployModel", "MutateDeployedModel"):
            yield _Begun(operation, record, dm)


def _find_unwritten(begun: _Begun, given: Split | None, written: Mapping[str, Record]) -> _Lack | None:
    """That a deployModel's split was not written, as after a crash of the API.

    The Endpoint records, in the same write as the split, that it has it. Whoever changed the split since has decided.
    """
    record, serial = begun.record, begun.operation.serial
    dropped = bool(written) and serial < min(written)
    if record.split is None or serial in written or dropped or given != record.before:
        return None
    message = "the call ended before it wrote the traffic split"
    return _Lack(Finding(ABORTED, message), begun.operation.create_time + SPLIT_TIME)


def _find_lack(begun: _Begun, status: EndpointStatus, traffic: Traffic) -> _Lack | None:
    """What an operation waits for; None where every replica serves and, if it is wanted to, gets its traffic."""
    dm, record = begun.dm, begun.record
    generation = min(int(record.detail or 0) or dm.metadata.generation, dm.metadata.generation)
    judged = dm.status if dm.status.observed_generation >= generation else Status()
    ready, stalled = judged.condition(READY), judged.condition(STALLED)
    if ready and ready.status == "True":
        if begun.operation.type != "DeployModel" or not _waits_for_traffic(dm, status, traffic):
            return None
        ready, stalled = status.condition(TRAFFIC_APPLIED), status.condition(STALLED)
    if stalled and stalled.status == "True" and stalled.reason != REASON_UNREADABLE:
        return _Lack(Finding(stalled.reason, stalled.message), _AT_ONCE)
    return _Lack(_explain_lateness(ready, begun.timeout), begun.operation.create_time + begun.timeout)


def _waits_for_traffic(dm: DeployedModel, status: EndpointStatus, traffic: Traffic) -> bool:
    weight = (traffic.wanted or {}).get(dm.name, 0)
    return bool(weight) and not (status.is_true(TRAFFIC_APPLIED) and status.traffic_split.get(dm.name, 0) >= weight)


def _explain_lateness(condition: Condition | None, timeout: timedelta) -> Finding:
    late = f"not done within {timeout.total_seconds():.0f} s"
    if condition is None or condition.status == "True" or condition.reason in ON_ITS_WAY:
        cause = f": {condition.message}" if condition and condition.status != "True" else ""
        return Finding(REASON_DEADLINE_EXCEEDED, late + cause)
    return Finding(condition.reason, f"{late}: {condition.message}")


def _finish(operation: Operation, failure: Finding | None, now: datetime) -> FinishedOperation:
    if failure is None:
        return FinishedOperation(id=operation.id, state="Succeeded", time=now.replace(microsecond=0))
    message = failure.message[:_MESSAGE_LIMIT]
    return FinishedOperation(
        id=operation.id, state="Failed", reason=failure.reason, message=message, time=now.replace(microsecond=0)
    )


def _forget(known: Mapping[str, FinishedOperation], begun: set[str]) -> list[FinishedOperation]:
    """All that could be judged anew, and the newest of the others, by their age."""
    others = sorted(id_ for id_ in known if id_ not in begun)[-_MOST_REMEMBERED:]
    return [known[id_] for id_ in sorted({*others, *(begun & known.keys())})]
