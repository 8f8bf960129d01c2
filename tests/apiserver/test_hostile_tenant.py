"""What a tenant with `edit` in one namespace writes to mislead Pierhead: refused with its field, or told, never followed.

On a real API server, beside the installed operator. Nothing here runs: no node has the GPU that each asks for.
"""

import copy
import json

import pytest
import yaml
from pierhead_operator import names

from tests.batch import make_batch
from tests.e2e.conftest import make_deployed_model, make_endpoint, make_model
from tests.kube import KubectlError, scratch_namespace, wait_until

GPU = {"machineSpec": {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}}


def make_dm(name="photos", **spec):
    return make_deployed_model(name, dedicatedResources=GPU, **spec)


def make_job(**spec):
    return make_batch("nightly", ["gs://in/x"], dedicatedResources=GPU, **spec)


MAKERS = {"deployedmodel": make_dm, "batchpredictionjob": make_job}


def name_variable(name, value="1"):
    return {"env": [{"name": name, "value": value}]}


def create(kubectl, manifest, *options):
    """Strictly, as kubectl does it by default."""
    kubectl("create", "--validate=strict", *options, "--filename", "-", stdin=json.dumps(manifest))


def wait_told(kubectl, kind, name, reason):
    """The condition Ready of a resource as it is now, once it has this reason."""

    def told():
        generation = kubectl.get(kind, name)["metadata"]["generation"]
        condition = kubectl.condition(kind, name)
        return condition.get("observedGeneration") == generation and condition["reason"] == reason and condition

    condition = wait_until(f"{kind} {name} says {reason}", told, seconds=30)
    assert condition["status"] == "False"
    assert kubectl.condition(kind, name, "Stalled")["status"] == "True"
    return condition


# --- what pods are given ---------------------------------------------------------------------------------------------

# What is in podOverrides -> the field that the refusal names.
REFUSED_AT_ONCE = {
    "code by another spelling": (name_variable("pierhead_allow_code", "true"), "spec.podOverrides.env"),
    "code by the dynamic linker": (name_variable("LD_PRELOAD", "/models/x.so"), "spec.podOverrides.env"),
    "code by Python's path": (name_variable("PYTHONPATH", "/models"), "spec.podOverrides.env"),
    "label of a serving pod": ({"labels": {"pierhead.dev/deployed-model": "photos-1"}}, "spec.podOverrides.labels"),
    "label of all that is ours": ({"labels": {"app.kubernetes.io/managed-by": "me"}}, "spec.podOverrides.labels"),
    "label of a ReplicaSet": ({"labels": {"pod-template-hash": "x"}}, "spec.podOverrides.labels"),
    "annotation of ours": ({"annotations": {"pierhead.dev/pinned": "{}"}}, "spec.podOverrides.annotations"),
    "no AppArmor": (
        {"annotations": {"container.apparmor.security.beta.kubernetes.io/server": "unconfined"}},
        "spec.podOverrides.annotations",
    ),
    "the cluster's own priority": (
        {"priorityClassName": "system-node-critical"},
        "spec.podOverrides.priorityClassName",
    ),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("overrides", "field"), REFUSED_AT_ONCE.values(), ids=REFUSED_AT_ONCE.keys())
def test_what_would_run_or_pass_for_something_else_is_refused(trial, kind, overrides, field):
    with pytest.raises(KubectlError) as refusal:
        create(trial, MAKERS[kind](podOverrides=overrides), "--dry-run=server")
    assert f"{field}: Invalid value" in str(refusal.value)


REDIRECTS = ("STORAGE_EMULATOR_HOST", "AZURE_STORAGE_ACCOUNT_NAME", "HOME", "PATH", "HTTPS_PROXY", "PIERHEAD_MODEL_DIR")


@pytest.mark.parametrize("name", REDIRECTS)
def test_variable_that_leads_elsewhere_is_told_and_followed_by_nobody(kubectl, name):
    overrides = {"podOverrides": name_variable(name)}
    kubectl.apply(make_model(v1="photos/1"), make_endpoint(), make_dm(**overrides), make_job(**overrides))
    for kind, resource in (("deployedmodel", "photos"), ("batchpredictionjob", "nightly")):
        message = wait_told(kubectl, kind, resource, "OverrideNotAllowed")["message"]
        assert f"spec.podOverrides.env[{name}]" in message
        assert "server.allowedEnv" in message
    assert kubectl.get("batchpredictionjob", "nightly")["status"]["state"] == "JOB_STATE_FAILED"
    assert not kubectl.items("deployments,jobs")


def test_variable_that_leads_elsewhere_changes_nothing_of_what_runs(kubectl):
    kubectl.apply(make_model(v1="photos/1"), make_endpoint(), make_dm())
    wait_until("its Deployment is there", lambda: kubectl.get("deployment", "dm-photos"), seconds=30)
    before = kubectl.get("deployment", "dm-photos")["spec"]["template"]
    kubectl.apply(make_dm(podOverrides=name_variable("STORAGE_EMULATOR_HOST", "http://mine")))
    wait_told(kubectl, "deployedmodel", "photos", "OverrideNotAllowed")
    assert kubectl.get("deployment", "dm-photos")["spec"]["template"] == before
    kubectl.apply(make_dm(podOverrides=name_variable("PIERHEAD_WORKERS", "2")))
    wait_until(
        "what is allowed reaches the pods",
        lambda: kubectl.get("deployment", "dm-photos")["spec"]["template"] != before,
        seconds=30,
    )


# --- typos -----------------------------------------------------------------------------------------------------------

# What is written -> the words of the refusal.
TYPOS = {
    "field of a variable": ({"env": [{"name": "A", "valeu": "x"}]}, 'unknown field "spec.podOverrides.env[0].valeu"'),
    "number for a value": ({"env": [{"name": "A", "value": 4}]}, "spec.podOverrides.env[0].value: Invalid value"),
    "source of a variable": (
        {"env": [{"name": "A", "valueFrom": {"secretRef": {"name": "s"}}}]},
        'unknown field "spec.podOverrides.env[0].valueFrom.secretRef"',
    ),
    "affinity": ({"affinity": {"nodeAffinty": {}}}, 'unknown field "spec.podOverrides.affinity.nodeAffinty"'),
    "effect of a toleration": (
        {"tolerations": [{"key": "a", "operator": "Exists", "effect": "NoShedule"}]},
        'Unsupported value: "NoShedule"',
    ),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("overrides", "told"), TYPOS.values(), ids=TYPOS.keys())
def test_typo_is_refused_with_its_path(trial, kind, overrides, told):
    with pytest.raises(KubectlError) as refusal:
        create(trial, MAKERS[kind](podOverrides=overrides), "--dry-run=server")
    assert told in str(refusal.value)


# All that Kubernetes has of these, as its documentation writes it: none of it is lost.
WHOLE = {
    "env": [
        {"name": "A", "value": ""},
        {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k", "optional": True}}},
        {"name": "C", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels['team']"}}},
        {"name": "D", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {
            "name": "E",
            "valueFrom": {"resourceFieldRef": {"containerName": "server", "resource": "requests.cpu", "divisor": 1}},
        },
        {"name": "F", "valueFrom": {"fileKeyRef": {"volumeName": "tmp", "path": "a.env", "key": "F"}}},
    ],
    "tolerations": [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 60}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {
                        "matchExpressions": [{"key": "example.com/disk", "operator": "In", "values": ["ssd", ""]}],
                        "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["node.example.com"]}],
                    }
                ]
            },
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": {"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["8"]}]}}
            ],
        },
        "podAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 100,
                    "podAffinityTerm": {"topologyKey": "topology.kubernetes.io/zone", "namespaceSelector": {}},
                }
            ]
        },
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": {
                        "matchLabels": {"team": "a"},
                        "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}],
                    },
                    "namespaces": ["default"],
                    "matchLabelKeys": ["pod-template-hash"],
                }
            ]
        },
    },
}


@pytest.mark.parametrize("kind", MAKERS)
def test_nothing_of_kubernetes_own_fields_is_lost(kubectl, kind):
    manifest = MAKERS[kind](podOverrides=WHOLE)
    create(kubectl, manifest)
    assert kubectl.get(kind, manifest["metadata"]["name"])["spec"]["podOverrides"] == WHOLE


# --- Services --------------------------------------------------------------------------------------------------------

LED_ELSEWHERE = {
    "another namespace": {
        "type": "ExternalName",
        "externalName": "dm-photos.theirs.svc.cluster.local",
        "clusterIP": None,
    },
    "the outside": {"type": "LoadBalancer"},
    "the outside, for some": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]},
    "pods that are not ready": {"publishNotReadyAddresses": True},
    "fewer pods": {"selector": {"team": "theirs"}},
}


@pytest.mark.parametrize("change", LED_ELSEWHERE.values(), ids=LED_ELSEWHERE.keys())
def test_service_that_is_led_elsewhere_is_put_right(kubectl, change):
    kubectl.apply(make_model(v1="photos/1"), make_endpoint(), make_dm())
    made = wait_until("its Service is there", lambda: kubectl.get("service", "dm-photos"), seconds=30)["spec"]
    kubectl.patch("service", "dm-photos", {"spec": change})

    def is_as_it_was():
        spec = kubectl.get("service", "dm-photos")["spec"]
        kept = ("type", "selector", "publishNotReadyAddresses", "loadBalancerSourceRanges")
        return all(spec.get(field) == made.get(field) for field in kept)

    wait_until("it is as it was", is_as_it_was, seconds=30)


# --- versions --------------------------------------------------------------------------------------------------------


def test_version_that_comes_back_with_another_artifact_is_told_and_taken_by_nobody(kubectl):
    model = make_model(v1="photos/1", v2="photos/2")
    kubectl.apply(model, make_endpoint({"photos": 100}), make_dm(modelVersion="v2"))
    wait_until("its Deployment is there", lambda: kubectl.get("deployment", "dm-photos"), seconds=30)
    wait_until(
        "the Model is looked at", lambda: kubectl.condition("model", "photos").get("status") == "True", seconds=30
    )
    before = kubectl.get("deployment", "dm-photos")["spec"]["template"]
    first, second = copy.deepcopy(model["spec"]["versions"])
    kubectl.patch("model", "photos", {"spec": {"versions": [first]}})
    other = {**second, "artifactUri": "gs://models/mine"}
    kubectl.patch("model", "photos", {"spec": {"versions": [first, other]}})
    kubectl.apply(make_dm("late", modelVersion="v2"), make_job(modelVersion="v2"))
    for kind, name in (("model", "photos"), ("deployedmodel", "photos"), ("deployedmodel", "late"), ("bpj", "nightly")):
        message = wait_told(kubectl, kind, name, "VersionChanged")["message"]
        assert "version v2 was gs://models/photos/2 and is gs://models/mine" in message
    assert kubectl.get("deployment", "dm-photos")["spec"]["template"] == before
    assert not kubectl.get("deployment", "dm-late")
    assert not kubectl.get("job", "bpj-nightly")
    for versions in ([first], [first, second]):
        kubectl.patch("model", "photos", {"spec": {"versions": versions}})
    wait_until("it is what it was", lambda: kubectl.condition("model", "photos")["status"] == "True", seconds=30)
    wait_until("who waited is made", lambda: kubectl.get("deployment", "dm-late"), seconds=30)


# --- names -----------------------------------------------------------------------------------------------------------

LONG = "x" * 63
ODD_NAMES = ("0" * 10, LONG, "x" * 62 + "1", "a" + "-" * 61 + "b", "dm-photos", "mdl2-photos")


@pytest.mark.parametrize("name", ["a.b", "x" * 64])
def test_name_that_makes_no_label_is_refused(trial, name):
    with pytest.raises(KubectlError, match=r"metadata\.name must be at most 63 characters, without dots"):
        create(trial, make_dm(name), "--dry-run=server")


def test_odd_names_have_children_of_their_own(kubectl):
    kubectl.apply(make_model(v1="photos/1"), make_endpoint(), *(make_dm(name) for name in ODD_NAMES))
    for name in ODD_NAMES:
        child = wait_until(
            f"{name} has a Service", lambda name=name: kubectl.get("service", names.server(name)), seconds=60
        )
        assert child["metadata"]["labels"]["pierhead.dev/deployed-model"] == name
        assert kubectl.get("deployment", names.server(name))


def test_name_made_to_meet_anothers_is_told_whose_it_is(kubectl):
    kubectl.apply(make_model(v1="photos/1"), make_endpoint(), make_dm(LONG))
    child = names.server(LONG)
    before = wait_until("it has a Service", lambda: kubectl.get("service", child), seconds=30)
    thief = child.removeprefix("dm-")
    kubectl.apply(make_dm(thief))
    message = wait_told(kubectl, "deployedmodel", thief, "NotOwned")["message"]
    assert f"is that of DeployedModel {LONG}" in message
    kubectl("delete", "deployedmodel", thief)
    assert kubectl.get("service", child) == before


# --- labels ----------------------------------------------------------------------------------------------------------
# That a Model's own paths lead to nobody whose Endpoint is missing shows where something serves:
# tests/e2e/test_private.py.


def test_labels_of_a_resource_say_nothing_of_whom_it_belongs_to(kubectl):
    """A DeployedModel of endpoint `photos`, labelled as if it were `theirs` and its Model another."""
    theirs = make_endpoint()
    theirs["metadata"]["name"] = "theirs"
    stranger = make_dm()
    stranger["metadata"]["labels"] = {
        names.LABEL_ENDPOINT: "theirs",
        names.LABEL_MODEL: "other",
        names.LABEL_DEPLOYED_MODEL: "other",
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
    }
    kubectl.apply(make_model(v1="photos/1"), make_endpoint(), theirs, stranger)
    wait_told_of(kubectl, "endpoint", "photos", "WaitingForDeployedModels")
    wait_told_of(kubectl, "endpoint", "theirs", "NoDeployedModel")
    child = wait_until("its Deployment is there", lambda: kubectl.get("deployment", "dm-photos"), seconds=30)
    labels = child["metadata"]["labels"]
    assert (labels[names.LABEL_ENDPOINT], labels[names.LABEL_MODEL]) == ("photos", "photos")


def wait_told_of(kubectl, kind, name, reason):
    wait_until(
        f"{kind} {name} says {reason}", lambda: kubectl.condition(kind, name).get("reason") == reason, seconds=30
    )


# --- fairness --------------------------------------------------------------------------------------------------------

MANY = 200


def test_namespace_with_much_to_do_leaves_room_for_another():
    """All of one tenant's DeployedModels want a new status at once; another's Endpoint does not wait for their end."""
    with scratch_namespace("much") as much, scratch_namespace("little") as little:
        much.apply(*(make_dm(f"dm-{number}", version="v9") for number in range(MANY)))

        def all_say(reason):
            return {condition_reason(live) for live in much.items("deployedmodels")} == {reason}

        wait_until("all miss their Model", lambda: all_say("ModelNotFound"), seconds=120)
        # In one go: what the first has the operator do is not done before the second comes.
        asked = [place(much, make_model(v1="photos/1")), place(little, make_endpoint())]
        much.in_any_namespace("create", "--filename", "-", stdin=yaml.safe_dump_all(asked))
        wait_told_of(little, "endpoint", "photos", "NoDeployedModel")
        wait_until("all miss their version", lambda: all_say("ModelVersionNotFound"), seconds=120)
        looked_at = revision(little.get("endpoint", "photos"))
        waited = sum(revision(live) > looked_at for live in much.items("deployedmodels"))
        print(f"when another tenant's Endpoint was looked at, {waited} of the first's {MANY} still waited")
        # In the order of their events none would, but for those in the workers' hands.
        assert waited > MANY / 4


def place(kubectl, manifest):
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": kubectl.namespace}}


def revision(live):
    """When it was last written: a number of the whole store."""
    return int(live["metadata"]["resourceVersion"])


def condition_reason(live):
    conditions = {condition["type"]: condition for condition in live.get("status", {}).get("conditions", [])}
    return conditions.get("Ready", {}).get("reason")
