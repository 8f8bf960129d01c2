"""Installs Pierhead by Helm: on the cluster of this machine, or on the one that the caller's kubeconfig names."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import yaml

from cluster import addons, commands, images, kind, rollout, settings
from cluster import up as cluster_up
from cluster.errors import ClusterError
from cluster.progress import step
from cluster.settings import Paths

NAMESPACE = "pierhead-system"
RELEASE = "pierhead"
BUCKET_FOLDER = "gs://models/photos"
# What the quickstart's models need. The server with PyTorch takes gigabytes, for which Go's caches have to be gone.
FIRST_IMAGES = ("operator", "server-openvino")

# Two cores carry the control plane, the gateway and all the models of the tests: small requests, so that all fit. A
# test whose update finds no room beside its old pod would see that one leave first.
SMALL_MACHINES = ("n1-standard-2", "n1-standard-4")  # Vertex AI's names, whose true size no model of the tests needs
SERVER_RESOURCES = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}}


@dataclass(frozen=True)
class Target:
    """A cluster to install Pierhead on.

    `environment` is what kubectl and helm run with; `url` is where predictions are answered; `gateway` the namespace
    and name of the Gateway there, None where the API carries predictions, to callers with a `token`; `private_gateway`
    those of one that only the cluster reaches, if there is one; `storage_env` what serving pods are told of storage.
    """

    environment: Mapping[str, str]
    operator_image: str
    server_image: str
    gateway: tuple[str, str] | None
    url: str
    storage_env: Mapping[str, str]
    token: str = ""
    private_gateway: tuple[str, str] | None = None
    tls_address: str = ""  # HOST:PORT at which the Gateway answers over TLS, if it does
    openvino_image: str = ""  # of versions with runtime OpenVINO; server_image has them where it is empty
    envoy_gateway: bool = False  # whether the Gateway is Envoy Gateway's

    def kubectl(self, *arguments: str, timeout: float = 60) -> str:
        return commands.output(["kubectl", *arguments], env=self.environment, timeout=timeout)

    def helm(self, *arguments: str, timeout: float = 300) -> None:
        commands.run(
            ["helm", *arguments], env=self.environment, timeout=timeout, log=Paths.from_environment().log("helm")
        )


def make_values(target: Target) -> dict[str, Any]:
    """The chart's values for a target."""
    return {
        "operator": {"image": target.operator_image},
        "api": {
            "locations": ["us-central1"],  # what Google's own examples name
            # Whoever reaches the gateway of one's own machine may predict: written, since it is not the default.
            **({"authorization": "none"} if target.gateway else {}),
            "dedicatedEndpointDns": target.tls_address,
        },
        "machines": {"machineTypes": {name: {"resources": SERVER_RESOURCES} for name in SMALL_MACHINES}},
        "server": {
            "image": target.server_image,
            "openvinoImage": target.openvino_image,
            "env": [{"name": key, "value": value} for key, value in target.storage_env.items()],
            # A test has an S3 of its own.
            "allowedEnv": ["AWS_ENDPOINT_URL"],
            "resources": SERVER_RESOURCES,
        },
        # One node has no room to wait for.
        "rollout": {"capacityWaitSeconds": 10},
        "routing": _make_routing(target),
    }


def _make_routing(target: Target) -> dict[str, Any]:
    if target.gateway is None:
        return {"provider": "none"}
    private = target.private_gateway
    return {
        "provider": "gateway-api",
        "gateway": _make_reference(target.gateway),
        **({"privateGateway": _make_reference(private)} if private else {}),
        "envoyGateway": target.envoy_gateway,
    }


def _make_reference(gateway: tuple[str, str]) -> dict[str, str]:
    namespace, name = gateway
    return {"namespace": namespace, "name": name}


def find_local(*, metrics: bool = False, first: bool = False) -> Target:
    """The cluster of this machine, started if it is not up, with the images of the working tree.

    `first`: with no more than the first predictions need; `complete_local` brings the rest.
    """
    needed = [images.make_pierhead_image(name) for name in FIRST_IMAGES]
    cluster = cluster_up.up(metrics=metrics, enforced=not first, beside=needed)
    if not first:
        images.build_server()
    return Target(
        environment={**os.environ, **cluster.make_variables(os.environ.get("PATH", ""))},
        operator_image=images.make_pierhead_image("operator").reference,
        server_image=images.make_pierhead_image("server").reference,
        openvino_image=images.make_pierhead_image("server-openvino").reference,
        gateway=("pierhead-system", "pierhead"),
        url=cluster.gateway_url,
        tls_address=settings.GATEWAY_TLS_ADDRESS,
        storage_env={"STORAGE_EMULATOR_HOST": settings.STORAGE_URL_IN_CLUSTER},
        private_gateway=("pierhead-system", "pierhead-private"),
        envoy_gateway=True,
    )


def complete_local() -> None:
    """Brings what the first predictions went without: who enforces NetworkPolicies, and the server with PyTorch."""
    cluster_up.up()
    images.build_server()


def install(target: Target) -> None:
    """Installs the chart, or upgrades it to the working tree's; waits until its operator leads."""
    with step("installing Pierhead with Helm"), tempfile.NamedTemporaryFile("w", suffix=".yaml") as values:
        yaml.safe_dump(make_values(target), values)
        values.flush()
        chart = str(settings.REPOSITORY / "charts" / "pierhead")
        target.helm(
            *("upgrade", "--install", RELEASE, chart, "--namespace", NAMESPACE, "--create-namespace"),
            *("--values", values.name, "--wait", "--timeout", "4m"),
        )
        rollout.wait_operator(target.kubectl, NAMESPACE, f"{RELEASE}-operator")
    # An upgrade restarts no pod; who works on the server wants to see it.
    renew = f"pierhead.dev/renew={target.server_image.rpartition(':')[2]}"
    target.kubectl("annotate", "deployedmodels.pierhead.dev", "--all", "--all-namespaces", "--overwrite", renew)


def upload_artifacts(storage_url: str) -> None:
    """Makes the example's artifacts and puts them into the storage emulator at `storage_url`."""
    with step("making artifacts of two pretrained networks, and uploading them"):
        _upload("make_artifacts", "artifacts", BUCKET_FOLDER, storage_url, "--openvino")


def upload_photographs(storage_url: str) -> None:
    """Puts the example's photographs into the storage emulator at `storage_url`."""
    with step("uploading photographs"):
        _upload("put_photographs", "photographs", "gs://photographs", storage_url)


def _upload(script: str, name: str, destination: str, storage_url: str, *options: str) -> None:
    """Runs one of the example's scripts; what it makes is kept in the cache under this name."""
    paths = Paths.from_environment()
    file = settings.REPOSITORY / "examples" / "photos" / f"{script}.py"
    commands.run(
        [sys.executable, str(file), "--output", str(paths.cache / name), "--upload", destination, *options],
        env={**os.environ, "STORAGE_EMULATOR_HOST": storage_url},
        timeout=900,
        log=paths.log(name),
    )


# --- the caller's cluster --------------------------------------------------------------------------------------------

_STORAGE_NAMESPACE = "pierhead-storage"
_REQUIRED = {
    "PIERHEAD_OPERATOR_IMAGE": "the image made from Dockerfile.operator, where the cluster can pull it",
    "PIERHEAD_SERVER_IMAGE": "the image made from Dockerfile.server, where the cluster can pull it",
}
_STORAGE_IMAGE = f"docker.io/fsouza/fake-gcs-server:{settings.FAKE_GCS_SERVER_VERSION}"


def find_current(environment: Mapping[str, str]) -> Target:
    """The cluster of the caller's kubeconfig, described by environment variables.

    On one of kind's the images are by default those that `kind.load` brought there. Raises ClusterError that names what
    is missing.
    """
    absent = [program for program in ("kubectl", "helm") if not shutil.which(program, path=environment.get("PATH"))]
    if absent:
        raise ClusterError(f"CLUSTER=current needs {' and '.join(absent)} on PATH")
    given = {name: value for name, value in environment.items() if value}
    if kind.find_cluster(environment):
        given = {**kind.make_variables(), **given}
    missing = [f"  {name}: {meaning}" for name, meaning in _REQUIRED.items() if name not in given]
    if missing:
        raise ClusterError("CLUSTER=current needs these environment variables:\n" + "\n".join(missing))
    namespace, _, name = given.get("PIERHEAD_GATEWAY", "").partition("/")
    return Target(
        environment={"PIERHEAD_STORAGE_IMAGE": _STORAGE_IMAGE, **given},
        operator_image=given["PIERHEAD_OPERATOR_IMAGE"],
        server_image=given["PIERHEAD_SERVER_IMAGE"],
        gateway=(namespace, name) if name else None,
        url=given.get("PIERHEAD_URL") or (_find_gateway_url(environment, namespace, name) if name else ""),
        storage_env={"STORAGE_EMULATOR_HOST": settings.STORAGE_URL_IN_CLUSTER},
    )


def _find_gateway_url(environment: Mapping[str, str], namespace: str, name: str) -> str:
    argv = ["kubectl", "--namespace", namespace, "get", "gateway", name, "--output", "json"]
    gateway = json.loads(commands.output(argv, env=environment))
    addresses = gateway.get("status", {}).get("addresses", [])
    if not addresses:
        raise ClusterError(f"Gateway {namespace}/{name} has no address yet: set PIERHEAD_URL to where it answers")
    listener = gateway["spec"]["listeners"][0]
    scheme = "https" if listener["protocol"] == "HTTPS" else "http"
    return f"{scheme}://{addresses[0]['value']}:{listener['port']}"


def install_storage(target: Target) -> None:
    """Puts the storage emulator into the caller's cluster, as it is in this machine's."""
    image = target.environment["PIERHEAD_STORAGE_IMAGE"]
    manifest = addons.render("storage", {**addons.make_values(), "fake_gcs_server": image})
    with step("installing the storage emulator"):
        argv = ["kubectl", "apply", "--server-side", "--force-conflicts", "--filename", "-"]
        commands.output(argv, stdin=manifest, env=target.environment)
        waiting = ("--namespace", _STORAGE_NAMESPACE, "rollout", "status", "deployment/storage")
        target.kubectl(*waiting, "--timeout=180s", timeout=200)


def forward_storage(target: Target) -> AbstractContextManager[str]:
    """The address on this machine at which the cluster's storage emulator answers meanwhile."""
    return _forward(target, _STORAGE_NAMESPACE, "storage", settings.STORAGE_PORT)


@contextmanager
def forward_api(target: Target) -> Iterator[Target]:
    """The target with Pierhead's API as what carries predictions: its address meanwhile, and a client's token."""
    client = settings.REPOSITORY / "examples" / "gitops" / "client.yaml"
    target.kubectl("apply", "--namespace", "default", "--filename", str(client))
    token = target.kubectl("create", "token", "client", "--namespace", "default").strip()
    with _forward(target, NAMESPACE, f"{RELEASE}-api", 80) as url:
        yield replace(target, url=url, token=token)


@contextmanager
def _forward(target: Target, namespace: str, service: str, port: int) -> Iterator[str]:
    argv = ["kubectl", "--namespace", namespace, "port-forward", f"service/{service}", f":{port}"]
    with subprocess.Popen(argv, env=target.environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not select.select([process.stdout], [], [], 60)[0]:
                raise ClusterError(f"`{' '.join(argv)}` does not listen after 60 s")
            # "Forwarding from 127.0.0.1:34567 -> 4443"
            words = process.stdout.readline().split()
            if len(words) < 3:
                raise ClusterError(f"`{' '.join(argv)}` ended; it says above why")
            yield f"http://{words[2]}"
        finally:
            process.terminate()
