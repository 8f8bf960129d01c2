"""What the bench of scaling compares, and how it tells it."""

import numpy as np

from bench.images import CONTENDERS, SECTION, SERVER, TORCH, compare, measure_round, tabulate
from bench.server.pictures import make_jpegs
from bench.server.stats import Records

SIZE = (160, 120)


def test_both_contenders_make_the_same_pixels():
    for pixels in (np.full((300, 400, 3), 9, dtype=np.uint8), np.full((400, 300, 3), 9, dtype=np.uint8)):
        made = [make(pixels) for make in CONTENDERS.values()]
        assert [one.shape for one in made] == [(224, 224, 3)] * 2
        assert np.array_equal(*made)
    assert compare([SIZE]).endswith("values differ, by at most 0 of 255 levels")


def test_scaling_is_a_part_of_the_whole():
    figures = measure_round(make_jpegs(SIZE)[:2], CONTENDERS[SERVER])
    assert 0 < figures["fit"] < figures["whole"]


def test_ratios_are_of_torchs_time():
    records = Records()
    records.add("160 x 120", SECTION, TORCH, 0, {"fit": 0.5, "whole": 2.0})
    records.add("160 x 120", SECTION, SERVER, 0, {"fit": 0.25, "whole": 1.6})
    (row,) = tabulate(records, [SIZE]).rows
    assert row == ["160 x 120", "0.50", "0.25", "2.00 (2.00 to 2.00)", "2.00", "1.60", "1.25 (1.25 to 1.25)"]
