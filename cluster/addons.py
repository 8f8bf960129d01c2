"""What runs in the cluster before anything of Pierhead: DNS, the storage emulator, the gateway, metrics."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml

from cluster import commands, go_build, images, kube, settings
from cluster.settings import Paths

GATEWAY_NAMESPACE = "envoy-gateway-system"
DNS_PATH = "/apis/apps/v1/namespaces/kube-system/deployments/coredns"
STORAGE_PATH = "/apis/apps/v1/namespaces/pierhead-storage/deployments/storage"
GATEWAY_PATH = "/apis/gateway.networking.k8s.io/v1/namespaces/pierhead-system/gateways/pierhead"
METRICS_PATHS = {
    "metrics API": "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io",
    "Prometheus": "/apis/apps/v1/namespaces/monitoring/deployments/prometheus",
    "custom metrics API": "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.custom.metrics.k8s.io",
}
CRD_PATHS = tuple(
    f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
    for name in (
        "gatewayclasses.gateway.networking.k8s.io",
        "gateways.gateway.networking.k8s.io",
        "envoyproxies.gateway.envoyproxy.io",
    )
)


def render(name: str, values: Mapping[str, str]) -> str:
    """A file of `manifests/` with its `${...}` filled in. Raises KeyError for one that has no value."""
    return Template((settings.SOURCE / "manifests" / f"{name}.yaml").read_text()).substitute(values)


def make_values() -> dict[str, str]:
    """What the manifests ask for: images and addresses."""
    return {
        "coredns": images.make_go_image(go_build.COREDNS).reference,
        "fake_gcs_server": images.make_go_image(go_build.FAKE_GCS_SERVER).reference,
        "metrics_server": images.make_go_image(go_build.METRICS_SERVER).reference,
        "prometheus": images.make_go_image(go_build.PROMETHEUS).reference,
        "prometheus_adapter": images.make_go_image(go_build.PROMETHEUS_ADAPTER).reference,
        "envoy": images.make_envoy_image().reference,
        "domain": settings.CLUSTER_DOMAIN,
        "dns_ip": settings.DNS_SERVICE_IP,
        "storage_port": str(settings.STORAGE_PORT),
        "storage_url": settings.STORAGE_URL_IN_CLUSTER,
        "storage_node_port": str(settings.STORAGE_NODE_PORT),
        "gateway_node_port": str(settings.GATEWAY_NODE_PORT),
        "gateway_tls_node_port": str(settings.GATEWAY_TLS_NODE_PORT),
    }


def make_gateway_values() -> dict[str, Any]:
    """Values of Envoy Gateway's own chart."""
    pulled = {"pullPolicy": "IfNotPresent"}
    return {
        "global": {
            "images": {
                "envoyGateway": {"image": images.make_go_image(go_build.ENVOY_GATEWAY).reference, **pulled},
                # Left out, it is an image pinned by digest, which nothing built here can match.
                "envoyProxy": {"image": images.make_envoy_image().reference, **pulled},
            }
        },
        "deployment": {
            "envoyGateway": {
                "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}},
                "readinessProbe": {"periodSeconds": 1},
            }
        },
        # A mutating webhook on every pod, of no use on one node, and left behind when it is turned off later.
        "topologyInjector": {"enabled": False},
        "config": {"envoyGateway": {"extensionApis": {"enableBackend": True}}},
    }


def install_gateway(paths: Paths, log: Path) -> None:
    """Installs Envoy Gateway by Helm from the chart in its Go module; does not wait until it serves."""
    chart = paths.state / "gateway-helm"
    shutil.copytree(go_build.ENVOY_GATEWAY.folder(paths) / "gateway-helm", chart, dirs_exist_ok=True)
    # The module has the chart as it is before a release: values to be filled in, and no version.
    (chart / "values.yaml").write_text(
        Template((chart / "values.tmpl.yaml").read_text()).safe_substitute(
            GatewayImage=images.make_go_image(go_build.ENVOY_GATEWAY).reference, GatewayImagePullPolicy="IfNotPresent"
        )
    )
    (chart / "Chart.yaml").write_text(set_chart_version((chart / "Chart.yaml").read_text()))
    values = paths.config / "gateway-values.yaml"
    values.write_text(yaml.safe_dump(make_gateway_values()))
    argv = [str(go_build.HELM.binary(paths, "helm")), "upgrade", "--install", "envoy-gateway", str(chart)]
    argv += ["--namespace", GATEWAY_NAMESPACE, "--create-namespace", "--values", str(values)]
    commands.run([*argv, "--wait=hookOnly", "--timeout=180s"], log=log, env=helm_environment(paths), timeout=200)


def set_chart_version(chart: str) -> str:
    """`Chart.yaml` with the version of the module that it came from."""
    version = f"v{settings.ENVOY_GATEWAY_VERSION}"
    chart = re.sub(r"^version: .*$", f"version: {version}", chart, flags=re.MULTILINE)
    return re.sub(r"^appVersion: .*$", f'appVersion: "{version}"', chart, flags=re.MULTILINE)


def helm_environment(paths: Paths) -> dict[str, str]:
    """Helm keeps files of its own: in the cluster's folder instead of the caller's home."""
    home = paths.state / "helm"
    folders = {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    return {**os.environ, **folders, "KUBECONFIG": str(paths.kubeconfig)}


def apply_gateway(paths: Paths) -> None:
    """Applies the gateways, and the certificate by which clients know the public one."""
    apply(paths, "gateway")
    files = {"tls.crt": paths.pki / "gateway.crt", "tls.key": paths.pki / "gateway.key"}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "gateway-certificate", "namespace": "pierhead-system"},
        "type": "kubernetes.io/tls",
        "stringData": {name: path.read_text() for name, path in files.items()},
    }
    kube.apply(paths, json.dumps(secret))


def apply(paths: Paths, *names: str) -> None:
    """Applies files of `manifests/`."""
    values = make_values()
    kube.apply(paths, "\n---\n".join(render(name, values) for name in names))
