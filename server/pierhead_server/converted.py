"""The compiled form of a model: a network of OpenVINO's, kept in a folder, checked before it computes. No torch.

An entry of the cache is `<cache>/<key>/`: the network (`model.xml`, `model.bin`), what is known of it (`form.json`),
and some inputs with what is to come of them (`check.npz`): what the first form makes of them, and in half
precision what came when that was compared with it. The key covers everything that decides what is in
it: the artifact, torch and OpenVINO, the CPU. `converting` makes entries.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from pierhead_server.comparing import measure_drift
from pierhead_server.messages import Form
from pierhead_server.signature import TensorSpec

if TYPE_CHECKING:
    from pierhead_server.converting import Source

Array = npt.NDArray[Any]
Precision = Literal["float32", "bfloat16", "float16"]

NETWORK, WEIGHTS, DESCRIPTION, CHECK = "model.xml", "model.bin", "form.json", "check.npz"
LARGEST_BATCH = 8  # beyond that no CPU was seen to gain, and memory grows
# Of the largest number that comes out: two forms in float32 add up in another order, and no more.
TOLERANCE = 2e-3

_VERSION = 4  # of what an entry holds
_PART_BYTES = 1 << 20  # of a file that is read
_KEPT_SHAPES = 500  # of operators; a classifier has some for each size of a batch
_NO_MEMORY = re.compile(r"bad_alloc|[Ff]ailed to allocate|can't alloc|not enough memory")
_HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CAPABILITIES: dict[Precision, str] = {"bfloat16": "BF16", "float16": "FP16"}

logger = logging.getLogger(__name__)


class ConversionError(Exception):
    """There is no compiled form, or it cannot be used; the message says why. The first form computes."""


class SpoiltError(ConversionError):
    """It is there, and is not what was made: it is to be made anew."""


class Metadata(msgspec.Struct, frozen=True):
    """What torchvision says of its weights, for whoever computes without it."""

    labels: tuple[str, ...]
    preprocessing: dict[str, Any]  # config.Preprocessing's fields


class Description(msgspec.Struct, frozen=True):
    """`form.json`."""

    key: str
    outputs: tuple[TensorSpec, ...]
    precision: Precision  # what it computes in
    batch: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_BATCH)]  # rows that are best computed together
    milliseconds: dict[int, float]  # of CPU for one row, by batch; measured where it was made
    least: float  # numbers are compared to their largest, or to this where all are smaller
    checksums: dict[str, int]  # of its files
    versions: dict[str, str]  # of what made it
    metadata: Metadata | None = None  # where the artifact leaves it to torchvision


@dataclass(frozen=True)
class Order:
    """What `converting` is to convert, and where to put it."""

    load: "Callable[[], Source]"
    entry: Path
    precision: Precision
    metadata: Metadata | None = None


def compute_key(*, weights: Path, model: str) -> str:
    """The name of an entry: 32 hexadecimal digits over the weights, what `model` says of them, versions and the CPU."""
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    parts = [_VERSION, digest, model, read_versions(), _describe_cpu()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def read_versions() -> dict[str, str]:
    """Of what makes and runs an entry, as far as it is installed; nothing is imported for it."""
    versions = {}
    for name in ("openvino", "torch", "torchvision"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _describe_cpu() -> str:
    """The features that decide how a network is computed, and in which precision it can be."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    kept = {name.strip(): " ".join(sorted(value.split())) for name, value in facts.items()}
    names = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
    return json.dumps([os.uname().machine, *(kept.get(name, "") for name in names)])


class Network:
    """An entry's network, for one thread.

    It is described at once. `load` is for the process that computes: of a network that is ready OpenVINO does not say
    that it survives a fork.
    """

    def __init__(self, entry: Path) -> None:
        """Raises ConversionError for what is no entry, or half of one."""
        self.entry = entry
        try:
            self.described = msgspec.json.decode((entry / DESCRIPTION).read_bytes(), type=Description)
            checksums = compute_checksums(entry)
        except (OSError, msgspec.MsgspecError) as error:
            raise self._judge(error) from error
        if self.described.key != entry.name or self.described.checksums != checksums:
            raise SpoiltError(f"the compiled form in {entry} cannot be used: it is another one, or damaged")
        self._inference: Inference | None = None

    def load(self) -> None:
        """Make it ready, and check what it computes. Raises ConversionError."""
        try:
            self.start()
            inputs, expected = read_check(self.entry)
            given = self(inputs)
        except Exception as error:  # numpy and OpenVINO raise whatever a spoilt file makes them trip over
            raise self._judge(error) from error
        try:
            check(given, expected, self.described.least)
        except ConversionError as error:
            raise SpoiltError(str(error)) from error

    def _judge(self, error: Exception) -> ConversionError:
        """Where memory is short, or the disk fails, the entry may be as sound as ever."""
        is_ours = is_memory_short(error) or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError))
        told = f"the compiled form in {self.entry} cannot be used: {tell(error)}"
        return ConversionError(told) if is_ours else SpoiltError(told)

    def start(self) -> None:
        """Make it ready, unchecked. Raises what OpenVINO does."""
        self._inference = Inference(str(self.entry / NETWORK), self.described.precision, len(self.described.outputs))

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs for a batch: arrays of the network's inputs, in their order and contiguous."""
        assert self._inference is not None
        return self._inference(inputs)


class Inference:
    """A network (a file's name, or an openvino.Model) that computes in one thread. Raises what OpenVINO does."""

    def __init__(self, network: Any, precision: Precision, outputs: int) -> None:
        self._outputs = outputs
        self._compiled = _compile(network, precision)
        self._request = self._compiled.create_infer_request()

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs for a batch: arrays of the network's inputs, in their order and contiguous.

        Raises MemoryError where there is not enough, and else RuntimeError.
        """
        try:
            self._request.infer(list(inputs), share_inputs=True)
        except RuntimeError as error:
            # What has raised goes on with the shapes of then: whoever asks next would get the same error.
            self._request = self._compiled.create_infer_request()
            if is_memory_short(error):
                raise MemoryError("out of memory") from None
            raise RuntimeError(tell(error)) from None
        # The next batch is computed into the same memory.
        return [self._request.get_output_tensor(place).data.copy() for place in range(self._outputs)]


def _compile(network: Any, precision: Precision) -> Any:
    # Imported here: whoever only looks an entry up does without.
    import openvino

    options = {
        # A worker computes on its CPU alone, where it is kept already: without a stream of its own, OpenVINO
        # computes in the thread that asks. To wake another takes a fifth of a small network's time.
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 0,
        "ENABLE_CPU_PINNING": False,
        # By itself it would take bfloat16 wherever the CPU has it.
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        # What it prepares for a shape it keeps. By default of 5,000: who sends ever other sizes would fill the memory.
        "CPU_RUNTIME_CACHE_CAPACITY": str(_KEPT_SHAPES),
    }
    return openvino.Core().compile_model(network, "CPU", options)


def choose_precision(asked: Precision) -> Precision:
    """What this CPU computes in: float32 where it has no arithmetic for what is asked."""
    if has_arithmetic(asked):
        return asked
    logger.warning("precision %s: this CPU has none: the compiled form computes in float32", asked)
    return "float32"


def has_arithmetic(precision: Precision) -> bool:
    """Whether this CPU computes in it, and not in float32 between two conversions."""
    import openvino

    if precision == "float32":
        return True
    return _CAPABILITIES[precision] in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def tell(error: Exception) -> str:
    """In one line of bounded length, from its end: OpenVINO begins with its own source's lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def is_memory_short(error: Exception) -> bool:
    """Whether OpenVINO, or torch, or Python got no more memory."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def compute_checksums(entry: Path) -> dict[str, int]:
    """Of a network's files, for damage that nobody meant: of half a file, pages would be missing when it is read."""
    return {name: _compute_checksum(entry / name) for name in (NETWORK, WEIGHTS)}


def _compute_checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(_PART_BYTES):
            checksum = zlib.crc32(part, checksum)
    return checksum


def write_check(entry: Path, inputs: Sequence[Array], expected: Sequence[Array]) -> None:
    """What an entry is checked by."""
    arrays = {f"input_{place}": array for place, array in enumerate(inputs)}
    arrays |= {f"output_{place}": array for place, array in enumerate(expected)}
    np.savez(entry / CHECK, allow_pickle=False, **arrays)


def read_check(entry: Path) -> tuple[list[Array], list[Array]]:
    """The inputs, and what is to come of them."""
    with (entry / CHECK).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        kinds = ([name for name in arrays if name.startswith(kind)] for kind in ("input_", "output_"))
        inputs, expected = ([arrays[name] for name in sorted(names, key=_place)] for names in kinds)
    return inputs, expected


def _place(name: str) -> int:
    return int(name.rpartition("_")[2])


def check(given: Sequence[Array], expected: Sequence[Array], least: float) -> None:
    """Whether two forms agree; `least` as in Description. Raises ConversionError."""
    if len(given) != len(expected) or any(one.dtype != other.dtype for one, other in zip(given, expected, strict=True)):
        raise ConversionError("the compiled form cannot be used: it gives other outputs")
    for one, other in zip(given, expected, strict=True):
        if one.dtype == np.bool_:
            difference = float((one != other).any()) if one.shape == other.shape else 1.0
        else:
            try:
                difference = measure_drift(one.astype(np.float32), other.astype(np.float32), least)
            except ValueError as error:
                raise ConversionError(f"the compiled form cannot be used: {error}") from None
        if difference > TOLERANCE:
            raise ConversionError(f"the compiled form differs from the first one by {difference:.4f}")


class Facts(Protocol):
    """What runners know of a network."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """In their order."""
        ...

    @property
    def batch(self) -> int:
        """Rows that are best computed together."""
        ...


class Computing(Protocol):
    """A network that computes: a compiled form, or an artifact's own (`openvino_network`)."""

    @property
    def described(self) -> Facts:
        """What it gives."""
        ...

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs for a batch."""
        ...


class PictureRunner:
    """A classifier's compiled form."""

    form: Form = "compiled"

    def __init__(self, network: Computing) -> None:
        self._network = network
        self.batch = network.described.batch

    def __call__(self, pictures: Sequence[Array]) -> npt.NDArray[np.float32]:
        """Float32 [pictures, classes] of any number of pictures [side, side, 3], at least one."""
        parts = [
            self._network([_stack(pictures[start : start + LARGEST_BATCH])])[0]
            for start in range(0, len(pictures), LARGEST_BATCH)
        ]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _stack(pictures: Sequence[Array]) -> Array:
    return np.ascontiguousarray(pictures[0][None]) if len(pictures) == 1 else np.stack(pictures)


class TensorRunner:
    """The compiled form of a program of named tensors."""

    form: Form = "compiled"

    def __init__(self, network: Computing) -> None:
        self._network = network
        self.batch = network.described.batch

    def __call__(self, batch: Sequence[Array]) -> dict[str, Array]:
        """The outputs by their names, for one array an input with the batch first."""
        names = (spec.name for spec in self._network.described.outputs)
        return dict(zip(names, self._network(batch), strict=True))
