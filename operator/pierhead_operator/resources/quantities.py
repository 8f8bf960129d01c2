"""Kubernetes' quantities, such as 500m or 4Gi. Pure."""

import math
import re

_QUANTITY = re.compile(r"(\d*\.?\d+(?:[eE]-?\d+)?)([numkMGTPE]|[KMGTPE]i)?")
_UNITS = {
    **{"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18},
    **{"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60},
}


def parse_quantity(text: str) -> float:
    """A quantity as a number; raises ValueError."""
    parsed = _QUANTITY.fullmatch(text)
    if parsed is None:
        raise ValueError(f"{text!r} is no Kubernetes quantity")
    return float(parsed[1]) * _UNITS[parsed[2] or ""]


def same_quantity(one: object, other: object) -> bool:
    """Whether two say the same, in whichever words; what is no quantity is the same as itself alone."""
    if one == other:
        return True
    try:
        return math.isclose(parse_quantity(str(one)), parse_quantity(str(other)), rel_tol=1e-9)
    except ValueError:
        return False
