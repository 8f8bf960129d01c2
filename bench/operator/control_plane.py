"""A real control plane with kwok's nodes: nothing of it runs a container."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from bench.operator import fleet
from bench.operator.fakes import make_fake_gateway
from cluster import components, down, go_build, kube, processes, settings, up
from cluster.components import Component
from cluster.progress import step
from cluster.settings import Paths

KWOK = "kwok"
# What takes part in bringing a DeployedModel up, besides the operator.
PROGRAMS = ("kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler", KWOK)
_TOOLS = (go_build.ENVOY_GATEWAY, go_build.KWOK)
# Its own limits, 20 and 50 requests a second, would be all that is measured.
_UNLIMITED = ("--kube-api-qps=5000", "--kube-api-burst=10000")
_STAGES = (
    "node/fast/node-initialize",
    "node/heartbeat-with-lease/node-heartbeat-with-lease",
    "pod/fast/pod-ready",
    "pod/fast/pod-delete",
)
_GATEWAY_CRDS = "gateway-helm/charts/crds/crds/gatewayapi-crds.yaml"
_ROUTES_CRD = "httproutes.gateway.networking.k8s.io"
_ROUTES_API = "apis/gateway.networking.k8s.io/v1"


@contextmanager
def running(paths: Paths) -> Iterator[None]:
    """The control plane, with nodes that are ready, the CRDs and the namespaces; ended at the end."""
    up.up_control_plane(paths, _TOOLS, [_make_controller_manager(paths), _make_scheduler(paths)])
    try:
        with step("install the CRDs, start the nodes"):
            _install_crds(paths)
            kube.apply(paths, yaml.safe_dump_all(_make_objects()))
            config = paths.config / "kwok.yaml"
            config.write_text(_make_kwok_config(paths))
            kwok = _make_kwok(paths, config)
            processes.start(kwok.name, kwok.argv, kwok.log(paths), up.ENVIRONMENT)
            _wait(paths, kwok)
        yield
    finally:
        down.down(paths=paths)


def _make_controller_manager(paths: Paths) -> Component:
    component = components.make_controller_manager(paths)
    # The range of the pods' addresses is for one node.
    return replace(component, argv=[*component.argv, *_UNLIMITED, "--allocate-node-cidrs=false"])


def _make_scheduler(paths: Paths) -> Component:
    component = components.make_scheduler(paths)
    return replace(component, argv=[*component.argv, *_UNLIMITED])


def _make_kwok(paths: Paths, config: Path) -> Component:
    return Component(
        KWOK,
        [
            str(go_build.KWOK.binary(paths, "kwok")),
            f"--config={config}",
            f"--kubeconfig={paths.kubeconfig}",
            "--manage-all-nodes=true",
            "--node-lease-duration-seconds=40",
        ],
    )


def _make_kwok_config(paths: Paths) -> str:
    stages = go_build.KWOK.folder(paths) / "stages"
    texts = [(stages / f"{name}.yaml").read_text() for name in _STAGES]
    return "\n---\n".join([*texts, yaml.safe_dump(make_fake_gateway())])


def _make_objects() -> list[dict[str, Any]]:
    namespaces = (*fleet.NAMESPACES, fleet.OPERATOR_NAMESPACE)
    nodes = [fleet.make_node(number) for number in range(fleet.NODES)]
    return [*map(fleet.make_namespace, namespaces), *nodes]


def _install_crds(paths: Paths) -> None:
    ours = [path.read_text() for path in sorted((settings.REPOSITORY / "crds").glob("*.yaml"))]
    gateways = (go_build.ENVOY_GATEWAY.folder(paths) / _GATEWAY_CRDS).read_text()
    routes = next(crd for crd in yaml.safe_load_all(gateways) if crd and crd["metadata"]["name"] == _ROUTES_CRD)
    manifests = [*ours, yaml.safe_dump(routes)]
    kube.apply(paths, "\n---\n".join(manifests))
    with kube.Api(paths) as api:
        for crd in (one for manifest in manifests for one in yaml.safe_load_all(manifest)):
            path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
            processes.wait_until(path, partial(api.has_condition, path, "Established"), 60)
        # Told a moment after the CRD is established; kwok ends where it is not.
        processes.wait_until(_ROUTES_API, partial(_is_described, api, _ROUTES_API), 60)


def _is_described(api: kube.Api, name: str) -> bool:
    """Whether the API server publishes the schemas of this API."""
    return name in (api.get("/openapi/v3") or {"paths": {}})["paths"]


def _wait(paths: Paths, kwok: Component) -> None:
    """Until pods can be made and run."""
    paths_of_nodes = [f"/api/v1/nodes/{fleet.make_node(number)['metadata']['name']}" for number in range(fleet.NODES)]
    accounts = [f"/api/v1/namespaces/{name}/serviceaccounts/default" for name in fleet.NAMESPACES]
    needs = {kwok.name: kwok.log(paths)}
    with kube.Api(paths) as api:
        for path in paths_of_nodes:
            processes.wait_until(f"{path} is ready", partial(api.has_condition, path, "Ready"), 60, needs)
        for path in accounts:
            processes.wait_until(path, partial(_exists, api, path), 60)


def _exists(api: kube.Api, path: str) -> bool:
    return api.get(path) is not None
