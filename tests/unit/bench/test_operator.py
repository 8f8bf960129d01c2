"""The fleet, what the operator tells of itself, and the goals that are judged by it."""

import asyncio
import socket
from collections import Counter

import pytest
import yaml
from pierhead_operator.metrics import Metrics
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import KINDS

from bench.operator import api, fakes, fleet, operator_process, report, scrape, supervisor
from bench.operator.fleet import Fleet
from bench.operator.measure import BENCH, Figures
from bench.server.processes import BenchError

PARSERS = {kind.KIND: kind for kind in KINDS}


def make_figures(**changes):
    figures = Figures(
        Fleet(100, 2),
        alone_seconds=2.0,
        created_seconds=1.0,
        ready_seconds=4.0,
        cores={"etcd": 0.5, BENCH: 1.5},
        fleet_requests={("get", "Pod"): 400, ("patch", "DeployedModel"): 800, ("list", "HTTPRoute"): 400},
        quiet_cores={"etcd": 0.0, BENCH: 0.1},
        rss_after_fleet=300_000_000,
        rss_after_restart=300_000_000,
        peak_of_fleet=300_000_000,
        peak_of_restart=300_000_000,
        restart_seconds=60.0,
        restart_requests={("list", "Model"): 3},
        fresh_requests={("patch", "Deployment"): 12},
        deployment_seconds=[0.1, 0.2],
        fresh_ready_seconds=[1.0, 2.0],
    )
    for name, value in changes.items():
        setattr(figures, name, value)
    return figures


def failed(figures):
    return [row.what for row in report.make_rows(figures) if row.met is False]


# --- the fleet ---


def test_pace_is_compared_with_that_of_the_control_plane_by_itself():
    rows = {row.what: row.measured for row in report.make_rows(make_figures())}
    assert rows["the same Deployments and Services available a second, without an operator"] == "100.0"
    assert rows["of that pace, with Pierhead"] == "0.50"


def test_children_are_those_that_the_operator_makes_and_nobodys():
    children = Fleet(10, 2).make_children()
    assert [child["kind"] for child in children[:2]] == ["Deployment", "Service"]
    assert len({(child["kind"], child["metadata"]["name"]) for child in children}) == 40
    assert not any("ownerReferences" in child["metadata"] for child in children)


def test_every_object_of_the_fleet_is_valid_and_its_own():
    made = Fleet(120, 2)
    manifests = [*made.make_models(), *made.make_endpoints(), *made.make_deployed_models()]
    for endpoint, deployed_model in fleet.make_fresh():
        manifests += [endpoint, deployed_model]
    parsed = [PARSERS[manifest["kind"]].model_validate(manifest) for manifest in manifests]
    assert len({(one.KIND, one.namespace, one.name) for one in parsed}) == len(manifests)


def test_deployed_models_find_their_endpoint_and_their_model():
    made = Fleet(120, 3)
    there = {(one["kind"], *api.key_of(one)) for one in (*made.make_models(), *made.make_endpoints())}
    deployed_models = made.make_deployed_models()
    for one in deployed_models:
        namespace = one["metadata"]["namespace"]
        assert ("Endpoint", namespace, one["spec"]["endpoint"]) in there
        assert ("Model", namespace, one["spec"]["model"]) in there
    assert len(deployed_models) == made.deployed_models


def test_every_model_has_its_share_of_the_deployed_models():
    made = Counter(one["spec"]["model"] for one in Fleet(2500, 2).make_deployed_models())
    assert set(made.values()) == {100}
    assert len(made) == fleet.MODELS


def test_split_names_an_endpoints_deployed_models():
    made = Fleet(10, 3)
    split = made.make_endpoints()[4]["spec"]["trafficSplit"]
    names = [one["metadata"]["name"] for one in made.make_deployed_models() if one["spec"]["endpoint"] == "e4"]
    assert split == dict(zip(names, [34, 33, 33], strict=True))


def test_settings_are_the_operators():
    settings = OperatorSettings.model_validate(fleet.make_settings())
    assert settings.routing.gateway.model_dump(exclude_unset=True) == fleet.GATEWAY


# --- what plays the rest of a cluster ---


def test_fake_gateway_takes_routes_for_the_gateway_that_they_name():
    stage = fakes.make_fake_gateway()
    (patch,) = stage["spec"]["next"]["patches"]
    template = patch["template"].replace("{{ .metadata.generation }}", "7").replace("{{ Now | Quote }}", '"now"')
    (parent,) = yaml.safe_load(template)["parents"]
    assert parent["parentRef"].items() >= fleet.GATEWAY.items()
    conditions = {one["type"]: (one["status"], one["observedGeneration"]) for one in parent["conditions"]}
    assert conditions == {"Accepted": ("True", 7), "ResolvedRefs": ("True", 7)}


@pytest.mark.parametrize(
    ("host", "expected"), [("dm-a.bench-1.svc", fakes.PODS_ADDRESS), ("127.0.0.1", "127.0.0.1"), (None, "127.0.0.1")]
)
def test_names_of_services_lead_to_the_fake_pods(monkeypatch, host, expected):
    monkeypatch.setattr(socket, "getaddrinfo", socket.getaddrinfo)
    operator_process.redirect_services()
    (found, *_) = socket.getaddrinfo(host, 80, family=socket.AF_INET, type=socket.SOCK_STREAM)
    assert found[4] == (expected, 80)


# --- what the operator tells ---


def test_requests_of_a_deployed_model_are_without_its_endpoints_events_and_the_resyncs_lists():
    requests = {("create", "Event"): 5, ("patch", "Deployment"): 2, ("list", "Pod"): 50, ("patch", "Endpoint"): 3}
    divided = scrape.divide_events(requests, {"DeployedModel": 2, "Endpoint": 3, "Model": 0})
    assert divided[("create", "Event of DeployedModel")] == 2
    assert divided[("create", "Event of Endpoint")] == 3
    assert sum(divided.values()) == sum(requests.values())
    assert scrape.count_own(divided) == 4


def test_scrape_is_what_the_operators_metrics_say():
    metrics = Metrics()
    metrics.watch(lambda: 3, lambda: True, lambda: 0.0)
    for verb, kind, code in [
        ("get", "Pod", "200"),
        ("get", "Pod", "404"),
        ("patch", "Deployment", "200"),
        ("update", "Lease", "200"),
    ]:
        metrics.observe_request(verb, kind, code, 0.1)
    with metrics.time_reconcile("Model"):
        metrics.count_error("Model", "environment")
    found = scrape.parse(metrics.render().decode())
    assert found.requests == {("get", "Pod"): 2, ("patch", "Deployment"): 1}
    assert found.reconciles == {"Model": 1}
    assert (found.writes, found.errors, found.queue_length, found.leads) == (1, 1, 3, True)


@pytest.mark.parametrize(
    ("changes", "done"),
    [({}, True), ({"queue_length": 1}, False), ({"leads": False}, False), ({"reconciles": {"Model": 1}}, False)],
)
def test_operator_is_done_once_it_saw_all_and_nothing_waits(changes, done):
    figures = {"requests": {}, "reconciles": {"Model": 3}, "errors": 0, "queue_length": 0, "leads": True}
    assert scrape.Scrape(**{**figures, **changes}).is_done_with({"Model": 2}) is done


def test_requests_between_two_looks():
    after, before = {("get", "Pod"): 3, ("list", "Pod"): 1, ("patch", "Event"): 2}, {("get", "Pod"): 3}
    between = scrape.subtract(after, before)
    assert between == {("list", "Pod"): 1, ("patch", "Event"): 2}
    assert scrape.count_writes(between) == 2


def test_memory_is_read_from_the_kernels_words():
    status = "Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t  200 kB\nVmRSS:\t  100 kB\n"
    assert supervisor.parse_memory(status) == (100 * 1024, 200 * 1024)


# --- watching ---


class FakeApi:
    """A watch that tells what it was given, then nothing more."""

    def __init__(self, *events):
        self.events = events

    async def watch(self, path, started):
        started()
        for event in self.events:
            yield event
        await asyncio.Event().wait()


def make_event(type_, name, generation=1, **condition):
    conditions = [{"type": "Ready", "status": "True", "observedGeneration": 1, **condition}]
    metadata = {"namespace": "n", "name": name, "generation": generation}
    return type_, {"metadata": metadata, "status": {"conditions": conditions}}


async def test_watched_holds_what_is_ready_now():
    events = [
        make_event("ADDED", "fine"),
        make_event("ADDED", "not-ready", status="False"),
        make_event("ADDED", "of-an-older-spec", generation=2),
        make_event("ADDED", "no-more"),
        make_event("MODIFIED", "no-more", status="False"),
        make_event("ADDED", "gone"),
        make_event("DELETED", "gone"),
        make_event("ADDED", "last"),
    ]
    watched = api.Watched(FakeApi(*events), "/x", api.is_ready)
    async with watched.running():
        await watched.wait_until("all told", lambda: ("n", "last") in watched.since, 5)
    assert set(watched.since) == {("n", "fine"), ("n", "last")}


async def test_watched_counts_from_the_first_time():
    watched = api.Watched(
        FakeApi(make_event("ADDED", "a"), make_event("MODIFIED", "a"), make_event("ADDED", "b")), "/x", api.is_ready
    )
    async with watched.running():
        await watched.wait_until("all told", lambda: len(watched.since) == 2, 5)
    assert watched.since["n", "a"] <= watched.since["n", "b"]


async def test_what_does_not_come_is_told():
    watched = api.Watched(FakeApi(), "/x", api.is_ready)
    with pytest.raises(ExceptionGroup) as failed:
        async with watched.running():
            await watched.wait_until("all are Ready", lambda: False, 0.01)
    assert failed.group_contains(BenchError, match="all are Ready: not so after 0 s")


# --- the report ---


def test_goals_that_are_just_met():
    assert failed(make_figures()) == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ready_seconds": 4.1}, "of that pace, with Pierhead"),
        ({"fleet_requests": {("get", "Pod"): 1201}}, "requests a DeployedModel, all at once, of its own kinds"),
        ({"fresh_requests": {("get", "Pod"): 13}}, "requests a DeployedModel, one after the other, of its own kinds"),
        ({"quiet_writes": 1}, "writes in a quiet minute"),
        ({"rss_after_fleet": 300_000_001}, "resident after the quiet minute"),
        ({"peak_of_fleet": 300_000_001}, "most resident until then"),
        ({"restart_seconds": 60.1}, "restart, from SIGTERM until all is reconciled"),
        ({"restart_seconds": None}, "restart, from SIGTERM until all is reconciled"),
        ({"restart_writes": 1}, "writes of the restarted operator"),
        ({"rss_after_restart": 300_000_001}, "resident after the restart"),
        ({"peak_of_restart": 300_000_001}, "most resident in the restart"),
        ({"deployment_seconds": [0.2, 0.2]}, "created until its Deployment is there, p50"),
    ],
)
def test_goals_that_are_missed(changes, what):
    assert failed(make_figures(**changes)) == [what]


def test_requests_for_routes_are_told_but_not_judged():
    rows = {row.what: row for row in report.make_rows(make_figures())}
    assert rows["requests a DeployedModel, all at once, of its own kinds"].measured == "6.00"
    whole = rows["requests a DeployedModel, all at once, with those for Endpoints, Models and routes"]
    assert (whole.measured, whole.met) == ("8.00", None)


def test_tables_are_whole():
    tables = report.make_tables(make_figures())
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert ["etcd", "0.50", "25%", "0.00"] in tables[1].rows
    assert ["patch DeployedModel", "4.00", "0.00", "0", "0"] in tables[2].rows
