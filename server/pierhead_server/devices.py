"""What there is to compute on, found without torch."""

import contextlib
import importlib.util
import os
import sys
from pathlib import Path


def count_gpus(devices: Path = Path("/dev")) -> int:
    """The NVIDIA GPUs that this container sees: their device files, as Kubernetes' device plugin mounts them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = sum(path.name.removeprefix("nvidia").isdecimal() for path in devices.glob("nvidia*"))
    if visible is None:
        return there
    return min(there, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))


def has_torch() -> bool:
    """Whether PyTorch is installed: the small image is without it. Nothing is imported for it."""
    return importlib.util.find_spec("torch") is not None


def cpu_count() -> int:
    """How many CPUs this container may use."""
    return max(1, min(len(os.sched_getaffinity(0)), _cpu_quota()))


def _cpu_quota(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The container's CPU limit, rounded down: a process too many waits for one that is throttled."""
    with contextlib.suppress(OSError, ValueError):
        # cgroup v2; "max 100000" without a limit.
        quota, period = (cgroup / "cpu.max").read_text().split()
        return int(quota) // int(period)
    with contextlib.suppress(OSError, ValueError):
        # cgroup v1; -1 without a limit.
        limit = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        if limit > 0:
            return limit // int((cgroup / "cpu/cpu.cfs_period_us").read_text())
    return sys.maxsize
