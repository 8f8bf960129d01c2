"""Starts the API: `python -m pierhead_api --config FILE`."""

import argparse
import os
import signal
from pathlib import Path

from pierhead_operator import logs

from pierhead_api import settings as api_settings
from pierhead_api.serve import Part, run


def main() -> None:
    # A container's first process has no default for signals: before uvicorn's handler, SIGTERM would be lost.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    parser = argparse.ArgumentParser(prog="pierhead-api", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the settings, as the chart writes them")
    parser.add_argument(
        "--serve",
        choices=[part.value for part in Part],
        default=Part.ALL.value,
        help="of several processes, which part",
    )
    parser.add_argument("--log-format", choices=("json", "text"), default="json", help="how each line is written")
    arguments = parser.parse_args()
    logs.configure_logging(json=arguments.log_format == "json")
    settings, part = api_settings.load(arguments.config), Part(arguments.serve)
    if part is Part.PREDICTIONS and not settings.management:
        parser.error("--serve predictions needs `management` in the settings: where management calls are answered")
    run(settings, part=part)


if __name__ == "__main__":
    main()
