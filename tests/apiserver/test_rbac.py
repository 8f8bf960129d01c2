"""The chart's rights: enough, and none unused, by what the API server noted that operators asked for."""

import json
from contextlib import ExitStack

import pytest
import yaml

from tests.audit import find_refused, find_used_rights, make_user
from tests.batch import make_batch
from tests.chart import find_rights, render, without_hooks
from tests.e2e.conftest import make_deployed_model, make_echo_model, make_endpoint
from tests.istio import istio_crds
from tests.kube import OPERATOR, SYSTEM, scale_operator, scratch_namespace, wait_until

# The installed operator stands still meanwhile.
pytestmark = pytest.mark.exclusive

GATEWAY = (
    "routing.provider=gateway-api",
    "routing.gateway.namespace=pierhead-system",
    "routing.gateway.name=pierhead",
    "api.authorization=none",
)
# An installation's values, and what it makes by them beside SERVING.
PROVIDERS = {
    "none": (("routing.provider=none",), set()),
    "gateway-api": (GATEWAY, {"HTTPRoute"}),
    "envoy-gateway": ((*GATEWAY, "routing.envoyGateway=true"), {"HTTPRoute", "BackendTrafficPolicy"}),
    "istio": (
        ("routing.provider=istio", "routing.istio.gateways={gateways/public}", "api.authorization=none"),
        {"VirtualService", "DestinationRule"},
    ),
    "network-policies": (("routing.provider=none", "networkPolicy.enabled=true"), {"NetworkPolicy"}),
}
KINDS = "deployments,services,horizontalpodautoscalers,poddisruptionbudgets,networkpolicies"
ROUTES = "httproutes,backendtrafficpolicies,virtualservices,destinationrules"
SERVING = {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
# Asked by the admission plugin OwnerReferencesPermissionEnforcement, which sends no request of its own.
FINALIZERS = {
    ("pierhead.dev", f"{plural}/finalizers", "update")
    for plural in ("models", "endpoints", "deployedmodels", "batchpredictionjobs")
}

# After a worker that had done something for a minute has failed: tests/e2e/test_batch_restarts.py sees it used.
AFTER_A_FAILURE = {
    ("", "pods", "patch"),
    ("pierhead.dev", "deployedmodels", "delete"),  # of a deployment of the API's: tests/e2e/test_google_clients.py
}
# What 0.1.0's operator gets by name, as it still does while an upgrade waits for its successor.
OF_THE_RELEASE_BEFORE = {*KINDS.split(","), *ROUTES.split(","), "jobs"} - {"networkpolicies"}

GPU = {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
# What Kubernetes grants to all that it knows: to ask who they are and what they may do.
EVERYBODY = {
    ("authorization.k8s.io", "selfsubjectaccessreviews", "create"),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "create"),
    ("authentication.k8s.io", "selfsubjectreviews", "create"),
}


def _make_left(kind):
    """What a DeployedModel that is gone, or another routing provider, left."""
    labels = {"app.kubernetes.io/managed-by": "pierhead"}
    pods = {"app": "left", "pierhead.dev/deployed-model": "left"}
    container = {"name": "server", "image": "registry.example.com/server:1"}
    target = {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "left"}
    version, spec = {
        "Deployment": (
            "apps/v1",
            {
                "replicas": 0,
                "selector": {"matchLabels": pods},
                "template": {"metadata": {"labels": pods}, "spec": {"containers": [container]}},
            },
        ),
        "Service": ("v1", {"ports": [{"port": 80}]}),
        "NetworkPolicy": ("networking.k8s.io/v1", {"podSelector": {"matchLabels": pods}}),
        "HTTPRoute": ("gateway.networking.k8s.io/v1", {}),
        "BackendTrafficPolicy": ("gateway.envoyproxy.io/v1alpha1", {"targetRefs": [target]}),
        "VirtualService": ("networking.istio.io/v1", {"hosts": ["left.example.com"]}),
        "DestinationRule": ("networking.istio.io/v1", {"host": "left.example.com"}),
    }[kind]
    if kind in {*SERVING, "NetworkPolicy"}:
        labels = {**labels, **pods}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "dm-left", "labels": labels}, "spec": spec}


@pytest.fixture(scope="module")
def operators(cluster):
    """By provider, the namespace of an operator that looks after nothing else, once it has done all that one does."""
    with ExitStack() as stack:
        stack.enter_context(istio_crds())
        # The installed one looks after all namespaces: it would do the others' work.
        stack.callback(scale_operator, 1)
        scale_operator(0)
        namespaces = {provider: stack.enter_context(scratch_namespace(provider)) for provider in PROVIDERS}
        for provider, kubectl in namespaces.items():
            _deploy(kubectl, provider)
        for provider, kubectl in namespaces.items():
            _wait_there(kubectl, SERVING | PROVIDERS[provider][1])
            _ask_for_less(kubectl)
        for provider, kubectl in namespaces.items():
            _wait_there(kubectl, {"Deployment", "Service"} | (PROVIDERS[provider][1] & {"NetworkPolicy"}))
            _end_batch(kubectl)
        yield namespaces


def _deploy(kubectl, provider):
    """An operator with a right to this namespace alone, and what gives it everything to do."""
    settings, routes = PROVIDERS[provider]
    others = {"HTTPRoute", "BackendTrafficPolicy", "VirtualService", "DestinationRule"} - routes
    kubectl.apply(*(_make_left(kind) for kind in {"Deployment", "Service", "NetworkPolicy", *others}))
    # A DestinationRule is only made for who serves: there pods run. No node has a GPU: elsewhere none does.
    machine = {} if "DestinationRule" in routes else {"machineSpec": GPU}
    replicas = {"minReplicaCount": 2, "maxReplicaCount": 3}
    dm = make_deployed_model("photos", dedicatedResources={**machine, **replicas})
    kubectl.apply(make_echo_model(), make_endpoint(maxRequestBytes=1024 * 1024), dm)
    resources = {"machineSpec": GPU}
    kubectl.apply(make_batch("nightly", ["gs://in/x"], dedicatedResources=resources, ttlSecondsAfterFinished=0))
    kubectl.apply(*_render_operator(kubectl.namespace, settings))


def _render_operator(namespace, settings):
    """An installation in this namespace and for it, of what is installed otherwise."""
    installed = SYSTEM.get("deployment", OPERATOR)["spec"]["template"]["spec"]["containers"][0]["image"]
    server = yaml.safe_load(SYSTEM.get("configmap", OPERATOR)["data"]["operator.yaml"])["server"]
    values = {
        "operator": {"image": installed},
        "api": {"enabled": False},
        "server": server,
        "watchNamespaces": [namespace],
        "crds": {"enabled": False},
    }
    return without_hooks(render(*settings, namespace=namespace, values=values))


def _wait_there(kubectl, kinds):
    """Until there are objects of Pierhead's of these kinds, nothing of others, and nothing left of before."""

    def there():
        found = kubectl.items(f"{KINDS},{ROUTES}", "app.kubernetes.io/managed-by=pierhead")
        names = {live["metadata"]["name"] for live in found}
        return "dm-left" not in names and {live["kind"] for live in found} == kinds

    wait_until(f"{kubectl.namespace} has {', '.join(sorted(kinds))}", there, seconds=60)


def _ask_for_less(kubectl):
    less = {"minReplicaCount": 1, "maxReplicaCount": None}  # no autoscaler and no budget
    kubectl.patch("deployedmodel", "photos", {"spec": {"dedicatedResources": less}})
    # No private gateway is configured: the Endpoint has no route.
    kubectl.patch("endpoint", "photos", {"spec": {"maxRequestBytes": None, "access": "Private"}})


def _end_batch(kubectl):
    """A job that is suspended, cancelled, and then deletes itself."""
    wait_until("its Job is there", lambda: kubectl.get("job", "bpj-nightly"))
    kubectl.patch("batchpredictionjob", "nightly", {"spec": {"suspend": True}})
    wait_until("it is suspended", lambda: kubectl.get("job", "bpj-nightly")["spec"]["suspend"])
    kubectl.patch("batchpredictionjob", "nightly", {"spec": {"cancel": True}})
    wait_until("it is gone", lambda: not kubectl.items("batchpredictionjobs,jobs"))


def _find_rights(documents, lease=True):
    """What the operator's roles grant; that of the lease only if asked for."""
    roles = [
        document
        for document in documents
        if document["kind"] in ("Role", "ClusterRole")
        and not document["metadata"]["labels"]["app.kubernetes.io/name"].startswith("pierhead-api")
    ]
    return {
        right
        for role in roles
        if lease or not role["metadata"]["name"].endswith("-lease")
        for right in find_rights(role)
    }


@pytest.mark.parametrize("provider", PROVIDERS)
def test_rights_are_those_that_an_operator_uses(operators, provider):
    namespace = operators[provider].namespace
    user = make_user(namespace, OPERATOR)
    assert not find_refused(user)
    granted = _find_rights(_render_operator(namespace, PROVIDERS[provider][0]))
    used = find_used_rights(user) | FINALIZERS | AFTER_A_FAILURE
    granted -= {right for right in granted - used if right[2] == "get" and right[1] in OF_THE_RELEASE_BEFORE}
    assert not granted - used, "rights that nobody uses"
    assert granted == used


@pytest.mark.parametrize("provider", PROVIDERS)
def test_rights_in_all_namespaces_are_those_in_one(cluster, provider):
    settings = (*PROVIDERS[provider][0], "crds.enabled=false")
    assert _find_rights(render(*settings)) == _find_rights(render(*settings, "watchNamespaces={default}"))


def test_installed_operator_may_do_nothing_else(cluster):
    """By the API server's word, of a namespace like any other and of the release's own."""
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
    for namespace, has_lease in {SYSTEM.namespace: True, "default": False}.items():
        answer = SYSTEM.in_any_namespace(
            *("create", "--as", make_user(SYSTEM.namespace, OPERATOR), "--validate=false", "--filename", "-"),
            *("--output", "json"),
            stdin=json.dumps({**review, "spec": {"namespace": namespace}}),
        )
        allowed = find_rights({"rules": json.loads(answer)["status"]["resourceRules"]})
        granted = _find_rights(render(*PROVIDERS["envoy-gateway"][0], "crds.enabled=false"), lease=has_lease)
        assert allowed - EVERYBODY == granted
