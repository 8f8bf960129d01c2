"""Istio's own CRDs, without Istio."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import yaml

from cluster import go_build
from cluster.settings import Paths
from tests.kube import SYSTEM, Manifest, wait_until

_CRDS = (
    "authorizationpolicies.security.istio.io",
    "destinationrules.networking.istio.io",
    "virtualservices.networking.istio.io",
)


@contextmanager
def istio_crds() -> Iterator[None]:
    """They are in the cluster meanwhile."""
    # A cluster of the caller's own may have Istio: then it is Istio's to say what its objects are.
    missing = [name for name in _CRDS if not SYSTEM.get("crd", name)]
    if not missing:
        yield
        return
    SYSTEM.apply(*_read(missing))
    try:
        for name in missing:
            # kubectl's own wait fails where a CRD has no conditions yet.
            wait_until(f"{name} is there", partial(_is_established, name), seconds=60)
        yield
    finally:
        SYSTEM("delete", "crd", *missing)


def _is_established(name: str) -> bool:
    return SYSTEM.condition("crd", name, "Established").get("status") == "True"


def _read(names: list[str]) -> list[Manifest]:
    paths = Paths.from_environment()
    go_build.build(paths, [go_build.ISTIO])
    documents = yaml.safe_load_all((go_build.ISTIO.folder(paths) / "crds.yaml").read_text())
    return [document for document in documents if document and document["metadata"]["name"] in names]
