"""A model worker: one forked process that answers calls, one batch after another."""

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import msgspec

from pierhead_server.compression import compress
from pierhead_server.computing import Computed, describe
from pierhead_server.devices import cpu_count
from pierhead_server.errors import (
    ApiError,
    ArtifactInvalidError,
    InstanceError,
    InstanceFailedError,
    InternalError,
    StartupError,
)
from pierhead_server.memory import limit_data
from pierhead_server.messages import Call, FirstMessage, Hello, Refusal, Reply, Split, pack, read
from pierhead_server.model import Model
from pierhead_server.protocol import Limits, Request, ServedModel, parse, shape, shape_error
from pierhead_server.splitting import Pace, check_pixels, restore, split, with_instances

logger = logging.getLogger(__name__)

_OK = 200
# What a request's pieces may take, to its body: a number of three characters takes nine bytes in them.
_PIECES_BYTES = 4


@dataclass(frozen=True)
class Contract:
    """What answers are shaped by, beside the model."""

    served: ServedModel
    limits: Limits
    most_data: int | None = None  # bytes that the process may come to hold; None: as many as there are


def run_worker(connection: socket.socket, model: Model, contract: Contract) -> None:
    """Answer batches of calls, one after another, until the listener closes the connection."""
    pace = Pace()
    first = warm_up(model, contract, pace)
    if contract.most_data is not None:
        limit_data(contract.most_data)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it closed while this computed
        for calls in _receive(connection, first):
            prepared = [prepare(call, model, contract, pace) for call in calls]
            answers = answer(calls, prepared, model, contract)
            # Together: the listener is woken once.
            connection.sendall(b"".join(map(pack, answers)))
            pace.learn(answers)


def run_pipelined_worker(
    connection: socket.socket, model: Model, contract: Contract, enter: Callable[[], None] = lambda: None
) -> None:
    """The same, for a device beside the CPU: while it computes one batch, the CPU prepares the next.

    The thread that computes calls `enter` first: which device is the current one, each thread has to say.
    """

    def compute(calls: list[Call], prepared: list[Future[Attempt]]) -> None:
        try:
            answers = answer(calls, [future.result() for future in prepared], model, contract)
            connection.sendall(b"".join(map(pack, answers)))
            pace.learn(answers)
        except BaseException:
            # Whoever waits for calls below shall not wait for one more to hear of it.
            connection.shutdown(socket.SHUT_RD)
            raise

    pace = Pace()
    first = warm_up(model, contract, pace, pipelined=True)
    before: Future[None] | None = None
    with (
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
        ThreadPoolExecutor(cpu_count()) as preparing,
        ThreadPoolExecutor(1, initializer=enter) as computing,
    ):
        for calls in _receive(connection, first):
            prepared = [preparing.submit(prepare, call, model, contract, pace) for call in calls]
            wait(prepared)
            if before:
                before.result()
            before = computing.submit(compute, calls, prepared)
        if before:
            before.result()


def warm_up(model: Model, contract: Contract, pace: Pace | None = None, *, pipelined: bool = False) -> FirstMessage:
    """Answer the model's sample, as a client's call is answered, and give the worker's first message."""
    hello = Hello(model.form, model.batch, pipelined)
    if model.sample is None:
        return hello
    call = Call("probe", b"")
    (reply,) = answer([call], [prepare(call, model, contract)], model, contract)
    assert isinstance(reply, Reply)  # a probe is never split
    if pace:
        pace.learn([reply])
    if reply.code == _OK:
        return hello
    cause = msgspec.json.decode(reply.body)["error"]["message"]
    return Refusal(ArtifactInvalidError.reason, model.sample.explain(cause))


def refuse(connection: socket.socket, error: StartupError) -> None:
    """Tell the listener why this worker never answers anything, and wait until it has heard it."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in _receive(connection, Refusal(error.reason, str(error))):
            pass


def _receive(connection: socket.socket, first: FirstMessage) -> Iterator[list[Call]]:
    connection.sendall(pack(first))
    decoder = msgspec.msgpack.Decoder(list[Call])
    with connection.makefile("rb") as stream:
        while (calls := read(stream, decoder)) is not None:
            yield calls


@dataclass(frozen=True)
class Attempt:
    """A call as the model takes it, or why not."""

    request: Request | None
    prepared: Any  # what the model takes, or an ApiError, or a Split
    seconds: float


def prepare(call: Call, model: Model, contract: Contract, pace: Pace | None = None) -> Attempt:
    """Parse a call and prepare its instances, or split it where it would take too long at this pace."""
    start = time.perf_counter()
    request = None
    try:
        request = _parse(call, model, contract)
        pieces = None
        if pace and call.first is None and call.dialect not in ("probe", "batch"):
            request, pieces = _divide(call, request, model, contract, pace)
        prepared = pieces or model.prepare(request)
    except ApiError as error:
        prepared = error
    except MemoryError:
        logger.warning("a request takes more memory than a worker may have")
        prepared = InternalError("this takes more memory than a worker may have: send fewer or smaller instances")
    except Exception as error:  # a bug: but whoever knows of it could end one worker after the other
        logger.exception("a request cannot be prepared")
        prepared = InternalError(f"the request cannot be prepared: {describe(error)}")
    return Attempt(request, prepared, time.perf_counter() - start)


def _divide(call: Call, request: Request, model: Model, contract: Contract, pace: Pace) -> tuple[Request, Split | None]:
    """The request as it is best prepared, and its pieces if it is too much at once. Raises InvalidArgumentError."""
    measured = model.measure(request)
    if measured is None:
        return request, None
    check_pixels(measured.pixels, contract.limits)
    request = with_instances(request, measured)
    most_bytes = _PIECES_BYTES * max(len(call.body), contract.limits.max_body_bytes)
    return request, split(call, request, measured.pixels, pace.size(model.batch), most_bytes)


def _parse(call: Call, model: Model, contract: Contract) -> Request:
    if call.first is not None:
        return restore(call)
    if call.dialect == "probe":
        if model.sample is None:
            return Request((), {}, call.dialect)
        call = msgspec.structs.replace(call, body=model.sample.body)
    return parse(call, contract.limits, model.signature)


def answer(calls: Sequence[Call], attempts: Sequence[Attempt], model: Model, contract: Contract) -> list[Reply | Split]:
    """One reply for each call, or its pieces, in their order."""
    computed = iter(
        model.compute([attempt.prepared for attempt in attempts if not isinstance(attempt.prepared, Split)])
    )
    return [
        msgspec.structs.replace(attempt.prepared, parse_seconds=attempt.seconds)
        if isinstance(attempt.prepared, Split)
        else _shape(call, attempt, next(computed), contract)
        for call, attempt in zip(calls, attempts, strict=True)
    ]


def _shape(call: Call, attempt: Attempt, computed: Computed, contract: Contract) -> Reply:
    outcome = computed.outcome
    try:
        if isinstance(outcome, ApiError):
            raise outcome
        assert attempt.request is not None
        reply = shape(attempt.request, outcome, contract.served)
        if call.accepts_gzip:
            reply = compress(reply)
    except (InstanceError, InstanceFailedError) as error:
        reply = shape_error(call.dialect, error.behind(call.first or 0))
    except ApiError as error:
        reply = shape_error(call.dialect, error)
    except BaseException as error:  # what a predictor returned may be anything, and raise when it is looked at
        logger.exception("the model's answer cannot be written")
        reply = shape_error(call.dialect, InternalError(f"the model's answer cannot be written: {describe(error)}"))
    return msgspec.structs.replace(
        reply,
        instances=computed.instances,
        parse_seconds=max(0.0, attempt.seconds - computed.prepare_seconds),
        prepare_seconds=computed.prepare_seconds,
        forward_seconds=computed.forward_seconds,
    )
