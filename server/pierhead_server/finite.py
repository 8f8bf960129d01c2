"""How many numbers of an answer are none: NaN and Infinity, which JSON does not know."""

import math
from collections.abc import Mapping
from typing import Any


def count_non_finite(value: Any) -> int:
    """Those in a prediction: a JSON value, in which arrays and tensors may be."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return sum(map(count_non_finite, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(count_non_finite, value))
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if kind == "f":
        import numpy as np  # not in the listener, which reads no answers

        return int(np.size(value) - np.count_nonzero(np.isfinite(value)))
    if hasattr(value, "tolist") and kind in (None, "O"):  # a tensor, an array of objects
        return count_non_finite(value.tolist())
    return 0
