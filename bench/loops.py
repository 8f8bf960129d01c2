"""How long a developer waits: `python -m bench.loops` measures on this machine, and prints a table.

It ends a running cluster and starts it again, which loses what was deployed there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import down, install, processes, quickstart, settings, up
from cluster.install import Target


def measure(what: Callable[[], object]) -> float:
    """Seconds that `what` takes."""
    begun = time.monotonic()
    what()
    return time.monotonic() - begun


@contextmanager
def changed_code(package: Path) -> Iterator[None]:
    """A change in the code of a package that makes a new image, undone at the end."""
    path = package / f"change_{time.time_ns()}.py"
    path.write_text('"""A change."""\n')
    try:
        yield
    finally:
        path.unlink()


def deploy_change() -> None:
    """Brings the working tree into the cluster, and waits until nothing of the last one runs any more."""
    target = install.find_local()
    install.install(target)
    processes.wait_until("the new code serves", lambda: _serves(target, target.openvino_image), 300)


def _serves(target: Target, image: str) -> bool:
    """Whether the example's pods all run this image and are ready."""
    selector = "app.kubernetes.io/managed-by=pierhead"
    pods = json.loads(target.kubectl("get", "pods", "-n", "default", "-l", selector, "-o", "json"))["items"]
    ready = [
        pod
        for pod in pods
        if pod["spec"]["containers"][0]["image"] == image
        and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
    ]
    return len(ready) == 2


def main() -> None:
    repository = settings.REPOSITORY
    down.down()
    rows = {"`cluster-up`, all cached": measure(up.up)}
    rows["`cluster-up` again"] = measure(up.up)
    rows["`make quickstart` on it, images cached"] = measure(quickstart.run_local)
    with changed_code(repository / "operator" / "pierhead_operator"):
        rows["a change of the operator's code runs"] = measure(deploy_change)
    with changed_code(repository / "server" / "pierhead_server"):
        rows["a change of the server's code serves in both pods"] = measure(deploy_change)
    rows["`cluster-down`"] = measure(down.down)
    print("| what | seconds |\n|---|---|")
    for what, seconds in rows.items():
        print(f"| {what} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
