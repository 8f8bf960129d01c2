"""What a worker may take of the container's memory: read from files as the kernel writes them, and held."""

import subprocess
import sys

import pytest
from pierhead_server.memory import LEAST_BYTES, LISTENER_BYTES, compute_conversion, compute_share, read_limit, read_used

GIB = 1 << 30


def test_limit_and_use_of_cgroup_v2(tmp_path):
    (tmp_path / "memory.max").write_text("4294967296\n")
    (tmp_path / "memory.stat").write_text("anon 1048576\nfile 99999999\nanon_thp 5\n")
    assert (read_limit(tmp_path), read_used(tmp_path)) == (4 * GIB, 1 << 20)
    (tmp_path / "memory.max").write_text("max\n")
    assert read_limit(tmp_path) is None


def test_limit_and_use_of_cgroup_v1(tmp_path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("4294967296\n")
    (tmp_path / "memory" / "memory.stat").write_text("cache 99999999\nrss 5\ntotal_rss 1048576\n")
    assert (read_limit(tmp_path), read_used(tmp_path)) == (4 * GIB, 1 << 20)
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert read_limit(tmp_path) is None


def test_without_a_cgroup_there_is_no_limit(tmp_path):
    assert (read_limit(tmp_path), read_used(tmp_path)) == (None, 0)


@pytest.mark.parametrize(
    ("limit", "used", "workers", "share"),
    [
        (None, GIB, 2, None),
        (4 * GIB, GIB, 2, (3 * GIB - LISTENER_BYTES) // 2),
        (GIB, GIB, 2, LEAST_BYTES),  # less would refuse what most often fits
        (GIB, 2 * GIB, 1, LEAST_BYTES),
    ],
)
def test_workers_share_what_the_model_leaves(limit, used, workers, share):
    assert compute_share(limit, used, workers) == share


@pytest.mark.parametrize(
    ("limit", "used", "most"), [(4 * GIB, GIB, 9 * GIB // 4), (GIB, 2 * GIB, 0), (None, GIB, None)]
)
def test_conversion_takes_of_what_is_left(limit, used, most):
    assert compute_conversion(limit, used) == most


PROGRAM = """
from pierhead_server.memory import LEAST_BYTES, limit_data, read_data
limit_data(read_data() + (256 << 20))
bytearray(200 << 20)
try:
    bytearray(300 << 20)
except MemoryError:
    print("refused")
bytearray(200 << 20)
limit_data(0)  # it keeps what it has, and a little more
bytearray(LEAST_BYTES // 4)
"""


def test_process_over_its_limit_is_refused_and_goes_on():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "refused\n"
