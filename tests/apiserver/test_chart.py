"""The chart, rendered by the real Helm and judged by the real API server."""

import pytest
import yaml

from tests.chart import helm_template, render

GATEWAY = ("routing.provider=gateway-api", "routing.gateway.namespace=gateways", "routing.gateway.name=public")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["routing.provider=luck"], "/routing/provider"),
        (["routing.provider=gateway-api"], "/routing/gateway"),
        (["server.replicas=2"], "additional properties 'replicas'"),
        (["server.image="], "/server/image"),
        (["location=Local!"], "/location"),
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
    "istio": ("routing.provider=istio", "routing.istio.gateways={gateways/public}"),
    "namespaced": (*GATEWAY, "watchNamespaces={default,kube-public}"),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_api_server_takes_what_is_rendered(kubectl, values):
    documents = render(*values)
    for document in documents:
        if document["metadata"].get("namespace") == "default" and document["kind"] not in ("Role", "RoleBinding"):
            document["metadata"]["namespace"] = kubectl.namespace
    stdin = yaml.safe_dump_all(documents)
    shown = kubectl.in_any_namespace(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--filename", "-", stdin=stdin
    )
    assert len(shown.splitlines()) == len(documents)


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
    assert kinds.count("Role") == 3  # and that of the lease


def test_crds_are_part_of_the_release_and_kept(cluster):
    crds = [document for document in render() if document["kind"] == "CustomResourceDefinition"]
    assert len(crds) == 4
    assert all(crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for crd in crds)
