"""HTTPRoutes and Envoy Gateway's policies, judged by a real API server with the real CRDs."""

import pytest

from tests.apiserver.golden import find_routes, try_apply

ROUTES = find_routes("route*", "gateway.networking.k8s.io")
POLICIES = find_routes("route*", "gateway.envoyproxy.io")


def test_there_are_manifests_to_judge():
    assert {manifest["kind"] for manifest in ROUTES.values()} == {"HTTPRoute"}
    assert {manifest["kind"] for manifest in POLICIES.values()} == {"BackendTrafficPolicy"}


@pytest.mark.parametrize("manifest", [*ROUTES.values(), *POLICIES.values()], ids=[*ROUTES, *POLICIES])
def test_golden_route_is_taken_unchanged(trial, manifest):
    assert try_apply(trial, manifest)["spec"] == manifest["spec"]
