"""Makes compiled forms: a model of torch's becomes an entry of the cache that `converted` runs."""

import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import openvino
import torch
from openvino.preprocess import PrePostProcessor

from pierhead_server import entries
from pierhead_server.comparing import measure_rows, synthetic_pictures
from pierhead_server.config import ImageInput, Input
from pierhead_server.converted import (
    DESCRIPTION,
    LARGEST_BATCH,
    NETWORK,
    Array,
    Computing,
    ConversionError,
    Description,
    Metadata,
    Network,
    Order,
    Precision,
    SpoiltError,
    check,
    choose_precision,
    compute_checksums,
    is_memory_short,
    read_versions,
    write_check,
)
from pierhead_server.eager import ClassifierModule, EagerProgram, EagerRunner, to_batch
from pierhead_server.faithful import find_assertion, find_branch, find_difference, find_refusal
from pierhead_server.program import make_zeros
from pierhead_server.signature import TensorSpec

logger = logging.getLogger(__name__)

BATCHES = (1, 4, LARGEST_BATCH)  # that are measured
_PAYS = 0.96  # of the time that a row takes in the next smaller size; a larger one makes callers wait for longer
_ROWS = LARGEST_BATCH + 1
_CHECKED = (1, 2, 3, _ROWS)  # batches that are compared with the first form's when an entry is made
_KEPT = 2  # rows by which it is checked each time that it is loaded
# Of a number to the largest, on average, in half precision, whose owner accepts some.
_MOST_DRIFT = 0.1
_MEASURED, _MEASURED_SECONDS = 12, 0.3  # runs of a batch at most, but for the first three, and the CPU that they take
_FREE_SIZES = (7, 4)  # in place of a size that is free, none of which torch takes for a fixed one
_LEAST_CONFIDENCE, _LEAST_NUMBER = 1.0, 1e-3  # what differences are compared to where all numbers are smaller
_MOST_CHARACTERS = 300  # of a cause


@dataclass(frozen=True)
class Source:
    """A model of torch's in float32, as it is converted."""

    module: torch.nn.Module  # tensors in, a tuple of tensors out
    is_script: bool  # whether there is TorchScript in it
    shapes: Sequence[tuple[int, ...]]  # of one row of each input; -1 is any size
    compute: Callable[[Sequence[Array]], list[Array]]  # what the first form makes of a batch
    outputs: tuple[TensorSpec, ...]
    batches: Sequence[Sequence[Array]]  # that it is compared by; the first has _ROWS rows
    least: float
    takes_pictures: bool = False  # one input, of pictures as they lie: uint8 [n, side, side, 3]


@dataclass(frozen=True)
class Conversion:
    """A model that OpenVINO can read, not yet compared with its first form."""

    source: Source
    expected: Sequence[Sequence[Array]]  # what the first form makes of the source's batches
    network: openvino.Model


def make(order: Order, seconds: int = 0) -> bool:
    """Convert and keep; waits where another process makes the same. Whether there was none. Raises ConversionError.

    It may take so many seconds, after which the process is ended; as long as it takes with 0.
    """
    entry = order.entry
    try:
        with entries.alone(entry):
            signal.alarm(seconds)
            if entry.exists() and _is_sound(entry):
                return False
            with entries.making(entry) as made:
                begun = time.monotonic()
                conversion = convert_source(order.load)
                precision = choose_precision(order.precision)
                took = _write_entry(made, conversion, precision, order.metadata).milliseconds
            told = ", ".join(f"{one:.2f} ms in a batch of {count}" for count, one in took.items())
            logger.info("converted in %.1f s: a row takes %s", time.monotonic() - begun, told)
    except OSError as error:
        raise ConversionError(f"the compiled form cannot be kept in {entry.parent}: {error}") from error
    return True


def _write_entry(entry: Path, conversion: Conversion, precision: Precision, metadata: Metadata | None) -> Description:
    """`write_entry`, with what OpenVINO raises that converts a network and cannot compute it."""
    try:
        return write_entry(entry, conversion, precision, metadata)
    except (RuntimeError, MemoryError, ValueError) as error:
        raise _explain("OpenVINO cannot compute the model", error) from error


def _explain(what: str, error: Exception) -> ConversionError:
    if is_memory_short(error):
        return ConversionError("to convert the model takes more memory than the server has left")
    return ConversionError(f"{what}: {_tell(error)}")


def _tell(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_MOST_CHARACTERS]}"


def _is_sound(entry: Path) -> bool:
    """Whether the entry can be used; one that is spoilt is removed. Raises ConversionError where nobody can tell."""
    try:
        Network(entry).load()
    except SpoiltError as error:
        logger.warning("%s: it is made anew", error)
        entries.remove(entry)
        return False
    return True


def convert_source(load: Callable[[], Source]) -> Conversion:
    """Load a model, compute its batches in the first form, and convert it. Raises ConversionError."""
    try:
        source = load()
        expected = [source.compute(batch) for batch in source.batches]
        return Conversion(source, expected, convert(source))
    except ConversionError:
        raise
    except Exception as error:  # torch, OpenVINO and a stranger's model raise whatever makes them trip
        raise _explain("the model cannot be converted", error) from error


def write_entry(
    entry: Path, conversion: Conversion, precision: Precision, metadata: Metadata | None = None
) -> Description:
    """Fill an empty folder with a network that was compared with its first form. Raises ConversionError."""
    source, expected = conversion.source, conversion.expected
    save(conversion.network, entry / NETWORK)
    described = Description(
        key=entry.name,
        outputs=source.outputs,
        precision="float32",
        batch=1,
        milliseconds={},
        least=source.least,
        checksums=compute_checksums(entry),
        versions=read_versions(),
        metadata=metadata,
    )
    made = _describe(entry, described)
    made.start()
    compare(made, source, expected)
    if precision != "float32":
        described = msgspec.structs.replace(described, precision=precision)
        made = _describe(entry, described)
        made.start()
        compare_precision(made, precision, source, expected)
    kept = _cut(source.batches[0], _KEPT)
    write_check(entry, kept, _cut(expected[0], _KEPT) if precision == "float32" else made(kept))
    made.load()
    milliseconds = {count: measure(made, _cut(source.batches[0], count)) for count in BATCHES}
    described = msgspec.structs.replace(described, batch=choose_batch(milliseconds), milliseconds=milliseconds)
    return _describe(entry, described).described


def compare(made: Computing, source: Source, expected: Sequence[Sequence[Array]]) -> None:
    """Whether a network in float32 is the model, in batches of several sizes. Raises ConversionError."""
    for batch, outputs in zip(source.batches, expected, strict=True):
        for count in sorted({min(count, len(batch[0])) for count in _CHECKED}):
            check(made(_cut(batch, count)), _cut(outputs, count), source.least)


def compare_precision(
    made: Computing, precision: Precision, source: Source, expected: Sequence[Sequence[Array]]
) -> None:
    """Whether a network in half precision, whose conversion is proven, still says the same. Raises ConversionError.

    By the mean over a batch, of each output: one number may move by any amount, where a network is of two minds about
    a row. The artifact's own sample is a batch by itself, which no other makes up for.
    """
    drifts = [
        measure_rows(given, wanted, source.least)
        for batch, outputs in zip(source.batches, expected, strict=True)
        for given, wanted in zip(made(batch), outputs, strict=True)
    ]
    worst = float(np.max([one.mean() for one in drifts]))  # no number where one is none
    told = f"in {precision} a number of a row moves by {worst:.4f}"
    logger.info("%s on average, by at most %.4f", told, max(one.max() for one in drifts))
    if not worst <= _MOST_DRIFT:
        raise ConversionError(f"the compiled form differs from the first one: {told}")


def _describe(entry: Path, described: Description) -> Network:
    (entry / DESCRIPTION).write_bytes(msgspec.json.encode(described))
    return Network(entry)


def _cut(arrays: Sequence[Array], count: int) -> list[Array]:
    return [array[:count] for array in arrays]


def choose_batch(milliseconds: Mapping[int, float]) -> int:
    """The batch size to prefer, by what a row takes in each: a larger one only where it pays."""
    best = 1
    for batch in sorted(milliseconds):
        if milliseconds[batch] < _PAYS * milliseconds[best]:
            best = batch
    return best


def measure(form: Callable[[Sequence[Array]], object], batch: Sequence[Array]) -> float:
    """Milliseconds of CPU for one row; the best of several, since others compute meanwhile."""
    best, begun = float("inf"), time.process_time()
    for run in range(_MEASURED):
        start = time.process_time()
        form(batch)
        best = min(best, time.process_time() - start)
        if run >= 2 and time.process_time() - begun > _MEASURED_SECONDS:
            break
    return best * 1000 / len(batch[0])


# --- conversion ---


def convert(source: Source) -> openvino.Model:
    """The model as a network of OpenVINO's. Raises ConversionError, and whatever it makes torch and OpenVINO raise."""
    examples = _make_examples(source)
    with torch.no_grad(), warnings.catch_warnings(), _own_logging():
        warnings.simplefilter("ignore")  # torch's, of its own internals
        network = _convert_script(source, examples) if source.is_script else _convert_export(source, examples)
    if (len(network.inputs), len(network.outputs)) != (len(source.shapes), len(source.outputs)):
        raise ConversionError("the model cannot be converted: it has other inputs or outputs then")
    _refuse(find_difference(network))
    network.reshape(
        {port: openvino.PartialShape([-1, *shape]) for port, shape in zip(network.inputs, source.shapes, strict=True)}
    )
    return _take_pictures(network) if source.takes_pictures else network


@contextmanager
def _own_logging() -> Iterator[None]:
    """OpenVINO's converter makes the root logger quiet, and leaves it so where it raises."""
    root = logging.getLogger()
    level = root.level
    try:
        yield
    finally:
        root.setLevel(level)


def save(network: openvino.Model, path: Path) -> None:
    """Write a network, and its weights beside it, as they are. Raises OSError."""
    try:
        openvino.save_model(network, str(path), compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(f"{path}: {' '.join(str(error).split())[:_MOST_CHARACTERS]}") from error


def _make_examples(source: Source) -> tuple[torch.Tensor, ...]:
    batch = _cut(source.batches[0], 2)
    return (to_batch(list(batch[0])),) if source.takes_pictures else tuple(map(torch.from_numpy, batch))


def _convert_export(source: Source, examples: tuple[torch.Tensor, ...]) -> openvino.Model:
    free = torch.export.Dim.DYNAMIC
    shapes = tuple(
        {0: free, **{place: free for place, size in enumerate(shape, 1) if size == -1}} for shape in source.shapes
    )
    program = torch.export.export(source.module, examples, dynamic_shapes=(shapes,))
    _refuse(find_assertion(program))
    return openvino.convert_model(program)


def _convert_script(source: Source, examples: tuple[torch.Tensor, ...]) -> openvino.Model:
    traced = torch.jit.trace(source.module, examples, check_trace=False)  # type: ignore[no-untyped-call]
    if any(-1 in shape for shape in source.shapes):
        _refuse(find_refusal(traced.inlined_graph))
    frozen = torch.jit.freeze(traced.eval())
    _refuse(find_branch(frozen.graph))
    return openvino.convert_model(frozen, example_input=examples)


def _refuse(cause: str | None) -> None:
    if cause:
        raise ConversionError(f"the model is not converted: {cause}")


def _take_pictures(network: openvino.Model) -> openvino.Model:
    """The same for pictures as they lie, with the channels of a pixel beside each other: nothing is copied for it."""
    steps = PrePostProcessor(network)
    steps.input().tensor().set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    return steps.build()


# --- sources ---


class Flat(torch.nn.Module):
    """Gives its outputs as a tuple in their order, however the model nests them."""

    def __init__(self, module: torch.nn.Module, flatten: Callable[[object], tuple[torch.Tensor, ...]]) -> None:
        super().__init__()
        self.module = module
        self._flatten = flatten

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._flatten(self.module(*inputs))


def make_classifier_source(
    module: ClassifierModule, side: int, labels: int, *, is_script: bool, samples: Sequence[Array] = ()
) -> Source:
    """A classifier; `samples` are pictures [side, side, 3] beside the synthetic ones."""
    runner = EagerRunner(module)
    batches = [[np.stack(synthetic_pictures(_ROWS, side))], *([[np.stack(samples)]] if samples else [])]
    return Source(
        module=Flat(module, lambda given: (given,)),  # type: ignore[arg-type,return-value]
        is_script=is_script,
        shapes=[(3, side, side)],
        compute=lambda batch: [runner(list(batch[0]))],
        outputs=(TensorSpec("confidences", "float32", (labels,)),),
        batches=batches,
        least=_LEAST_CONFIDENCE,
        takes_pictures=True,
    )


def make_program_source(
    runner: EagerProgram,
    inputs: Sequence[Input],
    outputs: tuple[TensorSpec, ...],
    *,
    is_script: bool,
    samples: Sequence[Sequence[Array]] = (),
) -> Source:
    """A program of named tensors; `samples` are rows beside the synthetic ones."""
    shapes = [make_zeros(entry, 1).shape[1:] if isinstance(entry, ImageInput) else entry.shape for entry in inputs]
    sizes = _FREE_SIZES if any(-1 in shape for shape in shapes) else _FREE_SIZES[:1]
    batches = [[_make_rows(entry, size) for entry in inputs] for size in sizes]
    batches += [[array[None] for array in row] for row in samples]
    return Source(
        module=Flat(runner.module, lambda given: tuple(runner.name(given).values())),
        is_script=is_script,
        shapes=shapes,
        compute=lambda batch: list(runner(batch).values()),
        outputs=outputs,
        batches=batches,
        least=_LEAST_NUMBER,
    )


def _make_rows(entry: Input, size: int) -> Array:
    """Rows of soft waves, no two alike; of whole numbers ones and zeros."""
    blank = make_zeros(_fix_size(entry, size), _ROWS)
    waves = np.sin(np.arange(blank.size) * 0.7 + np.arange(_ROWS).repeat(blank.size // _ROWS)).reshape(blank.shape)
    return np.asarray(waves if blank.dtype.kind == "f" else waves > 0, dtype=blank.dtype)


def _fix_size(entry: Input, size: int) -> Input:
    """The input with this size in place of each that is free."""
    if isinstance(entry, ImageInput):
        return entry
    return entry.model_copy(update={"shape": tuple(size if one == -1 else one for one in entry.shape)})
