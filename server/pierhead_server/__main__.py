"""`python -m pierhead_server`: serve one artifact, configured by the environment."""

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pierhead_server.errors import StartupError

_MOST_CHARACTERS = 2000  # Kubernetes keeps 4096 bytes of a termination message


def main() -> None:
    """Serve until SIGTERM (exit 0); a StartupError is told in one line and ends in exit 1."""
    # A container's first process has no default for signals: before uvicorn's handler, SIGTERM would be lost.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Imported here: a spawned model process imports this module again, and needs none of it.
    from pierhead_server.errors import StartupError
    from pierhead_server.serve import run
    from pierhead_server.settings import TERMINATION_LOG, load_settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    termination_log = TERMINATION_LOG
    try:
        settings = load_settings()
        termination_log = settings.termination_log
        run(settings)
    except StartupError as error:
        _fail(error, termination_log)


def _fail(error: "StartupError", termination_log: Path) -> NoReturn:
    line = f"{error.reason}: {' '.join(str(error).split())}"[:_MOST_CHARACTERS]
    print(line, file=sys.stderr, flush=True)
    # Opened, never created: Kubernetes puts the file there, and elsewhere nobody would read it.
    with contextlib.suppress(OSError), termination_log.open("r+") as file:
        file.truncate()
        file.write(f"{line}\n")
    sys.exit(1)


if __name__ == "__main__":
    main()
