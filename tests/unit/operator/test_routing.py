"""The split in tables; what carries it against golden manifests."""

import json
from itertools import product
from pathlib import Path

import pytest
import yaml
from pierhead_operator import names
from pierhead_operator.routing import (
    ROUTE_KINDS,
    Refusal,
    Replicas,
    compute_effective_split,
    count_needed,
    explain_access,
    explain_model_limit,
    explain_refusal,
    explain_split,
    fit_split,
    gateway_api,
    gateway_of,
    keep_address,
    make_endpoint_routes,
    make_model_routes,
    name_versions,
    predict_path,
    read_split,
    route_kinds,
    split_kind,
    wanted_split,
)
from pierhead_operator.routing.rules import Rule, make_endpoint_rule
from pierhead_operator.settings import RoutingSettings
from pierhead_operator.types import Endpoint, Model

from tests.unit.operator.conftest import make_endpoint, make_model

GOLDEN = Path(__file__).parents[2] / "golden"

# wanted, serving, previous -> effective
SPLITS = {
    "all serve": ({"a": 80, "b": 20}, "ab", {}, {"a": 80, "b": 20}),
    "nobody serves": ({"a": 80, "b": 20}, "", {}, {}),
    "first start: the one that serves takes all": ({"a": 80, "b": 20}, "a", {}, {"a": 100}),
    "canary not up: its share stays": ({"a": 80, "b": 20}, "a", {"a": 100}, {"a": 100}),
    "replacement not up: all stays": ({"b": 100}, "a", {"a": 100}, {"a": 100}),
    "replacement up": ({"b": 100}, "ab", {"a": 100}, {"b": 100}),
    "explicit zero": ({"a": 0, "b": 100}, "ab", {"a": 100}, {"b": 100}),
    "explicit zero, other not up": ({"a": 0, "b": 100}, "a", {"a": 100}, {"a": 100}),
    "zero weight is never a refuge": ({"a": 100, "b": 0}, "b", {"a": 100}, {}),
    "two new, one up: the old one keeps the rest": ({"b": 80, "c": 20}, "ac", {"a": 100}, {"a": 80, "c": 20}),
    "one of three breaks: by wanted weight": ({"a": 50, "b": 30, "c": 20}, "ab", {"a": 50, "b": 30, "c": 20}, {"a": 63, "b": 37}),
    "two break, one is back": ({"a": 50, "b": 30, "c": 20}, "ab", {"a": 100}, {"a": 70, "b": 30}),
    "broken one was removed from the split": ({"a": 100}, "a", {"a": 80, "b": 20}, {"a": 100}),
    "split names what is not there": ({"a": 90, "ghost": 10}, "a", {}, {"a": 100}),
    "no split told: kept": (None, "ab", {"a": 100}, {"a": 100}),
    "no split told, the old one is gone": (None, "b", {"a": 100}, {}),
    "no split told, one of two broke": (None, "a", {"a": 40, "b": 60}, {"a": 100}),
}  # fmt: skip


@pytest.mark.parametrize(("wanted", "serving", "previous", "expected"), SPLITS.values(), ids=SPLITS.keys())
def test_effective_split(wanted, serving, previous, expected):
    assert compute_effective_split(wanted, _one_each(serving), previous) == expected


def _one_each(serving):
    return dict.fromkeys(serving, Replicas(answering=1, minimum=1))


# wanted, (replicas that answer, minReplicaCount), previous -> effective
TAKEN_OVER = {
    "nobody to take over from: the first replica serves": ({"b": 100}, {"b": (1, 3)}, {}, {"b": 100}),
    "both are new": ({"a": 80, "b": 20}, {"a": (1, 20), "b": (1, 4)}, {}, {"a": 80, "b": 20}),
    "who served broke down: the first replica serves": ({"b": 100}, {"a": (0, 20), "b": (1, 20)}, {"a": 100}, {"b": 100}),
    "no replica yet": ({"b": 100}, {"a": (20, 20), "b": (0, 20)}, {"a": 100}, {"a": 100}),
    "one of twenty: a 21st part": ({"b": 100}, {"a": (20, 20), "b": (1, 20)}, {"a": 100}, {"a": 96, "b": 4}),
    "five of twenty: a fifth of all": ({"b": 100}, {"a": (20, 20), "b": (5, 20)}, {"a": 100}, {"a": 80, "b": 20}),
    "one before the last": ({"b": 100}, {"a": (20, 20), "b": (19, 20)}, {"a": 80, "b": 20}, {"a": 52, "b": 48}),
    "all of them": ({"b": 100}, {"a": (20, 20), "b": (20, 20)}, {"a": 52, "b": 48}, {"b": 100}),
    "as many as there are to take over from": ({"b": 100}, {"a": (2, 2), "b": (2, 20)}, {"a": 100}, {"b": 100}),
    "fewer than that": ({"b": 100}, {"a": (2, 2), "b": (1, 20)}, {"a": 100}, {"a": 67, "b": 33}),
    "autoscaled to twenty, the next begins with one": ({"b": 100}, {"a": (20, 1), "b": (1, 1)}, {"a": 100}, {"b": 100}),
    "a canary needs no more than its part": ({"a": 90, "b": 10}, {"a": (9, 9), "b": (1, 5)}, {"a": 100}, {"a": 90, "b": 10}),
    "a canary of one replica beside twenty": ({"a": 90, "b": 10}, {"a": (20, 20), "b": (1, 5)}, {"a": 100}, {"a": 96, "b": 4}),
    "one that serves on counts, too": ({"a": 50, "c": 50}, {"a": (9, 9), "b": (9, 9), "c": (2, 9)}, {"a": 50, "b": 50}, {"a": 50, "b": 40, "c": 10}),
    "two candidates": ({"b": 80, "c": 20}, {"a": (10, 10), "b": (2, 8), "c": (2, 2)}, {"a": 100}, {"a": 66, "b": 14, "c": 20}),
    "gained, then a replica leaves": ({"b": 100}, {"a": (20, 20), "b": (4, 20)}, {"a": 80, "b": 20}, {"a": 80, "b": 20}),
    "all gained, then but one leaves": ({"b": 100}, {"a": (20, 20), "b": (1, 20)}, {"b": 100}, {"b": 100}),
    "gained, then all leave": ({"b": 100}, {"a": (20, 20), "b": (0, 20)}, {"a": 80, "b": 20}, {"a": 100}),
    "back from a breakdown, slowly": ({"a": 80, "b": 20}, {"a": (1, 20), "b": (5, 5)}, {"b": 100}, {"a": 16, "b": 84}),
    "back from a breakdown, as many as carry it": ({"a": 80, "b": 20}, {"a": (5, 20), "b": (5, 5)}, {"b": 100}, {"a": 80, "b": 20}),
    "those without weight and without a wish for it do not count": ({"b": 100}, {"a": (2, 2), "b": (1, 3), "x": (50, 50)}, {"a": 100}, {"a": 67, "b": 33}),
    "who takes over shrinks": ({"b": 100}, {"a": (3, 20), "b": (3, 20)}, {"a": 87, "b": 13}, {"b": 100}),
}  # fmt: skip


@pytest.mark.parametrize(("wanted", "replicas", "previous", "expected"), TAKEN_OVER.values(), ids=TAKEN_OVER.keys())
def test_weight_is_gained_with_the_replicas_that_answer(wanted, replicas, previous, expected):
    there = {name: Replicas(*counts) for name, counts in replicas.items()}
    assert compute_effective_split(wanted, there, previous) == expected
    assert compute_effective_split(wanted, there, expected) == expected, "stable: no writes"


@pytest.mark.parametrize(
    ("replicas", "previous", "needed"),
    [
        ({"a": (20, 20), "b": (3, 20)}, {"a": 87, "b": 13}, 20),
        ({"a": (5, 20), "b": (3, 20)}, {"a": 87, "b": 13}, 5),
        ({"a": (20, 1), "b": (0, 2)}, {"a": 100}, 2),
        ({"a": (0, 20), "b": (0, 20)}, {"a": 100}, 1),
        ({"b": (0, 20)}, {}, 1),
    ],
    ids=["its own", "those of the other", "its own, of an autoscaled one", "the other broke", "nobody else"],
)
def test_count_needed(replicas, previous, needed):
    there = {name: Replicas(*counts) for name, counts in replicas.items()}
    assert count_needed("b", {"b": 100}, there, previous) == needed


def test_weight_grows_with_each_replica_and_never_falls_while_one_answers():
    """Over a rollout of twenty replicas in which each comes, goes and comes again."""
    split, seen = {"a": 100}, []
    for answering in (*range(1, 15), *range(14, 0, -1), *range(1, 21), *range(20, 0, -1)):
        there = {"a": Replicas(20, 20), "b": Replicas(answering, 20)}
        split = compute_effective_split({"b": 100}, there, split)
        seen.append(split["b"])
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (4, 100)
    assert len(set(seen)) == 20


def _compositions(total_steps, names):
    if len(names) == 1:
        yield {names[0]: total_steps}
        return
    for first in range(total_steps + 1):
        for rest in _compositions(total_steps - first, names[1:]):
            yield {names[0]: first, **rest}


def test_effective_split_is_stable_complete_and_only_on_what_serves():
    """Over every split in steps of 25 % of three, every previous one and every set that serves."""
    splits = [{name: 25 * part for name, part in split.items()} for split in _compositions(4, "abc")]
    for wanted in splits:
        for previous in [{}, *splits]:
            for serving in ("", "a", "b", "c", "ab", "ac", "bc", "abc"):
                effective = compute_effective_split(wanted, _one_each(serving), previous)
                assert set(effective) <= set(serving)
                assert sum(effective.values()) in (0, 100)
                assert all(effective.values())
                assert compute_effective_split(wanted, _one_each(serving), effective) == effective
                if any(wanted[name] for name in serving) or any(previous.get(name) for name in serving):
                    assert effective, (wanted, previous, serving)
                for name in effective:
                    assert effective[name] >= wanted[name]


def test_effective_split_of_few_replicas_is_stable_complete_and_takes_nothing_away():
    """Over every split in steps of 50 % of three, every previous one and up to two of three replicas each."""
    splits = [{name: 50 * part for name, part in split.items()} for split in _compositions(2, "abc")]
    uneven = [{"a": 99, "b": 1}, {"a": 34, "b": 33, "c": 33}]
    for wanted, previous in product([*splits, *uneven], [{}, *splits, *uneven]):
        for counts in product((0, 1, 3), (1, 2), (0, 2)):
            there = {name: Replicas(count, 3) for name, count in zip("abc", counts, strict=True)}
            effective = compute_effective_split(wanted, there, previous)
            case = (wanted, previous, counts)
            assert sum(effective.values()) in (0, 100), case
            assert compute_effective_split(wanted, there, effective) == effective, case
            for name, weight in wanted.items():
                if there[name].answering:
                    assert effective.get(name, 0) >= min(weight, previous.get(name, 0)), case


def test_uneven_shares_sum_to_100():
    wanted = {"a": 33, "b": 33, "c": 33, "d": 1}
    effective = compute_effective_split(wanted, _one_each("abc"), {})
    assert sum(effective.values()) == 100
    assert compute_effective_split(wanted, _one_each("abc"), effective) == effective


@pytest.mark.parametrize(
    ("split", "there", "expected"),
    [
        ({"a": 100}, ["a", "b"], {"a": 100}),
        (None, ["a"], {"a": 100}),
        (None, [], None),
        (None, ["a", "b"], None),
    ],
)
def test_wanted_split(split, there, expected):
    assert wanted_split(Endpoint.model_validate(make_endpoint(split)), there) == expected


def test_predict_path(endpoint, settings):
    assert predict_path(endpoint, settings) == "/v1/projects/default/locations/local/endpoints/photos:predict"


def test_rule_of_ten_locations_fits(endpoint, settings):
    rule = make_endpoint_rule(endpoint, {}, None, settings.model_copy(update={"other_locations": LOCATIONS}))
    assert len(set(rule.paths)) == len(rule.paths) == 60 <= 64


NOBODY = Refusal(503, "UNAVAILABLE", "no DeployedModel of the endpoint photos answers: photos-1 (Progressing)")

# split, why each DeployedModel does not serve -> what clients are told
REFUSALS = {
    "nothing is deployed": (None, {}, (400, "nothing is deployed on the endpoint photos")),
    "a split of what is not deployed": ({"a": 100}, {}, (400, "nothing is deployed on the endpoint photos")),
    "the only one": (None, {"a": "ImagePullFailed"}, (503, "{}: a (ImagePullFailed)")),
    "no split told": (None, {"a": "", "b": ""}, (503, "{}: its trafficSplit is missing")),
    "one is not there": ({"a": 50, "b": 50}, {"b": "Progressing"}, (503, "{}: a (not found), b (Progressing)")),
    "weight 0 is no cause": ({"a": 100, "b": 0}, {"a": "OutOfMemory", "b": ""}, (503, "{}: a (OutOfMemory)")),
    "who serves is no cause": ({"a": 100}, {"a": ""}, (503, "{}: its condition Ready has the cause")),
    "many": (
        dict.fromkeys("abcdefg", 10),
        dict.fromkeys("abcdefg", "NotReady"),
        (503, "{}: a (NotReady), b (NotReady), c (NotReady), d (NotReady), e (NotReady) and 2 more"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("split", "causes", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusal_says_which_endpoint_and_why(split, causes, expected):
    code, message = expected
    refusal = explain_refusal(Endpoint.model_validate(make_endpoint(split)), causes)
    told = message.format("no DeployedModel of the endpoint photos answers")
    status = {400: "FAILED_PRECONDITION", 503: "UNAVAILABLE"}[code]
    assert json.loads(refusal.to_json()) == {"error": {"code": code, "message": told, "status": status}}
    assert refusal.is_temporary == (code == 503)


def test_endpoint_answers_in_every_location_of_the_installation(endpoint, settings):
    rule = make_endpoint_rule(endpoint, {}, None, settings.model_copy(update={"other_locations": ["us-central1"]}))
    resources = {path.rpartition(":")[0] for path in rule.paths if path.endswith(":predict")}
    assert resources == {
        "/v1/projects/default/locations/local/endpoints/photos",
        "/v1/projects/default/locations/us-central1/endpoints/photos",
    }
    assert len(rule.paths) == 12


GATEWAY_API = {"provider": "gateway-api", "gateway": {"namespace": "gateways", "name": "public"}}
ISTIO = {"provider": "istio", "istio": {"gateways": ["istio-system/public"], "hosts": ["models.example.com"]}}
PRIVATE_GATEWAY = {"privateGateway": {"namespace": "gateways", "name": "private"}}
PRIVATE_ISTIO = {"privateIstio": {"gateways": ["istio-system/private"]}}
ENVOY_GATEWAY = {"envoyGateway": True}
EVERYTHING = {
    "access": "Private",
    "mirror": {"deployedModel": "photos-2", "percent": 25},
    "clientConnectionConfig": {"inferenceTimeout": "300s"},
    "maxRequestBytes": 2097152,
}


def _endpoint(spec):
    return Endpoint.model_validate({**make_endpoint(), "spec": spec})


def _routed_by(settings, routing):
    return settings.model_copy(update={"routing": RoutingSettings.model_validate(routing)})


def _golden(case):
    return list(yaml.safe_load_all((GOLDEN / case / "objects.yaml").read_text()))


# As the chart has it, unless it is without the API.
WITH_API = {**GATEWAY_API, "apiAnswers": True}
# As many as a rule of an HTTPRoute takes, of locations and of DeployedModels.
LOCATIONS = [f"us-central{number}" for number in range(1, 10)]
SIXTEEN = {f"photos-{number:02}": 10 if number < 4 else 5 for number in range(16)}

# golden file: spec, effective split, who is mirrored to, routing settings
ENDPOINT_CASES = {
    "route": ({}, {"photos-1": 80, "photos-2": 20}, None, GATEWAY_API),
    "route-idle": ({}, {}, None, GATEWAY_API),
    "route-full": (EVERYTHING, {"photos-1": 100}, "photos-2", {**GATEWAY_API, **PRIVATE_GATEWAY, **ENVOY_GATEWAY}),
    "route-limits": ({}, SIXTEEN, None, WITH_API),
    "istio": ({}, {"photos-1": 80, "photos-2": 20}, None, ISTIO),
    "istio-idle": ({"mirror": {"deployedModel": "photos-2"}}, {}, "photos-2", ISTIO),
    "istio-full": (EVERYTHING, {"photos-1": 100}, "photos-2", {**ISTIO, **PRIVATE_ISTIO}),
}
MODEL_CASES = {"route-model": GATEWAY_API, "istio-model": ISTIO}


@pytest.mark.parametrize("case", ENDPOINT_CASES)
def test_endpoint_routes(case, settings):
    spec, effective, mirror_to, routing = ENDPOINT_CASES[case]
    chosen = _routed_by(settings, routing)
    if case == "route-limits":
        chosen = chosen.model_copy(update={"other_locations": LOCATIONS})
    assert make_endpoint_routes(_endpoint(spec), effective, mirror_to, NOBODY, chosen) == _golden(case)


@pytest.mark.parametrize("case", MODEL_CASES)
def test_model_routes(case, settings):
    versions = [
        {"name": "1", "aliases": ["stable"], "artifactUri": "gs://models/photos/1"},
        {"name": "2", "artifactUri": "gs://models/photos/2"},
    ]
    model = Model.model_validate(make_model(versions=versions))
    serving = {"2": {"photos-2b": 1, "photos-2": 1}, "1": {"photos-1": 1}}
    assert make_model_routes(model, serving, _routed_by(settings, MODEL_CASES[case])) == _golden(case)


def test_provider_none_makes_nothing(endpoint, model, settings):
    bare = _routed_by(settings, {})
    assert make_endpoint_routes(endpoint, {"photos-1": 100}, None, NOBODY, bare) == []
    assert make_model_routes(model, {"1": {"photos-1": 1}}, bare) == []


def test_while_nobody_serves_the_api_answers_what_has_no_route(settings):
    endpoint = _endpoint({"maxRequestBytes": 2048})
    chosen = _routed_by(settings, {**WITH_API, **ENVOY_GATEWAY})
    assert make_endpoint_routes(endpoint, {}, None, NOBODY, chosen) == []
    assert len(make_endpoint_routes(endpoint, {"photos-1": 100}, None, NOBODY, chosen)) == 2


def test_without_an_api_a_route_leads_to_a_service_without_pods_and_address(endpoint, settings):
    chosen = _routed_by(settings, GATEWAY_API)
    idle, route = make_endpoint_routes(endpoint, {}, None, NOBODY, chosen)
    assert (idle["kind"], idle["spec"]["clusterIP"]) == ("Service", "None")
    assert idle["spec"]["selector"] == {}
    [backend] = route["spec"]["rules"][0]["backendRefs"]
    assert backend["name"] == idle["metadata"]["name"]
    served = make_endpoint_routes(endpoint, {"photos-1": 100}, None, NOBODY, chosen)
    assert [one["kind"] for one in served] == ["HTTPRoute"]


@pytest.mark.parametrize(
    ("live", "address"), [(None, "None"), ({"spec": {"clusterIP": "None"}}, "None"), ({"spec": {"clusterIP": "10.96.0.7"}}, "10.96.0.7")]
)  # fmt: skip
def test_address_that_a_service_was_made_with_stays(live, address, endpoint, settings):
    idle, _ = make_endpoint_routes(endpoint, {}, None, NOBODY, _routed_by(settings, GATEWAY_API))
    kept = keep_address(idle, live)
    assert kept == {**idle, "spec": {**idle["spec"], "clusterIP": address}}


@pytest.mark.parametrize(
    ("refusal", "retry"),
    [(NOBODY, {"retry-after": "2"}), (Refusal(400, "FAILED_PRECONDITION", 'a "quoted" cause'), {})],
)
def test_istio_answers_itself_while_nobody_serves(refusal, retry, endpoint, settings):
    [service] = make_endpoint_routes(endpoint, {}, "photos-2", refusal, _routed_by(settings, ISTIO))
    [rule] = service["spec"]["http"]
    assert len(rule["match"]) == 6
    assert not {"route", "mirror", "timeout"} & rule.keys()
    answer = rule["directResponse"]
    assert answer["status"] == refusal.code
    assert json.loads(answer["body"]["string"])["error"]["message"] == refusal.message
    assert rule["headers"]["response"]["set"] == {"content-type": "application/json", **retry}


@pytest.mark.parametrize("routing", [GATEWAY_API, ISTIO], ids=["gateway-api", "istio"])
def test_mirror_to_what_does_not_serve_is_left_out(routing, settings):
    endpoint = _endpoint({"mirror": {"deployedModel": "photos-2"}})
    made = make_endpoint_routes(endpoint, {"photos-1": 100}, None, NOBODY, _routed_by(settings, routing))
    assert "photos-2" not in str(made)
    assert "irror" not in str(made)


@pytest.mark.parametrize(
    ("routing", "spec", "expected"),
    [
        ({**GATEWAY_API, **ENVOY_GATEWAY}, {"maxRequestBytes": 2048}, "2048"),
        ({**GATEWAY_API, **ENVOY_GATEWAY}, {}, None),
        (GATEWAY_API, {"maxRequestBytes": 2048}, None),
        ({**ISTIO, **ENVOY_GATEWAY}, {"maxRequestBytes": 2048}, None),
    ],
    ids=["asked for", "not asked for", "not Envoy Gateway", "Istio"],
)
def test_gateway_limits_requests_where_it_can(routing, spec, expected, settings):
    made = make_endpoint_routes(_endpoint(spec), {"photos-1": 100}, None, NOBODY, _routed_by(settings, routing))
    limits = [policy["spec"]["requestBuffer"]["limit"] for policy in made if policy["kind"] == "BackendTrafficPolicy"]
    assert limits == ([expected] if expected else [])


# routing settings, access -> the value of the chart that is missing
ACCESS = {
    "Standard": (GATEWAY_API, "Standard", None),
    "Private": ({**GATEWAY_API, **PRIVATE_GATEWAY}, "Private", None),
    "Private, no such Gateway": (GATEWAY_API, "Private", "routing.privateGateway"),
    "Private, only the other provider's": ({**GATEWAY_API, **PRIVATE_ISTIO}, "Private", "routing.privateGateway"),
    "Istio, Standard": (ISTIO, "Standard", None),
    "Istio, Private": ({**ISTIO, **PRIVATE_ISTIO}, "Private", None),
    "Istio, Private, no such Gateway": (ISTIO, "Private", "routing.privateIstio"),
    "nobody routes": ({}, "Private", None),
}


@pytest.mark.parametrize(("routing", "access", "missing"), ACCESS.values(), ids=ACCESS.keys())
def test_access_that_is_not_offered_is_explained_and_not_routed(routing, access, missing, settings):
    endpoint, chosen = _endpoint({"access": access}), _routed_by(settings, routing)
    explained = explain_access(endpoint, chosen)
    made = make_endpoint_routes(endpoint, {"photos-1": 100}, None, NOBODY, chosen)
    if missing:
        assert explained == (
            f"spec.access: Private needs a gateway that only the cluster reaches: the chart's {missing} is not set"
        )
    else:
        assert explained is None
    assert bool(made) == (routing.get("provider") is not None and not missing)


@pytest.mark.parametrize(
    ("routing", "access", "expected"),
    [
        ({**GATEWAY_API, **PRIVATE_GATEWAY}, "Standard", "public"),
        ({**GATEWAY_API, **PRIVATE_GATEWAY}, "Private", "private"),
        (GATEWAY_API, "Private", None),
        ({**ISTIO, **PRIVATE_GATEWAY}, "Private", None),
        ({}, "Standard", None),
    ],
)
def test_gateway_of(routing, access, expected, settings):
    gateway = gateway_of(_endpoint({"access": access}), _routed_by(settings, routing))
    assert (gateway.name if gateway else None) == expected


def _paths(route):
    return [match["path"]["value"] for rule in route["spec"]["rules"] for match in rule["matches"]]


# who serves which version -> the names that are routed, with an unescaped colon
SERVED = {
    "both": ({"1": {"a": 1}, "2": {"b": 1}}, ["", "/versions/1", "/versions/2"]),
    "only the default": ({"1": {"a": 1}}, ["", "/versions/1"]),
    "not the default: no path without a version": ({"2": {"b": 1}}, ["/versions/2"]),
    "a version that the Model no longer has": ({"1": {"a": 1}, "0": {"old": 1}}, ["", "/versions/1"]),
}


@pytest.mark.parametrize(("serving", "named"), SERVED.values(), ids=SERVED.keys())
def test_model_routes_are_for_the_versions_that_are_served(serving, named, model, settings):
    [route] = make_model_routes(model, serving, settings)
    plain = [path for path in _paths(route) if path.endswith(":predict")]
    assert plain == [f"/v1/projects/default/models/photos{name}:predict" for name in named]


def _named_model(name, **spec):
    manifest = make_model(**spec)
    return Model.model_validate({**manifest, "metadata": {**manifest["metadata"], "name": name}})


def test_model_routes_are_for_the_names_of_ai_platform_and_kubernetes(settings):
    versions = [
        {"name": "v1--2", "aliases": ["stable", "goldenOne"], "artifactUri": "gs://models/photos/1"},
        {"name": "goldenone---40", "artifactUri": "gs://models/photos/2"},
    ]
    model = _named_model("my--model", defaultVersion="v1--2", versions=versions)
    [route] = make_model_routes(model, {"v1--2": {"a": 1}, "goldenone---40": {"b": 1}}, settings)
    by_rule = [
        [match["path"]["value"].removeprefix("/v1/projects/default/models/") for match in rule["matches"]]
        for rule in route["spec"]["rules"]
    ]
    plain = [[path.removesuffix(":predict") for path in paths if path.endswith(":predict")] for paths in by_rule]
    # goldenOne is what AI Platform calls the second: not any longer an alias of the first.
    first, second = plain
    assert first[:3] == ["my_model", "my_model/versions/v1_2", "my_model/versions/stable"]
    assert first[3:] == ["my--model", "my--model/versions/v1--2", "my--model/versions/stable"]
    assert second == ["my_model/versions/goldenOne", "my--model/versions/goldenone---40"]
    assert name_versions(model) == {
        "v1--2": "v1--2",
        "v1_2": "v1--2",
        "stable": "v1--2",
        "goldenOne": "goldenone---40",
        "goldenone---40": "goldenone---40",
    }


@pytest.mark.parametrize("serving", [{}, {"1": {}}, {"0": {"old": 1}}])
@pytest.mark.parametrize("routing", [GATEWAY_API, ISTIO], ids=["gateway-api", "istio"])
def test_model_that_nobody_serves_has_no_route(routing, serving, model, settings):
    assert make_model_routes(model, serving, _routed_by(settings, routing)) == []


def _big_model(versions, aliases):
    return Model.model_validate(
        make_model(
            versions=[
                {
                    "name": str(number),
                    "aliases": [f"alias-{number}-{letter}" for letter in "abcdefgh"[:aliases]],
                    "artifactUri": f"gs://models/photos/{number}",
                }
                for number in range(1, versions + 1)
            ]
        )
    )


@pytest.mark.parametrize(
    ("versions", "aliases", "routes"),
    [(16, 0, 1), (17, 0, 2), (64, 0, 4), (4, 8, 1), (5, 8, 2), (64, 8, 16)],
)
def test_model_of_many_versions_gets_as_many_routes_as_they_take(versions, aliases, routes, settings):
    model = _big_model(versions, aliases)
    serving = {version.name: {f"dm-{version.name}": 1} for version in model.spec.versions}
    made = make_model_routes(model, serving, settings)
    assert len(made) == routes
    assert [route["metadata"]["name"] for route in made[:2]] == ["mdl-photos", "mdl2-photos"][:routes]
    assert len({route["metadata"]["name"] for route in made}) == routes
    for route in made:
        rules = route["spec"]["rules"]
        assert len(rules) <= 16
        assert all(len(rule["matches"]) <= 64 for rule in rules)
        assert sum(len(rule["matches"]) for rule in rules) <= 128
    paths = [path for route in made for path in _paths(route)]
    assert len(paths) == len(set(paths)) == 3 * (versions * (1 + aliases) + 1)


def test_rule_takes_all_names_of_a_version(settings):
    version = {"name": "v1--2", "aliases": [f"alias-{letter}" for letter in "abcdefgh"], "artifactUri": "gs://models/a"}
    model = _named_model("my--model", defaultVersion="v1--2", versions=[version])
    [route] = make_model_routes(model, {"v1--2": {"a": 1}}, settings)
    [rule] = route["spec"]["rules"]
    assert len(rule["matches"]) == 60  # of 64


def test_istio_takes_all_versions_in_one_object(settings):
    model = _big_model(64, 8)
    serving = {version.name: {f"dm-{version.name}": 1} for version in model.spec.versions}
    [service] = make_model_routes(model, serving, _routed_by(settings, ISTIO))
    assert len(service["spec"]["http"]) == 64


def test_version_that_many_serve_leads_to_as_many_as_a_rule_takes(model, settings):
    serving = {"1": {f"photos-{number:02}": 1 for number in range(20)}}
    [route] = make_model_routes(model, serving, settings)
    [rule] = route["spec"]["rules"]
    assert [(backend["name"], backend["weight"]) for backend in rule["backendRefs"]] == [
        (f"dm-photos-{number:02}", 1) for number in range(16)
    ]


def test_of_too_many_those_with_the_most_weight_are_led_to(model, settings):
    services = {f"dm-{number:02}": number // 4 for number in range(20)}
    [route] = gateway_api.make_model_routes(model, [Rule(["/v1"], services, "60s")], settings.routing.gateway)
    [rule] = route["spec"]["rules"]
    assert [backend["name"] for backend in rule["backendRefs"]] == [f"dm-{number:02}" for number in range(4, 20)]


@pytest.mark.parametrize(
    ("routing", "count", "told"),
    [
        (GATEWAY_API, 16, ""),
        (GATEWAY_API, 17, "version 1 is served by 17 DeployedModels, its paths lead to 16 of them"),
        (ISTIO, 17, ""),
        ({}, 17, ""),
    ],
)
def test_whom_a_models_paths_do_not_lead_to_is_told(routing, count, told, model, settings):
    serving = {"1": {f"photos-{number}": 1 for number in range(count)}, "2": {"other": 1}}
    assert explain_model_limit(model, serving, _routed_by(settings, routing)) == told


def _even(count, **others):
    """A split of so many with weight."""
    return {f"photos-{number:02}": 100 - count + 1 if not number else 1 for number in range(count)} | others


TOO_MANY = "gateway-api leads to 16 DeployedModels at most, and spec.trafficSplit gives weight to 17"
# routing settings, wanted split -> what is told
SPLIT_LIMITS = {
    "sixteen": (GATEWAY_API, _even(16), None),
    "seventeen": (GATEWAY_API, _even(17), TOO_MANY),
    "who has no weight does not count": (GATEWAY_API, _even(16, other=0), None),
    "no split": (GATEWAY_API, None, None),
    "Istio": (ISTIO, _even(64), None),
    "nobody routes": ({}, _even(64), None),
}


@pytest.mark.parametrize(("routing", "wanted", "told"), SPLIT_LIMITS.values(), ids=SPLIT_LIMITS.keys())
def test_split_over_more_than_a_rule_takes_is_explained(routing, wanted, told, settings):
    assert explain_split(wanted, _routed_by(settings, routing)) == told


# routing settings, effective split, what is left of the previous one, wanted split -> what is told the gateway
FITTING = {
    "it fits": (GATEWAY_API, _even(16), {"old": 100}, _even(16), _even(16)),
    "too many are wanted": (GATEWAY_API, _even(17), {"old": 100}, _even(17), {"old": 100}),
    "too many are wanted, and few serve": (GATEWAY_API, {"a": 100}, {"old": 100}, _even(17), {"old": 100}),
    "too many on the way": (GATEWAY_API, _even(20), {"old": 100}, _even(10), {"old": 100}),
    "too many before, too": (GATEWAY_API, _even(17), _even(20), _even(17), {}),
    "Istio": (ISTIO, _even(20), {"old": 100}, _even(20), _even(20)),
}


@pytest.mark.parametrize(("routing", "effective", "kept", "wanted", "fits"), FITTING.values(), ids=FITTING.keys())
def test_split_that_the_provider_cannot_carry_leaves_the_one_before(routing, effective, kept, wanted, fits, settings):
    assert fit_split(effective, kept, wanted, _routed_by(settings, routing)) == fits


def test_parts_of_a_model_are_named_unlike_other_models():
    there = {names.model_route(model, part) for model in ("photos", "photos-2", "2-photos") for part in (1, 2, 12)}
    assert len(there) == 9
    assert len(names.model_route("x" * 63, 12)) <= names.MAX_NAME


def test_route_kinds_are_what_is_made():
    for provider, prefix in (("gateway-api", "route"), ("istio", "istio")):
        cases = [case for case in (*ENDPOINT_CASES, *MODEL_CASES) if case.split("-")[0] == prefix]
        made = {manifest["kind"] for case in cases for manifest in _golden(case)}
        assert made - {"Service"} == ROUTE_KINDS[provider]


LONG = "x" * 63
SPLITS_OF_ROUTES = {
    "both": {"photos-1": 80, "photos-2": 20},
    "one": {"photos-1": 100},
    "nobody": {},
    "a name that is shortened": {LONG: 60, f"{LONG[:-1]}y": 40},
}


@pytest.mark.parametrize("split", SPLITS_OF_ROUTES.values(), ids=SPLITS_OF_ROUTES.keys())
@pytest.mark.parametrize("routing", [GATEWAY_API, ISTIO], ids=["gateway-api", "istio"])
def test_split_is_read_back_from_its_route(routing, split, endpoint, settings):
    chosen = _routed_by(settings, routing)
    made = make_endpoint_routes(_endpoint({"mirror": {"deployedModel": "photos-3"}}), split, "photos-3", NOBODY, chosen)
    [route] = [one for one in made if one["kind"] == split_kind(chosen)]
    assert read_split(route, {"photos-1", "photos-2", "photos-3", *split}) == split
    assert read_split(route, set()) == {}


def test_split_of_a_route_without_rules_is_empty():
    assert read_split({"kind": "HTTPRoute", "metadata": {}}, {"photos-1"}) == {}


def test_api_forwards_by_the_status_where_nothing_is_made(settings):
    assert split_kind(_routed_by(settings, {})) is None


@pytest.mark.parametrize(
    ("routing", "expected"),
    [
        ({}, set()),
        (GATEWAY_API, {"HTTPRoute"}),
        ({**GATEWAY_API, **ENVOY_GATEWAY}, {"HTTPRoute", "BackendTrafficPolicy"}),
        (ISTIO, {"VirtualService", "DestinationRule"}),
    ],
)
def test_route_kinds_of_an_installation(routing, expected, settings):
    assert route_kinds(_routed_by(settings, routing)) == expected
