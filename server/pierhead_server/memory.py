"""How much memory a worker may have, so that a request that needs more ends alone.

Where the kernel kills a container's processes all at once (cgroup v2 with `memory.oom.group`, which the kubelet sets),
a worker that takes too much would take the listener and its neighbours along.
"""

import contextlib
import resource
from pathlib import Path

LISTENER_BYTES = 512 << 20  # twice the default of PIERHEAD_MAX_REQUESTS_BYTES: a body in a worker's hands exists twice
# A worker gets at least so much, whatever the container has: less would refuse what most often fits.
LEAST_BYTES = 128 << 20
DECODING = 0.75  # of a worker's memory, for pictures; the rest is the model's to compute in
_CONVERTING = 0.75  # of what the container has left, for a conversion; the rest is the requests' of those seconds
_UNLIMITED = 1 << 60  # cgroup v1 says so by a number beyond all memory
_DATA_FIELD = 5  # of /proc/self/statm: what RLIMIT_DATA counts, in pages


def read_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The container's memory limit in bytes; None without one."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limit = int((cgroup / name).read_text())  # "max" without one
            return limit if limit < _UNLIMITED else None
    return None


def read_used(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """What the container's processes hold now: not the page cache, which the kernel takes back by itself."""
    for name, key in (("memory.stat", "anon"), ("memory/memory.stat", "total_rss")):
        with contextlib.suppress(OSError, ValueError):
            lines = (line.split() for line in (cgroup / name).read_text().splitlines())
            return next((int(value) for found, value in lines if found == key), 0)
    return 0


def compute_share(limit: int | None, used: int, workers: int) -> int | None:
    """What each worker may take beside the model, in bytes; None without a limit."""
    if limit is None:
        return None
    return max(LEAST_BYTES, (limit - used - LISTENER_BYTES) // workers)


def compute_conversion(limit: int | None, used: int) -> int | None:
    """What a conversion may take beside the model, in bytes; None without a limit."""
    return None if limit is None else max(0, int(_CONVERTING * (limit - used)))


def read_data() -> int:
    """This process's data in bytes, as RLIMIT_DATA counts it: of a forked one the model's is part of it."""
    return int(Path("/proc/self/statm").read_text().split()[_DATA_FIELD]) * resource.getpagesize()


def limit_data(most: int) -> None:
    """Have more than that refused to this process from now on: Python raises MemoryError then."""
    least = read_data() + LEAST_BYTES // 2
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = max(most, least)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
