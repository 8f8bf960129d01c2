"""Reconcile against a fake cluster that records what it was told, with failures where a cluster has them."""

from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from unittest.mock import AsyncMock

import pytest
from pierhead_operator import names
from pierhead_operator.cluster import ClusterError, Invalid, Key, Rejected
from pierhead_operator.names import OURS
from pierhead_operator.reconcile import Reconciler
from pierhead_operator.settings import NetworkPolicySettings

from tests.unit.operator.conftest import NETWORK_POLICY, SERVED, make_deployed_model, make_endpoint, make_model
from tests.unit.operator.fakes import Clock, FakeCluster, FakeProber, merge

DM = Key("DeployedModel", "default", "photos-1")
ENDPOINT = Key("Endpoint", "default", "photos")
MODEL = Key("Model", "default", "photos")


@pytest.fixture
def make_reconciler(settings):
    def make(*objects):
        cluster = FakeCluster(*objects)
        return cluster, Reconciler(cluster, FakeProber(), settings, Clock())

    return make


async def test_no_pod_is_made_that_no_status_tells_of(make_reconciler, monkeypatch):
    """Such as one that a webhook refuses: the answer is in the log alone."""
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())

    async def drop(resource, status):
        pass

    monkeypatch.setattr(cluster, "apply_status", drop)
    with pytest.raises(ClusterError, match="does not tell what its pods are made with"):
        await reconciler.reconcile(DM)
    assert cluster.calls == []


async def test_deployed_model_gets_its_objects_and_a_status(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    assert cluster.calls == [
        ("status", "DeployedModel", "photos-1"),
        ("apply", "Deployment", "dm-photos-1"),
        ("apply", "Service", "dm-photos-1"),
    ]
    assert cluster.ready(DM) == ("False", "Progressing")
    assert cluster.objects["DeployedModel", "photos-1"]["status"]["modelVersion"] == "1"


@pytest.mark.parametrize("key", [DM, ENDPOINT, MODEL], ids=lambda key: key.kind)
async def test_stable_no_writes(make_reconciler, key):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(available=True))
    await reconciler.reconcile(key)
    cluster.calls.clear()
    await reconciler.reconcile(key)
    assert cluster.calls == []


@pytest.mark.parametrize("kind", ["Service", "Deployment"])
async def test_deleted_or_changed_child_is_repaired(make_reconciler, kind):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    wanted = deepcopy(cluster.objects[kind, "dm-photos-1"])
    del cluster.objects[kind, "dm-photos-1"]
    await reconciler.reconcile(DM)
    assert cluster.objects[kind, "dm-photos-1"] == wanted
    cluster.objects[kind, "dm-photos-1"]["spec"]["selector"] = {"other": "thing"}
    await reconciler.reconcile(DM)
    assert cluster.objects[kind, "dm-photos-1"] == wanted


# What who may edit a Service makes of it, as a merge patch.
SERVICE_CHANGES = {
    "another namespace": {"type": "ExternalName", "externalName": "dm-photos.theirs.svc.cluster.local"},
    "the outside": {"type": "LoadBalancer"},
    "the outside, for some": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]},
    "pods that are not ready": {"publishNotReadyAddresses": True},
    "the same pod": {"sessionAffinity": "ClientIP"},
    "fewer pods": {"selector": {"team": "theirs"}},
}


@pytest.mark.parametrize("change", SERVICE_CHANGES.values(), ids=SERVICE_CHANGES.keys())
@pytest.mark.parametrize("key", [DM, ENDPOINT], ids=lambda key: key.kind)
async def test_service_that_was_led_elsewhere_is_repaired(make_reconciler, key, change):
    """An Endpoint's is the idle one."""
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(key)
    name = ("Service", "dm-photos-1" if key is DM else "ep-photos")
    wanted = deepcopy(cluster.objects[name]["spec"])
    merge(cluster.objects[name], {"spec": change})
    await reconciler.reconcile(key)
    assert cluster.objects[name]["spec"] == wanted


async def test_service_that_cannot_be_repaired_is_asked_nothing(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    cluster.objects["Deployment", "dm-photos-1"]["status"] = SERVED
    cluster.objects["Service", "dm-photos-1"]["spec"] |= SERVICE_CHANGES["another namespace"]
    cluster.refuse("Service")
    with pytest.raises(ClusterError):
        await reconciler.reconcile(DM)
    assert not reconciler.prober.asked


async def test_pinned_version_stays_when_the_default_moves(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    cluster.objects["Model", "photos"]["spec"]["defaultVersion"] = "2"
    await reconciler.reconcile(DM)
    env = cluster.objects["Deployment", "dm-photos-1"]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "PIERHEAD_ARTIFACT_URI", "value": "gs://models/photos/1"} in env


async def test_autoscaler_comes_and_goes(make_reconciler):
    spec = {"automaticResources": {"minReplicaCount": 1, "maxReplicaCount": 2}}
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(**spec))
    await reconciler.reconcile(DM)
    assert "replicas" not in cluster.objects["Deployment", "dm-photos-1"]["spec"]
    assert ("HorizontalPodAutoscaler", "dm-photos-1") in cluster.objects
    cluster.objects["DeployedModel", "photos-1"]["spec"] = make_deployed_model()["spec"]
    await reconciler.reconcile(DM)
    assert cluster.objects["Deployment", "dm-photos-1"]["spec"]["replicas"] == 1
    assert ("HorizontalPodAutoscaler", "dm-photos-1") not in cluster.objects


async def test_autoscaler_that_fails_is_told_and_the_model_stays_ready(make_reconciler):
    spec = {"automaticResources": {"minReplicaCount": 1, "maxReplicaCount": 2}}
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(**spec))
    await _answering(cluster, reconciler)
    await reconciler.reconcile(DM)
    failure = {
        "type": "ScalingActive",
        "status": "False",
        "reason": "FailedGetContainerResourceMetric",
        "message": "no metrics",
    }
    status = {"conditions": [{**failure, "lastTransitionTime": reconciler.clock.now.isoformat()}]}
    cluster.objects["HorizontalPodAutoscaler", "dm-photos-1"]["status"] = status
    cluster.calls.clear()
    await reconciler.reconcile(DM)
    assert cluster.calls == [], "it has just begun"
    reconciler.clock.now += timedelta(minutes=3)
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("True", "Serving")
    assert not cluster.is_true(DM, "ScalingActive")
    assert cluster.calls == [
        ("status", "DeployedModel", "photos-1"),
        ("event", "DeployedModel", "FailedGetContainerResourceMetric"),
    ]
    cluster.calls.clear()
    await reconciler.reconcile(DM)
    assert cluster.calls == [], "stable: no writes"


FOREIGN = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "dm-photos-1", "uid": "x"},
    "spec": {"ports": []},
}


async def test_foreign_object_is_reported_and_left_alone(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(), FOREIGN)
    await reconciler.reconcile(DM)
    assert cluster.objects["Service", "dm-photos-1"] == FOREIGN
    assert cluster.ready(DM) == ("False", "NotOwned")
    assert not cluster.is_true(DM, "Available")


async def test_deployed_model_whose_name_was_made_to_meet_anothers_is_told_whose(make_reconciler):
    long = "x" * 63
    short = names.server(long).removeprefix("dm-")
    there = (make_model(), make_endpoint(), make_deployed_model(long), make_deployed_model(short))
    cluster, reconciler = make_reconciler(*there)
    await reconciler.reconcile(Key("DeployedModel", "default", long))
    before = deepcopy(cluster.objects["Deployment", names.server(long)])
    second = Key("DeployedModel", "default", short)
    await reconciler.reconcile(second)
    assert cluster.objects["Deployment", names.server(long)] == before
    assert cluster.ready(second) == ("False", "NotOwned")
    [condition] = [c for c in cluster.objects[second.kind, short]["status"]["conditions"] if c["type"] == "Ready"]
    assert f"is that of DeployedModel {long}, whose name gives the same one" in condition["message"]
    assert "give this DeployedModel another name" in condition["message"]


async def test_traffic_leaves_what_somebody_elses_service_stands_before(make_reconciler):
    """Somebody was faster, after the Service was deleted by hand: its name leads elsewhere now."""
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await _answering(cluster, reconciler)
    await reconciler.reconcile(DM)
    assert cluster.is_true(DM, "Available")
    cluster.objects["Service", "dm-photos-1"] = FOREIGN
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "NotOwned")
    assert not cluster.is_true(DM, "Available")


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("Model", "ModelNotFound"), ("Endpoint", "EndpointNotFound")],
)
async def test_missing_reference_is_told(make_reconciler, missing, reason):
    there = [o for o in (make_model(), make_endpoint(), make_deployed_model()) if o["kind"] != missing]
    cluster, reconciler = make_reconciler(*there)
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", reason)


def _override(cluster, **overrides):
    cluster.objects["DeployedModel", "photos-1"]["spec"] = make_deployed_model(podOverrides=overrides)["spec"]


async def test_override_that_is_not_allowed_is_told_and_what_runs_goes_on(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await _answering(cluster, reconciler)
    await reconciler.reconcile(DM)
    before = deepcopy(cluster.objects["Deployment", "dm-photos-1"])
    _override(cluster, env=[{"name": "AWS_ENDPOINT_URL", "value": "http://mine"}])
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "OverrideNotAllowed")
    assert cluster.is_true(DM, "Stalled")
    assert cluster.is_true(DM, "Available")
    assert cluster.objects["Deployment", "dm-photos-1"] == before
    cluster.calls.clear()
    await reconciler.reconcile(DM)
    assert cluster.calls == [], "stable: no writes"
    _override(cluster, env=[{"name": "PIERHEAD_WORKERS", "value": "2"}])
    await reconciler.reconcile(DM)
    assert cluster.objects["Deployment", "dm-photos-1"] != before


async def test_override_is_judged_by_what_the_installation_allows_now(make_reconciler):
    """What pods are made with is pinned; what may be asked for is not."""
    spec = {"podOverrides": {"env": [{"name": "MYAPP_MODE", "value": "a"}]}}
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(**spec))
    allowing = reconciler.settings.server.model_copy(update={"allowed_env": ["MYAPP_*"]})
    wider = replace(reconciler, settings=reconciler.settings.model_copy(update={"server": allowing}))
    await reconciler.reconcile(DM)
    assert ("Deployment", "dm-photos-1") not in cluster.objects
    await wider.reconcile(DM)
    assert cluster.ready(DM) == ("False", "Progressing")
    assert "MYAPP" not in cluster.objects["Deployment", "dm-photos-1"]["metadata"]["annotations"]["pierhead.dev/pinned"]
    cluster.calls.clear()
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "OverrideNotAllowed")
    assert not [call for call in cluster.calls if call[1] == "Deployment"]


# What the CRD of 0.1.0 took, and stored.
JUNK = (
    {"env": [{"name": "PIERHEAD_WORKERS", "value": 4}, {"name": "PIERHEAD_LOG_LEVEL", "valueFrom": {}}]},
    {"env": [{"name": ""}]},
    {"tolerations": [{}, {"effect": "Often"}], "affinity": {"nodeAffinity": []}},
    {"labels": {"pierhead.dev/deployed-model": "another"}, "priorityClassName": "system-node-critical"},
)


@pytest.mark.parametrize("overrides", JUNK)
async def test_what_an_older_crd_took_gets_a_status(make_reconciler, overrides):
    spec = {"podOverrides": overrides, "dedicatedResources": {"machineSpec": {"resourceClaims": [{"name": "A b"}]}}}
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(**spec))
    await reconciler.reconcile(DM)
    assert cluster.ready(DM)[0] == "False"


async def test_missing_version_is_told(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(modelVersion="9"))
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "ModelVersionNotFound")
    assert ("Deployment", "dm-photos-1") not in cluster.objects


async def test_missing_version_is_not_pinned(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(modelVersion="2"))
    await reconciler.reconcile(DM)
    for version in ("9", None):
        cluster.objects["DeployedModel", "photos-1"]["spec"]["modelVersion"] = version
        await reconciler.reconcile(DM)
        assert cluster.objects["DeployedModel", "photos-1"]["status"]["modelVersion"] == "2"
    assert cluster.ready(DM) == ("False", "Progressing")


def _write_version(cluster, artifact):
    """Version 1, after it was removed; the API server would not let it be changed."""
    cluster.objects["Model", "photos"]["spec"]["versions"][0]["artifactUri"] = artifact


def _artifact(cluster, name="photos-1"):
    env = cluster.objects["Deployment", f"dm-{name}"]["spec"]["template"]["spec"]["containers"][0]["env"]
    return next(one["value"] for one in env if one["name"] == "PIERHEAD_ARTIFACT_URI")


@pytest.mark.parametrize("told_first", [MODEL, DM], ids=lambda key: key.kind)
async def test_another_artifact_of_a_versions_name_is_told_and_what_runs_goes_on(make_reconciler, told_first):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    for key in (MODEL, DM):
        await reconciler.reconcile(key)
    _write_version(cluster, "gs://models/photos/other")
    for key in (told_first, MODEL, DM):
        await reconciler.reconcile(key)
    for key in (MODEL, DM):
        assert cluster.ready(key) == ("False", "VersionChanged")
        assert cluster.is_true(key, "Stalled")
    assert _artifact(cluster) == "gs://models/photos/1"
    cluster.calls.clear()
    for key in (MODEL, DM):
        await reconciler.reconcile(key)
    assert cluster.calls == [], "stable: no writes"
    _write_version(cluster, "gs://models/photos/1")
    for key in (MODEL, DM):
        await reconciler.reconcile(key)
    assert (cluster.ready(MODEL), cluster.ready(DM)) == (("True", "Accepted"), ("False", "Progressing"))


async def test_new_deployed_model_does_not_take_another_artifact_of_a_versions_name(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model("photos-2"))
    await reconciler.reconcile(MODEL)
    _write_version(cluster, "gs://models/photos/other")
    await reconciler.reconcile(Key("DeployedModel", "default", "photos-2"))
    assert cluster.ready(Key("DeployedModel", "default", "photos-2")) == ("False", "VersionChanged")
    assert ("Deployment", "dm-photos-2") not in cluster.objects


async def test_model_of_the_same_name_does_not_change_what_runs(make_reconciler):
    """Its status remembers nothing: the DeployedModel's does."""
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    other = [{"name": "1", "artifactUri": "gs://models/photos/other"}, {"name": "2", "artifactUri": "gs://m/2"}]
    cluster.objects["Model", "photos"] = make_model(versions=other)
    for key in (MODEL, DM):
        await reconciler.reconcile(key)
    assert (cluster.ready(MODEL)[1], cluster.ready(DM)[1]) == ("Accepted", "VersionChanged")
    assert _artifact(cluster) == "gs://models/photos/1"
    cluster.objects["DeployedModel", "photos-1"]["spec"]["modelVersion"] = "2"
    await reconciler.reconcile(DM)
    assert _artifact(cluster) == "gs://m/2", "another version is another name"


async def test_model_deleted_meanwhile_leaves_pods_alone(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    del cluster.objects["Model", "photos"]
    await reconciler.reconcile(DM)
    assert ("Deployment", "dm-photos-1") in cluster.objects
    assert cluster.ready(DM) == ("False", "ModelNotFound")


async def test_rejected_object_is_told_and_tried_again(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    cluster.refuse("Deployment")
    with pytest.raises(ClusterError, match="exceeded quota"):
        await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "Rejected")
    cluster.rejects.clear()
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "Progressing")


async def test_object_that_can_never_be_taken_is_told_and_not_tried_again(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    cluster.refuse("Deployment", Invalid(".spec.template.spec.affinity: field not declared in schema"))
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "Invalid")
    assert cluster.is_true(DM, "Stalled")


async def test_status_that_can_never_be_taken_is_no_event_at_each_look(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    cluster.untaken.add("Model")
    await reconciler.reconcile(MODEL)
    assert not [call for call in cluster.calls if call[0] == "event"]
    cluster.untaken.clear()
    await reconciler.reconcile(MODEL)
    assert [call for call in cluster.calls if call[0] == "event"]


async def test_status_that_is_refused_for_a_time_is_tried_again(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    cluster.refuse("DeployedModel", Rejected('admission webhook "x" denied the request'))
    with pytest.raises(Rejected, match="webhook"):
        await reconciler.reconcile(DM)


async def test_child_that_lost_its_labels_is_found_and_repaired(make_reconciler):
    """No watch tells of it any more."""
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    wanted = deepcopy(cluster.objects["Service", "dm-photos-1"])
    cluster.objects["Service", "dm-photos-1"]["metadata"]["labels"] = {}
    await reconciler.reconcile(DM)
    assert cluster.objects["Service", "dm-photos-1"] == wanted


# What an API server and its webhooks make of an object


SPELLINGS = {"cpu": ("0.5", "500m"), "memory": ("1024Mi", "1Gi")}


async def test_what_the_api_server_spells_otherwise_settles(settings):
    """It knows one spelling of each quantity, and drops what is empty."""
    resources = {"requests": {name: spelling for name, (spelling, _) in SPELLINGS.items()}}
    server = settings.server.model_copy(update={"resources": resources, "env": [{"name": "EMPTY", "value": ""}]})
    cluster = FakeCluster(make_model(), make_endpoint(), make_deployed_model())
    reconciler = Reconciler(cluster, FakeProber(), settings.model_copy(update={"server": server}), Clock())
    await reconciler.reconcile(DM)
    [container] = cluster.objects["Deployment", "dm-photos-1"]["spec"]["template"]["spec"]["containers"]
    container["resources"]["requests"] = {name: normal for name, (_, normal) in SPELLINGS.items()}
    next(variable for variable in container["env"] if variable["name"] == "EMPTY").pop("value")
    cluster.calls.clear()
    await reconciler.reconcile(DM)
    assert cluster.calls == []


async def test_what_a_webhook_changes_settles_and_is_still_repaired(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    cluster.mutate = lambda live: (
        live["spec"].update(selector={"other": "thing"}) if live["kind"] == "Service" else None
    )
    await reconciler.reconcile(DM)
    cluster.calls.clear()
    await reconciler.reconcile(DM)
    assert cluster.calls == [], "the webhook would do the same once more"
    cluster.objects["Service", "dm-photos-1"]["spec"]["ports"] = []
    await reconciler.reconcile(DM)
    assert ("apply", "Service", "dm-photos-1") in cluster.calls


async def test_change_of_what_a_webhook_changes_is_applied(make_reconciler):
    spec = {"dedicatedResources": {"minReplicaCount": 1}}
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(**spec))
    cluster.mutate = lambda live: (
        live["spec"].update(paused=True, strategy={}) if live["kind"] == "Deployment" else None
    )
    await reconciler.reconcile(DM)
    cluster.objects["DeployedModel", "photos-1"]["spec"]["dedicatedResources"]["minReplicaCount"] = 3
    await reconciler.reconcile(DM)
    assert cluster.objects["Deployment", "dm-photos-1"]["spec"]["replicas"] == 3


async def test_condition_that_others_write_costs_no_write(make_reconciler):
    cluster, reconciler = make_reconciler(make_model())
    await reconciler.reconcile(MODEL)
    since = "2026-11-22T11:00:00Z"
    foreign = {"type": "example.com/Reviewed", "status": "True", "reason": "X", "lastTransitionTime": since}
    cluster.objects["Model", "photos"]["status"]["conditions"].append(foreign)
    cluster.calls.clear()
    await reconciler.reconcile(MODEL)
    assert cluster.calls == []


# What a later release wrote


def _of_tomorrow(live, **spec):
    live["spec"] |= spec
    return live


async def test_what_cannot_be_read_says_so_and_what_runs_stays(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await _answering(cluster, reconciler)
    await reconciler.reconcile(DM)
    resources = {"autoscalingMetricSpecs": [{"metricName": "of/tomorrow"}]}
    _of_tomorrow(cluster.objects["DeployedModel", "photos-1"], dedicatedResources=resources)
    cluster.calls.clear()
    await reconciler.reconcile(DM)
    assert cluster.calls == [("status", "DeployedModel", "photos-1")]
    assert cluster.ready(DM) == ("False", "Unreadable")
    assert cluster.is_true(DM, "Available"), "its traffic stays"
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 100}
    cluster.calls.clear()
    await reconciler.reconcile(DM)
    assert cluster.calls == [], "stable: no writes"


@pytest.mark.parametrize("neighbour", ["Endpoint", "Model"])
async def test_what_names_something_unreadable_says_so(make_reconciler, neighbour):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    _of_tomorrow(cluster.objects[neighbour, "photos"], displayName={"of": "tomorrow"})
    cluster.calls.clear()
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "Unreadable")
    assert cluster.calls == [("status", "DeployedModel", "photos-1")]


async def test_endpoint_that_cannot_be_read_keeps_its_split(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(available=True))
    await reconciler.reconcile(ENDPOINT)
    _judge_route(cluster)
    await reconciler.reconcile(ENDPOINT)
    split = _split(cluster)
    _of_tomorrow(cluster.objects["Endpoint", "photos"], access="OfTomorrow")
    await reconciler.reconcile(ENDPOINT)
    assert cluster.ready(ENDPOINT) == ("False", "Unreadable")
    assert _split(cluster) == split == {"photos-1": 100}


async def test_endpoint_waits_for_what_does_not_serve(make_reconciler):
    there = [make_deployed_model("photos-1", available=True), make_deployed_model("photos-2", available=False)]
    cluster, reconciler = make_reconciler(make_endpoint({"photos-1": 80, "photos-2": 20}), *there)
    await reconciler.reconcile(ENDPOINT)
    assert cluster.ready(ENDPOINT) == ("False", "WaitingForDeployedModels")
    assert _weights(cluster) == {"dm-photos-1": 100}
    cluster.objects["DeployedModel", "photos-2"] = make_deployed_model("photos-2", available=True)
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 80, "dm-photos-2": 20}
    assert cluster.ready(ENDPOINT) == ("False", "RoutePending")


async def test_weight_comes_with_the_replicas_that_answer(make_reconciler):
    """One of twenty must not get what twenty carried; a cluster in which nothing changes sees no write."""
    resources = {"dedicatedResources": {"minReplicaCount": 20}}
    there = [make_deployed_model(name, available=True, **resources) for name in ("photos-1", "photos-2")]
    there[0]["status"]["availableReplicaCount"] = 20
    cluster, reconciler = make_reconciler(make_endpoint({"photos-2": 100}, trafficSplit={"photos-1": 100}), *there)
    for answering, weights in ((1, {"dm-photos-1": 96, "dm-photos-2": 4}), (20, {"dm-photos-2": 100})):
        cluster.objects["DeployedModel", "photos-2"]["status"]["availableReplicaCount"] = answering
        await reconciler.reconcile(ENDPOINT)
        assert _weights(cluster) == weights
        _judge_route(cluster)
        await reconciler.reconcile(ENDPOINT)
        cluster.calls.clear()
        await reconciler.reconcile(ENDPOINT)
        assert cluster.calls == []
    cluster.objects["DeployedModel", "photos-2"]["status"]["availableReplicaCount"] = 1
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-2": 100}, "kept while one answers"


async def _replace(make_reconciler, spoil):
    """photos-1 has all traffic, photos-2 is to take over and answers, and `spoil` keeps the gateway from taking that."""
    there = [make_deployed_model(name, available=True) for name in ("photos-1", "photos-2")]
    cluster, reconciler = make_reconciler(make_endpoint({"photos-1": 100}), *there)
    await reconciler.reconcile(ENDPOINT)
    _judge_route(cluster)
    await reconciler.reconcile(ENDPOINT)
    assert _split(cluster) == {"photos-1": 100}
    cluster.objects["Endpoint", "photos"]["spec"]["trafficSplit"] = {"photos-2": 100}
    spoil(cluster)
    return cluster, reconciler


async def test_split_of_a_route_that_is_refused_is_not_told(make_reconciler):
    cluster, reconciler = await _replace(make_reconciler, lambda cluster: cluster.refuse("HTTPRoute"))
    with pytest.raises(ClusterError):
        await reconciler.reconcile(ENDPOINT)
    assert _split(cluster) == {"photos-1": 100}
    assert cluster.ready(ENDPOINT) == ("False", "Rejected")
    # Its pods break: photos-1, which serves and never lost anything, must go on.
    cluster.objects["DeployedModel", "photos-2"] = make_deployed_model("photos-2", available=False)
    cluster.rejects.clear()
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 100}


@pytest.mark.parametrize("judged", [{"judged": False}, {"accepted": False}], ids=["not judged", "not accepted"])
async def test_split_that_the_gateway_does_not_take_is_not_told(make_reconciler, judged):
    cluster, reconciler = await _replace(make_reconciler, lambda cluster: _judge_route(cluster, **judged))
    for _ in range(2):
        await reconciler.reconcile(ENDPOINT)
        assert _weights(cluster) == {"dm-photos-2": 100}
        assert _split(cluster) == {"photos-1": 100}
    cluster.objects["DeployedModel", "photos-2"] = make_deployed_model("photos-2", available=False)
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 100}
    cluster.objects["DeployedModel", "photos-2"] = make_deployed_model("photos-2", available=True)
    _judge_route(cluster)
    await reconciler.reconcile(ENDPOINT)
    assert _split(cluster) == {"photos-2": 100}


async def test_split_that_was_told_wrong_is_put_right_by_the_route_that_is_there(make_reconciler):
    """Release 0.1.0 told what it wanted to apply."""
    cluster, reconciler = await _replace(make_reconciler, lambda cluster: cluster.refuse("HTTPRoute"))
    cluster.objects["Endpoint", "photos"]["status"]["trafficSplit"] = {"photos-2": 100}
    with pytest.raises(ClusterError):
        await reconciler.reconcile(ENDPOINT)
    assert _split(cluster) == {"photos-1": 100}


async def test_split_stays_where_the_route_of_that_name_is_somebody_elses(make_reconciler):
    theirs = {"kind": "HTTPRoute", "metadata": {"name": "ep-photos", "uid": "x"}, "spec": {}}
    endpoint = make_endpoint({"photos-2": 100}, trafficSplit={"photos-1": 100})
    there = [make_deployed_model(name, available=True) for name in ("photos-1", "photos-2")]
    cluster, reconciler = make_reconciler(endpoint, *there, theirs)
    await reconciler.reconcile(ENDPOINT)
    assert cluster.ready(ENDPOINT) == ("False", "NotOwned")
    assert _split(cluster) == {"photos-1": 100}


async def test_gone_deployed_model_is_not_kept_by_a_gateway_that_takes_nothing(make_reconciler):
    cluster, reconciler = await _replace(make_reconciler, lambda cluster: _judge_route(cluster, accepted=False))
    del cluster.objects["DeployedModel", "photos-1"]
    await reconciler.reconcile(ENDPOINT)
    assert _split(cluster) == {}


async def test_mirror_that_does_not_serve_is_told(make_reconciler):
    endpoint = make_endpoint({"photos-1": 100})
    endpoint["spec"]["mirror"] = {"deployedModel": "photos-2"}
    cluster, reconciler = make_reconciler(endpoint, make_deployed_model(available=True))
    await reconciler.reconcile(ENDPOINT)
    _judge_route(cluster)
    await reconciler.reconcile(ENDPOINT)
    assert cluster.ready(ENDPOINT) == ("False", "MirrorNotServing")
    assert cluster.is_true(ENDPOINT, "TrafficApplied")
    cluster.objects["DeployedModel", "photos-2"] = make_deployed_model("photos-2", available=True)
    await reconciler.reconcile(ENDPOINT)
    assert cluster.ready(ENDPOINT) == ("True", "TrafficApplied")
    assert "requestMirror" in str(cluster.objects["HTTPRoute", "ep-photos"])


async def test_mirror_means_nothing_where_the_api_forwards(settings):
    endpoint = make_endpoint({"photos-1": 100})
    endpoint["spec"]["mirror"] = {"deployedModel": "photos-2"}
    bare = settings.model_copy(update={"routing": settings.routing.model_copy(update={"provider": "none"})})
    cluster = FakeCluster(endpoint, make_deployed_model(available=True))
    await Reconciler(cluster, FakeProber(), bare, Clock()).reconcile(ENDPOINT)
    assert cluster.ready(ENDPOINT) == ("True", "TrafficApplied")


@pytest.fixture
def with_api(settings):
    """Settings of an installation whose gateway leads to the API what has no route."""
    return settings.model_copy(update={"routing": settings.routing.model_copy(update={"api_answers": True})})


@pytest.mark.parametrize("there", [[], [make_deployed_model(available=False)]], ids=["nothing", "starting"])
async def test_while_nobody_serves_the_api_has_its_paths(with_api, there):
    cluster = FakeCluster(make_endpoint(), *there)
    reconciler = Reconciler(cluster, FakeProber(), with_api, Clock())
    await reconciler.reconcile(ENDPOINT)
    assert cluster.is_true(ENDPOINT, "TrafficApplied")
    assert not [call for call in cluster.calls if call[0] == "apply"]
    cluster.objects["DeployedModel", "photos-1"] = make_deployed_model(available=True)
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 100}
    assert cluster.ready(ENDPOINT) == ("False", "RoutePending")
    cluster.objects["DeployedModel", "photos-1"] = make_deployed_model(available=False)
    await reconciler.reconcile(ENDPOINT)
    assert ("HTTPRoute", "ep-photos") not in cluster.objects
    assert cluster.ready(ENDPOINT) == ("False", "WaitingForDeployedModels")
    cluster.calls.clear()
    await reconciler.reconcile(ENDPOINT)
    assert cluster.calls == [], "stable: no writes"


async def test_split_is_empty_before_the_watch_has_told_that_the_route_is_gone(with_api, monkeypatch):
    """Whatever the gateway last said of that route, or did not say yet."""
    endpoint = make_endpoint(trafficSplit={"photos-1": 100})
    cluster = FakeCluster(endpoint, make_deployed_model(available=True))
    reconciler = Reconciler(cluster, FakeProber(), with_api, Clock())
    await reconciler.reconcile(ENDPOINT)
    assert cluster.ready(ENDPOINT) == ("False", "RoutePending")
    assert _split(cluster) == {"photos-1": 100}
    cluster.objects["DeployedModel", "photos-1"] = make_deployed_model(available=False)
    deleted = []
    monkeypatch.setattr(cluster, "delete", AsyncMock(side_effect=deleted.append))
    await reconciler.reconcile(ENDPOINT)
    assert [live["kind"] for live in deleted] == ["HTTPRoute"]
    assert _split(cluster) == {}
    assert cluster.ready(ENDPOINT) == ("False", "WaitingForDeployedModels")


async def _install_former_release(settings, *there):
    """An Endpoint and what release 0.1.0 made for it while nobody served: its Service has an address."""
    cluster = FakeCluster(make_endpoint(), *there)
    await Reconciler(cluster, FakeProber(), settings, Clock()).reconcile(ENDPOINT)
    cluster.objects["Service", "ep-photos"]["spec"]["clusterIP"] = "10.96.0.7"
    _judge_route(cluster)
    return cluster


async def test_idle_service_goes_once_the_gateway_leads_elsewhere(settings, with_api):
    for changed in (settings, with_api):
        cluster = await _install_former_release(settings)
        cluster.objects["DeployedModel", "photos-1"] = make_deployed_model(available=True)
        reconciler = Reconciler(cluster, FakeProber(), changed, Clock())
        _judge_route(cluster, judged=False)
        await reconciler.reconcile(ENDPOINT)
        assert _weights(cluster) == {"dm-photos-1": 100}
        assert ("Service", "ep-photos") in cluster.objects, "the gateway may not know yet"
        _judge_route(cluster)
        await reconciler.reconcile(ENDPOINT)
        assert ("Service", "ep-photos") not in cluster.objects
        assert cluster.ready(ENDPOINT) == ("True", "TrafficApplied")


async def test_idle_service_and_its_route_go_where_the_api_answers(settings, with_api):
    cluster = await _install_former_release(settings)
    await Reconciler(cluster, FakeProber(), with_api, Clock()).reconcile(ENDPOINT)
    assert not {("HTTPRoute", "ep-photos"), ("Service", "ep-photos")} & cluster.objects.keys()


async def test_idle_service_that_is_in_use_keeps_its_address(settings):
    cluster = await _install_former_release(settings)
    reconciler = Reconciler(cluster, FakeProber(), settings, Clock())
    await reconciler.reconcile(ENDPOINT)
    assert cluster.objects["Service", "ep-photos"]["spec"]["clusterIP"] == "10.96.0.7"
    assert _weights(cluster) == {"ep-photos": 1}
    assert cluster.ready(ENDPOINT) == ("False", "NoDeployedModel")
    cluster.calls.clear()
    await reconciler.reconcile(ENDPOINT)
    assert cluster.calls == [], "stable: no writes"


async def test_service_of_somebody_else_by_that_name_stays(with_api):
    theirs = {**FOREIGN, "metadata": {"name": "ep-photos", "uid": "x", "labels": OURS}}
    cluster = FakeCluster(make_endpoint(), make_deployed_model(available=True), theirs)
    await Reconciler(cluster, FakeProber(), with_api, Clock()).reconcile(ENDPOINT)
    assert cluster.objects["Service", "ep-photos"] == theirs
    assert _weights(cluster) == {"dm-photos-1": 100}


async def test_split_over_too_many_is_refused_and_the_route_stays(make_reconciler):
    there = [make_deployed_model(f"photos-{number}", available=True) for number in range(1, 18)]
    cluster, reconciler = make_reconciler(make_endpoint({"photos-1": 80, "photos-2": 20}), *there)
    await reconciler.reconcile(ENDPOINT)
    _judge_route(cluster)
    await reconciler.reconcile(ENDPOINT)
    cluster.objects["Endpoint", "photos"]["spec"]["trafficSplit"] = {
        dm["metadata"]["name"]: 84 if number == 0 else 1 for number, dm in enumerate(there)
    }
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 80, "dm-photos-2": 20}
    assert cluster.ready(ENDPOINT) == ("False", "TooManyDeployedModels")
    assert _split(cluster) == {"photos-1": 80, "photos-2": 20}
    assert cluster.is_true(ENDPOINT, "Stalled")
    cluster.calls.clear()
    await reconciler.reconcile(ENDPOINT)
    assert cluster.calls == [], "stable: no writes"
    cluster.objects["Endpoint", "photos"]["spec"]["trafficSplit"] |= {"photos-1": 85, "photos-17": 0}
    await reconciler.reconcile(ENDPOINT)
    assert len(_weights(cluster)) == 16


@pytest.mark.parametrize("there", [[], [make_deployed_model(available=False)]], ids=["nothing", "starting"])
async def test_without_an_api_the_route_leads_to_nobody_while_nobody_serves(make_reconciler, there):
    cluster, reconciler = make_reconciler(make_endpoint(), *there)
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"ep-photos": 1}
    assert cluster.objects["Service", "ep-photos"]["spec"]["selector"] == {}
    cluster.objects["DeployedModel", "photos-1"] = make_deployed_model(available=True)
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 100}
    del cluster.objects["DeployedModel", "photos-1"]
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"ep-photos": 1}
    assert cluster.ready(ENDPOINT) == ("False", "NoDeployedModel")
    assert cluster.objects["Service", "ep-photos"]["spec"]["clusterIP"] == "None"


async def test_what_is_gone_or_going_is_left_to_kubernetes(make_reconciler):
    going = make_deployed_model()
    going["metadata"]["deletionTimestamp"] = "2026-11-22T00:00:00Z"
    cluster, reconciler = make_reconciler(make_model(), going)
    for key in (DM, ENDPOINT):
        await reconciler.reconcile(key)
    assert cluster.calls == []


# Before it gets traffic


ANSWERING = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1, "observedGeneration": 1}


async def _answering(cluster, reconciler):
    """Its pods are ready, says the Deployment."""
    await reconciler.reconcile(DM)
    cluster.objects["Deployment", "dm-photos-1"]["status"] = ANSWERING


async def test_pods_are_asked_for_a_prediction_before_they_count(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await _answering(cluster, reconciler)
    assert reconciler.prober.asked == []
    reconciler.prober.silence = "answered with 500"
    assert await reconciler.reconcile(DM), "it is asked again soon"
    assert cluster.ready(DM) == ("False", "ProbeFailed")
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"ep-photos": 1}
    reconciler.prober.silence = None
    assert await reconciler.reconcile(DM) is None
    assert cluster.ready(DM) == ("True", "Serving")
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 100}


async def test_pods_that_answered_are_not_asked_again(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await _answering(cluster, reconciler)
    await reconciler.reconcile(DM)
    assert len(reconciler.prober.asked) == 1
    await reconciler.reconcile(DM)
    assert len(reconciler.prober.asked) == 1


# Pods that are not ready


def _make_pod(number, ready=False):
    labels = {"app.kubernetes.io/managed-by": "pierhead", "pierhead.dev/deployed-model": "photos-1"}
    container = {"name": "server", "started": True, "ready": ready, "state": {"running": {}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"p{number}", "namespace": "default", "labels": labels},
        "status": {
            "podIP": f"10.0.0.{number}",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [container],
        },
    }


async def test_pod_that_is_not_ready_is_asked_why(make_reconciler):
    pods = [_make_pod(1, ready=True), _make_pod(2)]
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(), *pods)
    await _answering(cluster, reconciler)
    reconciler.prober.words["p2"] = "the model's process died (SIGSEGV) and is starting anew"
    assert await reconciler.reconcile(DM), "no event tells that it says something else"
    assert cluster.ready(DM) == ("False", "NotReady")
    reconciler.prober.words["p2"] = "ModelProcessDies: it died 3 times"
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "ModelProcessDies")
    assert reconciler.prober.unready == {"p2": "10.0.0.2"}
    writes = len(cluster.calls)
    assert await reconciler.reconcile(DM) is None, "the pod's recovery is an event"
    assert len(cluster.calls) == writes


async def test_few_pods_of_many_are_asked(make_reconciler):
    pods = [_make_pod(number) for number in range(9)]
    _, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(), *pods)
    await reconciler.reconcile(DM)
    assert len(reconciler.prober.unready) == 3


async def test_pods_that_are_ready_are_not_asked_for_their_readiness(make_reconciler):
    cluster, reconciler = make_reconciler(
        make_model(), make_endpoint(), make_deployed_model(), _make_pod(1, ready=True)
    )
    await _answering(cluster, reconciler)
    assert await reconciler.reconcile(DM) is None
    assert reconciler.prober.unready == {}


# Removal


async def _deploy_two(make_reconciler):
    """Two DeployedModels that serve at 80/20; the keys of the second."""
    there = [make_deployed_model(name, available=True) for name in ("photos-1", "photos-2")]
    cluster, reconciler = make_reconciler(make_model(), make_endpoint({"photos-1": 80, "photos-2": 20}), *there)
    for name in ("photos-1", "photos-2"):
        await reconciler.reconcile(Key("DeployedModel", "default", name))
        cluster.objects["Deployment", f"dm-{name}"]["status"] = ANSWERING
        await reconciler.reconcile(Key("DeployedModel", "default", name))
    labels = {"app.kubernetes.io/managed-by": "pierhead", "pierhead.dev/deployed-model": "photos-2"}
    cluster.objects["Pod", "p"] = {"apiVersion": "v1", "metadata": {"name": "p", "labels": labels}}
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 80, "dm-photos-2": 20}
    return cluster, reconciler, Key("DeployedModel", "default", "photos-2")


def _left(cluster):
    return sorted(kind for kind, name in cluster.objects if name == "dm-photos-2")


async def test_weight_leaves_before_the_pods_and_they_before_their_address(make_reconciler):
    cluster, reconciler, gone = await _deploy_two(make_reconciler)
    del cluster.objects["DeployedModel", "photos-2"]
    cluster.collect_garbage("uid-photos-2")
    assert _left(cluster) == ["Deployment", "Service"]
    assert await reconciler.reconcile(gone)
    assert _left(cluster) == ["Deployment", "Service"], "the route leads there"
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 100}
    assert await reconciler.reconcile(gone)
    assert _left(cluster) == ["Deployment", "Service"], "the gateway may not know yet"
    reconciler.clock.now += timedelta(seconds=30)
    assert await reconciler.reconcile(gone)
    assert _left(cluster) == ["Service"], "its pods finish what they have"
    del cluster.objects["Pod", "p"]
    assert await reconciler.reconcile(gone)
    assert _left(cluster) == []
    assert await reconciler.reconcile(gone) is None


async def test_pods_wait_until_the_api_forwards_to_them_no_more(settings):
    """Nobody makes a route: the API goes by the Endpoint's status."""
    routing = settings.routing.model_copy(update={"provider": "none"})
    bare = settings.model_copy(update={"routing": routing})
    cluster = FakeCluster(make_model(), make_endpoint(), make_deployed_model("photos-2", available=True))
    reconciler, gone = Reconciler(cluster, FakeProber(), bare, Clock()), Key("DeployedModel", "default", "photos-2")
    await reconciler.reconcile(gone)
    cluster.objects["DeployedModel", "photos-2"]["status"] = make_deployed_model(available=True)["status"]
    await reconciler.reconcile(ENDPOINT)
    assert _split(cluster) == {"photos-2": 100}
    del cluster.objects["DeployedModel", "photos-2"]
    cluster.collect_garbage("uid-photos-2")
    for _ in range(2):
        assert await reconciler.reconcile(gone)
        reconciler.clock.now += timedelta(seconds=30)
    assert _left(cluster) == ["Deployment", "Service"], "the Endpoint was not looked after yet"
    await reconciler.reconcile(ENDPOINT)
    assert _split(cluster) == {}
    assert await reconciler.reconcile(gone)
    assert _left(cluster) == ["Deployment", "Service"], "the API may not know yet"
    reconciler.clock.now += timedelta(seconds=30)
    assert await reconciler.reconcile(gone)
    assert _left(cluster) == []


async def test_deployed_model_that_comes_back_finds_its_pods(make_reconciler):
    cluster, reconciler, gone = await _deploy_two(make_reconciler)
    del cluster.objects["DeployedModel", "photos-2"]
    cluster.collect_garbage("uid-photos-2")
    await reconciler.reconcile(gone)
    again = make_deployed_model("photos-2")
    again["metadata"]["uid"] = "uid-again"
    cluster.objects["DeployedModel", "photos-2"] = again
    await reconciler.reconcile(gone)
    assert cluster.ready(gone)[1] != "NotOwned"
    owners = cluster.objects["Deployment", "dm-photos-2"]["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == ["uid-again", "uid-photos"]
    reconciler.clock.now += timedelta(seconds=60)
    await reconciler.reconcile(gone)
    assert _left(cluster) == ["Deployment", "Service"]


async def test_with_the_endpoint_all_goes_by_itself(make_reconciler):
    cluster, reconciler, gone = await _deploy_two(make_reconciler)
    for uid in ("uid-photos-2", "uid-photos"):
        cluster.collect_garbage(uid)
    assert _left(cluster) == []
    del cluster.objects["DeployedModel", "photos-2"]
    assert await reconciler.reconcile(gone) is None


# Upgrades of the operator


async def test_upgrade_restarts_no_pod_until_its_spec_changes(make_reconciler, settings):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    before = deepcopy(cluster.objects["Deployment", "dm-photos-1"]["spec"]["template"])
    server = settings.server.model_copy(update={"image": "pierhead/server:new"})
    upgraded = Reconciler(cluster, FakeProber(), settings.model_copy(update={"server": server}), Clock())
    cluster.calls.clear()
    await upgraded.reconcile(DM)
    assert cluster.calls == []
    assert cluster.objects["Deployment", "dm-photos-1"]["spec"]["template"] == before
    cluster.objects["DeployedModel", "photos-1"]["spec"]["modelVersion"] = "2"
    await upgraded.reconcile(DM)
    [container] = cluster.objects["Deployment", "dm-photos-1"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "pierhead/server:new"


async def test_unknown_machine_is_told_and_what_runs_stays(make_reconciler):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model())
    await reconciler.reconcile(DM)
    machine = {"acceleratorType": "NVIDIA_FOO", "acceleratorCount": 1}
    cluster.objects["DeployedModel", "photos-1"]["spec"]["dedicatedResources"] = {"machineSpec": machine}
    cluster.objects["DeployedModel", "photos-1"]["metadata"]["generation"] += 1
    cluster.calls.clear()
    await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "MachineUnknown")
    assert ("apply", "Deployment", "dm-photos-1") not in cluster.calls


async def test_private_endpoint_without_a_gateway_for_it_is_told(make_reconciler):
    endpoint = make_endpoint()
    endpoint["spec"]["access"] = "Private"
    cluster, reconciler = make_reconciler(endpoint, make_deployed_model(available=True))
    await reconciler.reconcile(ENDPOINT)
    assert cluster.ready(ENDPOINT) == ("False", "AccessNotOffered")
    assert not [call for call in cluster.calls if call[0] == "apply"]


# AI Platform's paths


async def test_model_is_routed_to_who_serves_its_versions(make_reconciler):
    serving, other = make_deployed_model("photos-1", available=True), make_deployed_model("photos-2", available=True)
    serving["status"]["modelVersion"], other["status"]["modelVersion"] = "1", "2"
    serving["status"]["availableReplicaCount"] = 4
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), serving, other)
    await reconciler.reconcile(MODEL)
    rules = cluster.objects["HTTPRoute", "mdl-photos"]["spec"]["rules"]
    backends = {
        match["path"]["value"]: [backend["name"] for backend in rule["backendRefs"]]
        for rule in rules
        for match in rule["matches"]
    }
    assert backends["/v1/projects/default/models/photos:predict"] == ["dm-photos-1"]
    assert backends["/v1/projects/default/models/photos/versions/2:predict"] == ["dm-photos-2"]
    del cluster.objects["DeployedModel", "photos-1"], cluster.objects["DeployedModel", "photos-2"]
    await reconciler.reconcile(MODEL)
    assert ("HTTPRoute", "mdl-photos") not in cluster.objects


async def test_model_that_too_many_serve_tells_it(make_reconciler):
    there = [make_deployed_model(f"photos-{number}", available=True) for number in range(17)]
    for dm in there:
        dm["status"]["modelVersion"] = "1"
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), *there)
    await reconciler.reconcile(MODEL)
    [ready] = [one for one in cluster.objects["Model", "photos"]["status"]["conditions"] if one["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("True", "Accepted")
    assert "version 1 is served by 17 DeployedModels, its paths lead to 16 of them" in ready["message"]


async def test_model_on_a_private_endpoint_has_no_public_path(make_reconciler):
    endpoint, serving = make_endpoint(), make_deployed_model("photos-1", available=True)
    endpoint["spec"]["access"] = "Private"
    serving["status"]["modelVersion"] = "1"
    cluster, reconciler = make_reconciler(make_model(), endpoint, serving)
    await reconciler.reconcile(MODEL)
    assert ("HTTPRoute", "mdl-photos") not in cluster.objects


async def test_models_own_path_leads_to_each_by_its_replicas(make_reconciler):
    there = [make_deployed_model(name, available=True) for name in ("photos-1", "photos-2")]
    for live, replicas in zip(there, (6, 2), strict=True):
        live["status"] |= {"modelVersion": "1", "availableReplicaCount": replicas}
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), *there)
    await reconciler.reconcile(MODEL)
    [rule] = cluster.objects["HTTPRoute", "mdl-photos"]["spec"]["rules"]
    weights = {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}
    assert weights == {"dm-photos-1": 3, "dm-photos-2": 1}


@pytest.mark.parametrize("key", [ENDPOINT, MODEL], ids=lambda key: key.kind)
async def test_what_leaves_is_no_longer_routed(make_reconciler, key):
    """Somebody's finalizer may hold it for long, and a change of its access would go unseen."""
    serving = make_deployed_model(available=True)
    serving["status"]["modelVersion"] = "1"
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), serving)
    await reconciler.reconcile(key)
    assert [kind for kind, _ in cluster.objects if kind == "HTTPRoute"]
    cluster.objects[key.kind, key.name]["metadata"]["deletionTimestamp"] = "2026-11-22T00:00:00Z"
    await reconciler.reconcile(key)
    assert not [kind for kind, _ in cluster.objects if kind == "HTTPRoute"]
    cluster.calls.clear()
    await reconciler.reconcile(key)
    assert cluster.calls == []


async def test_neither_traffic_nor_copies_go_to_another_endpoints_deployed_model(make_reconciler):
    """Whatever its labels say."""
    private = make_deployed_model("secret", available=True, endpoint="private")
    private["metadata"]["labels"] = {"pierhead.dev/endpoint": "photos"}
    endpoint = make_endpoint()
    endpoint["spec"]["mirror"] = {"deployedModel": "secret"}
    cluster, reconciler = make_reconciler(endpoint, make_deployed_model(available=True), private)
    await reconciler.reconcile(ENDPOINT)
    assert _weights(cluster) == {"dm-photos-1": 100}
    assert "secret" not in str(cluster.objects["HTTPRoute", "ep-photos"])


async def test_routes_of_another_provider_are_taken_away(make_reconciler, settings):
    cluster, reconciler = make_reconciler(make_model(), make_endpoint(), make_deployed_model(available=True))
    await reconciler.reconcile(ENDPOINT)
    assert ("HTTPRoute", "ep-photos") in cluster.objects
    routing = settings.routing.model_copy(update={"provider": "none"})
    without = Reconciler(cluster, FakeProber(), settings.model_copy(update={"routing": routing}), Clock())
    await without.delete_of_other_settings(None)
    assert not {("HTTPRoute", "ep-photos"), ("Service", "ep-photos")} & cluster.objects.keys()
    assert ("DeployedModel", "photos-1") in cluster.objects


@pytest.fixture
def restricting(settings):
    """The settings of an installation that makes NetworkPolicies."""
    return settings.model_copy(update={"network_policy": NetworkPolicySettings.model_validate(NETWORK_POLICY)})


async def test_pods_come_after_their_network_policy(restricting):
    cluster = FakeCluster(make_model(), make_endpoint(), make_deployed_model())
    reconciler = Reconciler(cluster, FakeProber(), restricting, Clock())
    cluster.refuse("NetworkPolicy")
    with pytest.raises(ClusterError):
        await reconciler.reconcile(DM)
    assert cluster.ready(DM) == ("False", "Rejected")
    assert ("Deployment", "dm-photos-1") not in cluster.objects
    cluster.rejects.clear()
    await reconciler.reconcile(DM)
    assert {("NetworkPolicy", "dm-photos-1"), ("Deployment", "dm-photos-1")} <= cluster.objects.keys()
    cluster.calls.clear()
    await reconciler.reconcile(DM)
    assert cluster.calls == [], "stable: no writes"


async def test_network_policies_go_when_they_are_no_longer_wanted(restricting, settings):
    cluster = FakeCluster(make_model(), make_endpoint(), make_deployed_model())
    await Reconciler(cluster, FakeProber(), restricting, Clock()).reconcile(DM)
    await Reconciler(cluster, FakeProber(), restricting, Clock()).delete_of_other_settings(None)
    assert ("NetworkPolicy", "dm-photos-1") in cluster.objects
    await Reconciler(cluster, FakeProber(), settings, Clock()).delete_of_other_settings(None)
    assert ("NetworkPolicy", "dm-photos-1") not in cluster.objects
    assert ("Deployment", "dm-photos-1") in cluster.objects


async def test_pods_that_leave_keep_their_network_policy(restricting):
    cluster, reconciler, gone = await _deploy_two(
        lambda *objects: ((cluster := FakeCluster(*objects)), Reconciler(cluster, FakeProber(), restricting, Clock()))
    )
    del cluster.objects["DeployedModel", "photos-2"]
    cluster.collect_garbage("uid-photos-2")
    await reconciler.reconcile(ENDPOINT)
    await reconciler.reconcile(gone)
    reconciler.clock.now += timedelta(seconds=30)
    await reconciler.reconcile(gone)
    assert _left(cluster) == ["NetworkPolicy", "Service"]
    del cluster.objects["Pod", "p"]
    await reconciler.reconcile(gone)
    assert _left(cluster) == []


def _judge_route(cluster, *, judged=True, accepted=True):
    """The gateway's word on the Endpoint's route, as it is and as it will be."""
    of_route = {"Accepted": accepted, "ResolvedRefs": True}
    conditions = [
        {"type": type_, "status": str(good), "observedGeneration": 1, "reason": "R", "message": "m"}
        for type_, good in of_route.items()
    ]
    parent = {"parentRef": {"namespace": "gateways", "name": "public"}, "conditions": conditions}
    cluster.objects["HTTPRoute", "ep-photos"]["status"] = {"parents": [parent] if judged else []}


def _split(cluster):
    return cluster.objects["Endpoint", "photos"]["status"].get("trafficSplit", {})


def _weights(cluster):
    [rule] = cluster.objects["HTTPRoute", "ep-photos"]["spec"]["rules"]
    return {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}
