"""Fixtures for the tests that need a cluster; `make e2e` brings one up with Pierhead installed."""

import os
import re

import pytest

from tests.audit import find_refused, make_user
from tests.kube import OPERATOR, SYSTEM, Kubectl, describe, scratch_namespace, wait_until

KUBECTL = pytest.StashKey[Kubectl]()
# By the refusal it sees that another installation, whose Lease everybody may read, is gone.
ASKED_IN_VAIN = {("coordination.k8s.io", "leases", "get")}
# What the chart grants by its values: with them the role changes first, and the last of the old operator is refused.
GRANTED_BY_VALUES = (
    "gateway.networking.k8s.io",
    "gateway.envoyproxy.io",
    "networking.istio.io",
    "networking.k8s.io",
)


@pytest.fixture(scope="session")
def cluster():
    """The cluster of $KUBECONFIG, which has to be there; its operator may do all that it asked for meanwhile."""
    missing = [name for name in ("KUBECONFIG", "PIERHEAD_URL") if not os.environ.get(name)]
    if missing:
        pytest.fail(f"{' and '.join(missing)} must be set: run `make e2e`, or `eval $(python -m cluster env)`")
    yield
    refused = find_refused(make_user(SYSTEM.namespace, OPERATOR))
    assert not {right for right in refused - ASKED_IN_VAIN if right[0] not in GRANTED_BY_VALUES}


@pytest.fixture
def kubectl(cluster, request):
    """kubectl in a namespace of this test's own."""
    with scratch_namespace(re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")) as kubectl:
        request.node.stash[KUBECTL] = kubectl
        yield kubectl


@pytest.fixture(scope="session")
def trial(cluster):
    """kubectl in a namespace for dry runs: nothing comes to be in it, so that all tests may share it."""
    with scratch_namespace("trial") as kubectl:
        wait_until("pods can be made", lambda: kubectl.get("serviceaccount", "default"))
        yield kubectl


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that failed tells what there was in its namespace, which is gone soon."""
    report = yield
    if report.when == "call" and report.failed and KUBECTL in item.stash:
        report.sections.append(("the namespace", describe(item.stash[KUBECTL])))
    return report
