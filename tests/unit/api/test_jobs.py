"""Tables: Vertex AI's BatchPredictionJob from and to a custom resource."""

import pytest
from pierhead_api import objects
from pierhead_api.errors import InvalidArgumentError
from pierhead_api.jobs import JobBody, is_ended, make_job, to_job
from pierhead_api.wire import parse

from tests.unit.api import conftest
from tests.unit.api.conftest import BETA, MADE, PARENT, PLACE, merge

INPUT = {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://in/a.jsonl"]}}
OUTPUT = {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://out"}}
BODY = {"displayName": "nightly", "inputConfig": INPUT, "outputConfig": OUTPUT}
SPEC = {"displayName": "nightly", "model": "photos", "modelVersion": "1", "inputConfig": INPUT, "outputConfig": OUTPUT}


def _make(body):
    return make_job(parse(JobBody, BODY | body, beta=True), BETA, "21", "photos", "1")


CREATED = {
    "plain": ({}, {}),
    "parameters": ({"modelParameters": {"maxPredictions": 10}}, {"modelParameters": {"maxPredictions": 10}}),
    "workers": (
        {
            "dedicatedResources": {
                "machineSpec": {"machineType": "n1-standard-2", "acceleratorType": 5, "acceleratorCount": 1},
                "startingReplicaCount": 2,
                "maxReplicaCount": 8,
            }
        },
        {
            "dedicatedResources": {
                "machineSpec": {
                    "machineType": "n1-standard-2",
                    "acceleratorType": "NVIDIA_TESLA_T4",
                    "acceleratorCount": 1,
                },
                "startingReplicaCount": 2,
                "maxReplicaCount": 8,
            }
        },
    ),
    "no tuning": ({"manualBatchTuningParameters": {}}, {}),
    "tuning": (
        {"manual_batch_tuning_parameters": {"batch_size": 4}},
        {"manualBatchTuningParameters": {"batchSize": 4}},
    ),
    "in snake case": (
        {"input_config": {"instances_format": "csv", "gcs_source": {"uris": ["gs://a"]}}, "inputConfig": None},
        {"inputConfig": {"instancesFormat": "csv", "gcsSource": {"uris": ["gs://a"]}}},
    ),
    "whole objects": ({"instanceConfig": {"instanceType": "object"}}, {"instanceConfig": {"instanceType": "object"}}),
    "no instance config": ({"instanceConfig": {}}, {}),
    "keys and fields": (
        {"instance_config": {"instance_type": "array", "key_field": "id", "included_fields": ["b", "a"]}},
        {"instanceConfig": {"instanceType": "array", "keyField": "id", "includedFields": ["b", "a"]}},
    ),
    "errors alone": ({"disableContainerLogging": True}, {"disableContainerLogging": True}),
    "what only answers have": ({"state": 3, "createTime": MADE}, {}),
}


@pytest.mark.parametrize(("body", "spec"), CREATED.values(), ids=CREATED.keys())
def test_make_job(body, spec):
    assert _make(body)["spec"] == {**SPEC, **spec}


REFUSED = {
    "no name": ({"displayName": ""}, "displayName: must be set"),
    "container": ({"unmanagedContainerModel": {"artifactUri": "x"}}, "unmanagedContainerModel: is not supported"),
    "bigquery": ({"inputConfig": {"bigquerySource": {"inputUri": "bq://x"}}}, "bigquerySource: is not supported"),
    "to bigquery": ({"outputConfig": {"bigqueryDestination": {}, "gcsDestination": {}}}, "outputConfig.gcsDestination"),
    "records": ({"inputConfig": {**INPUT, "instancesFormat": "tf-record"}}, "instancesFormat: tf-record is not"),
    "no input": ({"inputConfig": {"instancesFormat": "jsonl"}}, "inputConfig.gcsSource.uris: must be set"),
    "format of the output": ({"outputConfig": {**OUTPUT, "predictionsFormat": "xml"}}, "predictionsFormat: xml is not"),
    "fields": (
        {"instanceConfig": {"includedFields": ["a"], "excludedFields": ["b"]}},
        "instanceConfig.excludedFields: must",
    ),
    "fields of a list": (
        {"inputConfig": {**INPUT, "instancesFormat": "file-list"}, "instanceConfig": {"keyField": "a"}},
        "instanceConfig: a file-list has no fields",
    ),
    "no such type": ({"instanceConfig": {"instanceType": "list"}}, "instanceType: list is not supported"),
    "explanation": ({"generateExplanation": True}, "generateExplanation: is not supported"),
    "endpoint": ({"endpoint": f"{PARENT}/endpoints/7"}, "endpoint: is not supported: name the model in model"),
    "monitoring": ({"modelMonitoringConfig": {"a": 1}}, "modelMonitoringConfig: is not supported"),
    "spot": ({"dedicatedResources": {"spot": True}}, "spot: is not supported"),
    "flexible start": ({"dedicatedResources": {"flexStart": {}}}, "flexStart: is not supported"),
    "parameters": ({"modelParameters": [1]}, "modelParameters: must be an object"),
}


@pytest.mark.parametrize(("body", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_make_job_names_what_is_not_supported(body, message):
    with pytest.raises(InvalidArgumentError) as caught:
        _make(body)
    assert str(caught.value).startswith(message)


def test_to_job_at_its_begin():
    assert to_job(conftest.make_job(), "Photos", PLACE) == {
        "name": f"{PARENT}/batchPredictionJobs/21",
        "displayName": "21",
        "createTime": MADE,
        "updateTime": MADE,
        "model": f"{PARENT}/models/photos@1",
        "modelDisplayName": "Photos",
        "modelVersionId": "1",
        "inputConfig": INPUT,
        "outputConfig": OUTPUT,
        "dedicatedResources": {"startingReplicaCount": 1, "maxReplicaCount": 1},
        "state": "JOB_STATE_PENDING",
    }


@pytest.mark.parametrize(
    ("spec", "kept", "told"),
    [
        ({"disableContainerLogging": True}, {}, {"disableContainerLogging": True}),
        ({"disableContainerLogging": False}, {}, {}),
        ({}, {"disableContainerLogging": True}, {"disableContainerLogging": True}),
    ],
)
def test_what_is_logged_is_answered(spec, kept, told):
    manifest = objects.annotate(conftest.make_job(**spec), objects.annotate_kept(kept))
    assert to_job(manifest, "Photos", PLACE) == {**to_job(conftest.make_job(), "Photos", PLACE), **told}


STATUS = {
    "state": "JOB_STATE_FAILED",
    "modelVersion": "1",
    "startTime": "2026-11-22T11:01:00Z",
    "endTime": "2026-11-22T11:02:00Z",
    "updateTime": "2026-11-22T11:02:00.123456Z",
    "completionStats": {"successfulCount": 10, "failedCount": 2},
    "outputInfo": {"gcsOutputDirectory": "gs://out/prediction-x"},
    "resourcesConsumed": {"replicaHours": 0.5},
    "error": {"code": 3, "message": "InputInvalid: no JSON"},
    "partialFailures": [{"code": 3, "message": "shard 0"}],
    "progress": "100%",
}


def test_to_job_at_its_end():
    answer = to_job({**conftest.make_job(), "status": STATUS}, "Photos", PLACE)
    told = {name: value for name, value in STATUS.items() if name not in ("modelVersion", "progress")}
    counts = {"successfulCount": "10", "failedCount": "2", "incompleteCount": "-1"}
    assert answer.items() >= {**told, "completionStats": counts, "modelVersionId": "1"}.items()
    assert "progress" not in answer


@pytest.mark.parametrize(
    ("state", "ended"), [(None, False), ("JOB_STATE_CANCELLING", False), ("JOB_STATE_PARTIALLY_SUCCEEDED", True)]
)
def test_is_ended(state, ended):
    assert is_ended(merge(conftest.make_job(), {"status": {"state": state}})) is ended


def test_annotation_speaks_for_no_fact_of_a_job():
    lies = {"endTime": "2020-01-01T00:00:00Z", "outputInfo": {"gcsOutputDirectory": "gs://m"}, "error": {"code": 3}}
    kept = objects.annotate_kept({**lies, "explanationSpec": {"a": 1}})
    answer = to_job(objects.annotate(conftest.make_job(), kept), "Photos", PLACE)
    assert answer == {**to_job(conftest.make_job(), "Photos", PLACE), "explanationSpec": {"a": 1}}


def test_instance_config_comes_back_as_it_was_sent():
    config = {"instanceType": "array", "keyField": "id", "includedFields": ["b", "a"]}
    made = _make({"instanceConfig": config})
    read = {**conftest.make_job(), "spec": made["spec"]}
    assert to_job(read, "Photos", PLACE)["instanceConfig"] == config
    assert "instanceConfig" not in to_job(conftest.make_job(), "Photos", PLACE)
