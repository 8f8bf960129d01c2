"""What machine this is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path


def describe_machine(device: str) -> dict[str, str]:
    """Facts that figures depend on; no name and no address."""
    facts = {
        "processor": parse_processor(Path("/proc/cpuinfo").read_text()),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }
    for name in ("torch", "torchvision"):
        facts[name] = importlib.metadata.version(name)
    if device == "cuda":
        command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        facts["gpu"] = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    return facts


def parse_processor(cpuinfo: str) -> str:
    """The processor's name, and the widest of its vector instructions that torch has code for."""
    name = re.search(r"^model name\s*: (.*)$", cpuinfo, re.M)
    flags = set((found[1] if (found := re.search(r"^flags\s*: (.*)$", cpuinfo, re.M)) else "").split())
    widest = next((words for flag, words in _VECTORS if flag in flags), "")
    return ", ".join(filter(None, (name[1] if name else platform.machine(), widest)))


_VECTORS = (("amx_tile", "AMX"), ("avx512f", "AVX-512"), ("avx2", "AVX2"))
