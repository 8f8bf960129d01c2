"""What the chart gives to Prometheus and Grafana."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
FILES = REPOSITORY / "charts" / "pierhead" / "files"
MONITORING = (
    "monitoring.podMonitor.enabled=true",
    "monitoring.prometheusRule.enabled=true",
    "monitoring.dashboards.enabled=true",
    "monitoring.labels.release=prometheus",
)


def load_alerts() -> list[dict[str, Any]]:
    """The alerts of all groups."""
    return [rule for group in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]


def load_queries() -> Iterator[str]:
    """All that is asked in PromQL: by the alerts, and by the dashboards with Grafana's own interval as one."""
    yield from (alert["expr"] for alert in load_alerts())
    yield from load_dashboard_queries()


def load_dashboard_queries(namespace: str = ".*") -> Iterator[str]:
    """All that the dashboards ask of these namespaces, a pattern, with nothing else chosen."""
    for path in sorted((FILES / "dashboards").iterdir()):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$__rate_interval", "5m").replace("$namespace", namespace)
                yield re.sub(r"\$\w+", ".*", query)
