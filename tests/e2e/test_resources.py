"""Accelerators and autoscaling on the real scheduler and the real HorizontalPodAutoscaler."""

import json
import subprocess
import sys

from tests.e2e.conftest import make_deployed_model, make_echo_model, make_endpoint, make_model
from tests.e2e.test_traffic import Load
from tests.kube import predict_url, wait_answered, wait_until


def _advertise_gpus(count):
    subprocess.run([sys.executable, "-m", "cluster", "gpus", str(count)], check=True, timeout=60)


def test_pod_with_accelerator_runs_once_the_node_has_a_gpu(kubectl):
    _advertise_gpus(0)
    machine = {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
    kubectl.apply(
        make_echo_model(),
        make_endpoint(),
        make_deployed_model("photos", dedicatedResources={"machineSpec": machine}),
    )
    found = wait_until(
        "the condition tells what is missing",
        lambda: (c := kubectl.condition("deployedmodel", "photos")).get("reason") == "Unschedulable" and c,
    )
    assert "nvidia.com/gpu" in found["message"]
    [pod] = kubectl.pods("photos")
    assert pod["status"]["phase"] == "Pending"
    _advertise_gpus(1)
    try:
        wait_until("the pod runs", lambda: kubectl.pods("photos")[0]["status"]["phase"] == "Running")
        kubectl.wait_ready("deployedmodel", "photos")
        assert kubectl.pods("photos")[0]["metadata"]["name"] == pod["metadata"]["name"]
    finally:
        _advertise_gpus(0)


def test_update_takes_the_place_of_the_old_pod_where_there_is_no_second_gpu(kubectl):
    """With one GPU, a new pod beside the old one would wait forever; told, and then done one after the other."""
    _advertise_gpus(1)
    try:
        machine = {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
        _update_in_place(kubectl, dedicatedResources={"machineSpec": machine})
    finally:
        _advertise_gpus(0)


def test_update_takes_the_place_of_the_old_pod_where_a_quota_has_no_room_for_a_second(kubectl):
    """Nobody makes the new pod then: it is not even there to wait."""
    metadata = {"name": "one-pod"}
    kubectl.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": {"pods": "1"}}})
    _update_in_place(kubectl)


def test_update_of_several_replicas_takes_the_place_of_old_pods_where_no_gpu_is_left(kubectl):
    _advertise_gpus(2)
    try:
        machine = {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
        resources = {"machineSpec": machine, "minReplicaCount": 2}
        options = {"maxSurgePercentage": 100}
        _update_in_place(kubectl, surge="100%", dedicatedResources=resources, rolloutOptions=options)
    finally:
        _advertise_gpus(0)


def _update_in_place(kubectl, surge=1, **spec):
    kubectl.apply(
        make_echo_model("v1", "v2"),
        make_endpoint(),
        make_deployed_model("photos", **spec),
    )
    kubectl.wait_ready("deployedmodel", "photos")
    old = {pod["metadata"]["name"] for pod in kubectl.pods("photos")}
    kubectl.patch("deployedmodel", "photos", {"spec": {"modelVersion": "v2"}})
    found = wait_until(
        "the condition tells what is waited for",
        lambda: (c := kubectl.condition("deployedmodel", "photos")).get("reason") == "WaitingForCapacity" and c,
    )
    assert found["status"] == "False"
    assert kubectl.condition("deployedmodel", "photos", "Available")["status"] == "True", "the old pod serves on"
    kubectl.wait_ready("deployedmodel", "photos")
    assert kubectl.get("deployedmodel", "photos")["status"]["modelVersion"] == "v2"
    wait_until("the old pods are gone", lambda: not old & {p["metadata"]["name"] for p in kubectl.pods("photos")})
    strategy = wait_until(
        "the next update tries a pod beside the old one again",
        lambda: (
            (s := kubectl.get("deployment", "dm-photos")["spec"]["strategy"]["rollingUpdate"])["maxSurge"] == surge
            and s
        ),
    )
    assert strategy["maxUnavailable"] == 0


def find_owners_of_replicas(kubectl):
    """The field managers that say how many replicas the Deployment has."""
    deployment = json.loads(kubectl("get", "deployment", "dm-photos", "--show-managed-fields", "--output", "json"))
    return {
        entry["manager"]
        for entry in deployment["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }


def test_autoscaler_adds_a_replica_under_load(kubectl, coffee):
    kubectl.apply(
        make_model(v1="photos/1"),
        make_endpoint(),
        make_deployed_model("photos", automaticResources={"minReplicaCount": 1, "maxReplicaCount": 2}),
    )
    kubectl.wait_ready("endpoint", "photos")

    def replicas():
        return kubectl.get("deployment", "dm-photos")["spec"]["replicas"]

    wait_answered(predict_url(kubectl.namespace, "photos"), coffee, "photos")
    with Load(predict_url(kubectl.namespace, "photos"), coffee) as load:
        wait_until("the autoscaler asks for a second replica", lambda: replicas() == 2, seconds=180)
        wait_until(
            "both answer",
            lambda: (kubectl.get("deployedmodel", "photos")["status"]["availableReplicaCount"]) == 2,
            seconds=180,
        )
    assert not load.failures
    # The operator leaves the number to the autoscaler.
    kubectl.patch("deployedmodel", "photos", {"spec": {"displayName": "Photographs"}})
    kubectl.wait_ready("deployedmodel", "photos")
    assert replicas() == 2


def test_autoscaler_takes_over_without_a_drop(kubectl):
    """Two fixed replicas, then two to four by load: the number stays, and is no longer the operator's."""
    kubectl.apply(
        make_echo_model(),
        make_endpoint(),
        make_deployed_model("photos", automaticResources={"minReplicaCount": 2}),
    )
    kubectl.wait_ready("deployedmodel", "photos")
    kubectl.patch("deployedmodel", "photos", {"spec": {"automaticResources": {"maxReplicaCount": 4}}})
    wait_until("the autoscaler is there", lambda: kubectl.get("horizontalpodautoscaler", "dm-photos"))
    managers = find_owners_of_replicas(kubectl)
    assert kubectl.get("deployment", "dm-photos")["spec"]["replicas"] == 2
    assert managers
    assert "pierhead" not in managers
