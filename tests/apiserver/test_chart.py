"""The chart, rendered by the real Helm and judged by the real API server."""

import pytest
import yaml

from tests.apiserver.golden import GOLDEN
from tests.chart import helm_template, render, try_install
from tests.monitoring import FILES, load_alerts

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
        (["monitoring.alerts=true"], "additional properties 'alerts'"),
        (["monitoring.prometheusRule.runbooks=wiki"], "/monitoring/prometheusRule/runbooks"),
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


MONITORING = (
    "monitoring.podMonitor.enabled=true",
    "monitoring.prometheusRule.enabled=true",
    "monitoring.dashboards.enabled=true",
    "monitoring.labels.release=prometheus",
)


def _find_monitoring(*settings):
    """What is there with monitoring and would not be without."""
    before = render(*settings)
    return [document for document in render(*MONITORING, *settings) if document not in before]


def test_monitoring_is_off_at_first(cluster):
    assert not any(document["apiVersion"].startswith("monitoring.coreos.com") for document in render())


def test_monitoring_is_rendered_with_its_labels(cluster):
    documents = _find_monitoring()
    assert all(document["metadata"]["labels"]["release"] == "prometheus" for document in documents)
    kinds = [document["kind"] for document in documents]
    assert sorted(kinds) == ["ConfigMap", *["PodMonitor"] * 4, "PrometheusRule"]


def test_pod_monitors_choose_the_pods_and_their_ports(cluster):
    documents = render(*MONITORING)
    monitors = [document["spec"] for document in documents if document["kind"] == "PodMonitor"]
    own = [one["spec"]["template"] for one in documents if one["kind"] == "Deployment"]
    made = [
        document["spec"]["template"]
        for case in ("fixed-three", "batch")
        for document in yaml.safe_load_all((GOLDEN / case / "objects.yaml").read_text())
        if document["kind"] in ("Deployment", "Job")
    ]
    for monitor in monitors:
        [template] = [
            template
            for template in (*own, *made)
            if monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        ]
        [endpoint] = monitor["podMetricsEndpoints"]
        [container] = template["spec"]["containers"]
        assert endpoint["port"] in [port["name"] for port in container["ports"]]
        assert set(monitor.get("podTargetLabels", ())) <= template["metadata"]["labels"].keys()


def test_serving_pods_are_scraped_where_the_operator_looks(cluster):
    for settings, expected in ((), {"any": True}), (["watchNamespaces={team-a}"], {"matchNames": ["team-a"]}):
        monitors = [document["spec"] for document in _find_monitoring(*settings) if document["kind"] == "PodMonitor"]
        selectors = [monitor["namespaceSelector"] for monitor in monitors if "namespaceSelector" in monitor]
        assert selectors == [expected, expected]


def test_alerts_lead_to_the_platforms_own_pages(cluster):
    [rule] = [
        document
        for document in render(*MONITORING, "monitoring.prometheusRule.runbooks=https://wiki.example/runbooks/")
        if document["kind"] == "PrometheusRule"
    ]
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    assert {alert["alert"]: alert["annotations"].pop("runbook_url") for alert in alerts} == {
        alert["alert"]: f"https://wiki.example/runbooks/{alert['alert']}.md" for alert in alerts
    }
    for alert in load_alerts():
        del alert["annotations"]["runbook_url"]
        assert alert in alerts


def test_dashboards_come_as_they_are_committed(cluster):
    [found] = [document for document in _find_monitoring() if document["kind"] == "ConfigMap"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["data"] == {path.name: path.read_text() for path in (FILES / "dashboards").iterdir()}
