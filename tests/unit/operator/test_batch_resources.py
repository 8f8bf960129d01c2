"""The Job of a BatchPredictionJob against golden manifests."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pierhead_operator.resources import selector
from pierhead_operator.resources.batch import (
    Batching,
    decide_parallelism,
    explain_document,
    explain_instance_config,
    find_output,
    make_control,
    make_document,
    make_job,
    make_output,
    make_worker_policies,
)
from pierhead_operator.settings import ALLOWED_URI, BatchSettings, NetworkPolicySettings
from pierhead_operator.types import BatchPredictionJob, Model
from pierhead_server.batch.allowed import DEFAULT, ENTRY

from tests.unit.operator.conftest import NETWORK_POLICY, make_batch, make_model

GOLDEN = Path(__file__).parents[2] / "golden"
L4 = {"machineSpec": {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}}
CASES = {
    "batch": {},
    "batch-full": {
        "modelVersion": "2",
        "modelParameters": {"confidenceThreshold": 0.5, "maxPredictions": 3},
        "instanceConfig": {"instanceType": "array", "keyField": "id", "excludedFields": ["size"]},
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


def test_user_of_workers_is_left_to_a_cluster_that_chooses_it(settings):
    server = settings.server.model_copy(update={"arbitrary_user": True})
    job = make_job(make_batching(settings.model_copy(update={"server": server})))
    context = job["spec"]["template"]["spec"]["securityContext"]
    assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


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


def test_worker_is_never_behind_a_service_of_a_deployed_model(settings):
    """Whatever an older CRD let through."""
    labels = {"pierhead.dev/deployed-model": "photos-1", "pierhead.dev/endpoint": "photos", "team": "a"}
    template = make_job(make_batching(settings, podOverrides={"labels": labels}))["spec"]["template"]
    assert not selector("photos-1").items() <= template["metadata"]["labels"].items()
    assert template["metadata"]["labels"]["team"] == "a"


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


KUEUE = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "low"}


def test_queue_gets_its_labels_and_may_begin_with_fewer_workers(settings):
    resources = {"startingReplicaCount": 2, "maxReplicaCount": 8}
    job = make_job(make_batching(settings, labels={**KUEUE, "team": "photos"}, dedicatedResources=resources))
    assert job["metadata"]["labels"].items() >= KUEUE.items()
    assert "team" not in job["metadata"]["labels"]
    assert job["metadata"]["annotations"]["kueue.x-k8s.io/job-min-parallelism"] == "2"
    assert (job["spec"]["suspend"], job["spec"]["parallelism"], job["spec"]["completions"]) == (True, 8, 8)
    # Kueue refuses a minimum that is not below the maximum.
    same = make_job(make_batching(settings, labels=KUEUE, dedicatedResources={"startingReplicaCount": 8}))
    assert "kueue.x-k8s.io/job-min-parallelism" not in same["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("parallelism", "running", "expected"),
    [(2, 0, 2), (2, 1, 2), (2, 2, 4), (4, 3, 4), (4, 4, 8), (8, 8, 10), (10, 10, 10), (16, 16, 10), (0, 0, 0)],
)
def test_workers_are_twice_as_many_once_all_run(parallelism, running, expected):
    resources = {"startingReplicaCount": 2, "maxReplicaCount": 10}
    job = BatchPredictionJob.model_validate(make_batch(dedicatedResources=resources))
    assert decide_parallelism(job, {"parallelism": parallelism, "completions": 10}, running) == expected


def test_workers_begin_again_as_at_first_after_they_were_taken_away():
    resources = {"startingReplicaCount": 2, "maxReplicaCount": 10}
    job = BatchPredictionJob.model_validate(make_batch(dedicatedResources=resources, suspend=True))
    assert decide_parallelism(job, {"parallelism": 8, "completions": 10}, 0) == 2


def test_workers_are_no_more_than_a_maximum_that_was_lowered_nor_than_parts():
    for most, expected in ((3, 3), (20, 10)):
        job = BatchPredictionJob.model_validate(make_batch(dedicatedResources={"maxReplicaCount": most}))
        assert decide_parallelism(job, {"parallelism": 10, "completions": 10}, 10) == expected


ANNOTATION = "pierhead.dev/active-deadline-seconds"
# The spec's deadline; the Job's, and the one that it was given by us -> what is changed.
DEADLINES = {
    "none": (None, None, None, {}),
    "as it is": (60, 60, "60", {}),
    "new": (60, None, None, {"spec": {"activeDeadlineSeconds": 60}, "metadata": {"annotations": {ANNOTATION: "60"}}}),
    "another": (90, 60, "60", {"spec": {"activeDeadlineSeconds": 90}, "metadata": {"annotations": {ANNOTATION: "90"}}}),
    "removed": (None, 60, "60", {"spec": {"activeDeadlineSeconds": None}, "metadata": {"annotations": {ANNOTATION: None}}}),
    "changed by hand": (60, 90, "60", {"spec": {"activeDeadlineSeconds": 60}}),
    "somebody else's": (None, 3600, None, {}),
    "of a 0.1.0": (60, 60, None, {"metadata": {"annotations": {ANNOTATION: "60"}}}),
}  # fmt: skip


@pytest.mark.parametrize("row", DEADLINES.values(), ids=DEADLINES.keys())
def test_deadline_is_the_specs_and_goes_with_it(row):
    wanted, there, asked, expected = row
    job = BatchPredictionJob.model_validate(make_batch(**({"activeDeadlineSeconds": wanted} if wanted else {})))
    spec = {"suspend": False, "parallelism": 1, "completions": 1}
    live = {
        "metadata": {"annotations": {ANNOTATION: asked} if asked else {}},
        "spec": {**spec, "activeDeadlineSeconds": there} if there else spec,
    }
    assert make_control(job, live, running=0) == expected


@pytest.mark.parametrize("labels", [KUEUE, {}], ids=["of its owner, too", "of the Job alone"])
def test_what_a_queue_decides_is_not_taken_back(labels):
    """An installation of Kueue may put all Jobs into a default queue."""
    job = BatchPredictionJob.model_validate(make_batch(labels=labels, dedicatedResources={"maxReplicaCount": 8}))
    for suspend, parallelism, running in ((True, 8, 0), (False, 3, 3), (True, 3, 3)):
        spec = {"suspend": suspend, "parallelism": parallelism, "completions": 8}
        assert make_control(job, {"metadata": {"labels": KUEUE}, "spec": spec}, running) == {}


def test_job_outside_of_a_queue_follows_its_spec_though_its_owner_is_labelled_later():
    job = BatchPredictionJob.model_validate(make_batch(labels=KUEUE))
    live = {"metadata": {}, "spec": {"suspend": True, "parallelism": 1, "completions": 1}}
    assert make_control(job, live, running=0) == {"spec": {"suspend": False}}


FIELDS_OF_A_LIST = [
    ({}, False),
    ({"instanceType": "object"}, False),
    ({"instanceType": "array"}, True),
    ({"keyField": "a"}, True),
]


@pytest.mark.parametrize(("config", "refused"), FIELDS_OF_A_LIST)
def test_file_list_has_no_fields(config, refused):
    source = {"gcsSource": {"uris": ["gs://in/list"]}}
    batch = make_batch(instanceConfig=config, inputConfig={"instancesFormat": "file-list", **source})
    told = explain_instance_config(BatchPredictionJob.model_validate(batch))
    assert told is None or told.startswith("spec.instanceConfig: a file-list has no fields")
    assert (told is not None) is refused
    as_lines = make_batch(instanceConfig=config, inputConfig={"instancesFormat": "jsonl", **source})
    assert explain_instance_config(BatchPredictionJob.model_validate(as_lines)) is None


def test_document_has_an_instance_config_only_where_it_says_something(settings):
    """Another document would be another job to a worker that goes on with a folder."""
    plain = make_document(make_batching(settings))
    assert make_document(make_batching(settings, instanceConfig={})) == plain
    assert "instanceConfig" not in json.loads(plain)
    config = {"keyField": "id"}
    assert json.loads(make_document(make_batching(settings, instanceConfig=config)))["instanceConfig"] == config


def test_workers_are_told_what_is_allowed(settings):
    changed = settings.model_copy(
        update={"batch": BatchSettings(allowed_uris=["gs://photos", "https://*.example.com"])}
    )
    [container] = make_job(make_batching(changed))["spec"]["template"]["spec"]["containers"]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert env["PIERHEAD_BATCH_ALLOWED_URIS"] == "gs://photos,https://*.example.com"


@pytest.mark.parametrize(("spec", "level"), [({}, None), ({"disableContainerLogging": True}, "error")])
def test_workers_are_told_what_to_log(settings, spec, level):
    [container] = make_job(make_batching(settings, **spec))["spec"]["template"]["spec"]["containers"]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert env.get("PIERHEAD_LOG_LEVEL") == level


def test_operator_and_server_know_the_same_entries_and_the_same_default():
    assert BatchSettings().allowed_uris == list(DEFAULT)
    good = ["gs://", "pvc://data", "https://*", "https://*.example.com:8443", "http://127.0.0.1:80", "az://$web"]
    for entry in [*good, "gs", "ftp://a", "https://", "https://a/b", "gs://a/b", "https://a*b", "file:///a", ""]:
        assert bool(re.fullmatch(ENTRY, entry)) == bool(re.fullmatch(ALLOWED_URI, entry)) == (entry in good), entry


def test_document_has_no_limit_but_the_systems(settings):
    assert explain_document(make_batching(settings)) is None
    uris = [f"gs://in/{'x' * 1000}/{number}" for number in range(119)]
    assert explain_document(make_batching(settings, inputConfig={"gcsSource": {"uris": uris}})) is None
    uris += [f"gs://in/{'y' * 1000}/{number}" for number in range(3)]
    batching = make_batching(settings, inputConfig={"gcsSource": {"uris": uris}})
    assert "name the files by *" in explain_document(batching)
    assert len(json.loads(make_document(batching))["inputUris"]) == 122
