"""Debian's docker-registry on loopback: the one way by which images reach containerd.

It moves only the layers that the other side lacks, which makes a change of code cost a second instead of a gigabyte.
"""

from __future__ import annotations

from typing import Any

import httpx
import yaml

from cluster import locks, processes, settings
from cluster.settings import Paths

NAME = "registry"
_MANIFEST_TYPES = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


def make_config(paths: Paths) -> dict[str, Any]:
    return {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(paths.registry)}},
        "http": {"addr": settings.REGISTRY},
    }


def ensure_running(paths: Paths) -> None:
    """Starts the registry unless it runs. Safe against a second caller."""
    with locks.exclusive(settings.RUN / f"{NAME}.lock"):
        log = paths.log(NAME)
        if not processes.alive(NAME):
            config = settings.RUN / f"{NAME}.yaml"
            config.write_text(yaml.safe_dump(make_config(paths)))
            processes.start(NAME, ["docker-registry", "serve", str(config)], log)
        processes.wait_until("the image registry answers", _answers, 20, {NAME: log})


def has(reference: str) -> bool:
    """Whether the registry holds `127.0.0.1:15000/<name>:<tag>`."""
    name, _, tag = reference.removeprefix(f"{settings.REGISTRY}/").rpartition(":")
    answer = httpx.head(
        f"http://{settings.REGISTRY}/v2/{name}/manifests/{tag}",
        headers={"Accept": _MANIFEST_TYPES},
        timeout=10,
        trust_env=False,  # a proxy of the caller's environment cannot reach loopback
    )
    return answer.status_code == httpx.codes.OK


def tag(reference: str, tag: str) -> None:
    """Lets the image that the registry holds as `reference` be found by another tag, too."""
    name, _, known = reference.removeprefix(f"{settings.REGISTRY}/").rpartition(":")
    manifests = f"http://{settings.REGISTRY}/v2/{name}/manifests"
    with httpx.Client(timeout=10, trust_env=False) as client:
        found = client.get(f"{manifests}/{known}", headers={"Accept": _MANIFEST_TYPES}).raise_for_status()
        headers = {"Content-Type": found.headers["Content-Type"]}
        client.put(f"{manifests}/{tag}", content=found.content, headers=headers).raise_for_status()


def _answers() -> bool:
    try:
        return httpx.get(f"http://{settings.REGISTRY}/v2/", timeout=2, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
