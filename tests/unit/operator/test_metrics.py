"""What the operator tells of itself: metrics, health and logs."""

import json
import logging
import re
import sys
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from pierhead_operator import health, logs
from pierhead_operator.__main__ import make_work
from pierhead_operator.cluster import ClusterError, Key, Rejected
from pierhead_operator.feed import OWN_KINDS
from pierhead_operator.handlers import make_kopf_settings
from pierhead_operator.metrics import Metrics
from pierhead_operator.queue import RetryLater
from pierhead_operator.resource_metrics import ResourceMetrics

from tests.unit.operator.resources import make_store

PAGE = (Path(__file__).parents[3] / "docs" / "operator.md").read_text()
KEY = Key("Endpoint", "default", "photos")


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def resources():
    return ResourceMetrics(make_store(), lambda: True)


def value(metrics, sample):
    """The value of a sample, written as Prometheus scrapes it."""
    found = [line for line in metrics.render().decode().splitlines() if line.startswith(f"{sample} ")]
    assert found, metrics.render().decode()
    return float(found[0].rsplit(" ", 1)[1])


def test_every_metric_is_documented_with_its_labels(metrics, resources):
    metrics.observe_request("get", "Pod", "200", 0.1)
    metrics.set_resources("Endpoint", 1)
    with metrics.time_reconcile("Endpoint"):
        pass
    text = (metrics.render() + resources.render()).decode()
    there = {}
    for name in re.findall(r"^# TYPE (pierhead_\w+) ", text, re.MULTILINE):
        labels = re.search(rf"^{name}(?:_count)?(?:{{(.*)}})? ", text, re.MULTILINE)[1] or ""
        there[name] = {label.split("=")[0] for label in labels.split(",") if label}
    section = PAGE.split("\n## Metrics\n")[1].split("\n## ")[0]
    documented = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(pierhead_\w+)` \|(.*?)\|", section, re.MULTILINE)
    }
    assert documented == there


def test_gauges_are_looked_up_at_each_scrape(metrics):
    keys, held = ["a"], [True]
    metrics.watch(lambda: len(keys), lambda: held[0], lambda: 12.5)
    assert value(metrics, "pierhead_operator_queue_length") == 1
    keys.append("b")
    held[0] = False
    assert value(metrics, "pierhead_operator_queue_length") == 2
    assert value(metrics, "pierhead_operator_leader") == 0
    assert value(metrics, "pierhead_operator_resync_age_seconds") == 12.5


def work_that(metrics, outcome):
    async def reconcile(key):
        logging.getLogger("pierhead_operator.cluster").info("at work")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return make_work(reconcile, metrics)


async def test_reconcile_is_timed_and_its_wish_is_passed_on(metrics):
    assert await work_that(metrics, 2.0)(KEY) == 2.0
    assert value(metrics, 'pierhead_operator_reconcile_seconds_count{kind="Endpoint"}') == 1
    for kind in OWN_KINDS:
        for reason in ("environment", "bug"):
            assert value(metrics, f'pierhead_operator_reconcile_errors_total{{kind="{kind}",reason="{reason}"}}') == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ClusterError("overloaded"), "environment"),
        (Rejected("over quota"), "environment"),
        (KeyError("spec"), "bug"),
    ],
)
async def test_failed_reconcile_is_counted_by_who_must_act_and_tried_again(metrics, error, reason):
    with pytest.raises(RetryLater):
        await work_that(metrics, error)(KEY)
    counted = f'pierhead_operator_reconcile_errors_total{{kind="Endpoint",reason="{reason}"}}'
    assert value(metrics, counted) == 1
    assert value(metrics, 'pierhead_operator_reconcile_seconds_count{kind="Endpoint"}') == 1


@pytest.mark.parametrize(("silence", "status"), [(0, 200), (359, 200), (360, 503)])
async def test_health_fails_when_nothing_is_heard_of_the_cluster(metrics, resources, silence, status):
    async with TestClient(TestServer(health.make_app(lambda: silence, metrics, resources))) as client:
        answer = await client.get("/healthz")
        assert answer.status == status
        assert f"{silence} s ago" in await answer.text()


async def test_metrics_are_served_beside_health(metrics, resources):
    metrics.set_resources("Model", 3)
    async with TestClient(TestServer(health.make_app(lambda: 0, metrics, resources))) as client:
        answer = await client.get("/metrics")
        assert answer.content_type == "text/plain"
        assert 'pierhead_operator_resources{kind="Model"} 3.0' in await answer.text()
        answer = await client.get("/metrics/resources")
        assert answer.content_type == "text/plain"
        assert 'pierhead_operator_endpoint_ready{endpoint="photos",namespace="default"} 0.0' in await answer.text()


def test_heartbeat_tells_its_age():
    now = [10.0]
    heartbeat = health.Heartbeat(lambda: now[0])
    now[0] = 15.0
    assert heartbeat.age == 5
    heartbeat.beat()
    assert heartbeat.age == 0


@pytest.fixture
def configured(monkeypatch):
    """Logging as the process has it, and as it was before afterwards."""
    root, kopf = logging.getLogger(), logging.getLogger("kopf")
    before = root.handlers[:], root.level, kopf.level, sys.excepthook

    def configure(json):
        # pytest's own handlers must outlive it: basicConfig closes what it takes away.
        root.handlers = []
        logs.configure_logging(json=json)

    yield configure
    logging.captureWarnings(False)
    root.handlers, sys.excepthook = before[0], before[3]
    root.setLevel(before[1])
    kopf.setLevel(before[2])


async def test_line_of_a_reconcile_names_its_resource(configured, capsys, metrics):
    configured(json=True)
    await work_that(metrics, None)(KEY)
    logging.getLogger("pierhead_operator").info("outside")
    inside, outside = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", inside.pop("time"))
    assert inside == {
        "severity": "INFO",
        "logger": "pierhead_operator.cluster",
        "message": "at work",
        "kind": "Endpoint",
        "namespace": "default",
        "name": "photos",
    }
    assert outside.keys() == {"time", "severity", "logger", "message"}


async def test_unexpected_error_is_told_with_its_origin_in_one_line(configured, capsys, metrics):
    configured(json=True)
    with pytest.raises(RetryLater):
        await work_that(metrics, KeyError("spec"))(KEY)
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert line["severity"] == "ERROR"
    assert line["message"] == "Endpoint default/photos failed"
    assert line["exception"].endswith("KeyError: 'spec'")


def test_uncaught_exception_is_a_line_too(configured, capsys):
    configured(json=True)
    sys.excepthook(ValueError, ValueError("routing.gateway: missing"), None)
    line = json.loads(capsys.readouterr().err)
    assert (line["severity"], line["exception"]) == ("CRITICAL", "ValueError: routing.gateway: missing")


def test_kopf_tells_only_what_is_wrong_and_nothing_of_its_own_settings(configured, capsys):
    configured(json=True)
    kopf = logging.getLogger("kopf.objects")
    kopf.info("an event")
    extra = {"settings": make_kopf_settings(()), "k8s_ref": {"name": "photos"}, "k8s_skip": True}
    kopf.warning("trouble", extra=extra)
    line = json.loads(capsys.readouterr().err)
    assert line.keys() == {"time", "severity", "logger", "message"}


def test_text_is_for_people(configured, capsys):
    configured(json=False)
    logging.getLogger("pierhead_operator").warning("put off")
    assert capsys.readouterr().err.endswith("WARNING pierhead_operator: put off\n")
