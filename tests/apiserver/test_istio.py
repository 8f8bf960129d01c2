"""VirtualServices and DestinationRules, judged by a real API server with Istio's own CRDs. Istio itself is not there."""

import copy

import pytest
import yaml

from cluster import go_build
from cluster.settings import Paths
from tests.apiserver.golden import find_routes, try_apply
from tests.kube import KubectlError, scratch_namespace

CRDS = ("destinationrules.networking.istio.io", "virtualservices.networking.istio.io")
ROUTES = find_routes("istio*", "networking.istio.io")


@pytest.fixture(scope="module")
def kubectl(cluster):
    """kubectl in a namespace, with Istio's CRDs in the cluster meanwhile."""
    with scratch_namespace("istio") as kubectl:
        # A cluster of the caller's own may have Istio: then it is Istio's to say what its objects are.
        missing = [name for name in CRDS if not kubectl.get("crd", name)]
        if missing:
            kubectl.apply(*_read_crds(missing))
        try:
            if missing:
                kubectl("wait", "--for=condition=Established", "--timeout=60s", *(f"crd/{name}" for name in missing))
            yield kubectl
        finally:
            if missing:
                kubectl("delete", "crd", *missing)


def _read_crds(names):
    paths = Paths.from_environment()
    go_build.build(paths, [go_build.ISTIO])
    documents = yaml.safe_load_all((go_build.ISTIO.folder(paths) / "crds.yaml").read_text())
    return [document for document in documents if document and document["metadata"]["name"] in names]


def test_there_are_manifests_to_judge():
    assert {manifest["kind"] for manifest in ROUTES.values()} == {"VirtualService", "DestinationRule"}


@pytest.mark.parametrize("manifest", ROUTES.values(), ids=ROUTES.keys())
def test_golden_route_is_taken_unchanged(kubectl, manifest):
    assert try_apply(kubectl, manifest)["spec"] == manifest["spec"]


def test_unknown_field_is_refused(kubectl):
    """So that what is taken above is known to Istio."""
    wrong = copy.deepcopy(next(manifest for manifest in ROUTES.values() if manifest["kind"] == "VirtualService"))
    wrong["spec"]["http"][0]["timeOut"] = "60s"
    with pytest.raises(KubectlError, match="timeOut"):
        try_apply(kubectl, wrong)
