"""Several requests as one batch, each with an outcome of its own: what one of them does wrong harms no other."""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pierhead_server.errors import ApiError, InstanceError, InstanceFailedError, InternalError
from pierhead_server.protocol import Request, Result
from pierhead_server.tensors import ValueTensorError

logger = logging.getLogger(__name__)

M = TypeVar("M")
R = TypeVar("R")  # a row: what the model takes of one instance
P = TypeVar("P")  # a request's parameters


class Outputs(Protocol):
    """What the model gives for several rows: an array, or a list."""

    def __getitem__(self, part: slice, /) -> Any:
        """What it gives for some of them."""
        ...


Forward = Callable[[Sequence[R]], Outputs]


@dataclass(frozen=True)
class Prepared(Generic[R, P]):
    """One request, ready for the model."""

    rows: Sequence[R]
    parameters: P
    seconds: float


@dataclass(frozen=True)
class Computed:
    """What became of one request."""

    outcome: Result | ApiError
    instances: int = 0
    prepare_seconds: float = 0.0
    forward_seconds: float = 0.0  # its share of the batch


def measure_rows(instances: Sequence[object], measure: Callable[[object], M]) -> Iterator[M]:
    """What `measure` says of each instance. Raises InstanceError for the first that is wrong."""
    for index, instance in enumerate(instances):
        try:
            yield measure(instance)
        except ValueTensorError as error:
            raise InstanceError(index, error.field, error.cause) from None


def prepare_rows(
    request: Request, read_row: Callable[[object], R], read_parameters: Callable[[Mapping[str, object]], P]
) -> Prepared[R, P]:
    """Make rows of a request's instances. Raises InvalidArgumentError, which names the first instance that is wrong."""
    start = time.perf_counter()
    parameters = read_parameters(request.arguments)
    rows = list(measure_rows(request.instances, read_row))
    return Prepared(rows, parameters, time.perf_counter() - start)


def compute(
    requests: Sequence[Prepared[R, P] | ApiError],
    forward: Forward[R],
    shape: Callable[[Prepared[R, P], Any], Result],
    faults: tuple[type[Exception], ...] = (),
) -> list[Computed]:
    """Run all requests' rows through the model together, and give each request its part.

    `faults` are what the model raises at a row that is wrong, which is its caller's error; all else is the model's own.
    """
    sound = [request for request in requests if isinstance(request, Prepared)]
    rows = [row for request in sound for row in request.rows]
    start = time.perf_counter()
    outputs = _try_all(forward, rows)
    share = (time.perf_counter() - start) / max(1, len(rows))
    computed, position = [], 0
    for request in requests:
        if isinstance(request, ApiError):
            computed.append(Computed(request))
            continue
        count = len(request.rows)
        part = None if outputs is None else outputs[position : position + count]
        outcome = _finish(request, part, _Alone(forward, faults), shape)
        computed.append(Computed(outcome, count, request.seconds, share * count))
        position += count
    return computed


def _try_all(forward: Forward[R], rows: Sequence[R]) -> Outputs | None:
    """What the model gives for all rows; None where it raises, and so for somebody's row.

    Raises torch's AcceleratorError.
    """
    if not rows:
        return None
    try:
        return forward(rows)
    except Exception as error:  # the model is a stranger's program and may raise anything on its input
        if is_of_accelerator(error):
            raise
        logger.warning("the model raised on a batch of %d: each request is tried by itself", len(rows), exc_info=True)
        return None


def _finish(
    request: Prepared[R, P],
    outputs: Outputs | None,
    alone: "_Alone[R]",
    shape: Callable[[Prepared[R, P], Any], Result],
) -> Result | ApiError:
    try:
        return shape(request, alone(request.rows) if outputs is None else outputs)
    except ApiError as error:
        return error


@dataclass(frozen=True)
class _Alone(Generic[R]):
    """The model, for one request after the batch raised."""

    forward: Forward[R]
    faults: tuple[type[Exception], ...]

    def __call__(self, rows: Sequence[R]) -> Outputs:
        """Raises InstanceError or InternalError for the row that does it, and AcceleratorError."""
        for index, row in enumerate(rows):
            self._try([row], index, "")
        # None of the rows by itself, and so none of them is wrong: most often memory does not suffice.
        return self._try(rows, None, " on these instances together")

    def _try(self, rows: Sequence[R], index: int | None, when: str) -> Outputs:
        try:
            return self.forward(rows)
        except ApiError:
            raise
        except Exception as error:  # as above
            if is_of_accelerator(error):
                raise
            cause = f"the model raised {describe(error)}{when}"
            if index is not None and isinstance(error, self.faults) and not _is_of_the_machine(error):
                raise InstanceError(index, "", cause) from error
            raise (InternalError(cause) if index is None else InstanceFailedError(index, cause)) from error


_MOST_CHARACTERS = 300


def is_of_accelerator(error: BaseException) -> bool:
    """Whether a GPU failed: it fails at everything from then on, until another process takes it."""
    return _is_of_torch(error, "AcceleratorError")


def _is_of_torch(error: BaseException, name: str) -> bool:
    """Whether it is this error of torch's, which nobody raises who has not imported it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, getattr(torch, name))


# torch tells most of these by their words alone.
_OF_THE_MACHINE = re.compile(r"out of memory|not enough memory|allocate memory|CUDA|cuDNN|CUDNN|CUBLAS|cuBLAS|NCCL")


def _is_of_the_machine(error: Exception) -> bool:
    """Whether an error is of memory or of a device: another row could have met it."""
    return (
        _is_of_torch(error, "OutOfMemoryError")
        or isinstance(error, NotImplementedError | RecursionError)
        or bool(_OF_THE_MACHINE.search(text_of(error)))
    )


def describe(error: BaseException) -> str:
    """An exception's type and message, in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(text_of(error).split())}"[:_MOST_CHARACTERS].removesuffix(": ")


def text_of(value: object) -> str:
    """What a stranger's exception, or whatever it holds, says of itself."""
    try:
        return str(value)
    except Exception:  # its class may say anything, and raise
        return ""
