"""The Job of a BatchPredictionJob against golden manifests."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pierhead_operator.resources.batch import (
    Batching,
    explain_document,
    find_output,
    make_document,
    make_job,
    make_output,
    make_worker_policies,
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
    return Batching(batch, model, version, settings, make_output(batch, model))


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


def _make_output(display_name="Photos", uid="1b4e28ba-2fa1-11d2-883f-0016d3cca427"):
    batch = make_batch()
    batch["metadata"]["uid"] = uid
    model = Model.model_validate(make_model(displayName=display_name))
    return make_output(BatchPredictionJob.model_validate(batch), model)


def test_folder_is_the_models_of_the_moment_and_of_the_job():
    assert _make_output("Photos: all / of them") == (
        "gs://out/photos/prediction-Photos_all_of_them-2026_11_22T12_00_00_1b4e28baZ"
    )


def test_jobs_of_one_model_prefix_and_second_have_folders_of_their_own():
    assert _make_output() != _make_output(uid="6c84fb90-12c4-11e1-840d-7b25c5ee775a")


@pytest.mark.parametrize(
    "display_name",
    [
        "a" * 128,
        "\u5199" * 128,
        "\U0001f5bc" * 128,
        "../../etc",
        "..",
        "/",
        " ",
        "a\nb",
        "%2e%2e%2f",
        "Fotos \u00e4\u00f6\u00fc",
    ],
    ids=ascii,
)
def test_folder_is_one_name_that_storage_takes(display_name):
    prefix, _, name = _make_output(display_name).rpartition("/")
    assert prefix == "gs://out/photos"
    assert len(name.encode()) <= 255
    assert re.fullmatch(r"prediction-[\w.-]+-2026_11_22T12_00_00_1b4e28baZ", name)


def test_folder_is_where_the_workers_write_to_whatever_the_status_tells(settings):
    """A 0.1.0 wrote the folder of the Model's present name into the status."""
    batch = make_batch(outputConfig={"gcsDestination": {"outputUriPrefix": "gs://out/$(X)/$$(Y)"}})
    batch["status"] = {"outputInfo": {"gcsOutputDirectory": "gs://out/told"}}
    batch = BatchPredictionJob.model_validate(batch)
    assert find_output(batch, None) == "gs://out/told"
    batching = make_batching(settings, outputConfig=batch.spec.output_config.dump())
    live = make_job(batching)
    assert find_output(batch, live) == batching.output
    assert "/$(X)/$$(Y)/" in batching.output
    for value in ("", "no JSON", "[]"):
        live["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "PIERHEAD_BATCH_JOB", "value": value}]
        assert find_output(batch, live) == "gs://out/told"


def test_document_has_no_limit_but_the_systems(settings):
    assert explain_document(make_batching(settings)) is None
    uris = [f"gs://in/{'x' * 1000}/{number}" for number in range(119)]
    assert explain_document(make_batching(settings, inputConfig={"gcsSource": {"uris": uris}})) is None
    uris += [f"gs://in/{'y' * 1000}/{number}" for number in range(3)]
    batching = make_batching(settings, inputConfig={"gcsSource": {"uris": uris}})
    assert "name the files by *" in explain_document(batching)
    assert len(json.loads(make_document(batching))["inputUris"]) == 122
