"""`python -m pierhead_server`: serve one artifact, configured by the environment."""

import contextlib
import logging
import os
import sys
from pathlib import Path


def main() -> None:
    """Serve until SIGTERM (exit 0); a StartupError is told in one line and ends in exit 1."""
    # Imported here: a spawned model process imports this module again, and needs none of it.
    from pierhead_server.errors import StartupError
    from pierhead_server.serve import run
    from pierhead_server.settings import Settings, load_settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    termination_log = Path(
        os.environ.get("PIERHEAD_TERMINATION_LOG") or Settings.model_fields["termination_log"].default
    )
    try:
        run(load_settings())
    except StartupError as error:
        _report(f"{error.reason}: {' '.join(str(error).split())}", termination_log)
        sys.exit(1)


def _report(line: str, termination_log: Path) -> None:
    print(line, file=sys.stderr, flush=True)
    # Opened, never created: Kubernetes puts the file there, and elsewhere nobody would read it.
    with contextlib.suppress(OSError), termination_log.open("r+") as file:
        file.truncate()
        file.write(line + "\n")


if __name__ == "__main__":
    main()
