"""An artifact that is a network of OpenVINO's (`format: openvino`): checked, and made to take what the server gives.

OpenVINO's reader is C++ for files of one's own. So the text of the network is looked through before: it may hold
operators of a list, whose kernels do not take an index or a length as it comes. No torch.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pierhead_server.comparing import measure_drift, synthetic_pictures
from pierhead_server.config import ImageInput, Input, OpenvinoProgram, Preprocessing
from pierhead_server.converted import (
    TOLERANCE,
    Array,
    Inference,
    choose_precision,
    tell,
)
from pierhead_server.errors import ArtifactInvalidError
from pierhead_server.program import make_zeros
from pierhead_server.signature import DATATYPES, TensorSpec

logger = logging.getLogger(__name__)

# Nothing is measured for it, which would take longer than to load it: no network was seen to lose by four rows at once.
_BATCH = 4
_MOST_TEXT_BYTES = 256 << 20  # of model.xml; the weights are beside it
_CLASSIFIER_OUTPUT = "confidences"
_INT32 = np.iinfo(np.int32)
# numpy's names of what OpenVINO calls otherwise.
_DTYPES = {
    **{"f64": "float64", "f32": "float32", "f16": "float16", "boolean": "bool"},
    **{f"{short}{bits}": f"{long}{bits}" for short, long in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
}

# Of the opsets, as model.xml writes them: those that compute numbers of numbers. Without those that scatter, embed, or
# go along sequences, by indices and lengths out of a tensor; those that keep a state; and those with networks inside.
_NAMES = """
Abs Acos Acosh AdaptiveAvgPool AdaptiveMaxPool Add Asin Asinh Atan Atanh AvgPool BatchNormInference Broadcast
Ceiling Clamp Concat Const Convert ConvertLike Convolution ConvolutionBackpropData Cos Cosh CumSum
DepthToSpace Divide Einsum Elu Equal Erf Exp FakeQuantize Floor FloorMod GRN Gather Gelu Greater GreaterEqual
GroupConvolution GroupConvolutionBackpropData HSigmoid HSwish HardSigmoid Identity Interpolate IsFinite IsInf
IsNaN LRN Less LessEqual Log LogSoftmax LogicalAnd LogicalNot LogicalOr LogicalXor MVN MatMul MaxPool Maximum
Minimum Mish Mod Multiply Negative NormalizeL2 NotEqual PReLU PRelu Pad Parameter Power Range ReLU ReduceL1
ReduceL2 ReduceLogicalAnd ReduceLogicalOr ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape
Result Roll Round ScaledDotProductAttention Select Selu ShapeOf ShuffleChannels Sigmoid Sign Sin Sinh Slice
SoftMax SoftPlus SoftSign Softmax SpaceToDepth Split Sqrt SquaredDifference Squeeze StridedSlice Subtract
Swish Tan Tanh Tile TopK Transpose Unsqueeze VariadicSplit
"""
_OPERATORS = frozenset(_NAMES.split())
_STATES = frozenset({"Assign", "ReadValue"})
_BEGIN = re.compile(r"\ufeff?\s*<(\?xml|net)\b")
# Whatever a reader of XML takes for it, and more; none hides another one.
_TYPE = re.compile(r"""\btype\s*=\s*(?="([^"]*)"|'([^']*)')""")


@dataclass(frozen=True)
class Facts:
    """What is known of a network before it is made ready."""

    outputs: tuple[TensorSpec, ...]
    wide: tuple[int, ...]  # which of its inputs are whole numbers of more bits than OpenVINO computes with
    batch: int = _BATCH


class ArtifactNetwork:
    """An artifact's own network, for one thread.

    It is read and checked at once. `load` is for the process that computes, which reads it again: of a network that is
    ready OpenVINO does not say that it survives a fork. Its weights are mapped, and shared.
    """

    def __init__(self, folder: Path, config: OpenvinoProgram, classes: int | None, *, allow_code: bool) -> None:
        """`classes` of an image classifier. Raises ArtifactInvalidError."""
        path = folder / config.program
        self._config = config
        self._classes = classes
        self._allow_code = allow_code
        self._inference: Inference | None = None
        # What was looked through is what is read, each time.
        self._text = read_text(path)
        check_operators(self._text, path.name, allow_code=allow_code)
        self._weights = _map(path.with_suffix(".bin"))  # for as long as anything computes with them
        self._precision = choose_precision(config.precision)
        _, self.described = self._read()

    def load(self) -> None:
        """Make it ready, and run it. Raises ArtifactInvalidError."""
        # In float32 first: there a row that depends on others shows.
        for precision in dict.fromkeys(("float32", self._precision)):
            network, _ = self._read()
            try:
                self._inference = Inference(network, precision, len(self.described.outputs))
            except RuntimeError as error:
                raise self._refuse(f"OpenVINO cannot compute it: {tell(error)}") from error
            self._check_rows(exactly=precision == "float32")

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs for a batch: arrays of the network's inputs, in their order and contiguous.

        Raises ValueError for whole numbers that OpenVINO would cut.
        """
        for place in self.described.wide:
            array = inputs[place]
            if array.size and not _INT32.min <= array.min() <= array.max() <= _INT32.max:
                raise ValueError("a whole number of more than 32 bits, of which OpenVINO computes with 32")
        assert self._inference is not None
        return self._inference(inputs)

    def _read(self) -> tuple[Any, Facts]:
        # Imported here: other formats do without.
        import openvino

        try:
            weights = openvino.Tensor(self._weights, shared_memory=True)
            network = openvino.Core().read_model(self._text, weights)
        except RuntimeError as error:
            raise self._refuse(f"OpenVINO cannot read it and its .bin: {tell(error)}") from error
        if not self._allow_code and (kind := _find_free_step(network)):
            raise self._refuse(f"it has {kind} with a step that is no constant, which OpenVINO does not check{_ALLOW}")
        if self._classes is not None:
            return self._complete_classifier(network, self._classes)
        assert self._config.inputs is not None
        return self._complete_program(network, self._config.inputs)

    def _complete_classifier(self, network: Any, classes: int) -> tuple[Any, Facts]:
        side = self._config.preprocessing.crop
        if (len(network.inputs), len(network.outputs)) != (1, 1):
            raise self._refuse(
                f"it has {len(network.inputs)} inputs and {len(network.outputs)} outputs, and an image classifier has "
                "one of each: give inputs in the place of labels"
            )
        self._widen(network, [(network.inputs[0], "float32", (3, side, side), "preprocessing.crop")])
        (given,) = self._read_outputs(network)
        if given.dtype not in ("float32", "float16", "float64") or len(given.shape) != 1:
            raise self._refuse(
                f"it gives {given.dtype} [batch, {_list(given.shape)}]: a classifier gives [batch, classes]"
            )
        if given.shape[0] not in (-1, classes):
            raise ArtifactInvalidError(f"labels: {classes} names, but the program gives {given.shape[0]} classes")
        outputs = (TensorSpec(_CLASSIFIER_OUTPUT, "float32", (classes,)),)
        return _take_pictures(network, self._config), Facts(outputs, ())

    def _complete_program(self, network: Any, inputs: Sequence[Input]) -> tuple[Any, Facts]:
        if len(network.inputs) != len(inputs):
            raise ArtifactInvalidError(f"inputs: {len(inputs)} entries, but the program takes {len(network.inputs)}")
        names = self._config.outputs
        if names is not None and len(network.outputs) != len(names):
            raise ArtifactInvalidError(f"outputs: {len(names)} names, but the program gives {len(network.outputs)}")
        network = _order(network, [entry.name for entry in inputs], names or [])
        self._widen(network, [(port, *_expect(entry)) for port, entry in zip(network.inputs, inputs, strict=True)])
        given = self._read_outputs(network)
        names = names or (["output"] if len(given) == 1 else [f"output_{place}" for place in range(len(given))])
        outputs = tuple(TensorSpec(name, one.dtype, one.shape) for name, one in zip(names, given, strict=True))
        wide = tuple(
            place for place, entry in enumerate(inputs) if not isinstance(entry, ImageInput) and entry.dtype == "int64"
        )
        return network, Facts(outputs, wide)

    def _widen(self, network: Any, expected: Sequence[tuple[Any, str, tuple[int, ...], str]]) -> None:
        """Give each input the shape that model.yaml says, for any batch.

        `expected` has the dtype, the shape of one row, and the field that says so.
        """
        import openvino

        shapes = {}
        for port, dtype, shape, field in expected:
            kind, given = _name_dtype(port), port.get_partial_shape()
            if kind != dtype:
                raise self._refuse(f"{field}: the program takes {kind}, and model.yaml says {dtype}")
            if given.rank.is_static:
                sizes = [size.get_length() if size.is_static else -1 for size in given]
                # A size that is free in the program may be any in model.yaml.
                fits = len(sizes) == len(shape) + 1 and all(
                    one in (-1, other) for one, other in zip(sizes[1:], shape, strict=True)
                )
                if not fits:
                    raise self._refuse(
                        f"{field}: the program takes [{_list(sizes)}], and model.yaml says [batch, {_list(shape)}]"
                    )
            shapes[port] = openvino.PartialShape([-1, *shape])
        try:
            network.reshape(shapes)
        except RuntimeError as error:
            raise self._refuse(f"its batch cannot be made dynamic: {tell(error)}: {_FIX_BATCH}") from error

    def _read_outputs(self, network: Any) -> list[TensorSpec]:
        """Nameless."""
        outputs = []
        for place, port in enumerate(network.outputs):
            shape = port.get_partial_shape()
            if shape.rank.is_dynamic or not len(shape):
                raise self._refuse(f"output {place} has no batch dimension")
            if shape[0].is_static:
                raise self._refuse(f"output {place} has {shape[0].get_length()} rows for any batch: {_FIX_BATCH}")
            kind = _name_dtype(port)
            if kind not in DATATYPES:
                raise self._refuse(f"output {place} is {kind}: convert it to float32")
            sizes = tuple(size.get_length() if size.is_static else -1 for size in list(shape)[1:])
            outputs.append(TensorSpec("", kind, sizes))
        return outputs

    def _check_rows(self, *, exactly: bool) -> None:
        """Run a batch, and compare it with its rows, each by itself: those of strangers will be computed together."""
        rows = self._make_rows()
        try:
            together = self(rows)
            self._check_shapes(together, len(rows[0]))
            if not exactly:
                return
            for row in range(len(rows[0])):
                alone = self([array[row : row + 1] for array in rows])
                beside = [array[row : row + 1] for array in together]
                if not all(map(_agree, alone, beside)):
                    raise self._refuse(f"it computes a row otherwise where others are beside it: {_FIX_BATCH}")
        except (RuntimeError, ValueError) as error:
            raise self._refuse(f"it cannot compute a batch of {len(rows[0])}: {tell(error)}: {_FIX_BATCH}") from error

    def _make_rows(self) -> list[Array]:
        if self._classes is not None:
            return [np.stack(synthetic_pictures(2, self._config.preprocessing.crop))]
        assert self._config.inputs is not None
        # A zero and ones, which any program takes that takes whole numbers.
        rows = [make_zeros(entry, 3) for entry in self._config.inputs]
        for array in rows:
            array[1:] = 1
        return rows

    def _check_shapes(self, outputs: Sequence[Array], count: int) -> None:
        for output, spec in zip(outputs, self.described.outputs, strict=True):
            if self._classes is not None and output.shape != (count, self._classes):
                raise ArtifactInvalidError(
                    f"labels: {self._classes} names, but the program gives {output.shape} for a batch of {count}"
                )
            if output.shape[:1] != (count,):
                raise self._refuse(f"output {spec.name} has shape {output.shape} for a batch of {count}: {_FIX_BATCH}")

    def _refuse(self, cause: str) -> ArtifactInvalidError:
        return ArtifactInvalidError(f"program: {self._config.program}: {cause}")


def _map(path: Path) -> Array:
    """A file's bytes, which nothing writes to: OpenVINO asks for memory that could be written to."""
    if not path.stat().st_size:
        return np.zeros(0, dtype=np.uint8)  # of a network without weights
    return np.memmap(path, dtype=np.uint8, mode="c")


def _agree(one: Array, other: Array) -> bool:
    """Whether they are the same numbers, and none at the same places."""
    if one.shape != other.shape:
        return False
    numbers = np.isfinite(one)
    if not np.array_equal(numbers, np.isfinite(other)):
        return False
    given, expected = (array[numbers].astype(np.float32) for array in (one, other))
    return measure_drift(given, expected) <= TOLERANCE


_ALLOW = ": set allowCode: true on the Model's version if you know who made it"
# By the operator, which of its inputs is a step. A processor that divides by zero ends the process.
_STEPS = {"StridedSlice": 3, "Range": 2}


def _find_free_step(network: Any) -> str | None:
    """An operator that goes in steps which an input may give."""
    for operator in network.get_ops():
        kind = str(operator.get_type_name())
        place = _STEPS.get(kind)
        if place is None or place >= operator.get_input_size():
            continue
        if operator.input_value(place).get_node().get_type_name() != "Constant":
            return kind
    return None


_FIX_BATCH = "make it with a dynamic batch dimension"


def read_text(path: Path) -> str:
    """A network's text. Raises ArtifactInvalidError for what is none."""
    if path.stat().st_size > _MOST_TEXT_BYTES:
        raise ArtifactInvalidError(
            f"program: {path.name} has more than {_MOST_TEXT_BYTES} bytes: its weights belong into the .bin"
        )
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ArtifactInvalidError(f"program: {path.name} is no network of OpenVINO's: it is not UTF-8") from None
    # Of any other beginning OpenVINO asks all of its readers, those of other frameworks, too.
    if not _BEGIN.match(text) or "\0" in text:
        raise ArtifactInvalidError(f"program: {path.name} is no network of OpenVINO's: save it by openvino.save_model")
    return text


def check_operators(text: str, name: str, *, allow_code: bool) -> None:
    """Whether OpenVINO may read a network: whether its operators are safe. Raises ArtifactInvalidError.

    The text is looked through, and no second reader of XML is asked, which might see it otherwise: what the reader
    takes for an operator's type stands in it as it is.
    """
    kinds = find_types(text)
    if states := sorted(kinds & _STATES):
        raise ArtifactInvalidError(f"program: {name} has {states[0]}: a state would pass from one request to the next")
    if not allow_code and (others := find_other_operators(kinds)):
        raise ArtifactInvalidError(
            f"program: {name} has {', '.join(others[:5])}, whose indices OpenVINO does not check: set allowCode: true "
            "on the Model's version if you know who made it"
        )


def find_types(text: str) -> set[str]:
    """What may be the types of operators."""
    return {double or single for double, single in _TYPE.findall(text)}


def find_other_operators(kinds: set[str]) -> list[str]:
    """Those that need allowCode, by their types' names."""
    return sorted(repr(kind)[1:-1][:40] for kind in kinds - _OPERATORS)


def _expect(entry: Input) -> tuple[str, tuple[int, ...], str]:
    """Dtype and shape of a row, and the field that says so."""
    field = f"inputs.{entry.name}"
    if isinstance(entry, ImageInput):
        return "float32", make_zeros(entry, 1).shape[1:], field
    return entry.dtype, entry.shape, field


def _order(network: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The network with its ports in the order of names, where it knows all of them; else as it is."""
    import openvino

    sources, results = (_sort(ports, names) for ports, names in ((network.inputs, inputs), (network.outputs, outputs)))
    if sources == list(network.inputs) and results == list(network.outputs):
        return network
    return openvino.Model(
        [port.get_node().input_value(0) for port in results], [port.get_node() for port in sources], "ordered"
    )


def _sort(ports: Sequence[Any], names: Sequence[str]) -> list[Any]:
    found = {name: port for port in ports for name in port.get_names()}
    sought = [found.get(name) for name in names]
    if len(sought) < len(ports) or None in sought or len({id(port) for port in sought}) < len(ports):
        return list(ports)
    return sought


def _take_pictures(network: Any, config: OpenvinoProgram) -> Any:
    """The same for pictures as they lie, uint8 [batch, side, side, 3], to confidences in float32."""
    import openvino
    from openvino import opset8
    from openvino.preprocess import PrePostProcessor

    how: Preprocessing = config.preprocessing
    activations: dict[str, Callable[[Any], Any]] = {
        "softmax": lambda port: opset8.softmax(port, 1).output(0),
        "sigmoid": lambda port: opset8.sigmoid(port).output(0),
    }
    steps = PrePostProcessor(network)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    given = steps.input().preprocess()
    # The layout first, which moves nothing: behind the other steps it takes a quarter of a small network's time.
    given.convert_layout(openvino.Layout("NCHW")).convert_element_type(openvino.Type.f32)
    given.mean([255 * value for value in how.mean]).scale([255 * value for value in how.std])
    output = steps.output().postprocess().convert_element_type(openvino.Type.f32)
    if config.activation != "none":
        output.custom(activations[config.activation])
    return steps.build()


def _name_dtype(port: Any) -> str:
    """numpy's name, or OpenVINO's where numpy has none."""
    name = str(port.get_element_type().get_type_name())
    return _DTYPES.get(name, name)


def _list(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
