"""How every bench begins and ends as a program."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import typer

from bench.server.processes import BenchError
from cluster.errors import ClusterError
from cluster.progress import say


def run_program(bench: Callable[..., None]) -> NoReturn:
    """Runs a bench by its command line; what went wrong is told in a line each, and exits with 1."""
    # As after Ctrl-C: whatever runs is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed: list[Exception] = []
    try:
        typer.run(bench)
    except* (BenchError, ClusterError) as group:  # in a group where tasks ran together
        failed += list(_leaves(group))
    for error in failed:
        say(f"failed: {error}")
    sys.exit(1 if failed else 0)


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
