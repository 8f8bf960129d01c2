"""From a JPEG to a classifier's pixels, as the server does it and as it did it with torch: `python -m bench.images`.

Both take turns on one thread, round by round, and each round reads all photographs. Times are the thread's own, medians
over the rounds, and ratios medians of the rounds' ratios. It takes a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import torch
import typer
from pierhead_server.config import Preprocessing
from pierhead_server.images import Pixels, decode_image, fit
from torch.nn import functional

from bench import texts
from bench.printing import print_tables
from bench.program import run_program
from bench.server.machine import describe_machine
from bench.server.pictures import SIZE, make_jpegs
from bench.server.report import Table
from bench.server.stats import Records

Fit = Callable[[Pixels], Pixels]

SIZES = (SIZE, (2000, 1600), (4000, 3200))
HOW = Preprocessing()
MAX_PIXELS = 10**8
SECTION = "images"
TORCH, SERVER = "torch", "server"


def fit_by_torch(pixels: Pixels) -> Pixels:
    """All of the picture scaled by torch, then cropped: what the server did until it used fast_image_resize."""
    height, width = pixels.shape[:2]
    scale = HOW.resize / min(height, width)
    size = (HOW.resize, int(width * scale)) if height <= width else (int(height * scale), HOW.resize)
    batch = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    batch = functional.interpolate(batch, size, mode=HOW.interpolation, antialias=True, align_corners=False)
    top, left = round((size[0] - HOW.crop) / 2), round((size[1] - HOW.crop) / 2)
    made: Pixels = batch[0, :, top : top + HOW.crop, left : left + HOW.crop].permute(1, 2, 0).contiguous().numpy()
    return made


def fit_by_server(pixels: Pixels) -> Pixels:
    """What the server does."""
    return fit(pixels, HOW, max_pixels=MAX_PIXELS)


CONTENDERS: dict[str, Fit] = {TORCH: fit_by_torch, SERVER: fit_by_server}


def measure_round(jpegs: Sequence[bytes], make: Fit) -> dict[str, float]:
    """Milliseconds of CPU a picture: to scale and crop it, and with decoding. What others take is not counted."""
    fitting, begun = 0.0, time.thread_time()
    for jpeg in jpegs:
        pixels = decode_image(jpeg, max_pixels=MAX_PIXELS)
        decoded = time.thread_time()
        make(pixels)
        fitting += time.thread_time() - decoded
    whole = time.thread_time() - begun
    return {"fit": 1000 * fitting / len(jpegs), "whole": 1000 * whole / len(jpegs)}


def measure_size(records: Records, size: tuple[int, int], rounds: int) -> None:
    """The first round is not counted: memory is new to it."""
    jpegs = make_jpegs(size)
    for number in range(-1, rounds):
        for name, make in CONTENDERS.items():
            figures = measure_round(jpegs, make)
            if number >= 0:
                records.add(describe_size(size), SECTION, name, number, figures)


def describe_size(size: tuple[int, int]) -> str:
    return "{} x {}".format(*size)


def tabulate(records: Records, sizes: Sequence[tuple[int, int]]) -> Table:
    """A row for each size; ratios are of torch's time to the server's."""
    columns = (
        "photographs of",
        "scaled, torch, ms",
        "server, ms",
        "ratio",
        "and decoded, torch, ms",
        "server, ms",
        "ratio",
    )
    return Table(
        "From a JPEG to a classifier's pixels", columns, [_make_row(records, describe_size(one)) for one in sizes]
    )


def _make_row(records: Records, size: str) -> list[str]:
    row = [size]
    for figure in ("fit", "whole"):
        row += [texts.milliseconds(records.median(size, SECTION, name, figure)) for name in CONTENDERS]
        row.append(texts.spread(records.ratio(size, SECTION, TORCH, SERVER, figure)))
    return row


def compare(sizes: Sequence[tuple[int, int]]) -> str:
    """In how many of the values both differ, and by how much."""
    values, apart, most = 0, 0, 0
    for jpeg in (jpeg for size in sizes for jpeg in make_jpegs(size)):
        pixels = decode_image(jpeg, max_pixels=MAX_PIXELS)
        levels = np.abs(fit_by_torch(pixels).astype(int) - fit_by_server(pixels))
        values, apart, most = values + levels.size, apart + int(np.count_nonzero(levels)), max(most, int(levels.max()))
    return f"{apart} of {values} values differ, by at most {most} of 255 levels"


def bench(rounds: Annotated[int, typer.Option(min=1, max=1000)] = 15) -> None:
    torch.set_num_threads(1)
    records = Records()
    for size in SIZES:
        measure_size(records, size, rounds)
    notes = (f"{rounds} rounds; medians (least to most)", compare(SIZES))
    print_tables(describe_machine("cpu"), notes, [tabulate(records, SIZES)])


if __name__ == "__main__":
    run_program(bench)
