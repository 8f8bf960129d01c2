"""The API as it is, but that every DeployedModel's Service is the bench's pod: there is no DNS."""

from __future__ import annotations

import sys
from pathlib import Path

from pierhead_api import settings
from pierhead_api.serve import run
from pierhead_operator import logs

from bench.api.pod import URL


def _locate(_namespace: str, _deployed_model: str) -> str:
    return URL


if __name__ == "__main__":
    logs.configure_logging(json=False)
    run(settings.load(Path(sys.argv[1])), _locate)
