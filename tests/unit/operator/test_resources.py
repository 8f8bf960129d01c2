"""Builders against golden manifests: a change of what is built shows in the diff of a golden file."""

import re
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pierhead_operator.resources import (
    Serving,
    describe_held,
    desired_objects,
    find_limits,
    is_owned,
    make_deployment,
    mark_applied,
    needs_apply,
    owns_replicas,
    separate_cache,
    serving_kinds,
    unknown_machine,
)
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import DeployedModel, Endpoint
from pierhead_server.settings import load_settings as load_server_settings

from tests.unit.operator.conftest import NETWORK_POLICY, make_deployed_model, manifest

GOLDEN = Path(__file__).parents[2] / "golden"


@dataclass(frozen=True)
class Case:
    """A DeployedModel's spec, beside its Endpoint's and the installation's settings where they matter."""

    spec: dict[str, Any]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    endpoint: dict[str, Any] | None = None


L4_NODES = {"cloud.google.com/gke-accelerator": "nvidia-l4"}
GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
MIG = {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"memory": "8Gi", "nvidia.com/mig-1g.10gb": "1"}}
MACHINES = {
    "machineTypes": {
        "g2-standard-4": {
            "resources": {"requests": {"cpu": "3", "memory": "12Gi"}, "limits": {"memory": "14Gi"}},
            "nodeSelector": {"node.kubernetes.io/instance-type": "g2-standard-4"},
            "tolerations": [{"key": "models", "operator": "Exists"}],
        },
        "a100-slice": {"resources": MIG},
        "any": {"nodeSelector": {"pool": "models"}},
    },
    "acceleratorTypes": {
        "NVIDIA_L4": {"nodeSelector": L4_NODES, "tolerations": [GPU_TAINT]},
        "NVIDIA_TESLA_T4": {},
    },
}

CASES = {
    "automatic": Case({}),
    "autoscaled-gpu": Case(
        {
            "modelVersion": "2",
            "dedicatedResources": {
                "machineSpec": {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1},
                "minReplicaCount": 1,
                "maxReplicaCount": 4,
                "autoscalingMetricSpecs": [{"metricName": "cpu/utilization", "target": 75}],
            },
        }
    ),
    "fixed-three": Case({"dedicatedResources": {"minReplicaCount": 3}}),
    "two-replicas": Case({"automaticResources": {"minReplicaCount": 2, "maxReplicaCount": 4}}),
    "gpu-with-classes": Case(
        {
            "dedicatedResources": {
                "machineSpec": {
                    "machineType": "g2-standard-4",
                    "acceleratorType": "NVIDIA_L4",
                    "acceleratorCount": 2,
                }
            }
        },
        {"machines": MACHINES},
    ),
    "dra": Case(
        {
            "dedicatedResources": {
                "machineSpec": {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]}
            }
        }
    ),
    "hpa-all-metrics": Case(
        {
            "dedicatedResources": {
                "minReplicaCount": 1,
                "maxReplicaCount": 8,
                "autoscalingMetricSpecs": [
                    {"metricName": "aiplatform.googleapis.com/prediction/online/cpu/utilization", "target": 70},
                    {
                        "metricName": "aiplatform.googleapis.com/prediction/online/accelerator/duty_cycle",
                        "target": 80,
                    },
                    {"metricName": "requests/inFlight", "target": 8},
                ],
            }
        },
        {"autoscaling": {"gpuDutyCycleMetric": "gpu_busy", "requestsInFlightMetric": "requests_held"}},
    ),
    "limits": Case({}, endpoint={"clientConnectionConfig": {"inferenceTimeout": "120s"}, "maxRequestBytes": 52428800}),
    "network-policy": Case({}, {"networkPolicy": NETWORK_POLICY}),
    "overrides": Case(
        {
            "serviceAccount": "photos-reader",
            "podOverrides": {
                "labels": {"team": "vision", "pierhead.dev/deployed-model": "another"},
                "annotations": {"example.com/scrape": "true"},
                "env": [
                    {"name": "STORAGE_EMULATOR_HOST", "value": "http://own:4443"},
                    {"name": "PIERHEAD_LOG_LEVEL", "value": "debug"},
                ],
                "nodeSelector": {"pool": "vision"},
                "tolerations": [{"key": "vision", "operator": "Exists"}],
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [{"matchExpressions": [{"key": "ssd", "operator": "Exists"}]}]
                        }
                    }
                },
                "priorityClassName": "online",
                "imagePullSecrets": ["registry"],
            },
        },
        {
            "server": {
                "envFrom": [{"secretRef": {"name": "storage"}}],
                "artifactCache": {"hostPath": {"path": "/var/lib/pierhead", "type": "Directory"}},
                "artifactCacheBytes": 107374182400,
            }
        },
    ),
}


def _change(settings, sections):
    """The settings with some of the fields of some of their sections changed."""
    data = settings.model_dump(by_alias=True)
    changed = {name: (data[name] or {}) | fields for name, fields in sections.items()}
    return OperatorSettings.model_validate(data | changed)


def _serving(model, settings, spec, endpoint=None):
    dm = DeployedModel.model_validate(make_deployed_model(**spec))
    version = model.spec.version(dm.spec.model_version or "1")
    there = None if endpoint is None else Endpoint.model_validate(manifest("Endpoint", "photos", endpoint))
    return Serving(dm, model, version, settings, there, find_limits(there))


def _pod(serving):
    return make_deployment(serving)["spec"]["template"]["spec"]


def _env(serving):
    """The server's variables, each of which is there once."""
    variables = _pod(serving)["containers"][0]["env"]
    env = {variable["name"]: variable.get("value", variable) for variable in variables}
    assert len(env) == len(variables)
    return env


@pytest.mark.parametrize("case", CASES)
def test_desired_objects(case, model, settings):
    given = CASES[case]
    objects = desired_objects(_serving(model, _change(settings, given.settings), given.spec, given.endpoint))
    golden = GOLDEN / case / "objects.yaml"
    assert objects == list(yaml.safe_load_all(golden.read_text()))


@pytest.mark.parametrize("case", CASES)
def test_surplus_is_looked_for_among_all_that_may_be_made(case, model, settings):
    given = CASES[case]
    serving = _serving(model, _change(settings, given.settings), given.spec)
    assert {made["kind"] for made in desired_objects(serving)} <= serving_kinds(serving.settings)


def test_user_is_left_to_a_cluster_that_chooses_it(model, settings):
    changed = _change(settings, {"server": {"arbitraryUser": True}})
    context = _pod(_serving(model, changed, {}))["securityContext"]
    assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


# The server's environment


def test_env_of_the_installation_takes_the_place_of_ours(model, settings):
    own = [{"name": "PIERHEAD_WORKERS", "value": "4"}]
    assert _env(_serving(model, _change(settings, {"server": {"env": own}}), {}))["PIERHEAD_WORKERS"] == "4"


def test_env_nearer_to_the_deployed_model_counts(model, settings):
    given = [{"name": "PIERHEAD_MAX_REQUEST_BYTES", "value": "1"}, {"name": "PIERHEAD_LOG_LEVEL", "value": "error"}]
    changed = _change(settings, {"server": {"env": given}})
    env = _env(_serving(model, changed, {}, {"maxRequestBytes": 2048}))
    assert (env["PIERHEAD_MAX_REQUEST_BYTES"], env["PIERHEAD_LOG_LEVEL"]) == ("2048", "error")
    overrides = {"env": [{"name": "PIERHEAD_MAX_REQUEST_BYTES", "value": "4096"}]}
    env = _env(_serving(model, changed, {"podOverrides": overrides}, {"maxRequestBytes": 2048}))
    assert env["PIERHEAD_MAX_REQUEST_BYTES"] == "4096"


# spec -> PIERHEAD_ACCESS_LOG, PIERHEAD_LOG_LEVEL
LOGGING = {
    "nothing said": ({}, None, None),
    "nothing asked for": ({"enableAccessLogging": False, "disableContainerLogging": False}, None, None),
    "access log": ({"enableAccessLogging": True}, "true", None),
    "errors alone": ({"disableContainerLogging": True}, None, "error"),
    "both": ({"enableAccessLogging": True, "disableContainerLogging": True}, "true", "error"),
}


@pytest.mark.parametrize(("spec", "access", "level"), LOGGING.values(), ids=LOGGING.keys())
def test_server_is_told_what_to_log(model, settings, spec, access, level):
    env = _env(_serving(model, settings, spec))
    assert (env.get("PIERHEAD_ACCESS_LOG"), env.get("PIERHEAD_LOG_LEVEL")) == (access, level)


def test_what_a_deployed_model_logs_is_its_own_to_say(model, settings):
    installation = _change(settings, {"server": {"env": [{"name": "PIERHEAD_LOG_LEVEL", "value": "debug"}]}})
    assert _env(_serving(model, installation, {"disableContainerLogging": True}))["PIERHEAD_LOG_LEVEL"] == "error"
    assert _env(_serving(model, installation, {}))["PIERHEAD_LOG_LEVEL"] == "debug"


def test_env_comes_after_what_it_refers_to(model, settings):
    changed = _change(settings, {"server": {"env": [{"name": "BUCKET", "value": "photos"}]}})
    overrides = {"env": [{"name": "PIERHEAD_WORKERS", "value": "$(BUCKET)"}]}
    assert list(_env(_serving(model, changed, {"podOverrides": overrides})))[-2:] == ["BUCKET", "PIERHEAD_WORKERS"]


def _expand(value, others):
    """What Kubernetes makes of a value, by its documentation: $(NAME) is another variable's, $$ a dollar."""

    def give(found):
        return "$" if found[0] == "$$" else others.get(found[1], found[0])

    return re.sub(r"\$\$|\$\((\w+)\)", give, value)


@pytest.mark.parametrize(
    "name", ["$(AWS_SECRET_ACCESS_KEY)", "$$(AWS_SECRET_ACCESS_KEY)", "$$$(AWS_SECRET_ACCESS_KEY)", "5 US$", "plain"]
)
def test_models_words_bring_no_other_variables_value_into_an_answer(model, settings, name):
    named = model.model_copy(update={"spec": model.spec.model_copy(update={"display_name": name})})
    told = _env(_serving(named, settings, {}))["PIERHEAD_MODEL_DISPLAY_NAME"]
    assert _expand(told, {"AWS_SECRET_ACCESS_KEY": "the key"}) == name
    assert "$(" in name or told == name, "another template would be another pod"


def test_pod_overrides_do_not_say_what_runs(model, settings):
    names = ("PIERHEAD_ARTIFACT_URI", "PIERHEAD_ARTIFACT_DIGEST", "PIERHEAD_ALLOW_CODE", "LD_PRELOAD", "PYTHONPATH")
    overrides = {"env": [{"name": name, "value": "gs://elsewhere"} for one in names for name in (one, one.lower())]}
    assert _env(_serving(model, settings, {"podOverrides": overrides})) == _env(_serving(model, settings, {}))


def test_pod_overrides_do_not_say_whose_pods_they_are(model, settings):
    keys = {"pierhead.dev/batch-prediction-job": "nightly", "job-name": "bpj-nightly", "app.kubernetes.io/name": "x"}
    overrides = {"labels": {**keys, "team": "a"}, "annotations": keys}
    metadata = make_deployment(_serving(model, settings, {"podOverrides": overrides}))["spec"]["template"]["metadata"]
    assert metadata["labels"].keys() - {"team"} == _plain_labels(model, settings).keys()
    assert "annotations" not in metadata


def _plain_labels(model, settings):
    return make_deployment(_serving(model, settings, {}))["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize(("allow_code", "told"), [(True, "true"), (False, None)])
def test_server_is_told_whether_code_may_run(model, settings, allow_code, told):
    serving = _serving(model, settings, {})
    serving = replace(serving, version=serving.version.model_copy(update={"allow_code": allow_code}))
    assert _env(serving).get("PIERHEAD_ALLOW_CODE") == told


def test_server_does_by_itself_what_it_is_not_told(model, settings):
    """An Endpoint's own defaults are the server's, so that an Endpoint without limits tells it nothing."""
    server = load_server_settings(artifact_uri="gs://models/photos")
    timeout = Endpoint.model_validate(manifest("Endpoint", "photos", {})).spec.client_connection_config
    assert timeout.inference_timeout_seconds == server.predict_timeout_seconds
    without, with_endpoint = _serving(model, settings, {}), _serving(model, settings, {}, {})
    assert _env(without) == _env(with_endpoint)


@pytest.mark.parametrize(("timeout", "grace"), [("10s", 65), ("60s", 65), ("600s", 605)])
def test_pod_is_given_time_for_what_is_in_flight(model, settings, timeout, grace):
    serving = _serving(model, settings, {}, {"clientConnectionConfig": {"inferenceTimeout": timeout}})
    assert _pod(serving)["terminationGracePeriodSeconds"] == grace


def test_pods_share_the_cache_of_compiled_forms(model, settings):
    claim = {"persistentVolumeClaim": {"claimName": "compiled"}}
    serving = _serving(model, _change(settings, {"server": {"compiledCache": claim}}), {})
    pod = _pod(serving)
    assert {"name": "compiled", **claim} in pod["volumes"]
    (container,) = pod["containers"]
    assert {"name": "compiled", "mountPath": "/compiled"} in container["volumeMounts"]
    assert _env(serving)["PIERHEAD_COMPILED_DIR"] == "/compiled"
    assert "PIERHEAD_COMPILE" not in _env(serving)


def test_version_that_brings_code_has_a_folder_of_its_own_for_compiled_forms(model, settings):
    """Or its code could change what others compute with."""
    claim = {"persistentVolumeClaim": {"claimName": "compiled"}}
    version = model.spec.versions[0].model_copy(update={"allow_code": True})
    spec = model.spec.model_copy(update={"versions": [version]})
    changed = _change(settings, {"server": {"compiledCache": claim}})
    pod = _pod(_serving(model.model_copy(update={"spec": spec}), separate_cache(version, changed), {}))
    assert {"name": "compiled", "emptyDir": {}} in pod["volumes"]
    assert {"name": "compiled", **claim} not in pod["volumes"]
    assert separate_cache(version, settings) == settings


# Machines


@pytest.mark.parametrize(
    ("machine", "one_a_cpu"),
    [
        ({}, True),
        ({"machineType": "any"}, True),
        ({"machineType": "a100-slice"}, False),
        ({"acceleratorType": "NVIDIA_TESLA_T4", "acceleratorCount": 1}, False),
        ({"resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}]}, False),
    ],
)
def test_processes_are_counted_by_cpu_only_where_cpus_compute(model, settings, machine, one_a_cpu):
    changed = _change(settings, {"machines": MACHINES})
    env = _env(_serving(model, changed, {"dedicatedResources": {"machineSpec": machine}}))
    assert ("PIERHEAD_WORKERS" in env) is one_a_cpu


def test_processes_are_not_counted_where_no_cpu_is_asked_for(model, settings):
    changed = _change(settings, {"server": {"resources": {"requests": {"memory": "1Gi"}}}})
    assert "PIERHEAD_WORKERS" not in _env(_serving(model, changed, {}))


def test_machine_without_resources_has_those_of_the_server(model, settings):
    spec = {"dedicatedResources": {"machineSpec": {"machineType": "any"}}}
    (container,) = _pod(_serving(model, _change(settings, {"machines": MACHINES}), spec))["containers"]
    assert container["resources"] == settings.server.resources


def test_builders_leave_the_settings_as_they_are(model, settings):
    changed = _change(settings, {"machines": MACHINES})
    before = changed.model_dump()
    for case in ("gpu-with-classes", "overrides"):
        desired_objects(_serving(model, changed, CASES[case].spec))
    assert changed.model_dump() == before


KNOWN = "known are NVIDIA_L4, NVIDIA_TESLA_T4"
FIELD = "dedicatedResources.machineSpec"


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({}, None),
        ({"machineType": "any", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}, None),
        (
            {"acceleratorType": "NVIDIA_FOO", "acceleratorCount": 1},
            f"{FIELD}.acceleratorType: NVIDIA_FOO is unknown to this installation: {KNOWN}"
            " (the chart's machines.acceleratorTypes)",
        ),
        (
            {"acceleratorType": "NVIDIA_TELSA_T4", "acceleratorCount": 1},
            f"{FIELD}.acceleratorType: NVIDIA_TELSA_T4 is unknown to this installation: did you mean NVIDIA_TESLA_T4?"
            f" {KNOWN} (the chart's machines.acceleratorTypes)",
        ),
        (
            {"machineType": "n1", "acceleratorType": "TPU", "acceleratorCount": 1},
            f"{FIELD}.machineType: n1 is unknown to this installation: known are a100-slice, any, g2-standard-4"
            " (the chart's machines.machineTypes);"
            f" {FIELD}.acceleratorType: TPU is unknown to this installation: {KNOWN}"
            " (the chart's machines.acceleratorTypes)",
        ),
    ],
)
def test_unknown_machine(settings, machine, message):
    dm = DeployedModel.model_validate(make_deployed_model(dedicatedResources={"machineSpec": machine}))
    assert unknown_machine(dm.spec.machine_spec, _change(settings, {"machines": MACHINES})) == message


def test_unknown_machine_where_none_is_known(settings):
    dm = DeployedModel.model_validate(make_deployed_model(dedicatedResources={"machineSpec": {"machineType": "n1"}}))
    assert "none is known (the chart's machines.machineTypes)" in unknown_machine(dm.spec.machine_spec, settings)


# Replicas


def test_scaling_restarts_no_pod(model, settings):
    templates = [
        make_deployment(_serving(model, settings, {"automaticResources": resources}))["spec"]["template"]
        for resources in ({"minReplicaCount": 1}, {"minReplicaCount": 3}, {"minReplicaCount": 1, "maxReplicaCount": 9})
    ]
    assert all(template == templates[0] for template in templates)


@pytest.mark.parametrize(
    ("replicas", "unavailable"),
    [
        ({}, None),
        ({"minReplicaCount": 2}, 1),
        ({"maxReplicaCount": 2}, 1),
        ({"maxReplicaCount": 10}, 1),
        ({"maxReplicaCount": 20}, "10%"),
        ({"minReplicaCount": 50}, "10%"),
    ],
)
def test_budget_follows_what_may_run(model, settings, replicas, unavailable):
    objects = desired_objects(_serving(model, settings, {"automaticResources": replicas}))
    budgets = [made["spec"]["maxUnavailable"] for made in objects if made["kind"] == "PodDisruptionBudget"]
    assert budgets == ([] if unavailable is None else [unavailable])


def test_deployment_in_place_differs_in_its_strategy_alone(model, settings):
    serving = _serving(model, settings, {})
    usual, in_place = make_deployment(serving), make_deployment(serving, in_place=True)
    assert in_place["spec"].pop("strategy")["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert usual["spec"].pop("strategy")["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert usual == in_place
    assert desired_objects(serving, True)[0] == make_deployment(serving, True)


def test_metric_by_both_of_its_names_is_there_once(model, settings):
    specs = [
        {"metricName": "gpu/dutyCycle", "target": 50},
        {"metricName": "cpu/utilization", "target": 50},
        {"metricName": "aiplatform.googleapis.com/prediction/online/accelerator/duty_cycle", "target": 90},
    ]
    resources = {"maxReplicaCount": 2, "autoscalingMetricSpecs": specs}
    autoscaler = desired_objects(_serving(model, settings, {"dedicatedResources": resources}))[-1]
    gpu, cpu = autoscaler["spec"]["metrics"]
    assert gpu["pods"]["target"]["averageValue"] == "90"
    assert cpu["containerResource"]["target"]["averageUtilization"] == 50


# What is there


def _live(made):
    """A manifest as the API server gives it back: with defaults and what others wrote."""
    spec = {**made["spec"], "progressDeadlineSeconds": 600}
    return {**made, "spec": spec, "status": {"replicas": 1}}


def test_needs_apply_stable_no_writes(model, settings):
    for made in desired_objects(_serving(model, settings, CASES["autoscaled-gpu"].spec)):
        marked = mark_applied(made)
        assert not needs_apply(marked, _live(marked))


def test_needs_apply_after_changes(model, settings):
    deployment = desired_objects(_serving(model, settings, {}))[0]
    marked = mark_applied(deployment)
    assert needs_apply(marked, None)
    by_hand = _live(marked)
    by_hand["spec"]["replicas"] = 5
    assert needs_apply(marked, by_hand)
    fewer = {**deployment, "spec": {key: value for key, value in deployment["spec"].items() if key != "replicas"}}
    assert needs_apply(mark_applied(fewer), _live(marked)), "a field that is given up has to be sent, too"


def test_needs_apply_not_of_what_the_api_server_leaves_out_or_adds(model, settings):
    made = desired_objects(_serving(model, _change(settings, {"networkPolicy": NETWORK_POLICY}), {}))
    policy, service = (mark_applied(one) for one in made if one["kind"] in ("NetworkPolicy", "Service"))
    there = deepcopy(service)
    del there["spec"]["publishNotReadyAddresses"]
    there["spec"] |= {"clusterIP": "10.96.0.7", "internalTrafficPolicy": "Cluster"}
    assert not needs_apply(service, there)
    there = deepcopy(policy)
    there["spec"]["egress"][-1]["ports"] = [{"port": 443, "protocol": "TCP"}]
    assert not needs_apply(policy, there)


def _widen(spec):
    spec["ingress"][0]["ports"][0]["endPort"] = 65535


def _narrow(spec):
    selected = spec["selector"] if "selector" in spec else spec["podSelector"]
    selected.get("matchLabels", selected)["team"] = "theirs"


# Whom an object leads to or guards: one word more, and it is others.
ADDED = {
    "Service": _narrow,
    "PodDisruptionBudget": _narrow,
    "NetworkPolicy": _narrow,
    "NetworkPolicy's ports": _widen,
}


@pytest.mark.parametrize(("kind", "add"), ADDED.items(), ids=ADDED.keys())
def test_needs_apply_where_something_was_added_to_whom_it_is_for(model, settings, kind, add):
    chosen = _change(settings, {"networkPolicy": NETWORK_POLICY})
    made = desired_objects(_serving(model, chosen, CASES["two-replicas"].spec))
    [marked] = [mark_applied(one) for one in made if one["kind"] == kind.partition("'")[0]]
    changed = deepcopy(marked)
    add(changed["spec"])
    assert needs_apply(marked, changed)
    assert describe_held(changed, marked) != describe_held(marked, marked)


def test_is_owned(deployed_model, model, settings):
    service = desired_objects(_serving(model, settings, {}))[1]
    assert is_owned(service, deployed_model)
    assert not is_owned({"metadata": {"name": "other"}}, deployed_model)
    reborn = DeployedModel.model_validate(
        make_deployed_model() | {"metadata": {**make_deployed_model()["metadata"], "uid": "new"}}
    )
    assert not is_owned(service, reborn), "a namesake's objects are not ours"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"manager": "pierhead", "fieldsV1": {"f:spec": {"f:replicas": {}}}}, True),
        ({"manager": "pierhead", "fieldsV1": {"f:spec": {"f:template": {}}}}, False),
        ({"manager": "kube-controller-manager", "fieldsV1": {"f:spec": {"f:replicas": {}}}}, False),
        ({"manager": "pierhead", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}, False),
    ],
)
def test_owns_replicas(entry, expected):
    assert owns_replicas({"metadata": {"managedFields": [entry]}}) is expected
