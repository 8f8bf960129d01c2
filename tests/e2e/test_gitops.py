"""What Git holds is what the cluster holds: no order matters, and nobody but the author changes a spec."""

import copy
import json
import subprocess

import pytest
import yaml

from tests.e2e.conftest import make_deployed_model, make_echo_model, make_endpoint
from tests.kube import wait_until

KINDS = "models,endpoints.pierhead.dev,deployedmodels,batchpredictionjobs"
MANAGER = "kustomize-controller"


def make_full_manifests():
    """All four kinds, with more than they need."""
    endpoint = make_endpoint(
        {"photos": 100}, displayName="Photos", description="for the tests", maxRequestBytes=1048576
    )
    deployed_model = make_deployed_model(
        "photos",
        displayName="Photos",
        dedicatedResources={
            "machineSpec": {"machineType": "n1-standard-2"},
            "minReplicaCount": 1,
            "maxReplicaCount": 2,
            "autoscalingMetricSpecs": [{"metricName": "cpu/utilization"}],
        },
        podOverrides={"labels": {"team": "a"}, "env": [{"name": "PIERHEAD_LOG_LEVEL", "value": "debug"}]},
    )
    batch = {
        "apiVersion": "pierhead.dev/v1",
        "kind": "BatchPredictionJob",
        "metadata": {"name": "nightly"},
        "spec": {
            "model": "photos",
            "modelParameters": {"maxPredictions": 3},
            "inputConfig": {"gcsSource": {"uris": ["gs://there-is-none/*.jsonl"]}},
            "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://there-is-none/out"}},
            "dedicatedResources": {"startingReplicaCount": 1},
            "suspend": True,
        },
    }
    return [batch, deployed_model, endpoint, make_echo_model("v1", "v2")]


def test_nothing_is_ever_different_from_git(kubectl):
    manifests = make_full_manifests()
    _apply(kubectl, manifests)
    wait_until("the job is queued", lambda: kubectl.condition("bpj", "nightly").get("reason") == "Queued")
    kubectl.wait_ready("endpoint.pierhead.dev", "photos")
    before = _read_specs(kubectl)
    assert _diff(kubectl, manifests) == ""
    assert _apply(kubectl, manifests, "--dry-run=server") == 4 * ["serverside-applied"]
    _apply(kubectl, manifests)
    assert _read_specs(kubectl) == before, "another apply changes no generation"
    assert _read_owners(kubectl) == 4 * [{MANAGER}], "nobody else owns a field of a spec"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)], ids=["wanted last", "wanted first"])
def test_any_order_of_manifests_serves(kubectl, order):
    """Each is there alone until the operator has said what it waits for."""
    manifests = [make_echo_model("v1"), make_endpoint({"photos": 100}), make_deployed_model("photos")]
    for index in order:
        manifest = manifests[index]
        kubectl.apply(copy.deepcopy(manifest))
        kind, name = f"{manifest['kind']}.pierhead.dev", manifest["metadata"]["name"]
        wait_until(f"{kind} is looked at", lambda kind=kind, name=name: kubectl.condition(kind, name))
    kubectl.wait_ready("endpoint.pierhead.dev", "photos")
    kubectl.wait_ready("deployedmodel", "photos")


def _apply(kubectl, manifests, *options):
    """What kubectl says became of each."""
    arguments = ("apply", "--server-side", "--field-manager", MANAGER, *options, "--filename", "-")
    return [line.split()[1] for line in kubectl(*arguments, stdin=yaml.safe_dump_all(manifests)).splitlines()]


def _diff(kubectl, manifests):
    """What another apply would change, as the API server tells."""
    argv = ["kubectl", "--namespace", kubectl.namespace, "diff", "--server-side", "--field-manager", MANAGER]
    return subprocess.run(
        [*argv, "--filename", "-"],
        input=yaml.safe_dump_all(manifests),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    ).stdout


def _read_owners(kubectl):
    """Who has applied something of each, its status left aside."""
    items = json.loads(kubectl("get", KINDS, "--show-managed-fields", "--output", "json"))["items"]
    fields = [item["metadata"]["managedFields"] for item in items]
    return [{one["manager"] for one in each if one.get("subresource") != "status"} for each in fields]


def _read_specs(kubectl):
    return [(item["metadata"]["generation"], item["spec"]) for item in kubectl.items(KINDS)]
