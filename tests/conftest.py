"""Fixtures for the tests that need a cluster; `make e2e` brings one up with Pierhead installed."""

import os
import re

import pytest

from tests.kube import scratch_namespace


@pytest.fixture(scope="session")
def cluster():
    """The cluster of $KUBECONFIG, which has to be there."""
    missing = [name for name in ("KUBECONFIG", "PIERHEAD_URL") if not os.environ.get(name)]
    if missing:
        pytest.fail(f"{' and '.join(missing)} must be set: run `make e2e`, or `eval $(python -m cluster env)`")


@pytest.fixture
def kubectl(cluster, request):
    """kubectl in a namespace of this test's own."""
    with scratch_namespace(re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")) as kubectl:
        yield kubectl
