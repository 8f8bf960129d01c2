"""Kills at random moments, beside what a test does."""

import random
import threading
from collections.abc import Callable

from tests.kube import SYSTEM

_OPERATOR = "app.kubernetes.io/name=pierhead-operator"


class Killer:
    """Kills again and again, after 0.5 to `pause` seconds each, until it has killed so often enough."""

    def __init__(self, kill: Callable[[], int], times: int, pause: float) -> None:
        self._kill = kill  # how many it killed
        self._times = times
        self._pause = pause
        self._random = random.Random(20261122)  # noqa: S311
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.killed = 0

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed:
            self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while self.killed < self._times and not self._stopped.wait(self._random.uniform(0.5, self._pause)):
            self.killed += self._kill()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()


def kill_operator() -> int:
    """All of its pods, of which there is one."""
    pods = SYSTEM.items("pods", _OPERATOR)
    for pod in pods:
        SYSTEM("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force", "--wait=false")
    return len(pods)
