"""Talks to the cluster's API: reads over HTTPS with the admin's certificate, applies through kubectl."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from cluster import commands, settings
from cluster.go_build import KUBE
from cluster.settings import Paths

Object = dict[str, Any]


class Api:
    """Reads for waiting on conditions: a `kubectl` for each look would take longer than what it waits for.

    A context manager, which holds one connection.
    """

    def __init__(self, paths: Paths) -> None:
        context = ssl.create_default_context(cafile=str(paths.pki / "ca.crt"))
        context.load_cert_chain(paths.pki / "admin.crt", paths.pki / "admin.key")
        # trust_env: a proxy of the caller's environment cannot reach the node's address.
        self._client = httpx.Client(base_url=settings.API_URL, verify=context, timeout=5, trust_env=False)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str) -> Object | None:
        """The object at `path`; None while there is none or the API does not answer."""
        try:
            answer = self._client.get(path)
        except httpx.TransportError:
            return None
        return answer.json() if answer.status_code == httpx.codes.OK else None

    def is_ready(self) -> bool:
        try:
            return self._client.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def has_condition(self, path: str, condition: str) -> bool:
        """Whether the object at `path` exists and its status says `condition`."""
        return is_true(self.get(path), condition)

    def patch_status(self, path: str, operations: Sequence[Mapping[str, Any]]) -> None:
        """Applies a JSON patch to the status of the object at `path`."""
        answer = self._client.patch(
            f"{path}/status", json=operations, headers={"Content-Type": "application/json-patch+json"}
        )
        answer.raise_for_status()


def is_true(found: Object | None, condition: str) -> bool:
    """Whether the status of an object, None for one that does not exist, has the condition `True`."""
    conditions = (found or {}).get("status", {}).get("conditions") or []  # null in a CRD that was made just now
    return any(one["type"] == condition and one["status"] == "True" for one in conditions)


def kubectl(paths: Paths, *arguments: str) -> list[str]:
    return [str(KUBE.binary(paths, "kubectl")), f"--kubeconfig={paths.kubeconfig}", *arguments]


def apply(paths: Paths, manifests: str) -> None:
    """Server-side apply of YAML documents. Raises ClusterError with what the API said."""
    argv = kubectl(paths, "apply", "--server-side", "--force-conflicts", "--filename=-")
    commands.output(argv, stdin=manifests, timeout=120)
