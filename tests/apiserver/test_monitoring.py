"""PodMonitors and PrometheusRules, judged by a real API server with the Prometheus operator's own CRDs."""

import pytest

from tests.chart import render, try_install, without_hooks
from tests.kube import KubectlError, scratch_namespace
from tests.monitoring import MONITORING
from tests.prometheus import prometheus_operator_crds


@pytest.fixture(scope="module")
def kubectl(cluster):
    """kubectl in a namespace, with the CRDs in the cluster meanwhile."""
    with prometheus_operator_crds(), scratch_namespace("monitoring") as kubectl:
        yield kubectl


@pytest.mark.parametrize("settings", [(), ("watchNamespaces={default}",)], ids=["everywhere", "namespaced"])
def test_rendered_chart_is_taken(kubectl, settings):
    documents = without_hooks(render(*MONITORING, *settings))
    assert len(try_install(kubectl, documents)) == len(documents)


@pytest.mark.parametrize(("kind", "field"), [("PodMonitor", "podTargetLabel"), ("PrometheusRule", "group")])
def test_unknown_field_is_refused(kubectl, kind, field):
    """So that what is taken above is known to the Prometheus operator."""
    wrong = next(document for document in render(*MONITORING) if document["kind"] == kind)
    wrong["spec"][field] = []
    with pytest.raises(KubectlError, match=field):
        try_install(kubectl, [wrong])
