"""Who serves which predictions."""

import pytest
from pierhead_api.errors import NotFoundError
from pierhead_api.predictions import Prediction
from pierhead_api.route_table import RouteTable

from tests.unit.api.transport.conftest import make_deployed_model, make_endpoint, make_model

ENDPOINT = Prediction("endpoints", "team-a", "photos", "predict", "local")


def _model(version=None, name="photos"):
    return Prediction("models", "team-a", name, "predict", version=version)


def make_table(*manifests, offers_private=True):
    table = RouteTable(offers_private=offers_private)
    for manifest in manifests:
        table.put(manifest["kind"], manifest)
    return table


def test_endpoint_leads_where_the_effective_split_says():
    timeout = {"inferenceTimeout": "5s"}
    endpoint = make_endpoint({"a": 80, "b": 20, "c": 0}, clientConnectionConfig=timeout, maxRequestBytes=2048)
    route = make_table(endpoint).find(ENDPOINT, "team-a")
    assert (route.namespace, route.weights) == ("team-a", {"a": 80, "b": 20})
    assert (route.timeout_seconds, route.max_request_bytes) == (5, 2048)


def test_endpoint_that_nobody_serves_has_a_route_without_weights():
    route = make_table(make_endpoint()).find(ENDPOINT, "team-a")
    assert (route.weights, route.timeout_seconds, route.max_request_bytes) == ({}, 60, None)


def _cause(table):
    return table.explain_unserved("photos", "team-a").message.removeprefix("no DeployedModel of the endpoint photos ")


def test_cause_is_that_of_who_is_deployed_now():
    table = make_table(make_endpoint(trafficSplit={"a": 50, "b": 50}))
    assert table.explain_unserved("photos", "team-a").message == "nothing is deployed on the endpoint photos"
    a, b = (make_deployed_model(name, replicas=0) for name in "ab")
    table.put("DeployedModel", a)
    assert _cause(table) == "answers: a (Progressing), b (not found)"
    table.put("DeployedModel", make_deployed_model("a", replicas=0, cause="OutOfMemory"))
    table.put("DeployedModel", b)
    assert _cause(table) == "answers: a (OutOfMemory), b (Progressing)"
    b["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"
    table.put("DeployedModel", b)
    assert _cause(table) == "answers: a (OutOfMemory), b (not found)"
    table.put("DeployedModel", make_deployed_model("a", replicas=0, endpoint="other"))
    table.remove("DeployedModel", ("team-a", "b"))
    assert table.explain_unserved("photos", "team-a").code == 400


def test_gateway_carries_the_endpoints_of_its_access():
    standard, private = make_endpoint({"a": 100}), make_endpoint({"b": 100}, "inside", access="Private")
    table = make_table(standard, private, offers_private=False)
    assert table.find_carried("photos", "team-a", private=False).weights == {"a": 100}
    assert table.find_carried("inside", "team-a", private=True).weights == {"b": 100}
    for name, is_private in (("photos", True), ("inside", False), ("other", False)):
        assert table.find_carried(name, "team-a", private=is_private) is None


def test_unknown_endpoint_and_one_of_another_namespace_have_no_route():
    for table in (make_table(), make_table(make_endpoint(name="other"))):
        with pytest.raises(NotFoundError, match="there is no endpoint photos"):
            table.find(ENDPOINT, "team-a")
    with pytest.raises(NotFoundError):
        make_table(make_endpoint()).find(ENDPOINT, "team-b")


def test_private_endpoint_is_not_behind_the_public_gateway():
    private = make_endpoint({"a": 100}, access="Private")
    assert make_table(private).find(ENDPOINT, "team-a").weights
    behind = make_table(private, make_model(), make_deployed_model(), offers_private=False)
    for prediction in (ENDPOINT, _model()):
        with pytest.raises(NotFoundError):
            behind.find(prediction, "team-a")
    assert behind.knows(ENDPOINT, "team-a")


@pytest.mark.parametrize(
    ("version", "weights"),
    [
        (None, {"photos-1": 1, "photos-3": 3}),
        ("1", {"photos-1": 1, "photos-3": 3}),
        ("2", {"p2": 1}),
        ("candidate", {"p2": 1}),
    ],
)
def test_model_leads_to_who_serves_its_version(version, weights):
    table = make_table(
        make_endpoint(),
        make_model(),
        make_deployed_model("photos-1"),
        make_deployed_model("photos-3", replicas=3),
        make_deployed_model("p2", "2"),
        make_deployed_model("p4", "2", replicas=0),
        make_deployed_model("p5", "2", endpoint="gone"),
    )
    assert table.find(_model(version), "team-a").weights == weights


@pytest.mark.parametrize(
    ("version", "weights"),
    [("v1_2", {"a": 1}), ("v1--2", {"a": 1}), ("stable", {"a": 1}), ("goldenOne", {"b": 1})],
)
def test_version_is_found_by_what_ai_platform_calls_it(version, weights):
    versions = [
        {"name": "v1--2", "aliases": ["stable", "goldenOne"], "artifactUri": "gs://models/photos/1"},
        {"name": "goldenone---40", "artifactUri": "gs://models/photos/2"},
    ]
    model = make_model(versions=versions, defaultVersion="v1--2")
    served = make_deployed_model("a", "v1--2"), make_deployed_model("b", "goldenone---40")
    table = make_table(make_endpoint(), model, *served)
    assert table.find(_model(version), "team-a").weights == weights


def test_model_that_nobody_serves_is_called_as_it_was_asked_for():
    with pytest.raises(NotFoundError, match="nobody serves version v1_2 of the model my_model"):
        make_table().find(_model("v1_2", name="my--model"), "team-a")


@pytest.mark.parametrize("prediction", [_model("3"), _model("2"), _model(name="other")])
def test_version_that_nobody_serves_has_no_route(prediction):
    with pytest.raises(NotFoundError, match="nobody serves"):
        make_table(make_endpoint(), make_model(), make_deployed_model()).find(prediction, "team-a")


def _leaving(manifest):
    return {**manifest, "metadata": {**manifest["metadata"], "deletionTimestamp": "2026-11-22T12:00:00Z"}}


def test_what_leaves_serves_no_more():
    for change in (
        lambda table: table.remove("DeployedModel", ("team-a", "photos-1")),
        lambda table: table.put("DeployedModel", _leaving(make_deployed_model())),
        lambda table: table.put("Endpoint", _leaving(make_endpoint())),
        lambda table: table.put("Model", _leaving(make_model())),
        lambda table: table.remove_missing("DeployedModel", None, set()),
        lambda table: table.remove_missing("Model", "team-a", {("team-a", "other")}),
        lambda table: table.remove("Endpoint", ("team-a", "photos")),
    ):
        table = make_table(make_endpoint(), make_model(), make_deployed_model())
        assert table.find(_model(), "team-a").weights
        change(table)
        with pytest.raises(NotFoundError):
            table.find(_model(), "team-a")


@pytest.mark.parametrize("access", ["Standard", "Private"])
def test_endpoint_that_leaves_has_no_route(access):
    table = make_table(_leaving(make_endpoint({"a": 100}, access=access)))
    with pytest.raises(NotFoundError):
        table.find(ENDPOINT, "team-a")
    assert not any(table.find_carried("photos", "team-a", private=private) for private in (False, True))


def test_object_that_cannot_be_read_has_no_route_and_stops_no_other(caplog):
    table = make_table(make_endpoint({"a": 100}), make_endpoint({"b": 100}, name="other"))
    table.put("Endpoint", make_endpoint({"a": 100}, access="Lunar"))
    with pytest.raises(NotFoundError):
        table.find(ENDPOINT, "team-a")
    assert "Endpoint team-a/photos cannot be read" in caplog.text


def test_list_of_one_namespace_leaves_the_others():
    table = make_table(make_endpoint({"a": 100}))
    table.remove_missing("Endpoint", "team-b", set())
    table.remove_missing("Endpoint", "team-a", {("team-a", "photos")})
    assert table.find(ENDPOINT, "team-a").weights


def test_what_others_write_on_an_object_is_not_kept():
    manifests = make_endpoint({"photos-1": 100}), make_model(), make_deployed_model()
    for manifest in manifests:
        manifest["metadata"] |= {"annotations": {"a": "foreign" * 1000}, "labels": {"foreign": "b"}}
    table = make_table(*manifests)
    assert "foreign" not in repr(vars(table))
    assert table.find(ENDPOINT, "team-a").weights == table.find(_model(), "team-a").weights | {"photos-1": 100}


def test_endpoint_does_not_lead_to_what_is_another_ones_by_now():
    """A DeployedModel that was made again elsewhere; the first Endpoint's status still has its weight."""
    public, secret = make_endpoint({"a": 60, "b": 40}), make_endpoint({"a": 100}, "secret", access="Private")
    table = make_table(public, secret, make_deployed_model("a"), make_deployed_model("b"), offers_private=False)
    assert table.find(ENDPOINT, "team-a").weights == {"a": 60, "b": 40}
    table.remove("DeployedModel", ("team-a", "a"))
    # Its pods are told last that it is gone, and answer until then.
    assert table.find(ENDPOINT, "team-a").weights == {"a": 60, "b": 40}
    table.put("DeployedModel", make_deployed_model("a", endpoint="secret"))
    assert table.find(ENDPOINT, "team-a").weights == {"b": 40}
    assert table.find_carried("photos", "team-a", private=False).weights == {"b": 40}
    assert table.find_carried("secret", "team-a", private=True).weights == {"a": 100}
    table.put("DeployedModel", make_deployed_model("b", endpoint="secret"))
    assert table.find(ENDPOINT, "team-a").weights == {}


def test_deployed_model_that_is_being_removed_is_led_to_while_the_split_names_it():
    table = make_table(make_endpoint({"a": 100}), _leaving(make_deployed_model("a")))
    assert table.find(ENDPOINT, "team-a").weights == {"a": 100}
