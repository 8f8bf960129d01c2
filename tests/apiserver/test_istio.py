"""VirtualServices and DestinationRules, judged by a real API server with Istio's own CRDs. Istio itself is not there."""

import copy

import pytest

from tests.apiserver.golden import find_routes, try_apply
from tests.chart import load_values, render, try_install, without_hooks
from tests.istio import istio_crds
from tests.kube import KubectlError, scratch_namespace

ROUTES = find_routes("istio*", "networking.istio.io")


@pytest.fixture(scope="module")
def kubectl(cluster):
    """kubectl in a namespace, with Istio's CRDs in the cluster meanwhile."""
    with istio_crds(), scratch_namespace("istio") as kubectl:
        yield kubectl


def test_there_are_manifests_to_judge():
    assert {manifest["kind"] for manifest in ROUTES.values()} == {"VirtualService", "DestinationRule"}


@pytest.mark.parametrize("manifest", ROUTES.values(), ids=ROUTES.keys())
def test_golden_route_is_taken_unchanged(kubectl, manifest):
    assert try_apply(kubectl, manifest)["spec"] == manifest["spec"]


@pytest.mark.parametrize("case", ["istio", "istio-authorized"])
def test_rendered_chart_is_taken(kubectl, case):
    documents = without_hooks(render(values=load_values(case)))
    assert len(try_install(kubectl, documents)) == len(documents)


def test_unknown_field_is_refused(kubectl):
    """So that what is taken above is known to Istio."""
    wrong = copy.deepcopy(next(manifest for manifest in ROUTES.values() if manifest["kind"] == "VirtualService"))
    wrong["spec"]["http"][0]["timeOut"] = "60s"
    with pytest.raises(KubectlError, match="timeOut"):
        try_apply(kubectl, wrong)
