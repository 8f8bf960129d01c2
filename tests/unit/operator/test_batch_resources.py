"""The Job of a BatchPredictionJob against golden manifests."""

import json
from pathlib import Path

import pytest
import yaml
from pierhead_operator.resources.batch import (
    Batching,
    explain_document,
    make_document,
    make_job,
    make_worker_policies,
    output_folder,
)
from pierhead_operator.settings import NetworkPolicySettings
from pierhead_operator.types import BatchPredictionJob, Model

from tests.unit.operator.conftest import NETWORK_POLICY, make_batch, make_model

GOLDEN = Path(__file__).parents[2] / "golden"
L4 = {"machineSpec": {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}}
CASES = {
    "batch": {},
    "batch-full": {
        "modelVersion": "2",
        "modelParameters": {"confidenceThreshold": 0.5, "maxPredictions": 3},
        "inputConfig": {"instancesFormat": "csv", "gcsSource": {"uris": ["pvc://data/in/*.csv", "gs://in/more.csv"]}},
        "outputConfig": {
            "predictionsFormat": "parquet",
            "gcsDestination": {"outputUriPrefix": "pvc://results/photos"},
        },
        "dedicatedResources": {**L4, "startingReplicaCount": 2, "maxReplicaCount": 4},
        "manualBatchTuningParameters": {"batchSize": 64},
        "serviceAccount": "storage-reader",
        "podOverrides": {"priorityClassName": "low", "labels": {"team": "photos"}},
        "suspend": True,
        "activeDeadlineSeconds": 3600,
    },
}


def make_batching(settings, **spec):
    batch, model = BatchPredictionJob.model_validate(make_batch(**spec)), Model.model_validate(make_model())
    version = model.spec.version(batch.spec.model_version or "1")
    assert version
    return Batching(batch, model, version, settings)


@pytest.mark.parametrize("case", CASES)
def test_job(settings, case):
    job = make_job(make_batching(settings, **CASES[case]))
    golden = GOLDEN / case / "objects.yaml"
    assert job == yaml.safe_load(golden.read_text())


def test_workers_are_reached_by_who_asks_how_far_they_are(settings):
    assert make_worker_policies(make_batching(settings)) == []
    policy = NetworkPolicySettings.model_validate(NETWORK_POLICY)
    changed = settings.model_copy(update={"network_policy": policy})
    golden = GOLDEN / "batch-network-policy" / "objects.yaml"
    assert make_worker_policies(make_batching(changed)) == list(yaml.safe_load_all(golden.read_text()))


def test_policy_of_workers_is_that_of_their_pods(settings):
    changed = settings.model_copy(update={"network_policy": NetworkPolicySettings.model_validate(NETWORK_POLICY)})
    [policy] = make_worker_policies(make_batching(changed))
    pod = make_job(make_batching(changed, **CASES["batch-full"]))["spec"]["template"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_folder_is_the_models_and_of_the_moment():
    batch = BatchPredictionJob.model_validate(make_batch())
    model = Model.model_validate(make_model(displayName="Photos: all / of them"))
    assert output_folder(batch, model) == "gs://out/photos/prediction-Photos_all_of_them-2026_11_22T12_00_00Z"


def test_document_has_no_limit_but_the_systems(settings):
    assert explain_document(make_batching(settings)) is None
    uris = [f"gs://in/{'x' * 1000}/{number}" for number in range(119)]
    assert explain_document(make_batching(settings, inputConfig={"gcsSource": {"uris": uris}})) is None
    uris += [f"gs://in/{'y' * 1000}/{number}" for number in range(3)]
    batching = make_batching(settings, inputConfig={"gcsSource": {"uris": uris}})
    assert "name the files by *" in explain_document(batching)
    assert len(json.loads(make_document(batching))["inputUris"]) == 122
