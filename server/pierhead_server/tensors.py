"""JSON values to numpy arrays, with errors that name the place.

A value that is right is never visited by Python: each level of a nested list is looked at as a whole. Only where
something is wrong is the value walked through, up to the first offender.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, SupportsInt

import numpy as np
import numpy.typing as npt

from pierhead_server.errors import ValueTensorError as ValueTensorError
from pierhead_server.errors import describe_kind
from pierhead_server.signature import Signature as Signature
from pierhead_server.signature import TensorSpec as TensorSpec

Array = npt.NDArray[Any]

_PICTURE = TensorSpec("", "uint8", (-1, -1, 3))
_MAX_RANK = 32
_EXACT = 2.0**53  # up to here a float64 holds every whole number


def to_tensor(value: object, spec: TensorSpec) -> Array:
    """A number, a nested list of numbers or an array as an array of the spec's dtype and shape.

    Of floats, NaN and Infinity are numbers too. A whole number may arrive as a float (`10.0`), as protobuf's JSON does
    it; nothing else is converted. An array given may come back itself, read-only if it was. Raises ValueTensorError.
    """
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise ValueTensorError("", f"must be numbers, not {array.dtype.name}")
        _check_shape(array.shape, spec)
        return _cast(array, spec.dtype)
    nested = flatten(value)
    if nested.shape == () and spec.shape and not nested.kinds <= {int, float}:
        raise ValueTensorError("", f"must be numbers of {_name_shape(spec.shape)}, not {describe_kind(value)}")
    _check_shape(nested.shape, spec)
    return _convert(nested, spec.dtype).reshape(nested.shape)


def to_picture(value: object) -> npt.NDArray[np.uint8]:
    """Rows x columns x [red, green, blue] of 0..255 as uint8 [height, width, 3]. Raises ValueTensorError."""
    return to_tensor(value, _PICTURE)


def to_array(value: object, dtype: str) -> Array:
    """As to_tensor, of whatever shape the value has."""
    nested = flatten(value)
    return _convert(nested, dtype).reshape(nested.shape)


@dataclass(frozen=True)
class Nested:
    """A nested list, taken apart; or a single value, whose shape is ()."""

    leaves: list[Any]  # in row-major order
    kinds: set[type]  # theirs
    shape: tuple[int, ...]

    def locate(self, position: int) -> str:
        """Where a leaf was, such as `[0][2]`."""
        return _path(np.unravel_index(position, self.shape)) if self.shape else ""


def flatten(value: object) -> Nested:
    """Take a nested list apart, whatever its leaves are. Raises ValueTensorError where the value is ragged."""
    level: list[Any] = [value]
    shape: list[int] = []
    while (kinds := set(map(type, level))) == {list}:
        lengths = set(map(len, level))
        if len(lengths) > 1 or len(shape) == _MAX_RANK:
            raise _find_ragged(value)
        shape.append(lengths.pop())
        level = list(chain.from_iterable(level))
    if list in kinds:
        raise _find_ragged(value)
    return Nested(level, kinds, tuple(shape))


def _find_ragged(value: object) -> ValueTensorError:
    """Where a list differs from its neighbours, whose shape is that of the very first ones."""
    shape, first = [], value
    while isinstance(first, list) and first:
        shape.append(len(first))
        first = first[0]
        if len(shape) > _MAX_RANK:
            return ValueTensorError("", f"nested more than {_MAX_RANK} lists deep")
    return _compare(value, [*shape, 0] if isinstance(first, list) else shape) or ValueTensorError("", "ragged lists")


def _compare(value: object, shape: Sequence[int]) -> ValueTensorError | None:
    """The first part of a value that has not this shape."""
    if not shape:
        return ValueTensorError("", "ragged: must be a number, not a list") if isinstance(value, list) else None
    if not isinstance(value, list):
        return ValueTensorError("", f"ragged: must be a list of {shape[0]}, not {describe_kind(value)}")
    if len(value) != shape[0]:
        return ValueTensorError("", f"ragged: holds {len(value)}, and its neighbours {shape[0]}")
    for index, item in enumerate(value):
        if error := _compare(item, shape[1:]):
            return error.within(f"[{index}]")
    return None


def _check_shape(given: tuple[int, ...], spec: TensorSpec) -> None:
    """Any size (-1) is any above 0: no model computes with nothing."""
    expected = spec.shape
    if len(given) != len(expected) or any(
        size != wanted and (wanted != -1 or size == 0) for size, wanted in zip(given, expected, strict=True)
    ):
        raise ValueTensorError("", f"expected {_name_shape(expected)}, got {_name_shape(given).removeprefix('shape ')}")


def _name_shape(shape: tuple[int, ...]) -> str:
    if not shape:
        return "a single number"
    return f"shape [{', '.join('any' if size == -1 else str(size) for size in shape)}]"


def _convert(nested: Nested, dtype: str) -> Array:
    """The leaves as one row of the dtype."""
    leaves, kinds, kind = nested.leaves, nested.kinds, np.dtype(dtype).kind
    if not kinds <= ({bool, int, float} if kind == "b" else {int, float}):
        raise _find_offender(nested, dtype)
    try:
        if kinds <= {int} and kind in "iu":
            return np.array(leaves, dtype=dtype)  # raises OverflowError
        floats = np.array(leaves, dtype=np.float64)
        if int in kinds and kind in "iu" and (np.abs(floats) >= _EXACT).any():
            # Rare: large whole numbers among floats, which one float64 array would round.
            return np.array([_to_whole(leaf) for leaf in leaves], dtype=dtype)
        return _cast(floats, dtype)
    except (OverflowError, ValueTensorError):
        raise _find_offender(nested, dtype) from None


def _to_whole(leaf: float) -> int:
    if isinstance(leaf, float) and not leaf.is_integer():
        raise OverflowError
    return int(leaf)


def _cast(array: Array, name: str) -> Array:
    """An array of numbers in this dtype; raises ValueTensorError for the first that does not fit."""
    dtype = np.dtype(name)
    if array.dtype == dtype:
        return array
    if array.dtype.kind == "b":
        raise ValueTensorError("", "must be numbers, not booleans")
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        if dtype.kind == "f":
            # A finite number must not become infinite.
            bad = np.isinf(cast) & np.isfinite(array)
        else:
            bad = cast != array
            if dtype.kind in "iu":
                bad |= _outside(array, dtype)
    if bad.any():
        place = tuple(np.argwhere(bad)[0])
        raise ValueTensorError(_path(place), _explain(array[place].item(), name) or "does not fit")
    return cast


def _outside(array: Array, dtype: np.dtype[np.generic]) -> npt.NDArray[np.bool_]:
    """What an integer dtype cannot hold; comparing after the cast is not enough, for it wraps around."""
    limits = np.iinfo(dtype.name)
    if array.dtype.kind == "f":
        # The upper limit, 2**n - 1, may not be a float64; 2**n is.
        return ~((array >= float(limits.min)) & (array < float(limits.max + 1)))
    own = np.iinfo(array.dtype)
    bad = np.zeros(array.shape, dtype=np.bool_)
    if own.min < limits.min:
        bad |= array < limits.min
    if own.max > limits.max:
        bad |= array > limits.max
    return bad


def _find_offender(nested: Nested, dtype: str) -> ValueTensorError:
    """The first leaf that is not of the dtype."""
    position, cause = next(
        (position, cause) for position, leaf in enumerate(nested.leaves) if (cause := _explain(leaf, dtype))
    )
    return ValueTensorError(nested.locate(position), cause)


def _path(place: Iterable[SupportsInt]) -> str:
    return "".join(f"[{int(index)}]" for index in place)


def _explain(leaf: object, dtype: str) -> str | None:
    """Why a leaf is not of the dtype; None if it is."""
    if dtype == "bool":
        return None if isinstance(leaf, int | float) and leaf in (0, 1) else f"must be true or false, not {_show(leaf)}"
    if isinstance(leaf, bool) or not isinstance(leaf, int | float):
        return f"must be a number, not {describe_kind(leaf)}"
    if np.dtype(dtype).kind == "f":
        try:
            with np.errstate(over="ignore"):
                sound = not np.isinf(np.array(leaf, dtype=dtype)) or leaf in (float("inf"), float("-inf"))
        except OverflowError:
            sound = False
        return None if sound else f"{_show(leaf)} is too large for {dtype}"
    limits = np.iinfo(dtype)
    if (isinstance(leaf, float) and not leaf.is_integer()) or not limits.min <= leaf <= limits.max:
        return f"must be a whole number from {limits.min} to {limits.max}, not {_show(leaf)}"
    return None


def _show(leaf: object) -> str:
    """A leaf for a message."""
    if isinstance(leaf, bool):
        return "true" if leaf else "false"
    if not isinstance(leaf, int | float):
        return describe_kind(leaf)
    if leaf != leaf:
        return "NaN"
    return repr(leaf) if -(10**40) < leaf < 10**40 or isinstance(leaf, float) else "a number of many digits"
