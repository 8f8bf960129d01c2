"""Any other program: named tensors and pictures in, named tensors out."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from pierhead_server.artifact import Sample
from pierhead_server.computing import Computed, Prepared, compute, measure_rows, prepare_rows
from pierhead_server.config import ImageInput, Input, Preprocessing, TensorInput
from pierhead_server.errors import ApiError, InternalError
from pierhead_server.images import BadPictureError, PixelBudget, fit, measure, read_image
from pierhead_server.messages import Form
from pierhead_server.protocol import Request, encode_json, read_picture, refuse_arguments
from pierhead_server.splitting import Measured
from pierhead_server.tensors import Signature, TensorSpec, ValueTensorError, to_tensor

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Row = tuple[Array, ...]  # one array for each input
Named = Mapping[str, Array]  # what the program gives for one row

# What a program raises at values and sizes that it cannot compute with. torch has no closer name than RuntimeError, and
# TorchScript makes one of everything.
_FAULTS = (ValueError, IndexError, AssertionError, RuntimeError)
_MOST_GUESSES = 16  # names that are compared with the one that is missing


class Runner(Protocol):
    """One form of a program on one device."""

    form: Form
    batch: int  # how many requests it computes best at a time

    def __call__(self, batch: Sequence[Array]) -> dict[str, Array]:
        """Its outputs by their names, for one array an input with the batch first."""
        ...


@dataclass(frozen=True)
class Tensors:
    """One request's outputs."""

    rows: Sequence[Named]

    labels = None
    echoes_key = True

    def predictions(self) -> list[object]:
        """A number or a list where there is one output, else an object by the outputs' names."""
        return [next(iter(row.values())) if len(row) == 1 else dict(row) for row in self.rows]

    def tensors(self) -> dict[str, Array]:
        """Each output with the batch first. Raises ValueError where the rows differ in shape."""
        return {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]}


class TensorProgram:
    """Answers requests of tensors; how it computes may be exchanged for a faster form."""

    def __init__(
        self,
        runner: Runner,
        inputs: Sequence[Input],
        outputs: tuple[TensorSpec, ...],
        *,
        max_image_pixels: int,
        sample: Sample | None = None,
    ) -> None:
        self.runner = runner
        self._own_sample = sample
        self._inputs = inputs
        self._pixels = PixelBudget(max_image_pixels)
        self._readers: dict[str, Callable[[object], Array]] = {
            entry.name: _make_reader(entry, self._pixels) for entry in inputs
        }
        self._pictures = {entry.name: entry.preprocessing for entry in inputs if isinstance(entry, ImageInput)}
        self.signature = Signature(tuple(_describe_input(entry) for entry in inputs), outputs)

    @property
    def form(self) -> Form:
        """What computes."""
        return self.runner.form

    @property
    def batch(self) -> int:
        """How many requests are best computed together."""
        return self.runner.batch

    @cached_property
    def sample(self) -> Sample:
        """The artifact's own, else zeros and black pictures."""
        if self._own_sample:
            return self._own_sample
        values = {entry.name: _make_blank(entry) for entry in self._inputs}
        # One input by itself: a client may give it without its name, which may be any.
        instance = values if len(values) > 1 else next(iter(values.values()))
        return Sample(encode_json({"instances": [instance]}), "a synthetic instance of zeros")

    def limit_memory(self, most: int) -> None:
        """Refuse pictures that take more bytes to decode."""
        self._pixels.limit_memory(most)

    def measure(self, request: Request) -> Measured:
        """The pixels of each instance's pictures. Raises InstanceError."""
        if not self._pictures:
            return Measured(request.instances, [0] * len(request.instances))
        return Measured(request.instances, list(measure_rows(request.instances, self._measure_row)))

    def prepare(self, request: Request) -> Prepared[Row, None]:
        """Make the inputs' arrays. Raises InvalidArgumentError."""
        return prepare_rows(request, self._read_row, refuse_arguments)

    def compute(self, prepared: Sequence[Prepared[Row, None] | ApiError]) -> list[Computed]:
        """One outcome for each request, whatever the others are."""
        return compute(prepared, self._forward, self._shape, faults=_FAULTS)

    def move(self, device: "torch.device") -> None:
        """Compute on a GPU from now on. Raises what the program raises there."""
        # Imported here: the compiled form does without torch.
        from pierhead_server.eager import EagerProgram, probe

        assert isinstance(self.runner, EagerProgram)
        moved = self.runner.copy_to(device)
        outputs = probe(moved, self._inputs)
        if outputs != self.signature.outputs:
            raise RuntimeError(f"it gives {outputs} there, not {self.signature.outputs}")
        self.runner = moved

    def _read_row(self, instance: object) -> Row:
        names = list(self._readers)
        named = isinstance(instance, dict) and not (len(names) == 1 and names[0] not in instance)
        if not named:
            if len(names) > 1:
                raise ValueTensorError("", f"must be an object with {', '.join(names)}")
            return (self._readers[names[0]](instance),)
        assert isinstance(instance, dict)
        _check_names(instance, names)
        row = []
        for name, read in self._readers.items():
            try:
                row.append(read(instance[name]))
            except ValueTensorError as error:
                raise ValueTensorError(f".{name}{error.field}", error.cause) from None
        return tuple(row)

    def _measure_row(self, instance: object) -> int:
        if isinstance(instance, dict) and (len(self._readers) > 1 or next(iter(self._pictures)) in instance):
            return sum(
                _measure_picture(instance.get(name), how, f".{name}", self._pixels)
                for name, how in self._pictures.items()
            )
        if len(self._readers) > 1:
            return 0
        return _measure_picture(instance, next(iter(self._pictures.values())), "", self._pixels)

    def _forward(self, rows: Sequence[Row]) -> Sequence[Named]:
        """Rows of one shape as one batch; an input of any size may bring several shapes."""
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(tuple(array.shape for array in row), []).append(index)
        outputs: dict[int, Named] = {}
        for indices in groups.values():
            batch = [np.stack(column) for column in zip(*(rows[index] for index in indices), strict=True)]
            named = self._run(batch)
            for place, index in enumerate(indices):
                outputs[index] = {name: array[place] for name, array in named.items()}
        return [outputs[index] for index in range(len(rows))]

    def _run(self, batch: Sequence[Array]) -> dict[str, Array]:
        named = self.runner(batch)
        for name, array in named.items():
            if array.shape[:1] != (len(batch[0]),):
                raise InternalError(f"output {name} has shape {array.shape} for a batch of {len(batch[0])}")
        return named

    def _shape(self, _: Prepared[Row, None], rows: Sequence[Named]) -> Tensors:
        return Tensors(rows)


def _check_names(instance: Mapping[str, object], names: Sequence[str]) -> None:
    """Whether all inputs are there. What else is, is ignored: `key`, and whatever a client keeps beside them."""
    for name in names:
        if name not in instance:
            others = [given[:100] for given in islice(instance, _MOST_GUESSES) if given not in names]
            near = difflib.get_close_matches(name, others, n=1)
            raise ValueTensorError(
                f".{name}", f"missing: the model needs it{f', and does not know {near[0]}' if near else ''}"
            )


def _describe_input(entry: Input) -> TensorSpec:
    if isinstance(entry, ImageInput):
        return TensorSpec(entry.name, "bytes", ())
    return TensorSpec(entry.name, entry.dtype, entry.shape)


def _measure_picture(value: object, how: Preprocessing, field: str, budget: PixelBudget) -> int:
    """What it costs in pixels; 0 of what is no picture. Raises ValueTensorError."""
    try:
        picture = value if isinstance(value, list) else read_picture(value)
    except ValueTensorError:
        return 0  # whoever reads it, says why
    try:
        return measure(picture, how, max_pixels=budget.most)
    except BadPictureError as error:
        raise ValueTensorError(field, str(error)) from None


def _make_reader(entry: Input, budget: PixelBudget) -> Callable[[object], Array]:
    if isinstance(entry, TensorInput):
        return partial(to_tensor, spec=_describe_input(entry))
    how = entry.preprocessing
    mean, std = (np.asarray(values, dtype=np.float32).reshape(3, 1, 1) for values in (how.mean, how.std))

    def read(value: object) -> Array:
        picture = read_picture(value)
        try:
            if isinstance(picture, bytes):
                pixels = read_image(picture, how, max_pixels=budget.most, budget=budget)
            else:
                pixels = fit(picture, how, max_pixels=budget.most, budget=budget)
        except BadPictureError as error:
            raise ValueTensorError("", str(error)) from None
        return np.ascontiguousarray((pixels.transpose(2, 0, 1).astype(np.float32) / 255 - mean) / std)

    return read


def make_zeros(entry: Input, count: int) -> Array:
    """Some rows of an input, as the program takes them; of sizes that are free each is 1."""
    if isinstance(entry, ImageInput):
        side = entry.preprocessing.crop
        return np.zeros((count, 3, side, side), dtype=np.float32)
    return np.zeros((count, *(1 if size == -1 else size for size in entry.shape)), dtype=entry.dtype)


def _make_blank(entry: Input) -> Array | bytes:
    """A value of this input, as a client gives it."""
    if isinstance(entry, TensorInput):
        return np.asarray(make_zeros(entry, 1)[0])
    encoded = BytesIO()
    Image.new("RGB", (1, 1)).save(encoded, format="PNG")
    return encoded.getvalue()
