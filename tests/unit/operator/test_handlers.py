"""What is watched where, and which keys an event brings."""

from types import SimpleNamespace

import kopf
import pytest
from pierhead_operator.cluster import Key
from pierhead_operator.handlers import make_kopf_settings, make_registry
from pierhead_operator.health import STALE_SECONDS
from pierhead_operator.settings import OperatorSettings

LABELS = {
    "app.kubernetes.io/managed-by": "pierhead",
    "pierhead.dev/deployed-model": "photos-1",
    "pierhead.dev/endpoint": "photos",
    "pierhead.dev/model": "animals",
}
OWN = {"models", "endpoints", "deployedmodels"}
SERVING = {"services", "pods", "deployments", "horizontalpodautoscalers", "poddisruptionbudgets"}
GATEWAY = {"namespace": "gateways", "name": "public"}


@pytest.fixture
def handlers(monkeypatch):
    """The handlers by plural and id, with the keys that they enqueued."""
    seen = SimpleNamespace(events=[], keys=[])

    def on_event(group, version, plural, *, registry, labels=None, **options):
        def register(function):
            seen.events.append((plural, options.get("id", function.__name__), labels, function))
            return function

        return register

    monkeypatch.setattr(kopf.on, "event", on_event)

    def make(routing):
        seen.events.clear()
        settings = OperatorSettings.model_validate({"server": {"image": "i"}, "routing": routing})
        make_registry(seen.keys.append, settings)
        return seen

    return make


@pytest.mark.parametrize(
    ("routing", "routes"),
    [
        ({"provider": "none"}, set()),
        ({"provider": "gateway-api", "gateway": GATEWAY}, {"httproutes"}),
        (
            {"provider": "gateway-api", "gateway": GATEWAY, "envoyGateway": True},
            {"httproutes", "backendtrafficpolicies"},
        ),
        ({"provider": "istio", "istio": {"gateways": ["a/b"]}}, {"virtualservices", "destinationrules"}),
    ],
)
def test_only_what_the_provider_makes_is_watched(handlers, routing, routes):
    assert {plural for plural, *_ in handlers(routing).events} == OWN | SERVING | routes


def test_foreign_objects_are_never_sent():
    selectors = make_kopf_settings().watching.label_selectors
    assert set(selectors.values()) == {"app.kubernetes.io/managed-by=pierhead"}
    assert {selector.any_name for selector in selectors} >= SERVING | {"httproutes", "virtualservices"}
    assert not {selector.any_name for selector in selectors} & OWN


def test_watches_outlast_the_api_server_until_liveness_judges():
    assert sum(make_kopf_settings().networking.error_backoffs) > STALE_SECONDS


def call(handlers, plural, handler, **labels):
    [function] = [f for p, name, _, f in handlers.events if (p, name) == (plural, handler)]
    spec = {"endpoint": "photos", "model": "animals"}
    function(meta={"namespace": "default", "name": "photos-1"}, labels=labels or LABELS, spec=spec)
    return handlers.keys


def test_event_of_a_deployed_model_brings_its_endpoint_and_its_model(handlers):
    keys = call(handlers({"provider": "none"}), "deployedmodels", "on_deployed_model")
    assert keys == [
        Key("DeployedModel", "default", "photos-1"),
        Key("Endpoint", "default", "photos"),
        Key("Model", "default", "animals"),
    ]


@pytest.mark.parametrize(
    ("plural", "handler", "key"),
    [
        ("pods", "on_pods", Key("DeployedModel", "default", "photos-1")),
        ("poddisruptionbudgets", "on_poddisruptionbudgets", Key("DeployedModel", "default", "photos-1")),
        ("httproutes", "on_endpoint_httproutes", Key("Endpoint", "default", "photos")),
        ("httproutes", "on_model_httproutes", Key("Model", "default", "animals")),
    ],
)
def test_event_of_a_child_brings_whose_it_is(handlers, plural, handler, key):
    assert call(handlers({"provider": "gateway-api", "gateway": GATEWAY}), plural, handler) == [key]


def test_route_handlers_leave_alone_what_belongs_to_a_deployed_model(handlers):
    seen = handlers({"provider": "gateway-api", "gateway": GATEWAY})
    for plural, name, labels, _ in seen.events:
        if plural in OWN:
            continue
        assert labels["app.kubernetes.io/managed-by"] == "pierhead"
        wanted = kopf.PRESENT if name == f"on_{plural}" else kopf.ABSENT
        assert labels["pierhead.dev/deployed-model"] is wanted
