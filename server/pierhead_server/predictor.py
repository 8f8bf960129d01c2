"""The custom prediction routine: a class Predictor in the artifact's `predictor.py`. It is code, and runs as such."""

import contextlib
import importlib.util
import inspect
import io
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from starlette.exceptions import HTTPException

from pierhead_server.artifact import PREDICTOR_FILE, Sample
from pierhead_server.computing import Computed, describe, is_of_accelerator, text_of
from pierhead_server.errors import ApiError, ArtifactInvalidError, InternalError, InvalidArgumentError
from pierhead_server.protocol import Request, encode_json, means_nothing, suggest
from pierhead_server.signature import Signature

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

OUTPUT = "predictions"  # the one output's name in the Open Inference Protocol

_MODULE = "_pierhead_predictor"  # no name that the artifact's own modules could have
_MOST_CHARACTERS = 300  # of an exception's message

Array = npt.NDArray[Any]


class Routine(Protocol):
    """What `Predictor.from_path` gives."""

    def predict(self, instances: list[Any], **kwargs: Any) -> Any:
        """One prediction for each instance."""
        ...


class Unloaded:
    """What stands for a routine that each worker loads for itself."""

    def predict(self, instances: list[Any], **kwargs: Any) -> Any:  # noqa: ARG002 - as a routine's
        """Nothing: it is never asked."""
        raise RuntimeError("the predictor is not loaded")


def load_predictor(folder: Path, sample: Sample | None = None) -> "PredictorModel":
    """Import the folder's `predictor.py` and call its `Predictor.from_path`; `sample` is the artifact's.

    Raises ArtifactInvalidError for what is missing, or raises; the log has the whole traceback then.
    """
    with _blamed(f"{PREDICTOR_FILE}: importing it"), _printing():
        module = _import(folder)
    made_by = getattr(module, "Predictor", None)
    if not isinstance(made_by, type):
        raise ArtifactInvalidError(f"{PREDICTOR_FILE}: has no class Predictor")
    from_path = getattr(made_by, "from_path", None)
    if not callable(from_path):
        raise ArtifactInvalidError(f"{PREDICTOR_FILE}: class Predictor has no classmethod from_path(cls, model_dir)")
    with _blamed(f"{PREDICTOR_FILE}: Predictor.from_path"), _printing():
        routine = from_path(str(folder))
    if not callable(getattr(routine, "predict", None)):
        raise ArtifactInvalidError(
            f"{PREDICTOR_FILE}: Predictor.from_path gave a {type(routine).__name__}, "
            "which has no method predict(self, instances, **kwargs)"
        )
    return PredictorModel(routine, sample)


def _import(folder: Path) -> ModuleType:
    # Bytecode would be written beside the source, and the artifact would have another digest.
    sys.dont_write_bytecode = True
    # For the modules beside it, as where Python runs a program; they may be imported as late as in `predict`.
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(_MODULE, folder / PREDICTOR_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _blamed(step: str) -> Iterator[None]:
    """What the artifact's code raises here is the artifact's error."""
    try:
        yield
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        logger.exception("%s raised", step)
        raise ArtifactInvalidError(f"{step} raised {describe(error)}") from error


class _Printed(io.TextIOBase):
    """Takes what is printed, and logs it line by line."""

    def __init__(self) -> None:
        self._line = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            logger.info("printed: %s", line)
        return len(text)

    def finish(self) -> None:
        """The last line, if it is whole or not."""
        if self._line:
            self.write("\n")


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """A `print` of the artifact's code goes to the log, in the log's format."""
    printed = _Printed()
    with contextlib.redirect_stdout(printed):
        try:
            yield
        finally:
            printed.finish()


@dataclass(frozen=True)
class Predictions:
    """What a routine returned for one request."""

    rows: Sequence[object]

    labels = None
    echoes_key = False  # what the routine gave is the answer

    def predictions(self) -> Sequence[object]:
        """One for each instance, as the routine gave it; arrays and tensors may be in it."""
        return self.rows

    def tensors(self) -> dict[str, Array]:
        """One output: numbers as numbers, text and bytes as such, and of anything else its JSON."""
        return {OUTPUT: _to_numbers(self.rows) if _may_be_numbers(self.rows) else _to_elements(self.rows)}


def _may_be_numbers(rows: Sequence[object]) -> bool:
    """Whether an array of them holds numbers, and was not made of them by writing numbers as text."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):  # ragged, or objects that are no numbers
        return np.asarray(rows).dtype.kind in "biuf"
    return False


def _to_numbers(rows: Sequence[object]) -> Array:
    array: Array = np.asarray(rows)
    if isinstance(rows, np.ndarray):
        return array
    wide = {"f": np.float64, "i": np.int64}  # as Python's own numbers
    return array.astype(wide.get(array.dtype.kind, array.dtype))


def _to_elements(rows: Sequence[object]) -> Array:
    elements: Array = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        elements[index] = row if isinstance(row, str | bytes) else encode_json(row)
    return elements


class PredictorModel:
    """Answers requests with a custom prediction routine. Each request is a call of its own: its kwargs are its own."""

    form = "quick"
    batch = 1
    # Empty: only the routine knows what it takes, so that the Open Inference Protocol's inputs may have any name.
    signature = Signature((), ())

    def __init__(self, routine: Routine, sample: Sample | None = None) -> None:
        self._routine = routine
        self._arguments = _Arguments(routine.predict)
        self.sample = sample

    def measure(self, _: Request) -> None:
        """Its instances stay together: only the routine knows what they are to each other."""

    def limit_memory(self, most: int) -> None:
        """Nothing: the routine decodes."""

    def prepare(self, request: Request) -> Request:
        """Nothing: instances are the routine's business."""
        return request

    def move(self, device: "torch.device") -> None:
        """Nothing: the routine's tensors are where it has put them."""

    def compute(self, prepared: Sequence[Request | ApiError]) -> list[Computed]:
        """One outcome for each request, whatever the others are."""
        return [Computed(each) if isinstance(each, ApiError) else self._compute(each) for each in prepared]

    def _compute(self, request: Request) -> Computed:
        if not request.instances:  # a probe, where nobody knows what the routine takes
            return Computed(Predictions(()))
        start = time.perf_counter()
        outcome: Predictions | ApiError
        try:
            outcome = self.predict(request)
        except ApiError as error:
            outcome = error
        except BaseException as error:  # a stranger's code may raise anything on its input, and ends no process by it
            if is_of_accelerator(error):
                raise
            logger.warning("the predictor raised", exc_info=True)
            outcome = _judge(error, _name_instances(request))
        return Computed(outcome, len(request.instances), forward_seconds=time.perf_counter() - start)

    def predict(self, request: Request) -> Predictions:
        """What the routine returns; raises what it raises, and InternalError for what is no list of predictions."""
        arguments = self._arguments.choose(request.arguments)
        with _printing():
            given = self._routine.predict(list(request.instances), **arguments)
        return Predictions(_check_rows(given, len(request.instances)))


class _Arguments:
    """What a routine's `predict` takes beside the instances."""

    def __init__(self, predict: Callable[..., Any]) -> None:
        parameters = _read_parameters(predict)
        self._any = parameters is None or any(each.kind == inspect.Parameter.VAR_KEYWORD for each in parameters)
        named = [each for each in (parameters or [])[1:] if each.kind in _NAMED]
        self._instances = [each.name for each in (parameters or [])[:1] if each.kind in _NAMED]
        self._taken = {each.name for each in named}
        self._needed = {each.name for each in named if each.default is inspect.Parameter.empty}

    def choose(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        """Those that are passed on. Raises InvalidArgumentError for what `predict` does not take, or would miss."""
        if not self._any:
            arguments = {
                name: value
                for name, value in arguments.items()
                if name in self._taken or not means_nothing(name, value)
            }
        for name in arguments:
            if name in self._instances or not (self._any or name in self._taken):
                raise InvalidArgumentError(f"{name}: unknown: {suggest(name, ['instances', *sorted(self._taken)])}")
        for name in sorted(self._needed.difference(arguments)):
            raise InvalidArgumentError(f"{name}: missing: the predictor needs it")
        return arguments


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _read_parameters(predict: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """None where a C extension does not tell."""
    try:
        return list(inspect.signature(predict).parameters.values())
    except (TypeError, ValueError):
        return None


def _judge(error: BaseException, where: str) -> ApiError:
    """Whose error it is. A ValueError is Python's word for a wrong value, and KServe's InvalidInput is one; Vertex AI's
    custom prediction routines raise an HTTPException. Whatever else a routine raises is its own failure.
    """
    if isinstance(error, HTTPException):
        refused = isinstance(error.status_code, int) and 400 <= error.status_code < 500
        return (InvalidArgumentError if refused else InternalError)(text_of(error.detail)[:_MOST_CHARACTERS])
    family = InvalidArgumentError if isinstance(error, ValueError) else InternalError
    return family(f"{where}: the predictor raised {describe(error)}")


def _name_instances(request: Request) -> str:
    return "instances[0]" if len(request.instances) == 1 else "instances"


def _check_rows(given: object, count: int) -> Sequence[object]:
    """The predictions as a list or an array, one for each instance. Raises InternalError."""
    rows = _to_rows(given)
    if rows is None:
        raise InternalError(f"the predictor returned a {type(given).__name__}, not a list of predictions")
    if len(rows) != count:
        raise InternalError(f"the predictor returned {len(rows)} predictions for {count} instances")
    return rows


def _to_rows(given: object) -> Sequence[object] | None:
    if isinstance(given, list):
        return given if type(given) is list else list(given)  # a subclass may count otherwise than it gives
    if isinstance(given, np.ndarray):
        # An array of objects is a list; one of numbers stays as it is, and keeps its type.
        return (given if given.dtype.kind in "biuf" else given.tolist()) if given.ndim else None  # type: ignore[return-value]
    if isinstance(given, str | bytes | bytearray | Mapping | set | frozenset) or not isinstance(given, Sized):
        return None
    if hasattr(given, "tolist"):  # a tensor, a data frame's column
        listed = given.tolist()
        return listed if isinstance(listed, list) else None
    return list(given) if isinstance(given, Sequence) else None
