"""The chart, rendered by the real Helm and judged by the real API server."""

import pytest
import yaml

from tests.apiserver.golden import GOLDEN
from tests.chart import helm_template, render, try_install

GATEWAY = ("routing.provider=gateway-api", "routing.gateway.namespace=gateways", "routing.gateway.name=public")
ISTIO = ("routing.provider=istio", "routing.istio.gateways={gateways/public}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["routing.provider=luck"], "/routing/provider"),
        (["routing.provider=gateway-api"], "/routing/gateway"),
        (["server.replicas=2"], "additional properties 'replicas'"),
        (["server.image="], "/server/image"),
        (["location=Local!"], "/location"),
        (["api.locations={US}"], "/api/locations"),
        (["api.anonymous=laptop"], "/api/anonymous"),
        (["api.authorization=gateway"], "/routing/provider"),
        ([*GATEWAY, "api.authorization=gateway"], "/routing/envoyGateway"),
        ([*ISTIO, "api.authorization=gateway"], "/api/istioAuthorization"),
    ],
)
def test_wrong_values_are_refused_with_their_name(cluster, settings, message):
    status, _, stderr = helm_template(*settings)
    assert status != 0
    assert message in stderr


VALUES = {
    "default": (),
    "gateway": GATEWAY,
    "envoy-gateway": (*GATEWAY, "routing.envoyGateway=true", "operator.replicas=2"),
    "istio": ISTIO,
    "authorized": (
        "routing.provider=gateway-api",
        "routing.gateway.namespace=pierhead-system",
        "routing.gateway.name=public",
        "routing.privateGateway.namespace=pierhead-system",
        "routing.privateGateway.name=private",
        "routing.envoyGateway=true",
        "api.authorization=gateway",
        "api.replicas=2",
        "api.locations={us-central1}",
        "api.projects.photos-prod=team-a",
        "api.anonymous=default/laptop",
    ),
    "istio-authorized": (
        *ISTIO,
        "api.authorization=gateway",
        "api.istioAuthorization.provider=pierhead-api",
        "api.istioAuthorization.namespace=default",
        "api.istioAuthorization.selector.istio=ingressgateway",
    ),
    "without-api": ("api.enabled=false",),
    "namespaced": (*GATEWAY, "watchNamespaces={default,kube-public}"),
}


# The others' kinds are known only where Istio's CRDs are: test_istio.py.
WITHOUT_ISTIO = {name: values for name, values in VALUES.items() if values[:2] != ISTIO}


@pytest.mark.parametrize("values", WITHOUT_ISTIO.values(), ids=WITHOUT_ISTIO.keys())
def test_api_server_takes_what_is_rendered(kubectl, values):
    documents = render(*values)
    assert len(try_install(kubectl, documents)) == len(documents)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_rights_have_no_star_and_no_secrets(cluster, values):
    roles = [document for document in render(*values) if document["kind"] in ("Role", "ClusterRole")]
    assert roles
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert "secrets" not in rule["resources"]


def test_watching_namespaces_needs_no_cluster_role(cluster):
    kinds = [document["kind"] for document in render(*VALUES["namespaced"])]
    assert "ClusterRole" not in kinds
    assert kinds.count("Role") == 5  # of the operator, of the API, and that of the lease


@pytest.mark.parametrize("values", ["authorized", "istio-authorized"])
def test_api_is_rendered_as_it_is_written_down(cluster, values):
    documents = [
        _without_versions(document) for document in render(*VALUES[values], namespace="pierhead") if _is_apis(document)
    ]
    golden = GOLDEN / f"chart-{values}" / "api.yaml"
    assert documents == list(yaml.safe_load_all(golden.read_text()))


def _without_versions(document):
    """What a release changes is left out, and what follows from it."""
    metadata = [document["metadata"]]
    if document["kind"] == "Deployment":
        metadata.append(document["spec"]["template"]["metadata"])
        del metadata[1]["annotations"]["checksum/config"]
    for one in metadata:
        del one["labels"]["helm.sh/chart"], one["labels"]["app.kubernetes.io/version"]
    return document


def _is_apis(document):
    return document["metadata"].get("labels", {}).get("app.kubernetes.io/name") == "pierhead-api"


def test_without_an_api_nothing_is_its_own(cluster):
    assert not any(map(_is_apis, render(*VALUES["without-api"])))
    assert any(map(_is_apis, render()))


def test_crds_are_part_of_the_release_and_kept(cluster):
    crds = [document for document in render() if document["kind"] == "CustomResourceDefinition"]
    assert len(crds) == 4
    assert all(crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for crd in crds)
