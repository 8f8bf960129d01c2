"""Tables: Vertex AI's Endpoint and DeployedModel from and to custom resources."""

import pytest
from pierhead_api.endpoints import (
    MUTABLE,
    MUTABLE_BETA,
    DeployedModelBody,
    EndpointBody,
    make_deployed_model,
    make_endpoint,
    patch_deployed_model,
    patch_endpoint,
    patch_split,
    to_deployed_model,
    to_endpoint,
)
from pierhead_api.errors import InvalidArgumentError
from pierhead_api.objects import annotate, annotate_kept, compute_etag, read_kept
from pierhead_api.wire import parse, parse_mask

from tests.unit.api import conftest
from tests.unit.api.conftest import BETA, MADE, PARENT, PLACE, merge

NAMED = {"displayName": "x"}


def _make(body):
    return make_endpoint(parse(EndpointBody, NAMED | body), PLACE, "7")


CREATED = {
    "display name": ({}, {}),
    "description": ({"description": "d"}, {"description": "d"}),
    "timeout": (
        {"client_connection_config": {"inference_timeout": "30s"}},
        {"clientConnectionConfig": {"inferenceTimeout": "30s"}},
    ),
    "what only answers have": ({"etag": "x", "createTime": MADE, "deployedModels": []}, {}),
    "logging that is off": ({"predictRequestResponseLoggingConfig": {"samplingRate": 0.5}}, {}),
}


@pytest.mark.parametrize(("body", "spec"), CREATED.values(), ids=CREATED.keys())
def test_make_endpoint(body, spec):
    made = _make(body)
    assert made["spec"] == {"displayName": "x", **spec}
    assert (made["kind"], made["metadata"]["name"], made["metadata"]["namespace"]) == ("Endpoint", "7", "team-a")


def test_labels_become_labels():
    assert _make({"labels": {"team": "a"}})["metadata"]["labels"] == {"team": "a"}


REFUSED = {
    "no name": ({"displayName": ""}, "displayName: must be set"),
    "network": ({"network": "projects/1/global/networks/x"}, "network: is not supported"),
    "private service connect": ({"privateServiceConnectConfig": {"a": 1}}, "privateServiceConnectConfig: is not"),
    "encryption": ({"encryptionSpec": {"kmsKeyName": "x"}}, "encryptionSpec: is not supported"),
    "logging": ({"predictRequestResponseLoggingConfig": {"enabled": True}}, "enabled: predictRequestResponse"),
    "split": ({"trafficSplit": {"1": 100}}, "trafficSplit: nothing is deployed yet"),
    "label": ({"labels": {"a/b": "c"}}, "labels.a/b: "),
}


@pytest.mark.parametrize(("body", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_make_endpoint_names_what_is_not_supported(body, message):
    with pytest.raises(InvalidArgumentError) as caught:
        _make(body)
    assert str(caught.value).startswith(message)


PATCHES = {
    "display name": ({"displayName": "y", "description": "z"}, {"display_name"}, {"spec": {"displayName": "y"}}),
    "no description": ({}, {"description"}, {"spec": {"description": None}}),
    "labels": ({"labels": {"b": "c"}}, {"labels"}, {"metadata": {"labels": {"a": None, "b": "c"}}}),
    "timeout": (
        {"clientConnectionConfig": {"inferenceTimeout": "9s"}},
        {"client_connection_config"},
        {"spec": {"clientConnectionConfig": {"inferenceTimeout": "9s"}}},
    ),
    "nothing": ({"displayName": "y"}, set(), {}),
}


@pytest.mark.parametrize(("body", "fields", "expected"), PATCHES.values(), ids=PATCHES.keys())
def test_patch_endpoint(body, fields, expected):
    manifest = merge(conftest.make_endpoint(), {"metadata": {"labels": {"a": "1", "x/y": "z"}}})
    assert patch_endpoint(parse(EndpointBody, body), manifest, fields) == {"metadata": {}, "spec": {}, **expected}


@pytest.mark.parametrize(
    ("before", "split", "after"),
    [
        ({"1": 100}, {"2": 100}, {"2": 100}),
        ({"1": 100}, {"1": 20, "2": 80}, {"1": 20, "2": 80}),
        (None, {"1": 100}, {"1": 100}),
        ({"1": 100}, None, None),
        (None, None, None),
    ],
)
def test_patch_split_leaves_nobody_else(before, split, after):
    manifest = conftest.make_endpoint(**({"trafficSplit": before} if before else {}))
    assert merge(manifest["spec"], patch_split(manifest, split)).get("trafficSplit") == after


def test_to_endpoint():
    manifest = conftest.make_endpoint(description="d", trafficSplit={"11": 80, "12": 20})
    deployed = [conftest.make_deployed_model("12"), conftest.make_deployed_model("11")]
    answer = to_endpoint(merge(manifest, {"metadata": {"labels": {"team": "a"}}}), deployed, PLACE)
    assert [one["id"] for one in answer.pop("deployedModels")] == ["11", "12"]
    assert answer == {
        "name": f"{PARENT}/endpoints/7",
        "displayName": "Photos",
        "description": "d",
        "labels": {"team": "a"},
        "etag": compute_etag(merge(manifest, {"metadata": {"labels": {"team": "a"}}})),
        "createTime": MADE,
        "updateTime": MADE,
        "trafficSplit": {"11": 80, "12": 20},
    }


SPLITS = {
    "empty": (None, [], None),
    "the only one gets all": (None, ["11"], {"11": 100}),
    "nobody knows": (None, ["11", "12"], {"11": 0, "12": 0}),
    "as wanted": ({"11": 100}, ["11", "12"], {"11": 100, "12": 0}),
}


def test_to_endpoint_has_the_split_in_force_where_none_is_told():
    manifest = merge(conftest.make_endpoint(), {"status": {"trafficSplit": {"11": 70, "13": 30}}})
    answer = to_endpoint(manifest, [conftest.make_deployed_model(name) for name in ("11", "12")], PLACE)
    assert answer["trafficSplit"] == {"11": 100, "12": 0}


@pytest.mark.parametrize(("split", "deployed", "expected"), SPLITS.values(), ids=SPLITS.keys())
def test_to_endpoint_has_the_wanted_split(split, deployed, expected):
    manifest = conftest.make_endpoint(**({"trafficSplit": split} if split else {}))
    answer = to_endpoint(manifest, [conftest.make_deployed_model(name) for name in deployed], PLACE)
    assert answer.get("trafficSplit") == expected


def test_own_address_is_told_to_who_asked_for_it():
    asked = _make({"dedicatedEndpointEnabled": True})
    asked["metadata"]["creationTimestamp"] = MADE
    told = {"dedicatedEndpointEnabled": True, "dedicatedEndpointDns": "localhost:8080"}
    assert to_endpoint(asked, [], PLACE, "localhost:8080").items() >= told.items()
    assert not to_endpoint(conftest.make_endpoint(), [], PLACE, "localhost:8080").keys() & told.keys()


# --- DeployedModel ---------------------------------------------------------------------------------------------------

TARGET = {"endpoint": "7", "model": "photos", "modelVersion": "1", "displayName": "blue"}
CPU = "aiplatform.googleapis.com/prediction/online/cpu/utilization"
DEPLOYED = {
    "nothing said": ({}, {}),
    "dedicated": (
        {
            "dedicatedResources": {
                "machineSpec": {"machineType": "n1-standard-2", "acceleratorType": 11, "acceleratorCount": 1},
                "minReplicaCount": 1,
                "maxReplicaCount": 2.0,
                "autoscalingMetricSpecs": [{"metricName": CPU, "target": 70}],
            }
        },
        {
            "dedicatedResources": {
                "machineSpec": {
                    "machineType": "n1-standard-2",
                    "acceleratorType": "NVIDIA_L4",
                    "acceleratorCount": 1,
                },
                "minReplicaCount": 1,
                "maxReplicaCount": 2,
                "autoscalingMetricSpecs": [{"metricName": CPU, "target": 70}],
            }
        },
    ),
    "automatic": (
        {"automatic_resources": {"min_replica_count": 1, "max_replica_count": 3}},
        {"automaticResources": {"minReplicaCount": 1, "maxReplicaCount": 3}},
    ),
    "0 is not given": ({"automaticResources": {"minReplicaCount": 0}}, {"automaticResources": {}}),
    "a machine of nothing": (
        {"dedicatedResources": {"machineSpec": {"acceleratorType": 0, "acceleratorCount": 0}}},
        {"dedicatedResources": {}},
    ),
    "rollout options": (
        {"rolloutOptions": {"maxSurgePercentage": "50", "maxUnavailableReplicas": 0, "revisionNumber": 3}},
        {"rolloutOptions": {"maxSurgePercentage": 50, "maxUnavailableReplicas": 0}},
    ),
    "service account": ({"serviceAccount": "reader"}, {"serviceAccount": "reader"}),
    "logs": (
        {"enableAccessLogging": True, "disableContainerLogging": True},
        {"enableAccessLogging": True, "disableContainerLogging": True},
    ),
    "no logs asked for": ({"enableAccessLogging": False, "disableContainerLogging": False}, {}),
    "logs of containers, in v1beta1": ({"enableContainerLogging": True}, {}),
    "what others have no reservation for": (
        {"dedicatedResources": {"machineSpec": {"reservationAffinity": {"reservationAffinityType": 1}}}},
        {"dedicatedResources": {}},
    ),
}


@pytest.mark.parametrize(("body", "spec"), DEPLOYED.values(), ids=DEPLOYED.keys())
def test_make_deployed_model(body, spec):
    made = make_deployed_model(parse(DeployedModelBody, body, beta=True), BETA, "11", TARGET)
    assert made["spec"] == {**TARGET, **spec}


def test_explanation_is_kept():
    body = {"explanationSpec": {"parameters": {"topK": 1}}, "systemLabels": {"a": "b"}}
    made = make_deployed_model(parse(DeployedModelBody, body), PLACE, "11", TARGET)
    assert read_kept(made) == body
    made["metadata"]["creationTimestamp"] = MADE
    assert to_deployed_model(made, PLACE).items() >= body.items()


DEDICATED_REFUSED = {
    "both": ({"dedicatedResources": {}, "automaticResources": {}}, "deployedModel: give one of"),
    "shared": ({"sharedResources": "x"}, "sharedResources: is not supported: give dedicatedResources"),
    "spot": ({"dedicatedResources": {"spot": True}}, "spot: is not supported"),
    "partial": (
        {"dedicatedResources": {"minReplicaCount": 2, "requiredReplicaCount": 1}},
        "requiredReplicaCount: must be minReplicaCount",
    ),
    "gpu slice": ({"dedicatedResources": {"machineSpec": {"gpuPartitionSize": "1g"}}}, "gpuPartitionSize: is not"),
    "reservation": (
        {"dedicatedResources": {"machineSpec": {"reservationAffinity": {"reservationAffinityType": 3}}}},
        "reservationAffinity: is not",
    ),
    "scaling to zero": (
        {"dedicatedResources": {"scaleToZeroSpec": {"minScaleupPeriod": "300s"}}},
        "scaleToZeroSpec: is not supported",
    ),
    "scaling to zero with its defaults": (
        {"dedicatedResources": {"scaleToZeroSpec": {}}},
        "scaleToZeroSpec: is not supported",
    ),
    "replicas after zero": (
        {"dedicatedResources": {"initialReplicaCount": 1}},
        "initialReplicaCount: is not supported",
    ),
    "flexible start": ({"dedicatedResources": {"flexStart": {}}}, "flexStart: is not supported"),
    "fine-tuned": ({"fullFineTunedResources": {"modelInferenceUnitCount": 1}}, "fullFineTunedResources: is not"),
    "driver": ({"dedicatedResources": {"machineSpec": {"minGpuDriverVersion": "550"}}}, "minGpuDriverVersion: is not"),
    "several hosts": (
        {"dedicatedResources": {"machineSpec": {"multihostGpuNodeCount": 2}}},
        "multihostGpuNodeCount: is not",
    ),
    "logs and none": (
        {"enableContainerLogging": True, "disableContainerLogging": True},
        "enableContainerLogging: disableContainerLogging says otherwise",
    ),
    "google's service account": ({"serviceAccount": "a@b.iam.gserviceaccount.com"}, "serviceAccount: must be the name"),
    "who is replaced": ({"rolloutOptions": {"previousDeployedModel": "12"}}, "previousDeployedModel: is not supported"),
    "labels of a metric": (
        {
            "dedicatedResources": {
                "autoscalingMetricSpecs": [{"metricName": CPU, "monitoredResourceLabels": {"a": "b"}}]
            }
        },
        "monitoredResourceLabels: is not",
    ),
}


@pytest.mark.parametrize(("body", "message"), DEDICATED_REFUSED.values(), ids=DEDICATED_REFUSED.keys())
def test_make_deployed_model_names_what_is_not_supported(body, message):
    with pytest.raises(InvalidArgumentError) as caught:
        make_deployed_model(parse(DeployedModelBody, body, beta=True), BETA, "11", TARGET)
    assert str(caught.value).startswith(message)


def test_to_deployed_model():
    manifest = conftest.make_deployed_model(
        dedicatedResources={"machineSpec": {"machineType": "n1-standard-2"}, "minReplicaCount": 2}
    )
    since = "2026-11-22T11:05:00Z"
    ready = {
        "type": "Ready",
        "status": "False",
        "reason": "Unschedulable",
        "message": "no",
        "lastTransitionTime": since,
    }
    manifest["status"] = {"conditions": [ready], "modelVersion": "1", "availableReplicaCount": 1}
    assert to_deployed_model(manifest, PLACE) == {
        "id": "11",
        "model": f"{PARENT}/models/photos",
        "modelVersionId": "1",
        "displayName": "11",
        "createTime": MADE,
        "dedicatedResources": {
            "machineSpec": {"machineType": "n1-standard-2"},
            "minReplicaCount": 2,
            "maxReplicaCount": 2,
        },
        "status": {"message": "Unschedulable: no", "lastUpdateTime": since, "availableReplicaCount": 1},
    }


def test_rollout_options_are_answered_where_they_are_given_and_known():
    options = {"maxSurgeReplicas": 0, "maxUnavailableReplicas": 1}
    manifest = conftest.make_deployed_model(rolloutOptions=options)
    assert to_deployed_model(manifest, BETA)["rolloutOptions"] == options
    assert "rolloutOptions" not in to_deployed_model(manifest, PLACE)
    assert "rolloutOptions" not in to_deployed_model(conftest.make_deployed_model(), BETA)


# spec, what the release before kept -> v1's answer, and what v1beta1's has beside it
TOLD_LOGGING = {
    "nothing said": ({}, {}, {}, {"enableContainerLogging": True}),
    "access log": (
        {"enableAccessLogging": True, "disableContainerLogging": False},
        {},
        {"enableAccessLogging": True},
        {"enableContainerLogging": True},
    ),
    "no logs of containers": ({"disableContainerLogging": True}, {}, {"disableContainerLogging": True}, {}),
    "kept": (
        {},
        {"enableAccessLogging": True, "disableContainerLogging": True},
        {"enableAccessLogging": True, "disableContainerLogging": True},
        {},
    ),
    "kept, and told otherwise since": (
        {"disableContainerLogging": False},
        {"disableContainerLogging": True},
        {},
        {"enableContainerLogging": True},
    ),
    "kept by somebody else": ({}, {"enableAccessLogging": "yes"}, {}, {"enableContainerLogging": True}),
}


@pytest.mark.parametrize(("spec", "kept", "told", "beta"), TOLD_LOGGING.values(), ids=TOLD_LOGGING.keys())
def test_what_is_logged_is_answered(spec, kept, told, beta):
    manifest = annotate(conftest.make_deployed_model(**spec), annotate_kept(kept))
    plain = to_deployed_model(conftest.make_deployed_model(), PLACE)
    assert to_deployed_model(manifest, PLACE) == {**plain, **told}
    assert to_deployed_model(manifest, BETA) == {**plain, **told, **beta}


def test_without_resources_they_are_automatic():
    answer = to_deployed_model(conftest.make_deployed_model(), PLACE)
    assert answer["automaticResources"] == {"minReplicaCount": 1, "maxReplicaCount": 1}
    assert "status" not in answer


MUTATED = {
    "one field": (
        {"dedicatedResources": {"minReplicaCount": 3, "maxReplicaCount": 9}},
        "dedicatedResources.minReplicaCount",
        {"dedicatedResources": {"minReplicaCount": 3}},
    ),
    "in snake case": (
        {"dedicated_resources": {"max_replica_count": 9}},
        "dedicated_resources.max_replica_count",
        {"dedicatedResources": {"maxReplicaCount": 9}},
    ),
    "what is not given goes back to the default": (
        {"dedicatedResources": {}},
        "dedicatedResources.autoscalingMetricSpecs",
        {"dedicatedResources": {"autoscalingMetricSpecs": None}},
    ),
    "the whole, of which a part is given": (
        {"dedicatedResources": {"minReplicaCount": 3, "machineSpec": {"machineType": "x"}}},
        "dedicatedResources",
        {"dedicatedResources": {"minReplicaCount": 3}},
    ),
    "no mask": (
        {"id": "11", "dedicatedResources": {"minReplicaCount": 3}},
        "",
        {"dedicatedResources": {"minReplicaCount": 3}},
    ),
    "no logs of containers": (
        {"disableContainerLogging": True},
        "disableContainerLogging",
        {"disableContainerLogging": True},
    ),
    "logs of containers again": ({}, "disableContainerLogging", {"disableContainerLogging": False}),
    "logs of containers, in v1beta1": (
        {"enableContainerLogging": True},
        "enable_container_logging",
        {"disableContainerLogging": False},
    ),
    "no logs of containers, in v1beta1": ({}, "enableContainerLogging", {"disableContainerLogging": True}),
    "what is read, changed and sent": (
        {"enableContainerLogging": True, "disableContainerLogging": True},
        "disableContainerLogging",
        {"disableContainerLogging": True},
    ),
}


@pytest.mark.parametrize(("body", "mask", "expected"), MUTATED.values(), ids=MUTATED.keys())
def test_patch_deployed_model(body, mask, expected):
    sent = parse(DeployedModelBody, body, beta=True)
    fields = parse_mask(mask, sent.model_dump(exclude_unset=True), MUTABLE_BETA)
    manifest = conftest.make_deployed_model(dedicatedResources={"minReplicaCount": 1})
    assert patch_deployed_model(sent, manifest, fields) == expected


def test_resources_stay_of_their_kind():
    sent = parse(DeployedModelBody, {"automaticResources": {"minReplicaCount": 1}})
    manifest = conftest.make_deployed_model(dedicatedResources={})
    with pytest.raises(InvalidArgumentError, match="must have dedicatedResources"):
        patch_deployed_model(sent, manifest, {"automatic_resources"})


def test_machine_cannot_be_mutated():
    with pytest.raises(InvalidArgumentError, match=r"dedicatedResources\.machineSpec cannot be updated"):
        parse_mask("dedicatedResources.machineSpec", {}, MUTABLE)


def test_field_of_v1beta1_cannot_be_mutated_in_v1():
    with pytest.raises(InvalidArgumentError, match=r"enableContainerLogging cannot be updated; .*, disableContainer"):
        parse_mask("enableContainerLogging", {}, MUTABLE)


def test_annotation_speaks_for_no_fact_of_a_deployed_model():
    plain = conftest.make_deployed_model()
    kept = annotate_kept(
        {"status": {"availableReplicaCount": 9}, "privateEndpoints": {"a": "b"}, "systemLabels": {"a": "b"}}
    )
    answer = to_deployed_model(annotate(plain, kept), PLACE)
    assert answer == {**to_deployed_model(plain, PLACE), "systemLabels": {"a": "b"}}
