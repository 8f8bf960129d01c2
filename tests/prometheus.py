"""A Prometheus that watches the cluster as the Prometheus operator would have it, and that operator's own words."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from cluster import go_build
from cluster.settings import Paths
from tests import crds
from tests.kube import Manifest, find_port, wait_until

_CRDS = ("podmonitors", "prometheusrules")


def find_program(tool: go_build.Tool, name: str) -> Path:
    """A program of the cluster's cache, which is made where it is not there."""
    paths = Paths.from_environment()
    go_build.build(paths, [tool])
    return tool.binary(paths, name)


def prometheus_operator_crds() -> AbstractContextManager[None]:
    """They are in the cluster meanwhile."""
    folder = find_program(go_build.PROMETHEUS_OPERATOR, "crds")
    files = [folder / f"monitoring.coreos.com_{name}.yaml" for name in _CRDS]
    return crds.installed(*(yaml.safe_load(file.read_text()) for file in files))


class Prometheus:
    """One that runs, by its HTTP API."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").is_success
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples that an expression gives."""
        return list(self._ask("query", query=expression)["result"])

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes."""
        return list(self._ask("targets", state="active")["activeTargets"])

    def alert_rules(self) -> list[dict[str, Any]]:
        """The alerts that it knows, each with its state."""
        return [rule for group in self._ask("rules", type="alert")["groups"] for rule in group["rules"]]

    def _ask(self, path: str, **parameters: str) -> dict[str, Any]:
        answer = self._client.get(f"/api/v1/{path}", params=parameters).raise_for_status().json()
        return dict(answer["data"])


@contextmanager
def started(folder: Path, documents: list[Manifest]) -> Iterator[Prometheus]:
    """A Prometheus beside the cluster that does what these PodMonitors and PrometheusRules ask for; files in `folder`."""
    configuration = _make_configuration([one for one in documents if one["kind"] == "PodMonitor"])
    for scrape in configuration["scrape_configs"]:
        for discovery in scrape["kubernetes_sd_configs"]:
            discovery["kubeconfig_file"] = os.environ["KUBECONFIG"]  # it is in no pod
    rules = [one["spec"] for one in documents if one["kind"] == "PrometheusRule"]
    configuration["rule_files"] = [str(_write(folder / f"rules-{i}.yaml", rule)) for i, rule in enumerate(rules)]
    file = _write(folder / "prometheus.yml", configuration)
    address = f"127.0.0.1:{find_port()}"
    argv = [find_program(go_build.PROMETHEUS, "prometheus"), f"--config.file={file}", f"--web.listen-address={address}"]
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen([*argv, f"--storage.tsdb.path={folder / 'data'}"], stdout=log, stderr=log) as process,
        httpx.Client(base_url=f"http://{address}", timeout=30) as client,
    ):
        try:
            prometheus = Prometheus(client)
            wait_until("Prometheus is ready", prometheus.is_ready, seconds=60)
            yield prometheus
        finally:
            process.terminate()


def _make_configuration(pod_monitors: list[Manifest]) -> dict[str, Any]:
    """prometheus.yml, as the Prometheus operator makes it."""
    program = find_program(go_build.PROMETHEUS_OPERATOR, "make-scrape-config")
    made = subprocess.run(
        [program], input=json.dumps(pod_monitors), stdout=subprocess.PIPE, text=True, timeout=60, check=True
    ).stdout
    # What is beside Prometheus in its pod fills in which one of several it is.
    configuration: dict[str, Any] = yaml.safe_load(made.replace("$(SHARD)", "0").replace("$(POD_NAME)", "prometheus-0"))
    return configuration


def _write(file: Path, content: Any) -> Path:
    file.write_text(yaml.safe_dump(content))
    return file
