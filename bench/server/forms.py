"""The forms that the raw loop tries, and what is said to its processes. No torch."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

CPU_FORMS = (
    *("eager b1", "channels-last b1", "jit frozen b1"),
    *(f"{form} b{batch}" for form in ("aoti", "openvino") for batch in (1, 4, 8)),
)
BFLOAT16_FORMS = tuple(f"openvino bfloat16 b{batch}" for batch in (1, 4, 8))
CUDA_FORMS = ("eager b1", "channels-last b32", "graphs b1", "graphs b32", "aoti b1", "aoti b8", "aoti b32")


class Precision(enum.StrEnum):
    """What a CPU computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Order(msgspec.Struct, frozen=True):
    """What a process of the raw loop is to do."""

    what: Literal["load", "run", "rank", "forget"]  # `forget` all forms but those named
    forms: list[str] = []
    start: float = 0.0  # of the machine's monotonic clock
    seconds: float = 0.0


class Report(msgspec.Struct, frozen=True):
    """What it did."""

    pictures: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    latencies: list[float] = []  # seconds, of each batch
    classes: list[list[int]] = []
    confidences: list[list[float]] = []


def parse_batch(form: str) -> int:
    """The batch in the name of a form, or of a package's file: "aoti b4" has 4."""
    return int(form.rpartition("b")[2])


def list_forms(device: str, precision: Precision = Precision.float32) -> tuple[str, ...]:
    """The forms worth trying on a device; on a CPU nothing but OpenVINO is quicker for computing in bfloat16."""
    if device == "cuda":
        return CUDA_FORMS
    return BFLOAT16_FORMS if precision is Precision.bfloat16 else CPU_FORMS


def list_package_batches(device: str) -> list[int]:
    """The batches that packages are compiled for."""
    return [parse_batch(form) for form in list_forms(device) if form.startswith("aoti")]
