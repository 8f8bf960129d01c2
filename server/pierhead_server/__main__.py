"""`pierhead-server`: serve one artifact, configured by the environment or by a folder's name.

`pierhead-server batch` predicts one shard of a batch prediction job, and ends.
`pierhead-server compile --model DIR` makes the folder's compiled form, and leaves it beside the model.
`pierhead-server check DIR` tells what each precision makes of the folder's model.
`pierhead-server convert SOURCE DESTINATION` makes an artifact of `format: openvino` of one of torch's.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pierhead_server.launch import launch

if TYPE_CHECKING:
    from pierhead_server.errors import StartupError

_EXIT_STARTUP = 1
_EXIT_TERMINATED = 143  # 128 + SIGTERM


def main() -> None:
    """Serve until SIGTERM (exit 0); a StartupError is told in one line and ends in exit 1.

    Of the batch worker in 65 where no retry helps, else in 75; SIGTERM ends it, and all commands but `serve`, with 143.
    """
    # What is begun in a folder is removed; a Job that was evicted has not succeeded.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_EXIT_TERMINATED))
    if sys.argv[1:2] == ["check"]:
        from pierhead_server.check import main as check  # numpy comes with it

        sys.exit(check(sys.argv[2:]))
    arguments = _parse_arguments()
    if arguments.command in ("serve", "batch"):
        # Before uvicorn's handler. For a batch worker 0 would mean that its shard is done.
        terminated = _EXIT_TERMINATED if arguments.command == "batch" else 0
        signal.signal(signal.SIGTERM, lambda *_: os._exit(terminated))
    launched = launch() if arguments.command in ("serve", "batch") else None
    # Imported here, beside torch: `--help` needs none of it.
    from pierhead_server.devices import has_torch
    from pierhead_server.errors import SettingsInvalidError, StartupError
    from pierhead_server.logs import configure_logging
    from pierhead_server.settings import TERMINATION_LOG, load_settings

    termination_log = TERMINATION_LOG
    try:
        settings = load_settings(**_given(arguments))
        termination_log = settings.termination_log
        # A listener answers whoever asks, whether anybody reads what it logs or not.
        configure_logging(level=settings.log_level, json=settings.log_format == "json", bounded=launched is not None)
        if arguments.command in ("compile", "convert") and not has_torch():
            raise SettingsInvalidError(f"{arguments.command} needs PyTorch: run it in the image that has it")
        if arguments.command == "compile":
            from pierhead_server.forkserver import compile_beside

            compile_beside(arguments.model)
        elif arguments.command == "convert":
            from pierhead_server.rewriting import run as run_convert

            run_convert(settings, arguments.paths[1])
        elif arguments.command == "batch" and launched:
            from pierhead_server.batch.document import read_task
            from pierhead_server.batch.run import run as run_batch

            run_batch(settings, read_task(os.environ), launched)
        elif launched:
            from pierhead_server.serve import run

            run(settings, launched)
    except StartupError as error:
        if launched:
            launched.process.kill()
        _fail(error, termination_log, arguments.command)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "pierhead-server",
        description="Serve a model. Everything else is set by the environment: see docs/model-server.md.",
    )
    parser.epilog = "pierhead-server check DIR: tell what each precision makes of a model, and how fast it is here."
    parser.add_argument(
        "command",
        nargs="?",
        choices=("serve", "batch", "compile", "convert"),
        default="serve",
        help="serve a model (what it does if left out), predict one shard of a batch prediction job, "
        "compile the model and leave the compiled form in its folder, "
        "or convert the artifact SOURCE into one of format openvino, DESTINATION",
    )
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="of convert: SOURCE and DESTINATION, folders or gs://, s3://, az://"
    )
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="a folder with model.yaml; else PIERHEAD_ARTIFACT_URI"
    )
    parser.add_argument("--host", help="the address to listen on; else PIERHEAD_HOST, or 0.0.0.0")
    parser.add_argument("--port", type=int, help="the port to listen on; else PIERHEAD_PORT, or 8080")
    arguments = parser.parse_args()
    if arguments.command == "compile" and arguments.model is None:
        parser.error("compile needs --model DIR")
    if len(arguments.paths) != (2 if arguments.command == "convert" else 0):
        parser.error("convert needs SOURCE and DESTINATION, and nothing else takes a path")
    return arguments


def _given(arguments: argparse.Namespace) -> dict[str, object]:
    """What the command line says, by the settings' names."""
    given: dict[str, object] = {"host": arguments.host, "port": arguments.port}
    if arguments.model is not None:
        given["artifact_uri"] = arguments.model.resolve().as_uri()
    if arguments.command == "convert":
        source = arguments.paths[0]
        given["artifact_uri"] = source if "://" in source else Path(source).resolve().as_uri()
    return {name: value for name, value in given.items() if value is not None}


def _fail(error: "StartupError", termination_log: Path, command: str) -> NoReturn:
    from pierhead_server.logs import flush_logging
    from pierhead_server.termination import tell

    line = tell(termination_log, f"{error.reason}: {' '.join(str(error).split())}")
    flush_logging()  # what was logged before comes before
    print(line, file=sys.stderr, flush=True)
    if command != "batch":
        sys.exit(_EXIT_STARTUP)
    from pierhead_server.batch.errors import exit_code

    sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
