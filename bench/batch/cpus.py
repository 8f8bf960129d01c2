"""Who may compute where. A pod of one CPU has no more time than one core, for all of its processes together."""

from __future__ import annotations

import os
from collections.abc import Sequence


def list_cpus() -> list[str]:
    """The CPUs that are ours, each as `taskset` names it."""
    return [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]


def pin(command: Sequence[str], cpus: str) -> list[str]:
    """The command, kept with all that it starts on these CPUs."""
    return ["taskset", "--cpu-list", cpus, *command]
