"""Starts and ends the operator, and looks at it from outside."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import aiohttp
import yaml

from bench.operator import fleet, scrape
from bench.operator.scrape import Scrape
from bench.server.processes import BenchError
from cluster import commands, processes, settings, up
from cluster.settings import Paths

NAME = "pierhead-operator"
_METRICS_URL = "http://127.0.0.1:8081/metrics"
_END_SECONDS = 30.0
_SCRAPE_SECONDS = 60.0  # an operator that is busy answers late


class Operator:
    """One operator process at a time."""

    def __init__(self, paths: Paths, session: aiohttp.ClientSession) -> None:
        self._paths = paths
        self._session = session
        self._runs = 0

    @property
    def log(self) -> Path:
        """What the last one that was started says."""
        return self._paths.log(f"{NAME}-{self._runs}")

    @property
    def pid(self) -> int:
        identity = processes.recorded().get(NAME)
        if identity is None or not identity.alive:
            raise BenchError(f"the operator ended; see {self.log}\n{commands.tail(self.log)}")
        return identity.pid

    def start(self) -> None:
        config = self._paths.config / "operator.yaml"
        config.write_text(yaml.safe_dump(fleet.make_settings()))
        self._runs += 1
        argv = [sys.executable, "-m", "bench.operator.operator_process", "--config", str(config)]
        processes.start(NAME, argv, self.log, self._make_environment())

    def stop(self) -> None:
        processes.stop([NAME], grace=_END_SECONDS)

    async def scrape(self) -> Scrape | None:
        """What it tells; None while it is starting. Raises BenchError where it has ended."""
        try:
            timeout = aiohttp.ClientTimeout(total=_SCRAPE_SECONDS)
            async with self._session.get(_METRICS_URL, timeout=timeout) as response:
                return scrape.parse(await response.text())
        except aiohttp.ClientConnectionError:
            assert self.pid
            return None

    def measure_memory(self) -> tuple[int, int]:
        """Its resident bytes now, and the most that they were."""
        return parse_memory(Path(f"/proc/{self.pid}/status").read_text())

    def _make_environment(self) -> dict[str, str]:
        repository = settings.REPOSITORY
        return {
            **up.ENVIRONMENT,
            "KUBECONFIG": str(self._paths.kubeconfig),
            "PYTHONPATH": os.pathsep.join([str(repository), str(repository / "operator")]),
            "POD_NAMESPACE": fleet.OPERATOR_NAMESPACE,
            "POD_NAME": NAME,
        }


def parse_memory(status: str) -> tuple[int, int]:
    """VmRSS and VmHWM of `/proc/PID/status`, in bytes."""
    kilobytes = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
    return int(kilobytes["VmRSS"]) * 1024, int(kilobytes["VmHWM"]) * 1024
