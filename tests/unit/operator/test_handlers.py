"""What is watched where, and what is handed on."""

import kopf
import pytest
from pierhead_operator.cluster import find_resource
from pierhead_operator.feed import OWN_KINDS, watched_kinds
from pierhead_operator.handlers import make_kopf_settings, make_registry
from pierhead_operator.health import STALE_SECONDS
from pierhead_operator.resources import SERVING_KINDS
from pierhead_operator.settings import OperatorSettings

GATEWAY = {"namespace": "gateways", "name": "public"}


@pytest.mark.parametrize(
    ("routing", "routes"),
    [
        ({"provider": "none"}, set()),
        ({"provider": "gateway-api", "gateway": GATEWAY}, {"HTTPRoute"}),
        (
            {"provider": "gateway-api", "gateway": GATEWAY, "envoyGateway": True},
            {"HTTPRoute", "BackendTrafficPolicy"},
        ),
        ({"provider": "istio", "istio": {"gateways": ["a/b"]}}, {"VirtualService", "DestinationRule"}),
    ],
)
def test_only_what_the_provider_makes_is_watched(routing, routes):
    settings = OperatorSettings.model_validate({"server": {"image": "i"}, "routing": routing})
    assert watched_kinds(settings) == OWN_KINDS | SERVING_KINDS | {"Job", "Pod"} | routes


def test_network_policies_are_watched_where_they_are_made():
    policy = {"monitoring": [{"podSelector": {}}]}
    settings = OperatorSettings.model_validate({"server": {"image": "i"}, "networkPolicy": policy})
    assert watched_kinds(settings) == OWN_KINDS | SERVING_KINDS | {"Job", "Pod", "NetworkPolicy"}


def test_foreign_objects_are_never_sent():
    kinds = OWN_KINDS | SERVING_KINDS | {"Pod", "HTTPRoute"}
    selectors = make_kopf_settings(kinds).watching.label_selectors
    assert set(selectors.values()) == {"app.kubernetes.io/managed-by=pierhead"}
    assert {selector.any_name for selector in selectors} == {find_resource(kind)[2] for kind in kinds - OWN_KINDS}


def test_watches_outlast_the_api_server_until_liveness_judges():
    assert sum(make_kopf_settings(()).networking.error_backoffs) > STALE_SECONDS


class Listener:
    def __init__(self):
        self.told = []

    def tell(self, kind, live):
        self.told.append(("there", kind, live))

    def tell_deleted(self, kind, live):
        self.told.append(("gone", kind, live))


@pytest.mark.parametrize(
    ("event", "told"), [(None, "there"), ("ADDED", "there"), ("MODIFIED", "there"), ("DELETED", "gone")]
)
@pytest.mark.parametrize("kind", ["Pod", "DeployedModel"])
async def test_event_is_handed_on_with_its_kind(monkeypatch, kind, event, told):
    handlers = {}

    def on_event(group, version, plural, **_):
        return lambda function: handlers.setdefault((group, version, plural), function)

    monkeypatch.setattr(kopf.on, "event", on_event)
    listener = Listener()
    make_registry(listener, {"Pod", "DeployedModel"})
    live = {"metadata": {"name": "a"}}
    await handlers[find_resource(kind)](event={"type": event, "object": live}, body=None)
    assert listener.told == [(told, kind, live)]
