"""`pierhead-server`: serve one artifact, configured by the environment or by a folder's name.

`pierhead-server compile --model DIR` makes the folder's compiled form, and leaves it beside the model.
"""

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pierhead_server.launch import launch

if TYPE_CHECKING:
    from pierhead_server.errors import StartupError

_MOST_CHARACTERS = 2000  # Kubernetes keeps 4096 bytes of a termination message


def main() -> None:
    """Serve until SIGTERM (exit 0); a StartupError is told in one line and ends in exit 1."""
    # A container's first process has no default for signals: before uvicorn's handler, SIGTERM would be lost.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    arguments = _parse_arguments()
    launched = launch() if arguments.command == "serve" else None
    # Imported here, beside torch: `--help` needs none of it.
    from pierhead_server.errors import StartupError
    from pierhead_server.logs import configure_logging
    from pierhead_server.settings import TERMINATION_LOG, load_settings

    termination_log = TERMINATION_LOG
    try:
        settings = load_settings(**_given(arguments))
        termination_log = settings.termination_log
        configure_logging(level=settings.log_level, json=settings.log_format == "json")
        if arguments.command == "compile":
            from pierhead_server.forkserver import compile_beside

            compile_beside(arguments.model)
        elif launched:
            from pierhead_server.serve import run

            run(settings, launched)
    except StartupError as error:
        if launched:
            launched.process.kill()
        _fail(error, termination_log)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "pierhead-server",
        description="Serve a model. Everything else is set by the environment: see docs/model-server.md.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("serve", "compile"),
        default="serve",
        help="serve a model (what it does if left out), or compile it and leave the compiled form in its folder",
    )
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="a folder with model.yaml; else PIERHEAD_ARTIFACT_URI"
    )
    parser.add_argument("--host", help="the address to listen on; else PIERHEAD_HOST, or 0.0.0.0")
    parser.add_argument("--port", type=int, help="the port to listen on; else PIERHEAD_PORT, or 8080")
    arguments = parser.parse_args()
    if arguments.command == "compile" and arguments.model is None:
        parser.error("compile needs --model DIR")
    return arguments


def _given(arguments: argparse.Namespace) -> dict[str, object]:
    """What the command line says, by the settings' names."""
    given: dict[str, object] = {"host": arguments.host, "port": arguments.port}
    if arguments.model is not None:
        given["artifact_uri"] = arguments.model.resolve().as_uri()
    return {name: value for name, value in given.items() if value is not None}


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
