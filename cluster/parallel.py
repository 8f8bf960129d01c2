"""Several things at once, of which the first that fails ends the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from cluster import commands

_cancelled = threading.Event()


def run_together(*tasks: Callable[[], object]) -> None:
    """Runs `tasks` in threads of their own. Raises the first error, once all have ended. Not to be nested."""
    _cancelled.clear()
    with ThreadPoolExecutor(max_workers=len(tasks)) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            _cancelled.set()
            commands.end_all()
            raise


def cancelled() -> bool:
    """Whether a task beside this one has failed, or the user has interrupted: what waits should stop waiting."""
    return _cancelled.is_set()
