"""The CRDs on a real API server: each rule refuses its bad manifest with its message, and takes the good one."""

import copy
import json

import pytest
from pierhead_operator.crd import make_crd
from pierhead_operator.types import KINDS

from tests.kube import KubectlError, scratch_namespace


def _object(kind, spec, name="photos"):
    return {"apiVersion": "pierhead.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


MODEL = _object(
    "Model",
    {
        "defaultVersion": "1",
        "versions": [
            {"name": "1", "aliases": ["stable"], "artifactUri": "gs://models/photos/1"},
            {"name": "2", "artifactUri": "gs://models/photos/2", "digest": "sha256:" + "a" * 64},
        ],
    },
)
ENDPOINT = _object(
    "Endpoint",
    {
        "trafficSplit": {"photos-1": 80, "photos-2": 20},
        "access": "Standard",
        "mirror": {"deployedModel": "photos-2", "percent": 10},
        "clientConnectionConfig": {"inferenceTimeout": "120s"},
        "maxRequestBytes": 1048576,
    },
)
_CLAIM = {"name": "nic", "resourceClaimTemplateName": "nic"}
DEPLOYED_MODEL = _object(
    "DeployedModel",
    {
        "endpoint": "photos",
        "model": "photos",
        "dedicatedResources": {
            "machineSpec": {
                "machineType": "g2-standard-8",
                "acceleratorType": "NVIDIA_L4",
                "acceleratorCount": 1,
                "resourceClaims": [_CLAIM],
            },
            "minReplicaCount": 1,
            "maxReplicaCount": 4,
            "autoscalingMetricSpecs": [{"metricName": "cpu/utilization", "target": 60}],
        },
        "serviceAccount": "photos",
        "podOverrides": {
            "labels": {"team": "photos"},
            "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [{"matchExpressions": [{"key": "ssd", "operator": "Exists"}]}]
                    }
                }
            },
        },
    },
)
BATCH_PREDICTION_JOB = _object(
    "BatchPredictionJob",
    {
        "model": "photos",
        "modelParameters": {"confidenceThreshold": 0.5, "maxPredictions": 3},
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://in/photos.jsonl"]}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://out/photos"}},
        "dedicatedResources": {"startingReplicaCount": 2, "maxReplicaCount": 8},
    },
)
GOOD = {o["kind"]: o for o in (MODEL, ENDPOINT, DEPLOYED_MODEL, BATCH_PREDICTION_JOB)}


def changed(manifest, path, value):
    """A copy with the field at `path` (dots between keys, numbers for items) set, or removed where None."""
    result = copy.deepcopy(manifest)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target = result
    for parent in parents:
        target = target[parent]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return result


_TERM = (
    "spec.podOverrides.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    ".nodeSelectorTerms.0.matchExpressions.0"
)

# what is wrong: manifest, what the person reads
REFUSED_AT_CREATION = {
    "split sums to 90": (
        changed(ENDPOINT, "spec.trafficSplit.photos-2", 10), "trafficSplit must sum to 100, or be left out"),
    "split sums to 110": (
        changed(ENDPOINT, "spec.trafficSplit.photos-2", 30), "trafficSplit must sum to 100, or be left out"),
    "empty split": (changed(ENDPOINT, "spec.trafficSplit", {}), "trafficSplit must sum to 100, or be left out"),
    "negative weight": (changed(ENDPOINT, "spec.trafficSplit.photos-2", -20), "greater than or equal to 0"),
    "max below min": (
        changed(DEPLOYED_MODEL, "spec.dedicatedResources.minReplicaCount", 5),
        "maxReplicaCount must be at least minReplicaCount"),
    "max below the default of min": (
        changed(DEPLOYED_MODEL, "spec.dedicatedResources", {"maxReplicaCount": 0}), "greater than or equal to 1"),
    "automatic max below min": (
        changed(changed(DEPLOYED_MODEL, "spec.dedicatedResources", None),
                "spec.automaticResources", {"minReplicaCount": 3, "maxReplicaCount": 2}),
        "maxReplicaCount must be at least minReplicaCount"),
    "scaling to zero": (
        changed(DEPLOYED_MODEL, "spec.dedicatedResources.minReplicaCount", 0),
        "minReplicaCount must be at least 1: scaling to zero is not supported"),
    "surge in two ways": (
        changed(DEPLOYED_MODEL, "spec.rolloutOptions", {"maxSurgeReplicas": 1, "maxSurgePercentage": 10}),
        "give at most one of maxSurgeReplicas and maxSurgePercentage"),
    "missing in two ways": (
        changed(DEPLOYED_MODEL, "spec.rolloutOptions", {"maxUnavailableReplicas": 1, "maxUnavailablePercentage": 10}),
        "give at most one of maxUnavailableReplicas and maxUnavailablePercentage"),
    "no replica may move": (
        changed(DEPLOYED_MODEL, "spec.rolloutOptions", {"maxSurgeReplicas": 0}), "without a surge, maxUnavailable"),
    "no percent of the replicas may move": (
        changed(DEPLOYED_MODEL, "spec.rolloutOptions", {"maxSurgePercentage": 0, "maxUnavailablePercentage": 0}),
        "without a surge, maxUnavailable"),
    "timeout of hours": (
        changed(ENDPOINT, "spec.clientConnectionConfig.inferenceTimeout", "3601s"),
        "inferenceTimeout must be at most 3600s"),
    "timeout without a unit": (
        changed(ENDPOINT, "spec.clientConnectionConfig.inferenceTimeout", "60"), "should match"),
    "mirror of more than all": (changed(ENDPOINT, "spec.mirror.percent", 101), "less than or equal to 100"),
    "access to whom": (changed(ENDPOINT, "spec.access", "Public"), 'Unsupported value: "Public"'),
    "code by the way of the environment": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.env.0", {"name": "PIERHEAD_ALLOW_CODE", "value": "true"}),
        "the artifact, its digest and whether it is code are the Model version's to say"),
    "code by another spelling": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.env.0", {"name": "pierhead_Allow_code", "value": "true"}),
        "the artifact, its digest and whether it is code are the Model version's to say"),
    "code by the dynamic linker": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.env.0", {"name": "LD_PRELOAD", "value": "/models/x.so"}),
        "variables by which a pod would run other code"),
    "code by Python's own variables": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.env.0", {"name": "PYTHONPATH", "value": "/models"}),
        "variables by which a pod would run other code"),
    "label of Pierhead's": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.labels", {"pierhead.dev/deployed-model": "another"}),
        "labels and annotations by which Pierhead and Kubernetes know whose a pod is"),
    "annotation of Pierhead's": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.annotations", {"pierhead.dev/pinned": "{}"}),
        "labels and annotations by which Pierhead and Kubernetes know whose a pod is"),
    "label of a job's controller": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.labels", {"batch.kubernetes.io/controller-uid": "x"}),
        "labels and annotations by which Pierhead and Kubernetes know whose a pod is"),
    "priority of the cluster's own pods": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.priorityClassName", "system-node-critical"),
        "priority classes that begin with system- are for the cluster's own pods"),
    "variable with a number for its value": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.env.0", {"name": "A", "value": 4}), "env[0].value: Invalid value"),
    "variable with two values": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.env.0.value", "b"), "give a variable a value or a valueFrom"),
    "variable from nowhere": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.env.0.valueFrom", {}),
        "give one of configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef, fileKeyRef"),
    "variable from two places": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.env.0.valueFrom.fieldRef", {"fieldPath": "metadata.name"}),
        "give one of configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef, fileKeyRef"),
    "variable from a Secret without a key": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.env.0.valueFrom.secretKeyRef.key", None), "key: Required value"),
    "toleration of everything by accident": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.tolerations.0", {}), "operator must be Exists where key is left out"),
    "toleration with a value too much": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.tolerations.0.value", "yes"),
        "value must be left out where operator is Exists"),
    "toleration for a time": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.tolerations.0.tolerationSeconds", 5),
        "effect must be NoExecute where tolerationSeconds is given"),
    "toleration of an unknown effect": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.tolerations.0.effect", "NoShedule"), 'Unsupported value: "NoShedule"'),
    "affinity without values": (
        changed(DEPLOYED_MODEL, f"{_TERM}.operator", "In"), "values must be given where operator is In or NotIn"),
    "affinity with values too much": (
        changed(DEPLOYED_MODEL, f"{_TERM}.values", ["a"]),
        "values must be left out where operator is Exists or DoesNotExist"),
    "affinity above nothing": (
        changed(DEPLOYED_MODEL, f"{_TERM}.operator", "Gt"), "values must be one number where operator is Gt or Lt"),
    "affinity of keys without labels": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.affinity.podAntiAffinity", {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "matchLabelKeys": ["pod-template-hash"]}]}),
        "labelSelector must be given where matchLabelKeys or mismatchLabelKeys is"),
    "affinity for no topology": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.affinity.podAffinity", {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}}]}),
        "topologyKey: Required value"),
    "claim of nothing": (
        changed(DEPLOYED_MODEL, "spec.dedicatedResources.machineSpec.resourceClaims.0.resourceClaimTemplateName", None),
        "give one of resourceClaimName, resourceClaimTemplateName"),
    "claim twice": (
        changed(DEPLOYED_MODEL, "spec.dedicatedResources.machineSpec.resourceClaims", [_CLAIM, _CLAIM]),
        "a resource claim's name must be there once"),
    "variable without a name": (
        changed(DEPLOYED_MODEL, "spec.podOverrides.env.0", {"value": "1"}), "env[0].name: Required value"),
    "claim without a name": (
        changed(DEPLOYED_MODEL, "spec.dedicatedResources.machineSpec.resourceClaims.0", {}),
        "resourceClaims[0].name: Required value"),
    "automatic and dedicated": (
        changed(DEPLOYED_MODEL, "spec.automaticResources", {}),
        "give at most one of dedicatedResources and automaticResources"),
    "accelerator without count": (
        changed(DEPLOYED_MODEL, "spec.dedicatedResources.machineSpec.acceleratorCount", None),
        "acceleratorType and acceleratorCount go together"),
    "accelerator without type": (
        changed(DEPLOYED_MODEL, "spec.dedicatedResources.machineSpec.acceleratorType", None),
        "acceleratorType and acceleratorCount go together"),
    "unknown metric": (
        changed(DEPLOYED_MODEL, "spec.dedicatedResources.autoscalingMetricSpecs.0.metricName", "luck"),
        'Unsupported value: "luck"'),
    "default version not there": (
        changed(MODEL, "spec.defaultVersion", "3"), "defaultVersion must be the name of one of versions"),
    "no version": (changed(MODEL, "spec.versions", []), "should have at least 1 items"),
    "version twice": (changed(MODEL, "spec.versions.1.name", "1"), "Duplicate value"),
    "alias of two versions": (
        changed(MODEL, "spec.versions.1.aliases", ["stable"]), "an alias must belong to one version"),
    "alias that is another version's name": (
        changed(changed(MODEL, "spec.versions.1.name", "second"), "spec.versions.0.aliases", ["second"]),
        "an alias must belong to one version"),
    "artifact nowhere": (changed(MODEL, "spec.versions.0.artifactUri", "photos/1"), "should match"),
    "artifact where nobody can list": (
        changed(MODEL, "spec.versions.0.artifactUri", "https://models/photos/1"), "should match"),
    "no such digest": (changed(MODEL, "spec.versions.1.digest", "md5:0"), "should match"),
    "endpoint left out": (changed(DEPLOYED_MODEL, "spec.endpoint", None), "spec.endpoint: Required value"),
    "workers max below start": (
        changed(BATCH_PREDICTION_JOB, "spec.dedicatedResources.maxReplicaCount", 1),
        "maxReplicaCount must be at least startingReplicaCount"),
    "a container of one's own": (
        changed(BATCH_PREDICTION_JOB, "spec.unmanagedContainerModel", {"artifactUri": "gs://a"}),
        "unmanagedContainerModel is not supported"),
    "input from nowhere": (
        changed(BATCH_PREDICTION_JOB, "spec.inputConfig.gcsSource.uris", ["photos.jsonl"]), "uris[0] in body should match"),
    "fields both ways": (
        changed(BATCH_PREDICTION_JOB, "spec.instanceConfig", {"includedFields": ["a"], "excludedFields": ["b"]}),
        "give at most one of includedFields and excludedFields"),
    "key that is excluded": (
        changed(BATCH_PREDICTION_JOB, "spec.instanceConfig", {"keyField": "a", "excludedFields": ["a"]}),
        "keyField is left out of what the model gets: take it out of excludedFields"),
    "no such instance type": (
        changed(BATCH_PREDICTION_JOB, "spec.instanceConfig", {"instanceType": "list"}), "Unsupported value: \"list\""),
    "no input": (changed(BATCH_PREDICTION_JOB, "spec.inputConfig", None), "spec.inputConfig: Required value"),
    "name too long": (changed(MODEL, "metadata.name", "x" * 64), "metadata.name must be at most 63 characters"),
    "name with dots": (changed(ENDPOINT, "metadata.name", "a.b"), "metadata.name must be at most 63 characters"),
}  # fmt: skip

# what may not change: manifest, change, what the person reads
REFUSED_AT_UPDATE = {
    "artifact of a version": (
        MODEL, changed(MODEL, "spec.versions.0.artifactUri", "gs://models/photos/9"), "a written version never changes"),
    "digest of a version": (
        MODEL, changed(MODEL, "spec.versions.1.digest", "sha256:" + "b" * 64), "a written version never changes"),
    "digest added": (
        MODEL, changed(MODEL, "spec.versions.0.digest", "sha256:" + "b" * 64), "a written version never changes"),
    "code allowed afterwards": (
        MODEL, changed(MODEL, "spec.versions.0.allowCode", True), "a written version never changes"),
    "another runtime": (
        MODEL, changed(MODEL, "spec.versions.0.runtime", "OpenVINO"), "a written version never changes"),
    "endpoint": (DEPLOYED_MODEL, changed(DEPLOYED_MODEL, "spec.endpoint", "other"), "endpoint is immutable"),
    "model": (DEPLOYED_MODEL, changed(DEPLOYED_MODEL, "spec.model", "other"), "model is immutable"),
    "model of a job": (
        BATCH_PREDICTION_JOB, changed(BATCH_PREDICTION_JOB, "spec.model", "other"), "model is immutable"),
    "input of a job": (
        BATCH_PREDICTION_JOB,
        changed(BATCH_PREDICTION_JOB, "spec.inputConfig.gcsSource.uris", ["gs://in/others.jsonl"]),
        "inputConfig is immutable"),
    "output of a job": (
        BATCH_PREDICTION_JOB,
        changed(BATCH_PREDICTION_JOB, "spec.outputConfig.predictionsFormat", "csv"), "outputConfig is immutable"),
    "fields of a job": (
        changed(BATCH_PREDICTION_JOB, "spec.instanceConfig", {"keyField": "id"}),
        changed(BATCH_PREDICTION_JOB, "spec.instanceConfig", {"keyField": "name"}), "instanceConfig is immutable"),
    "cancelled job that is to go on": (
        changed(BATCH_PREDICTION_JOB, "spec.cancel", True), BATCH_PREDICTION_JOB, "a job that was cancelled stays so"),
}  # fmt: skip

TAKEN_AT_UPDATE = {
    "rolls without a surge": (
        DEPLOYED_MODEL,
        changed(DEPLOYED_MODEL, "spec.rolloutOptions", {"maxSurgeReplicas": 0, "maxUnavailablePercentage": 10})),
    "rolls with nobody missing": (
        DEPLOYED_MODEL, changed(DEPLOYED_MODEL, "spec.rolloutOptions", {"maxUnavailableReplicas": 0})),
    "new version, made the default": (
        MODEL,
        changed(changed(MODEL, "spec.versions", [*MODEL["spec"]["versions"], {"name": "3", "artifactUri": "gs://m/3"}]),
                "spec.defaultVersion", "3")),
    "new versions in other clouds": (
        MODEL,
        changed(MODEL, "spec.versions", [*MODEL["spec"]["versions"], {"name": "3", "artifactUri": "s3://m/3"},
                                         {"name": "4", "artifactUri": "az://m/4", "allowCode": True}])),
    "the runtime that it had by default": (MODEL, changed(MODEL, "spec.versions.0.runtime", "PyTorch")),
    "code not allowed, as before": (MODEL, changed(MODEL, "spec.versions.0.allowCode", False)),
    "alias moved": (
        MODEL,
        changed(changed(MODEL, "spec.versions.0.aliases", []), "spec.versions.1.aliases", ["stable"])),
    "split left out": (ENDPOINT, changed(ENDPOINT, "spec.trafficSplit", None)),
    "more replicas": (DEPLOYED_MODEL, changed(DEPLOYED_MODEL, "spec.dedicatedResources.maxReplicaCount", 9)),
}  # fmt: skip


@pytest.fixture(scope="module")
def kubectl(cluster):
    """One namespace for all: nothing that is refused comes to be, and names are not shared."""
    # Nothing here shall run: a quota keeps the pods of what is taken away.
    with scratch_namespace("crds") as kubectl:
        kubectl("create", "quota", "none", "--hard=pods=0")
        yield kubectl


def replace(kubectl, manifest):
    """What is left out is gone, as with `kubectl replace`; but that conflicts with a status that is written meanwhile."""
    patch = [{"op": "replace", "path": "/spec", "value": manifest["spec"]}]
    kubectl("patch", manifest["kind"], manifest["metadata"]["name"], "--type", "json", "--patch", json.dumps(patch))


def create(kubectl, manifest):
    kubectl("create", "--filename", "-", stdin=json.dumps(manifest))


@pytest.fixture
def created(kubectl):
    """Creates a manifest for one test."""
    there = []

    def make(manifest):
        create(kubectl, manifest)
        there.append((manifest["kind"], manifest["metadata"]["name"]))

    yield make
    for kind, name in there:
        kubectl("delete", kind, name)


@pytest.mark.parametrize(("manifest", "message"), REFUSED_AT_CREATION.values(), ids=REFUSED_AT_CREATION.keys())
def test_bad_manifest_is_refused_with_its_message(kubectl, manifest, message):
    with pytest.raises(KubectlError) as refusal:
        create(kubectl, manifest)
    assert message in str(refusal.value)


@pytest.mark.parametrize(("before", "after", "message"), REFUSED_AT_UPDATE.values(), ids=REFUSED_AT_UPDATE.keys())
def test_bad_change_is_refused_with_its_message(kubectl, created, before, after, message):
    created(before)
    with pytest.raises(KubectlError) as refusal:
        replace(kubectl, after)
    assert message in str(refusal.value)


@pytest.mark.parametrize(("before", "after"), TAKEN_AT_UPDATE.values(), ids=TAKEN_AT_UPDATE.keys())
def test_good_change_is_taken(kubectl, created, before, after):
    created(before)
    replace(kubectl, after)
    kind, name = after["kind"], after["metadata"]["name"]
    assert kubectl.get(kind, name)["metadata"]["generation"] == 2


@pytest.mark.parametrize("kind", GOOD)
def test_good_manifest_is_taken_and_only_sensible_defaults_are_filled_in(kubectl, created, kind):
    created(GOOD[kind])
    assert kubectl.get(kind, "photos")["spec"] == GOOD[kind]["spec"]


def _messages(node):
    if isinstance(node, dict):
        yield from (rule["message"] for rule in node.get("x-kubernetes-validations", []))
        node = node.values()
    if not isinstance(node, str | int | None):
        for child in node:
            yield from _messages(child)


def test_every_rule_has_its_bad_manifest():
    seen = [message for *_, message in (*REFUSED_AT_CREATION.values(), *REFUSED_AT_UPDATE.values())]
    for kind in KINDS:
        for message in _messages(make_crd(kind)["spec"]):
            assert any(message.startswith(part) for part in seen), message


def test_kubectl_shows_all_kinds_by_category_and_short_names(kubectl, created):
    for manifest in GOOD.values():
        created(manifest)
    shown = kubectl("get", "pierhead")
    for kind in GOOD:
        assert f"{kind.lower()}.pierhead.dev/photos" in shown
    for short_name, columns in {
        "mdl": ["NAME", "DEFAULT", "READY", "AGE"],
        "pep": ["NAME", "READY", "REASON", "TRAFFIC", "AGE"],
        "dm": ["NAME", "ENDPOINT", "MODEL", "VERSION", "READY", "REASON", "REPLICAS", "AGE"],
        "bpj": ["NAME", "MODEL", "STATE", "PROGRESS", "READY", "REASON", "AGE"],
    }.items():
        assert kubectl("get", short_name).splitlines()[0].split() == columns
