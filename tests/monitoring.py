"""What the chart gives to Prometheus and Grafana."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
FILES = REPOSITORY / "charts" / "pierhead" / "files"


def load_alerts() -> list[dict[str, Any]]:
    """The alerts of all groups."""
    return [rule for group in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]


def load_queries() -> Iterator[str]:
    """All that is asked in PromQL: by the alerts, and by the dashboards with Grafana's own interval as one."""
    yield from (alert["expr"] for alert in load_alerts())
    for path in sorted((FILES / "dashboards").iterdir()):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield target["expr"].replace("$__rate_interval", "5m")
