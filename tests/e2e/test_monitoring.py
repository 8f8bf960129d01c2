"""The alerts and dashboards, read by a real Prometheus."""

import json
from urllib.parse import quote

from tests.monitoring import load_queries

PROMETHEUS = "/api/v1/namespaces/monitoring/services/prometheus:http/proxy/api/v1"


def test_prometheus_understands_every_query(kubectl):
    for query in load_queries():
        answer = kubectl.in_any_namespace("get", "--raw", f"{PROMETHEUS}/format_query?query={quote(query)}")
        assert json.loads(answer)["status"] == "success"
