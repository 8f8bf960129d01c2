"""What the forms of a model are compared by, and how far apart two of them are. No torch."""

from typing import Any

import numpy as np
import numpy.typing as npt


def synthetic_pictures(count: int, side: int) -> list[npt.NDArray[np.uint8]]:
    """Pictures of soft colours, the same at every call and no two alike."""
    rows, columns, channels = np.ogrid[:side, :side, :3]
    return [
        (127.5 + 127.5 * np.sin(rows * (number + 1) / 17 + columns / (number + 11) + channels * (number + 2))).astype(
            np.uint8
        )
        for number in range(count)
    ]


def measure_drift(given: npt.NDArray[Any], expected: npt.NDArray[Any], least: float = 1.0) -> float:
    """The most that a number differs, to the largest that is expected, or to `least` where all are smaller.

    Raises ValueError for other shapes and for what is no number.
    """
    if given.shape != expected.shape or not np.isfinite(given).all():
        raise ValueError("it gives other shapes, or no numbers")
    scale = max(least, float(np.abs(expected).max(initial=0.0)))
    return float(np.abs(given - expected).max(initial=0.0) / scale)


def measure_rows(given: npt.NDArray[Any], expected: npt.NDArray[Any], least: float) -> npt.NDArray[np.float32]:
    """The most that a number of each row differs, as in measure_drift."""
    one, other = (array.reshape(len(array), -1).astype(np.float32) for array in (given, expected))
    return np.asarray(np.abs(one - other).max(axis=1) / max(least, float(np.abs(other).max())))
