"""A real Prometheus, set up as the Prometheus operator would from the chart: what it scrapes, shows and warns of."""

import json
import os

import httpx
import pytest

from tests import prometheus
from tests.batch import Storage, make_batch
from tests.chart import render
from tests.e2e.conftest import (
    ECHO_BODY,
    make_deployed_model,
    make_endpoint,
    make_predictor_model,
    make_slow_echo,
    upload_predictor,
)
from tests.kube import SYSTEM, predict_url, scratch_namespace, wait_answered, wait_until
from tests.monitoring import MONITORING, load_alerts, load_dashboard_queries

NUMBERS = "".join(json.dumps({"number": number}) + "\n" for number in range(50_000)).encode()


@pytest.fixture(scope="module")
def photos(cluster):
    """A namespace in which predictions were answered, and a batch job runs for longer than the tests."""
    with scratch_namespace("monitored") as kubectl, Storage.connected() as storage:
        for bucket in ("batch-in", "batch-out"):
            storage.make_bucket(bucket)
        storage.put("batch-in", "monitored.jsonl", NUMBERS)
        kubectl.apply(
            make_predictor_model(upload_predictor("monitored", make_slow_echo(0.02))),
            make_endpoint({"photos-1": 80, "photos-2": 20}),
            make_deployed_model("photos-1", "monitored"),
            make_deployed_model("photos-2", "monitored"),
            make_batch("long", ["gs://batch-in/monitored.jsonl"], modelParameters={}),
        )
        kubectl.wait_ready("endpoint", "photos")
        url = predict_url(kubectl.namespace, "photos")
        wait_answered(url, ECHO_BODY, "photos-1", "photos-2")
        assert httpx.post(url, json={}).status_code == 400
        # Without a token: errors of the API have a panel, too.
        models = f"/v1/projects/{kubectl.namespace}/locations/local/models"
        assert httpx.get(os.environ["PIERHEAD_URL"] + models).status_code == 401
        yield kubectl


@pytest.fixture(scope="module")
def monitored(photos, tmp_path_factory):
    """The Prometheus, once it has evaluated every alert."""
    documents = render(*MONITORING, namespace=SYSTEM.namespace)
    with prometheus.started(tmp_path_factory.mktemp("prometheus"), documents) as server:
        rules = len(load_alerts())
        wait_until(
            "every alert was evaluated", lambda: sum(rule["health"] == "ok" for rule in server.alert_rules()) == rules
        )
        yield server


def _wait_value(server, expression, value):
    wait_until(
        f"{expression} is {value}",
        lambda: [float(sample["value"][1]) for sample in server.query(expression)] == [value],
        seconds=60,
    )


@pytest.mark.parametrize(
    ("monitor", "selector"),
    [
        ("pierhead-operator", 'namespace="pierhead-system"'),
        ("pierhead-api", 'namespace="pierhead-system"'),
        ("pierhead-server", 'namespace="{own}",pierhead_dev_endpoint="photos",pierhead_dev_deployed_model="photos-2"'),
        ("pierhead-batch", 'namespace="{own}",pierhead_dev_batch_prediction_job="long"'),
    ],
)
def test_every_part_is_scraped_with_the_labels_of_its_pods(monitored, photos, monitor, selector):
    labels = selector.format(own=photos.namespace)
    _wait_value(monitored, f'min(up{{job="pierhead-system/{monitor}",{labels}}})', 1)


def test_what_is_told_of_resources_has_their_own_names(monitored, photos):
    for split in ("wanted", "effective"):
        for name, share in (("photos-1", 80), ("photos-2", 20)):
            labels = f'namespace="{photos.namespace}",endpoint="photos",deployed_model="{name}"'
            _wait_value(monitored, f"max(pierhead_operator_traffic_split_{split}_percent{{{labels}}})", share)


WITHOUT_DATA = ("DCGM_FI_DEV_GPU_UTIL",)  # no GPU is here


def test_every_panel_has_data(monitored, photos):
    for query in load_dashboard_queries(f"{photos.namespace}|{SYSTEM.namespace}"):
        if not any(name in query for name in WITHOUT_DATA):
            wait_until(f"there is data for {query}", lambda query=query: monitored.query(query), seconds=30)


def _alerts_of(server, namespace):
    """The alerts that are pending or firing for a namespace, with their states."""
    return {
        alert["labels"]["alertname"]: alert["state"]
        for rule in server.alert_rules()
        for alert in rule["alerts"]
        if alert["labels"].get("namespace") == namespace
    }


def test_nothing_is_warned_of_where_all_is_well(monitored, photos):
    # What a batch worker commits every 10 s was not seen at once.
    wait_until("nothing is pending", lambda: not _alerts_of(monitored, photos.namespace), seconds=60)
    # What else is tested meanwhile may be pending for the operator, which all share.
    assert "firing" not in _alerts_of(monitored, SYSTEM.namespace).values()


def test_what_is_wrong_is_warned_of(monitored, kubectl):
    machine = {"machineSpec": {"machineType": "abacus"}}
    kubectl.apply(
        make_predictor_model({"name": "v1", "artifactUri": "gs://models/nothing"}),
        make_endpoint(),
        make_deployed_model("photos-1", "no-such-version"),
        make_batch("hopeless", ["gs://batch-in/monitored.jsonl"], dedicatedResources=machine),
    )
    wanted = {
        "PierheadModelNotServing": "pending",
        "PierheadEndpointNotReady": "pending",
        "PierheadBatchFailed": "firing",
    }
    wait_until("the alerts are there", lambda: _alerts_of(monitored, kubectl.namespace) == wanted, seconds=60)
