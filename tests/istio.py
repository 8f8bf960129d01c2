"""Istio's own CRDs, without Istio."""

from contextlib import AbstractContextManager

import yaml

from cluster import go_build
from cluster.settings import Paths
from tests import crds

_CRDS = (
    "authorizationpolicies.security.istio.io",
    "destinationrules.networking.istio.io",
    "virtualservices.networking.istio.io",
)


def istio_crds() -> AbstractContextManager[None]:
    """They are in the cluster meanwhile."""
    paths = Paths.from_environment()
    go_build.build(paths, [go_build.ISTIO])
    documents = yaml.load_all((go_build.ISTIO.folder(paths) / "crds.yaml").read_text(), yaml.CSafeLoader)
    return crds.installed(*(one for one in documents if one and one["metadata"]["name"] in _CRDS))
