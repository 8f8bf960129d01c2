"""What there is to compute on, by what the machine shows."""

import os
import sys

import pytest
from pierhead_server import devices
from pierhead_server.devices import count_gpus, cpu_count


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("files", "visible", "gpus"),
    [
        ([], None, 0),
        (["null", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "nvidia-caps"], None, 0),
        (["nvidia0", "nvidiactl", "nvidia-uvm"], None, 1),
        (["nvidia0", "nvidia1", "nvidia10"], None, 3),
        (["nvidia0", "nvidia1"], "1", 1),
        (["nvidia0", "nvidia1"], "0,1", 2),
        (["nvidia0"], "0,1", 1),
        (["nvidia0"], "", 0),
        (["nvidia0"], "-1", 0),
        (["nvidia0"], "GPU-8932f937", 1),
        ([], "0", 0),
    ],
)
def test_gpus_are_those_that_are_there_and_visible(files, visible, gpus, tmp_path, monkeypatch):
    for name in files:
        (tmp_path / name).touch()
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus(tmp_path) == gpus


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "max 100000\n"}, sys.maxsize),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, sys.maxsize),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({}, sys.maxsize),
    ],
)
def test_cpu_limit_is_read_from_the_cgroup(files, cpus, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert devices._cpu_quota(tmp_path) == cpus


def test_cpus_are_those_that_the_container_may_use(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "9")  # of threads inside a process; PIERHEAD_WORKERS counts processes
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: {0, 1, 5, 7})
    for quota, cpus in ((sys.maxsize, 4), (3, 3), (0, 1)):
        monkeypatch.setattr(devices, "_cpu_quota", lambda quota=quota: quota)
        assert cpu_count() == cpus


def test_cpus_are_no_more_than_this_process_may_use():
    assert 1 <= cpu_count() <= len(os.sched_getaffinity(0))
