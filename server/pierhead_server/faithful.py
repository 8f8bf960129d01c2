"""Whether OpenVINO computes what torch does. Where it is known not to, a model stays in its first form.

Comparing numbers finds networks that compute something else, but not what happens to inputs that nobody tried: an index
out of range gives zeros instead of an error, int64 is cut to 32 bits, and assertions of values are left out.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

# By the operator, which of its inputs are indices. OpenVINO reads zeros where torch raises.
_INDICES = {
    "Gather": 1,
    "GatherElements": 1,
    "GatherND": 1,
    "GatherTree": 1,
    "ScatterUpdate": 1,
    "ScatterElementsUpdate": 1,
    "ScatterNDUpdate": 1,
    "EmbeddingBagOffsets": 1,
    "EmbeddingBagOffsetsSum": 1,
    "EmbeddingBagPacked": 1,
    "EmbeddingBagPackedSum": 1,
    "EmbeddingSegmentsSum": 1,
}
_BODIES = frozenset({"If", "Loop", "TensorIterator"})
_STATES = frozenset({"ReadValue", "Assign"})
_FLOATS = frozenset({"f32", "f16"})
_REALS = _FLOATS | {"f64", "bf16"}
_OUTPUTS = _FLOATS | {"boolean"}
_TOO_WIDE = {"i64": "int64", "f64": "float64", "u64": "uint64"}

# Of a torch.export program; those of sizes that OpenVINO leaves out, too, it checks by itself.
_ASSERTIONS = frozenset({"_assert_async", "_assert_scalar"})
# Of TorchScript: what makes a number of Python's of a tensor, to be branched on.
_SCALARS = (
    *("aten::Bool", "aten::Int", "aten::Float", "aten::item", "aten::is_nonzero", "aten::equal", "aten::allclose"),
    *("aten::ScalarImplicit", "aten::IntImplicit", "aten::FloatImplicit", "aten::_local_scalar_dense"),
)


def find_assertion(program: torch.export.ExportedProgram) -> str | None:
    """An assertion about values in a program, which conversion would leave out."""
    for node in program.graph.nodes:
        name = getattr(node.target, "__name__", "").partition(".")[0]
        if name in _ASSERTIONS and any(_is_tensor(argument) for argument in node.all_input_nodes):
            return "it refuses some values"
    return None


def _is_tensor(node: torch.fx.Node) -> bool:
    """Whether a node is a tensor, or a number that was made of one: not one that is a size alone."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return True
    return any(_is_tensor(before) for before in node.all_input_nodes if _takes_values(node))


def _takes_values(node: torch.fx.Node) -> bool:
    return "sym_size" not in str(node.target)


def find_branch(graph: Any) -> str | None:
    """A branch on values in a graph of TorchScript (torch.Graph). One that only raises, conversion would leave out."""
    for kind in _SCALARS:
        for node in graph.findAllNodes(kind, True):
            if any(isinstance(given.type(), torch.TensorType) for given in node.inputs()):
                return "it looks at its values to decide how to go on"
    return None


def find_refusal(graph: Any) -> str | None:
    """An exception that a graph of TorchScript (torch.Graph) raises, such as at a size: conversion leaves it out."""
    return "it refuses some inputs" if graph.findAllNodes("prim::RaiseException", True) else None


def find_difference(network: Any) -> str | None:
    """Why a network of OpenVINO's (openvino.Model) would not do as torch does; None where nothing is known."""
    for operator in network.get_ops():
        kind = operator.get_type_name()
        if kind in _BODIES:
            return "it looks at its values to decide how to go on"
        if kind in _STATES:
            return "it keeps a state"
        if kind in _INDICES and _depends_on_values(operator.input_value(_INDICES[kind]).get_node()):
            return "it takes indices out of its inputs, which OpenVINO does not check"
        if cause := _find_other_numbers(operator, kind):
            return cause
    return _find_type([(one.get_node(), _name_type(one)) for one in network.inputs], network.outputs)


def _find_other_numbers(operator: Any, kind: str) -> str | None:
    """Numbers that OpenVINO computes otherwise where they are large, or fall between two."""
    if kind in ("Convert", "ConvertLike"):
        given, made = operator.input_value(0), _name_type(operator.output(0))
        if _name_type(given) in _REALS and made not in _REALS | {"boolean"} and _depends_on_values(given.get_node()):
            return "it makes whole numbers of others, which OpenVINO does with 32 bits and other bounds"
    before = {source.get_node().get_type_name() for source in operator.input_values()}
    if kind == "Log" and "Sigmoid" in before:
        return "it takes the logarithm of a sigmoid, which is -Infinity in OpenVINO where it is small"
    if kind == "Floor" and "Divide" in before and _depends_on_values(operator):
        return "it divides and rounds down, which OpenVINO does otherwise next to a whole number"
    return None


def _find_type(inputs: Sequence[tuple[Any, str]], outputs: Sequence[Any]) -> str | None:
    for node, kind in inputs:
        if kind in _TOO_WIDE:
            return f"it takes {_TOO_WIDE[kind]}, of which OpenVINO computes with 32 bits"
        if kind not in _FLOATS and not all(_makes_floats(user) for user in _users(node)):
            return "it computes with whole numbers, which OpenVINO does with others"
    for kind in map(_name_type, outputs):
        if kind not in _OUTPUTS:
            return f"it gives {_TOO_WIDE.get(kind, kind)}, which OpenVINO computes with other numbers"
    return None


def _name_type(port: Any) -> str:
    return str(port.get_element_type().get_type_name())


def _users(node: Any) -> Iterator[Any]:
    for output in node.outputs():
        for target in output.get_target_inputs():
            yield target.get_node()


def _makes_floats(node: Any) -> bool:
    """Whether it takes a number as a float, or only its size."""
    kind = node.get_type_name()
    return kind == "ShapeOf" or (kind in ("Convert", "ConvertLike") and _name_type(node.output(0)) in _FLOATS)


def _depends_on_values(node: Any) -> bool:
    """Whether a node's numbers depend on those of an input, and not on sizes alone."""
    seen, waiting = set(), [node]
    while waiting:
        one = waiting.pop()
        name = one.get_friendly_name()
        if name in seen or one.get_type_name() == "ShapeOf":
            continue
        seen.add(name)
        if one.get_type_name() == "Parameter":
            return True
        waiting += [source.get_node() for source in one.input_values()]
    return False
