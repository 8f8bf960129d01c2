"""What docs/security.md says of pods and rights: pods by a real API server, at Pod Security's level `restricted`."""

import json

import pytest
import yaml

from tests.apiserver.golden import GOLDEN
from tests.chart import CASES, load_values, render
from tests.kube import make_list, scratch_namespace, wait_until


def _find_templates(manifests):
    return [one["spec"]["template"] for one in manifests if one["kind"] in ("Deployment", "Job")]


def _shares_a_folder(template):
    """Whether it has the hostPath that an installation may ask for, and gives the level up by."""
    return any("hostPath" in volume for volume in template["spec"]["volumes"])


SERVERS = {
    file.parent.name: templates
    for file in sorted(GOLDEN.glob("*/objects.yaml"))
    if (templates := _find_templates(yaml.safe_load_all(file.read_text())))
    and not any(map(_shares_a_folder, templates))
}
# Objects that need not be there to judge a pod which names them.
OTHERS = ("serviceAccountName", "priorityClassName")


# What would let its holder read what others keep secret, or give itself more.
SENSITIVE = {"*", "secrets", "configmaps", "serviceaccounts", "serviceaccounts/token", "roles", "rolebindings"}
SENSITIVE |= {"clusterroles", "clusterrolebindings", "pods/exec"}


def test_nobody_of_pierheads_has_a_right_on_secrets_or_rights(cluster):
    rules = [rule for one in render() if one["kind"] in ("Role", "ClusterRole") for rule in one["rules"]]
    assert rules
    assert not SENSITIVE & {resource for rule in rules for resource in rule["resources"]}


@pytest.fixture(scope="module")
def restricted(cluster):
    with scratch_namespace("restricted") as kubectl:
        kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted")
        wait_until("pods can be made", lambda: kubectl.get("serviceaccount", "default"))
        yield kubectl


def _try_pods(kubectl, templates):
    pods = make_list(map(_make_pod, templates))
    taken = kubectl("create", "--dry-run=server", "--output", "name", "--filename", "-", stdin=pods)
    assert len(taken.splitlines()) == len(templates)


def _make_pod(template):
    spec = {name: value for name, value in template["spec"].items() if name not in OTHERS}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": {**spec, "restartPolicy": "Always"}}


@pytest.mark.parametrize("case", CASES)
def test_pods_of_the_chart_keep_to_it(restricted, case):
    documents = render(values=load_values(case))
    templates = [*_find_templates(documents), *(one for one in documents if one["kind"] == "Pod")]
    assert len(templates) == (2 if case == "without-api" else 4)
    _try_pods(restricted, templates)


@pytest.mark.parametrize("templates", SERVERS.values(), ids=SERVERS.keys())
def test_pods_of_models_keep_to_it(restricted, templates):
    _try_pods(restricted, templates)


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        ("pierhead-predictor", {"predict"}, {"get", "list", "create", "patch", "delete"}),
        ("pierhead-edit", {"predict", "get", "list", "watch", "create", "patch", "delete"}, set()),
        ("pierhead-view", {"get", "list", "watch"}, {"predict", "create", "patch", "delete"}),
    ],
)
def test_role_of_the_chart_is_enough_by_itself_and_gives_nothing_else(kubectl, role, may, may_not):
    account = f"system:serviceaccount:{kubectl.namespace}:client"
    kubectl("create", "rolebinding", "client", f"--clusterrole={role}", f"--serviceaccount={kubectl.namespace}:client")

    def can(verb, group="pierhead.dev", resource="endpoints"):
        asked = {"group": group, "resource": resource, "verb": verb, "namespace": kubectl.namespace}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": account, "resourceAttributes": asked},
        }
        return json.loads(kubectl("create", "--filename=-", "--output=json", stdin=json.dumps(review)))["status"][
            "allowed"
        ]

    wait_until("the binding is known", lambda: can(min(may)))
    assert {verb for verb in may | may_not if can(verb)} == may
    assert not can("get", "", "secrets")
