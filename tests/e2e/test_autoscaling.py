"""Autoscaling by what the servers themselves measure, through a real Prometheus and a real metrics adapter."""

from tests.e2e.conftest import (
    ECHO_BODY,
    make_deployed_model,
    make_echo_model,
    make_endpoint,
    make_predictor_model,
    make_slow_echo,
    upload_predictor,
)
from tests.e2e.test_resources import find_owners_of_replicas
from tests.e2e.test_traffic import Load
from tests.kube import predict_url, wait_answered, wait_until
from tests.prober import Prober


def test_requests_in_flight_add_a_replica_and_take_it_away(kubectl):
    resources = {"maxReplicaCount": 2, "autoscalingMetricSpecs": [{"metricName": "requests/inFlight", "target": 3}]}
    kubectl.apply(
        make_predictor_model(upload_predictor("slow", make_slow_echo(0.1))),
        make_endpoint(),
        make_deployed_model("photos", "slow", dedicatedResources=resources),
    )
    kubectl.wait_ready("endpoint", "photos")
    url = predict_url(kubectl.namespace, "photos")
    wait_answered(url, ECHO_BODY, "photos")

    def replicas():
        return kubectl.get("deployment", "dm-photos")["spec"]["replicas"]

    def is_active():
        return kubectl.condition("horizontalpodautoscaler", "dm-photos", "ScalingActive").get("status") == "True"

    wait_until("the autoscaler is given the metric", is_active)
    assert replicas() == 1
    with Prober(url, ECHO_BODY, rate=5) as prober:
        with Load(url, ECHO_BODY, clients=8) as load:
            wait_until("the autoscaler asks for a second replica", lambda: replicas() == 2)
            wait_until(
                "both answer",
                lambda: kubectl.get("deployedmodel", "photos")["status"]["availableReplicaCount"] == 2,
                seconds=180,
            )
            assert is_active()
        assert not load.failures
        wait_until("the autoscaler takes it away", lambda: replicas() == 1, seconds=180)
        wait_until("its pod is gone", lambda: len(kubectl.pods("photos")) == 1)
        before = prober.answers.total
        wait_until("predictions go on", lambda: prober.answers.total > before + 20)
    prober.check()
    assert "pierhead" not in find_owners_of_replicas(kubectl)


def test_autoscaler_without_its_metric_is_told_and_the_model_serves_on(kubectl):
    resources = {"maxReplicaCount": 2, "autoscalingMetricSpecs": [{"metricName": "gpu/dutyCycle", "target": 60}]}
    kubectl.apply(make_echo_model(), make_endpoint(), make_deployed_model("photos", dedicatedResources=resources))
    kubectl.wait_ready("deployedmodel", "photos")
    found = wait_until(
        "the condition tells that nobody measures GPUs",
        lambda: (c := kubectl.condition("deployedmodel", "photos", "ScalingActive")).get("status") == "False" and c,
        seconds=360,  # two minutes, and a resync
    )
    assert found["reason"] == "FailedGetPodsMetric"
    assert "DCGM_FI_DEV_GPU_UTIL" in found["message"]
    assert kubectl.condition("deployedmodel", "photos")["status"] == "True"
