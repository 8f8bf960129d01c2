"""A program of `torch.export` (`.pt2`), read as data: nothing of the file is evaluated, imported or unpickled.

torch.export.load (2.15) is no such reader. It evaluates the sizes of tensors as Python (sympy's `sympify`), takes a
node's target for any attribute of torch, `torch.os.system` among them, writes names into Python source that it runs,
imports the modules that a tree of inputs names, compiles guards, and unpickles sample inputs. So the file is parsed
into torch's own schema here, each string in it must fit a grammar, what serving does not need is dropped, and the very
objects that were checked are handed to torch's deserializer, together with tensors of raw bytes.
"""

import ast
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch._export.serde import schema
from torch._export.serde.serialize import (
    ExportedProgramDeserializer,
    _bytes_to_dataclass,
    _dict_to_dataclass,
    deserialize_size,
    deserialize_storage_offset,
    deserialize_stride,
)
from torch._export.serde.union import _Union
from torch._ops import OpOverload, OpOverloadPacket
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.export.pt2_archive import constants as pt2
from torch.export.pt2_archive._package import PT2ArchiveReader, _build_file_map

from pierhead_server.operators import FILE_OPERATORS, find_unchecked

MODEL = "model"  # the name that torch.export.save gives

_MOST_CHARACTERS = 200  # of what a message quotes


class UnsafeProgramError(ValueError):
    """The file holds what a program saved by torch.export.save does not, or what is not run without allowCode."""


class ExportedModule(torch.nn.Module):
    """A program that runs, and that can be had on another device, too."""

    def __init__(self, make: Callable[[], ExportedProgram], device: torch.device | None = None) -> None:
        super().__init__()
        self._make = make
        program = make() if device is None else move_to_device_pass(make(), device)
        self._run = program.module(check_guards=False)  # sizes are checked in a hook all the same

    def forward(self, *inputs: torch.Tensor) -> Any:
        """What the program gives."""
        return self._run(*inputs)

    def copy_to(self, device: torch.device) -> "ExportedModule":
        """The same on another device, with the devices that its operators name: `.to` would move weights alone."""
        return ExportedModule(self._make, device)


def load_exported(path: Path) -> ExportedModule:
    """A program on the CPU. Raises UnsafeProgramError, and whatever torch trips over in a broken file."""
    archive = _Archive(str(path))
    _check_records(archive, path.stat().st_size)
    program = _bytes_to_dataclass(schema.ExportedProgram, archive.read_bytes(pt2.MODELS_FILENAME_FORMAT.format(MODEL)))
    program.graph_module.module_call_graph = program.graph_module.module_call_graph[:1]  # the rest is for unflatten
    admit(program)
    weights = _read_tensors(archive, pt2.WEIGHTS_DIR, pt2.WEIGHTS_CONFIG_FILENAME_FORMAT, pt2.WEIGHT_FILENAME_PREFIX)
    constants = _read_tensors(
        archive, pt2.CONSTANTS_DIR, pt2.CONSTANTS_CONFIG_FILENAME_FORMAT, pt2.TENSOR_CONSTANT_FILENAME_PREFIX
    )

    def make() -> ExportedProgram:
        return ExportedProgramDeserializer().deserialize(program, dict(weights), dict(constants), None)

    return ExportedModule(make)


# --- the archive ---


class _Archive(PT2ArchiveReader):
    """Reads each record of text once: what was checked is what is taken."""

    def __init__(self, path: str) -> None:
        self._kept: dict[str, bytes] = {}
        super().__init__(path)

    def read_bytes(self, name: str) -> bytes:
        """A record as it is."""
        if name not in self._kept:
            self._kept[name] = super().read_bytes(name)
        return self._kept[name]


_RECORDS = re.compile(
    "|".join(
        (
            re.escape(pt2.ARCHIVE_FORMAT_PATH),
            re.escape(pt2.ARCHIVE_VERSION_PATH),
            r"byteorder|version|\.data/.*",
            re.escape(pt2.MODELS_FILENAME_FORMAT.format(MODEL)),
            re.escape(pt2.WEIGHTS_CONFIG_FILENAME_FORMAT.format(MODEL)),
            re.escape(pt2.CONSTANTS_CONFIG_FILENAME_FORMAT.format(MODEL)),
            re.escape(pt2.SAMPLE_INPUTS_FILENAME_FORMAT.format(MODEL)),  # a pickle, which is never looked at
            re.escape(pt2.WEIGHTS_DIR + pt2.WEIGHT_FILENAME_PREFIX) + r"\d+",
            re.escape(pt2.CONSTANTS_DIR + pt2.TENSOR_CONSTANT_FILENAME_PREFIX) + r"\d+",
            re.escape(pt2.EXTRA_DIR) + ".*",  # never looked at, either
        )
    )
)


def _check_records(archive: PT2ArchiveReader, size: int) -> None:
    names = archive.get_file_names()
    for name in names:
        if name.startswith(pt2.AOTINDUCTOR_DIR):
            raise UnsafeProgramError(f"holds machine code ({name}): save it with torch.export.save")
        if not _RECORDS.fullmatch(name):
            kind = "a pickle" if name.startswith((pt2.WEIGHTS_DIR, pt2.CONSTANTS_DIR)) else "what is no part of it"
            raise UnsafeProgramError(f"holds {kind} ({_quote(name)}): save it anew with torch.export.save")
    check_unpacked_size(archive.archive_file, names, size)


def check_unpacked_size(archive: Any, names: list[str], size: int, spare: int = 0) -> None:
    """A zip of `size` bytes must not unpack to more, but for `spare` bytes. Raises UnsafeProgramError."""
    unpacked = sum(archive.get_record_size(name) for name in names)
    if unpacked > size + spare:
        raise UnsafeProgramError(f"{size} bytes that unpack to {unpacked}: save it without compression")


def _read_tensors(archive: _Archive, folder: str, config_format: str, prefix: str) -> dict[str, torch.Tensor]:
    data = json.loads(archive.read_bytes(config_format.format(MODEL)))
    config = _dict_to_dataclass(schema.PayloadConfig, data)  # type: ignore[no-untyped-call]
    for name, payload in config.config.items():
        if payload.use_pickle is not False or not re.fullmatch(rf"{prefix}\d+", str(payload.path_name)):
            raise UnsafeProgramError(f"{_quote(name)} is a pickle: export plain tensors only")
    admit(config)
    for name, payload in config.config.items():
        _check_filled(archive, name, folder, payload)
    stored = _build_file_map(archive, config, folder)
    return {name: _view(stored[payload.path_name], payload) for name, payload in config.config.items()}


def _check_filled(archive: _Archive, name: str, folder: str, payload: schema.PayloadMeta) -> None:
    """For an empty record torch makes zeros of the size that is told, whatever that is."""
    if payload.tensor_meta is None:
        raise UnsafeProgramError(f"{_quote(name)}: its size is missing")
    empty = archive.archive_file.get_record_size(f"{folder}{payload.path_name}") == 0
    if empty and math.prod(deserialize_size(payload.tensor_meta.sizes)) != 0:
        raise UnsafeProgramError(f"{_quote(name)} has no bytes: export real tensors only")


def _view(stored: torch.Tensor, payload: schema.PayloadMeta) -> torch.Tensor:
    meta = payload.tensor_meta
    assert meta is not None
    size, stride = deserialize_size(meta.sizes), deserialize_stride(meta.strides)
    tensor = torch.as_strided(stored, size, stride, deserialize_storage_offset(meta.storage_offset))
    return torch.nn.Parameter(tensor, requires_grad=False) if payload.is_param else tensor


# --- what the program may say ---


def admit(value: object) -> None:
    """Check what was read into torch's schema, field by field; put everything on the CPU, drop what only tools need.

    Raises UnsafeProgramError.
    """
    _admit(value, type(value), type(value).__name__)


def _admit(value: Any, hint: Any, where: str) -> None:
    """`where` names the field, as `Node.target`: the same for all values of a kind."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is not None:
            _admit(value, arguments[0], where)
    elif origin is list:
        _check_type(value, list, where)
        for element in value:
            _admit(element, arguments[0], where)
    elif origin is dict:
        _check_type(value, dict, where)
        for key, element in value.items():
            _admit(key, str, where)
            _admit(element, arguments[1], where)
    elif isinstance(hint, type) and issubclass(hint, _Union):
        _check_type(value, hint, where)
        _admit(value.value, _hints(hint)[value.type], f"{hint.__name__}.{value.type}")  # type: ignore[arg-type]  # it can be hashed
    elif isinstance(hint, type) and is_dataclass(hint):
        _check_type(value, hint, where)
        _admit_fields(value, hint)
    else:
        _check_type(value, int if issubclass(hint, IntEnum) else hint, where)
        if hint is str:
            _RULES.get(where, check_name)(value)


def _admit_fields(value: Any, kind: type) -> None:
    if kind in _REFUSED:
        raise UnsafeProgramError(f"holds {_REFUSED[kind]}: export a program of plain tensors")
    for name, replacement in _REPLACED.get(kind, {}).items():
        setattr(value, name, replacement())
    hints = _hints(kind)
    for field in fields(kind):
        _admit(getattr(value, field.name), hints[field.name], f"{kind.__name__}.{field.name}")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, globalns=vars(schema))


def _check_type(value: object, kind: type, where: str) -> None:
    if type(value) is not kind:
        raise UnsafeProgramError(f"{where} must be {kind.__name__}, not {type(value).__name__}")


_REFUSED = {schema.CustomObjArgument: "custom objects", schema.TokenArgument: "operators with side effects"}

_REPLACED: Mapping[type, Mapping[str, Callable[[], object]]] = {
    # Where it was exported; it runs where it is put.
    schema.Device: {"type": lambda: "cpu", "index": lambda: None},
    schema.TensorMeta: {"requires_grad": bool},
    # Of the source that it was made of.
    schema.Node: {"metadata": dict},
    schema.GraphModule: {"metadata": dict, "treespec_namedtuple_fields": dict},
    # Python source: sizes are checked by range_constraints, too.
    schema.ExportedProgram: {"guards_code": list, "torch_version": str},
}

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH = re.compile(r"(?!__)[A-Za-z0-9_]+(\.(?!__)[A-Za-z0-9_]+)*")
_RANGE = re.compile(r"[A-Za-z0-9_+\-*/() ]{1,200}")
_UNBACKED = re.compile(r"(u|zuf)[0-9]{1,6}")  # torch counts up to the number
_ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)")


def check_name(text: str) -> None:
    """A name becomes one in Python source. Raises UnsafeProgramError."""
    if not _NAME.fullmatch(text):
        raise UnsafeProgramError(f"{_quote(text)} is no name")


def _check_optional_name(text: str) -> None:
    if text:
        check_name(text)


def _check_path(text: str) -> None:
    if text and not _PATH.fullmatch(text):
        raise UnsafeProgramError(f"{_quote(text)} is no name of a weight")


def _check_range(text: str) -> None:
    if not _RANGE.fullmatch(text) or (text.startswith(("u", "zuf")) and not _UNBACKED.fullmatch(text)):
        raise UnsafeProgramError(f"{_quote(text)} is no size")


def _check_text(text: str) -> None:
    """An operator's argument, such as a padding's mode: it stays text."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONTROL = frozenset(
    f"torch.ops.higher_order.{name}"
    for name in _words("""
        cond while_loop map_impl scan associative_scan invoke_subgraph wrap_with_set_grad_enabled wrap_with_autocast
    """)
)
_NUMBERS = _words("""
    _operator.eq _operator.ne _operator.le _operator.ge _operator.lt _operator.gt _operator.neg _operator.pos
    _operator.mul _operator.add _operator.sub _operator.floordiv _operator.mod _operator.pow _operator.truediv
    _operator.and_ _operator.or_ _operator.lshift _operator.rshift _operator.getitem math.trunc
    torch.sym_not torch.sym_int torch.sym_float torch.sym_ite torch.sym_max torch.sym_min torch.sym_sqrt torch._sym_sqrt
""")


def check_operator(target: str) -> None:
    """What a node may call: torch finds anything else by its name, too. Raises UnsafeProgramError."""
    if target in _NUMBERS or target in _CONTROL:
        return
    found = _ATEN.fullmatch(target)
    if found and found[1] in find_unchecked():
        raise UnsafeProgramError(f"calls {_quote(target)}, which checks nothing: bring it as a custom predictor")
    if found and found[1] not in FILE_OPERATORS:
        packet = getattr(torch.ops.aten, found[1], None)
        if isinstance(packet, OpOverloadPacket) and isinstance(getattr(packet, found[2], None), OpOverload):
            return
    raise UnsafeProgramError(f"calls {_quote(target)}, which is no operator of ATen: bring it as a custom predictor")


def _check_tree(text: str, key: Callable[[object], bool]) -> None:
    """How inputs or outputs nest: of tuples, lists and dicts, any other type might be imported by its name."""
    protocol, tree = json.loads(text)
    if type(protocol) is not int:
        raise UnsafeProgramError("a tree's version must be a number")
    _check_branch(tree, key)


def _check_branch(tree: Any, key: Callable[[object], bool]) -> None:
    match tree:
        case {"type": None, "context": None, "children_spec": []}:
            return
        case {"type": "builtins.tuple" | "builtins.list", "context": "null", "children_spec": list(children)}:
            pass
        case {
            "type": "builtins.dict" | "collections.OrderedDict",
            "context": str(keys),
            "children_spec": list(children),
        }:
            names = json.loads(keys)
            if not isinstance(names, list) or not all(key(name) for name in names):
                raise UnsafeProgramError(f"{_quote(keys)} are no names of inputs or outputs")
        case _:
            raise UnsafeProgramError(f"inputs and outputs must be tensors in tuples, lists and dicts: {_quote(tree)}")
    for child in children:
        _check_branch(child, key)


def _check_inputs(text: str) -> None:
    # Its names become those of a Python function's arguments.
    _check_tree(text, lambda name: isinstance(name, str) and bool(_NAME.fullmatch(name)))


def _check_outputs(text: str) -> None:
    _check_tree(text, lambda name: isinstance(name, str | int))


# --- sizes that are not fixed ---

# `Add(Symbol('s77', integer=True, positive=True), Integer(1))`, as sympy writes it, and `s0 + 1` of older versions.
_EXPRESSION = re.compile(r"[A-Za-z0-9_+\-*/%<>=&|~(),. ']{1,4096}")
_SYMBOL = re.compile(r"[a-z]{1,4}[0-9]{1,6}")
_FLOAT = re.compile(r"-?[0-9]{1,40}(\.[0-9]{0,40})?(e[+-]?[0-9]{1,3})?")
_CONSTANTS = frozenset({"true", "false", "oo"})
_FUNCTIONS = _words("""
    Integer Rational Add Mul Max Min Mod Abs floor ceiling
    Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan Eq Ne Lt Le Gt Ge And Or Not
    FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv FloatTrueDiv IntTrueDiv
    TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity IsNonOverlappingAndDenseIndicator
""")
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift", "RShift"})
_LARGEST_INTEGER = 2**63
_LARGEST_EXPONENT = 64  # and no power of a power: numbers stay small enough to be computed
_MOST_DIGITS = 200


def check_expression(text: str) -> None:
    """Whether a size is arithmetic of numbers and symbols: torch evaluates it as Python. Raises UnsafeProgramError."""
    if not _EXPRESSION.fullmatch(text):
        raise UnsafeProgramError(f"{_quote(text)} is no size")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UnsafeProgramError(f"{_quote(text)} is no size") from None
    if not _is_arithmetic(tree):
        raise UnsafeProgramError(f"{_quote(text)} is no size: only arithmetic of numbers and symbols is")


def _is_arithmetic(node: ast.expr, *, powers: bool = True) -> bool:
    """Without `powers` it must hold none."""

    def is_fine(*parts: ast.expr) -> bool:
        return all(_is_arithmetic(part, powers=powers) for part in parts)

    match node:
        case ast.Constant(value=bool()):
            return True
        case ast.Constant(value=int() as number):
            return number < _LARGEST_INTEGER
        case ast.Constant(value=float() as number):
            return math.isfinite(number)
        case ast.Name(id=name):
            return name in _CONSTANTS or bool(_SYMBOL.fullmatch(name))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Invert(), operand=operand):
            return is_fine(operand)
        case ast.BinOp(op=ast.Pow(), left=base, right=exponent):
            return powers and _is_small_power(base, exponent)
        case ast.BinOp(
            op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.FloorDiv() | ast.Mod() | ast.BitAnd() | ast.BitOr(),
            left=left,
            right=right,
        ):
            return is_fine(left, right)
        case ast.Compare(left=left, ops=operators, comparators=others):
            return not any(isinstance(one, ast.In | ast.NotIn | ast.Is | ast.IsNot) for one in operators) and is_fine(
                left, *others
            )
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
            return _is_call(name, arguments, keywords, powers=powers)
    return False


def _is_call(name: str, arguments: list[ast.expr], keywords: list[ast.keyword], *, powers: bool) -> bool:
    match name, arguments:
        case "Symbol", [ast.Constant(value=str() as symbol)]:
            # Such as positive=True.
            return bool(_SYMBOL.fullmatch(symbol)) and all(
                one.arg and isinstance(one.value, ast.Constant) and isinstance(one.value.value, bool)
                for one in keywords
            )
        case "Float", [ast.Constant(value=str() as number)]:
            return bool(_FLOAT.fullmatch(number)) and all(
                one.arg == "precision" and 0 < (_read_constant(one.value) or 0) < _MOST_DIGITS for one in keywords
            )
        case _, [base, exponent] if name in _POWERS:
            return powers and not keywords and _is_small_power(base, exponent)
    return name in _FUNCTIONS and not keywords and all(_is_arithmetic(one, powers=powers) for one in arguments)


def _is_small_power(base: ast.expr, exponent: ast.expr) -> bool:
    number = _read_constant(exponent)
    return number is not None and abs(number) <= _LARGEST_EXPONENT and _is_arithmetic(base, powers=False)


def _read_constant(node: ast.expr) -> float | None:
    """Of `2`, `-2`, `Integer(2)`, `Rational(1, 2)`."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            negated = _read_constant(operand)
            return None if negated is None else -negated
        case ast.Call(func=ast.Name(id="Integer"), args=[argument], keywords=[]):
            return _read_constant(argument)
        case ast.Call(func=ast.Name(id="Rational"), args=[over, under], keywords=[]):
            parts = _read_constant(over), _read_constant(under)
            return parts[0] / parts[1] if parts[0] is not None and parts[1] else None
    return None


def _quote(thing: object) -> str:
    return repr(thing)[:_MOST_CHARACTERS]


# By the field, as `_admit` names it; all others hold names.
_RULES: Mapping[str, Callable[[str], None]] = {
    "SymExpr.expr_str": check_expression,
    "Node.target": check_operator,
    "Argument.as_operator": check_operator,
    "Argument.as_string": _check_text,
    "Argument.as_strings": _check_text,
    "ConstantValue.as_string": _check_text,
    "NamedArgument.name": _check_optional_name,
    "InputToParameterSpec.parameter_name": _check_path,
    "InputToBufferSpec.buffer_name": _check_path,
    "InputToTensorConstantSpec.tensor_constant_name": _check_path,
    "BufferMutationSpec.buffer_name": _check_path,
    "ParameterMutationSpec.parameter_name": _check_path,
    "GradientToParameterSpec.parameter_name": _check_path,
    "ModuleCallEntry.fqn": _check_path,
    "ModuleCallSignature.in_spec": _check_inputs,
    "ModuleCallSignature.out_spec": _check_outputs,
    "PayloadConfig.config": _check_path,
    "ExportedProgram.range_constraints": _check_range,
    "ExportedProgram.torch_version": _check_text,
}
