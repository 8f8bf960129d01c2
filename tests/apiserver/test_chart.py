"""The chart, rendered by the real Helm and judged by the real API server."""

import pytest
import yaml
from pierhead_operator.settings import OperatorSettings

from tests.apiserver.golden import GOLDEN as OBJECTS
from tests.chart import (
    CASES,
    CHART,
    GOLDEN,
    IMAGES,
    find_rights,
    helm,
    helm_template,
    load_values,
    render,
    render_golden,
    try_install,
    without_hooks,
)
from tests.monitoring import FILES, MONITORING, load_alerts
from tests.releases import find_releases, unpack

GATEWAY = ("routing.provider=gateway-api", "routing.gateway.namespace=gateways", "routing.gateway.name=public")
ISTIO = ("routing.provider=istio", "routing.istio.gateways={gateways/public}")
INGRESS = ("api.ingress.enabled=true", "api.ingress.hosts={models.example.com}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["routing.provider=luck"], "/routing/provider"),
        (["routing.provider=gateway-api"], "/routing/gateway"),
        (["server.replicas=2"], "additional properties 'replicas'"),
        (
            ["operator.image=", "server.image=registry.example.com/server:1"],
            "operator.image and server.image must be set",
        ),
        (["server.image="], "docker push registry.example.com/pierhead/server:"),
        (["server.image=7"], "/server/image"),
        (["server.allowedEnv={*}"], "/server/allowedEnv/0"),
        (["location=Local!"], "/location"),
        (["api.locations={US}"], "/api/locations"),
        (["api.locations={a,b,c,d,e,f,g,h,i,j}"], "'/api/locations': maxItems: got 10, want 9"),
        (["api.anonymous=laptop"], "/api/anonymous"),
        ([*GATEWAY], "api.authorization: gateway needs a Gateway that asks the API"),
        ([*ISTIO], "api.authorization: gateway needs provider, namespace and selector in api.istioAuthorization"),
        ([*ISTIO, "api.istioAuthorization.provider=x"], "in api.istioAuthorization"),
        (
            [*GATEWAY, "routing.envoyGateway=true", "api.enabled=false"],
            "which api.enabled: false leaves out. To let whoever reaches the gateway predict, write api.authorization: none",
        ),
        (["monitoring.alerts=true"], "additional properties 'alerts'"),
        (["monitoring.prometheusRule.runbooks=wiki"], "/monitoring/prometheusRule/runbooks"),
        ([*GATEWAY, "networkPolicy.enabled=true"], "/networkPolicy/gateways"),
        (["monitoring.podMonitor.enabled=true", "networkPolicy.enabled=true"], "/networkPolicy/monitoring"),
        (["networkPolicy.gateways[0].pods=all"], "/networkPolicy/gateways/0"),
        (["networkPolicy.egress[0].to=all"], "/networkPolicy/egress/0/to"),
        (["api.service.type=ExternalName"], "/api/service/type"),
        (["api.service.type=NodePort"], "api.service.type: NodePort would carry callers' tokens in plain HTTP"),
        (["api.service.type=LoadBalancer"], "or set api.plainHttp=true"),
        (["api.service.loadBalancerSourceRanges={10.0.0.0/8}"], "/api/service/loadBalancerSourceRanges"),
        (["api.ingress.enabled=true"], "/api/ingress/hosts"),
        (["api.ingress.tls[0].secretName=tls"], "/api/ingress/tls/0"),
        (
            [
                *INGRESS,
                "api.ingress.hosts={one.example.com,two.example.com}",
                "api.ingress.tls[0].hosts={two.example.com}",
            ],
            "api.ingress.tls: no entry names the host one.example.com",
        ),
    ],
)
def test_wrong_values_are_refused_with_their_name(cluster, settings, message):
    status, _, stderr = helm_template(*settings)
    assert status != 0
    assert message in stderr


# The others' kinds are known only where Istio's CRDs are: test_istio.py.
WITHOUT_ISTIO = [case for case in CASES if not case.startswith("istio")]


@pytest.mark.parametrize("case", CASES)
def test_chart_is_rendered_as_it_is_written_down(cluster, case):
    rendered = (GOLDEN / case / "rendered.yaml").read_text()
    assert render_golden(case) == rendered, "see CONTRIBUTING: run `python -m tests.chart` and look at what it changes"


@pytest.mark.parametrize("case", WITHOUT_ISTIO)
def test_api_server_takes_what_is_rendered(trial, case):
    documents = without_hooks(render(values=load_values(case)))
    documents = [document for document in documents if not document["apiVersion"].startswith("monitoring.coreos.com")]
    assert len(try_install(trial, documents)) == len(documents)


@pytest.mark.parametrize("case", CASES)
def test_rights_have_no_star_and_no_secrets(cluster, case):
    for role in render(values=load_values(case)):
        if role["kind"] in ("Role", "ClusterRole"):
            for rule in role["rules"]:
                assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
                assert "secrets" not in rule["resources"]


@pytest.mark.parametrize("provider", ["none", "gateway-api", "istio"])
def test_who_an_upgrade_is_to_replace_keeps_the_rights_until_then(cluster, tmp_path, provider):
    """Helm changes roles first: an upgrade that waits, for an image say, leaves who acts meanwhile able to act."""
    settings = (
        f"routing.provider={provider}",
        "routing.gateway.namespace=pierhead-system",
        "routing.gateway.name=pierhead",
        "routing.istio.gateways={gateways/public}",
        "api.authorization=none",
    )
    folder = unpack(find_releases()[-1], tmp_path)
    before = _find_roles(render(*settings, chart=str(folder / "charts" / "pierhead")))
    now = _find_roles(render(*settings))
    assert not {title: missing for title in before if (missing := before[title] - now[title])}


def _find_roles(documents):
    roles = (one for one in documents if one["kind"] in ("Role", "ClusterRole"))
    return {(role["kind"], role["metadata"]["name"]): find_rights(role) for role in roles}


def test_a_team_without_rights_in_the_cluster_can_install_it(cluster):
    documents = render(values=load_values("namespaced"), namespace="default")
    assert all(document["metadata"].get("namespace") for document in documents)


def test_ten_locations_are_taken(cluster):
    others = [f"us-central{number}" for number in range(1, 10)]
    settings = _find_operator_settings(f"api.locations={{{','.join(others)}}}")
    assert OperatorSettings.model_validate(settings).other_locations == others


def _find_route(name):
    [found] = [
        one
        for one in render(values=load_values("authorized"))
        if one["metadata"]["name"] == name and one["kind"] == "HTTPRoute"
    ]
    return found["spec"]


def test_private_gateway_leads_to_no_more_of_the_api_than_says_who_serves(cluster):
    [rule] = _find_route("pierhead-api-private")["rules"]
    assert [match["path"]["value"] for match in rule["matches"]] == ["/v1/projects"]
    [rewrite] = [one["urlRewrite"]["path"]["replacePrefixMatch"] for one in rule["filters"]]
    assert rewrite.startswith("/private/")
    public = [match["path"]["value"] for one in _find_route("pierhead-api")["rules"] for match in one["matches"]]
    assert not any(path.startswith("/private") for path in public)


def _is_apis(document):
    return document["metadata"].get("labels", {}).get("app.kubernetes.io/name", "").startswith("pierhead-api")


def test_without_an_api_nothing_is_its_own(cluster):
    assert not any(map(_is_apis, render(*INGRESS, values=load_values("without-api"))))
    assert any(map(_is_apis, render()))


def test_api_is_reached_from_outside_only_where_that_is_asked_for(cluster):
    documents = render()
    services = [one["spec"] for one in documents if one["kind"] == "Service"]
    assert {one.get("type", "ClusterIP") for one in services} == {"ClusterIP"}
    assert not any(one["kind"] == "Ingress" for one in documents)


def test_ingress_leads_to_what_the_gateway_leads_to(cluster):
    [ingress] = [one["spec"] for one in render(values=load_values("ingress")) if one["kind"] == "Ingress"]
    [rule] = _find_route("pierhead-api")["rules"]
    expected = {(match["path"]["value"], "Prefix") for match in rule["matches"]}
    for host in ingress["rules"]:
        assert {(path["path"], path["pathType"]) for path in host["http"]["paths"]} == expected


def test_ingress_without_tls_is_made_where_that_is_said(cluster):
    [ingress] = [one["spec"] for one in render(*INGRESS, "api.plainHttp=true") if one["kind"] == "Ingress"]
    assert "tls" not in ingress


TLS = ("api.ingress.tls[0].secretName=tls", "api.ingress.tls[0].hosts={models.example.com}")
ADDRESSES = {
    "none": ((), "http://localhost:8080"),
    "Ingress": ((*INGRESS, *TLS), "https://models.example.com"),
    "Ingress without TLS": ((*INGRESS, "api.plainHttp=true"), "http://models.example.com"),
    "LoadBalancer": (("api.service.type=LoadBalancer", "api.plainHttp=true"), "http://$(kubectl get service "),
    "LoadBalancer with TLS": (
        ("api.service.type=LoadBalancer", "api.plainHttp=true", "api.service.port=443"),
        "https://$(kubectl get service ",
    ),
    "NodePort": (("api.service.type=NodePort", "api.plainHttp=true"), "http://$(kubectl get nodes "),
}


@pytest.mark.parametrize(("settings", "address"), ADDRESSES.values(), ids=ADDRESSES.keys())
def test_notes_name_the_address_of_the_api(cluster, settings, address):
    given = [f"{name}.image={image}" for name, image in IMAGES.items()]
    arguments = [argument for setting in (*given, *settings) for argument in ("--set", setting)]
    notes = helm("install", "pierhead", CHART, "--dry-run=client", *arguments).split("NOTES:")[1]
    assert f'default)" {address}' in notes
    assert ("port-forward" in notes) == ("localhost" in address)
    assert ("can be read on the way" in notes) == ("api.plainHttp=true" in settings)


def _find_ports(node):
    """The ports at which the Service of the API is referred to, anywhere in a manifest."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ports = {port for child in children for port in _find_ports(child)}
    if isinstance(node, dict) and "pierhead-api" in (node.get("name"), str(node.get("host")).partition(".")[0]):
        port = node.get("port")
        ports |= {port["number"] if isinstance(port, dict) else port} if port else set()
    return ports


@pytest.mark.parametrize("case", ["authorized", "istio-authorized"])
def test_who_leads_to_the_api_follows_the_port_of_its_service(cluster, case):
    documents = render("api.service.port=8000", values=load_values(case))
    assert _find_ports([one for one in documents if one["kind"] != "Service"]) == {8000}
    [service] = [one for one in documents if one["kind"] == "Service" and one["metadata"]["name"] == "pierhead-api"]
    assert [port["port"] for port in service["spec"]["ports"]] == [8000]
    [check] = [one["spec"] for one in documents if one["kind"] == "Pod"]
    assert "--api=http://pierhead-api.default.svc:8000" in check["containers"][0]["args"]


def _find_policies(*settings):
    """The NetworkPolicies of the release's own pods, by name."""
    documents = render(*settings, namespace="pierhead")
    return {one["metadata"]["name"]: one["spec"] for one in documents if one["kind"] == "NetworkPolicy"}


def test_network_policies_are_off_at_first(cluster):
    assert _find_policies() == {}
    assert "networkPolicy" not in _find_operator_settings()


NETWORK_POLICY = ("networkPolicy.enabled=true", "networkPolicy.monitoring[0].ipBlock.cidr=10.1.2.3/32")


def test_own_pods_are_reached_by_who_has_to(cluster):
    policies = _find_policies(*NETWORK_POLICY)
    assert policies["pierhead-operator"]["ingress"] == [
        {"from": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"port": 8081, "protocol": "TCP"}]}
    ]
    assert policies["pierhead-api"]["ingress"] == [{"ports": [{"port": 8080, "protocol": "TCP"}]}]
    assert "ingress" not in _find_policies("networkPolicy.enabled=true")["pierhead-operator"]
    pods = [one["spec"]["template"] for one in render(namespace="pierhead") if one["kind"] == "Deployment"]
    for policy in policies.values():
        [pod] = [
            pod for pod in pods if policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        ]
        ports = [port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]]
        assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ports


def _find_operator_settings(*settings):
    documents = render(*settings, namespace="pierhead")
    [found] = [one["data"]["operator.yaml"] for one in documents if "operator.yaml" in one.get("data", {})]
    return yaml.safe_load(found)


def test_operator_and_api_are_let_in_to_the_pods_that_serve(cluster):
    policy = _find_operator_settings(*NETWORK_POLICY)["networkPolicy"]
    own = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "pierhead"}}}
    selectors = _find_policies(*NETWORK_POLICY)
    assert policy["gateways"] == [{**own, "podSelector": selectors["pierhead-api"]["podSelector"]}]
    operator = {**own, "podSelector": selectors["pierhead-operator"]["podSelector"]}
    assert policy["monitoring"] == [operator, {"ipBlock": {"cidr": "10.1.2.3/32"}}]
    without = _find_operator_settings("networkPolicy.enabled=true", "api.enabled=false")["networkPolicy"]
    assert without["gateways"] == []


def test_crds_are_part_of_the_release_and_kept(cluster):
    crds = [document for document in render() if document["kind"] == "CustomResourceDefinition"]
    assert len(crds) == 4
    assert all(crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for crd in crds)


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
        for document in yaml.safe_load_all((OBJECTS / case / "objects.yaml").read_text())
        if document["kind"] in ("Deployment", "Job")
    ]
    chosen = []
    for monitor in monitors:
        templates = [
            template for template in (*own, *made) if _chooses(monitor["selector"], template["metadata"]["labels"])
        ]
        chosen += templates
        for template in templates:
            [container] = template["spec"]["containers"]
            for endpoint in monitor["podMetricsEndpoints"]:
                assert endpoint["port"] in [port["name"] for port in container["ports"]]
            assert set(monitor.get("podTargetLabels", ())) <= template["metadata"]["labels"].keys()
    assert len(chosen) == len(own) + len(made)


def _chooses(selector, labels):
    """As Kubernetes does, as far as the chart asks."""
    expressions = selector.get("matchExpressions", [])
    assert all(one["operator"] == "In" for one in expressions)
    named = all(labels.get(one["key"]) in one["values"] for one in expressions)
    return named and selector.get("matchLabels", {}).items() <= labels.items()


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
