"""The API's bench: from figures to rows."""

from bench.api.measure import Figures
from bench.api.report import make_rows


def _make_figures(forwarded):
    return Figures(
        get=[0.004] * 10,
        list_all=[0.3] * 10,
        list_bytes=400_000,
        few_jobs={what: [0.02] for what in ("page", "filter", "order")},
        jobs={"page": [0.04], "filter": [0.1], "order": [1.0]},
        direct={"1 kB": [0.001], "100 kB": [0.001]},
        forwarded={"1 kB": [forwarded], "100 kB": [0.1]},
    )


def test_rows_say_which_goals_are_met():
    rows = {row.what: row for row in make_rows(_make_figures(0.002))}
    assert rows["get of one of 1000 endpoints, p50"].texts[1:] == ["4.00 ms", "<= 20 ms", "yes"]
    assert rows["list of 1000 endpoints (0.4 MB), p50"].met is False
    assert rows["forwarding of 1 kB adds, p50"].texts[1:] == ["1.00 ms", "<= 1.5 ms", "yes"]
    assert rows["forwarding of 100 kB adds, p50"].met is None
    assert rows["the second by the first"].texts[1:] == ["2.00", "<= 1.5", "NO"]
    assert rows["first 100 of 10000 by createTime, p50"].texts[1:] == ["1000.00 ms", "", ""]


def test_forwarding_that_takes_too_long_is_told():
    rows = {row.what: row for row in make_rows(_make_figures(0.003))}
    assert rows["forwarding of 1 kB adds, p50"].met is False
