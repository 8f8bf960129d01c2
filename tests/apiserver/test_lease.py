"""Leader election on a real API server, with its clocks, its resource versions and its time limits."""

import asyncio
import time
from contextlib import asynccontextmanager, suppress

import pytest
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_kube_config
from pierhead_operator.cluster import Cluster, ClusterError, Key
from pierhead_operator.lease import REQUEST_SECONDS, Candidate, Lease, LeaseLostError

# A holder that dies has renewed 10 seconds ago at most; who waits looks every 2.4 seconds, and when it runs out.
TAKEOVER_SECONDS = 15


@pytest.fixture
async def api(cluster):
    configuration = Configuration()
    await load_kube_config(client_configuration=configuration)
    async with ApiClient(configuration) as api:
        yield api


@pytest.fixture
def make(api, kubectl):
    """A process's lease, and its access to the cluster."""

    def make(identity):
        lease = Lease(
            Cluster(api, timeout=REQUEST_SECONDS), Key("Lease", kubectl.namespace, "operator"), Candidate(identity)
        )
        return lease, Cluster(api, lease.seconds_left)

    return make


@asynccontextmanager
async def kept(lease):
    """Renewed by a task of its own until the end of the block."""
    task = asyncio.create_task(lease.keep())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, LeaseLostError):
            await task


def make_service(kubectl, name):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": kubectl.namespace},
        "spec": {"ports": [{"port": 80}]},
    }


def holder(kubectl):
    return kubectl.get("lease", "operator")["spec"].get("holderIdentity", "")


async def test_lease_of_a_holder_that_stops_renewing_is_taken_over_and_it_writes_no_more(make, kubectl):
    (first, first_cluster), (second, second_cluster) = make("first"), make("second")
    await first.acquire()
    await first_cluster.apply(make_service(kubectl, "by-first"))
    async with kept(first):
        # Longer than the lease lasts: it is renewed, so nobody else gets it.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.acquire(), 13)
        assert holder(kubectl) == "first"
        with pytest.raises(ClusterError, match="not the leader"):
            await second_cluster.apply(make_service(kubectl, "by-second"))
    # `kept` has ended: the first one is as dead.
    start = time.monotonic()
    await asyncio.wait_for(second.acquire(), TAKEOVER_SECONDS)
    assert time.monotonic() - start > 5
    assert holder(kubectl) == "second"
    assert kubectl.get("lease", "operator")["spec"]["leaseTransitions"] == 1
    assert not first.is_held
    with pytest.raises(ClusterError, match="not the leader"):
        await first_cluster.apply(make_service(kubectl, "by-first-again"))
    assert kubectl.get("service", "by-first")
    assert kubectl.get("service", "by-first-again") is None
    await second_cluster.apply(make_service(kubectl, "by-second"))
    with pytest.raises(LeaseLostError, match="second"):
        await first.keep()


async def test_released_lease_is_taken_at_once(make, kubectl):
    (first, first_cluster), (second, second_cluster) = make("first"), make("second")
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    async with kept(first):
        # It has seen that the lease is held, and waits.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 3)
    await first.release()
    await asyncio.wait_for(waiting, 5)
    assert holder(kubectl) == "second"
    with pytest.raises(ClusterError, match="not the leader"):
        await first_cluster.apply(make_service(kubectl, "late"))
    await second_cluster.apply(make_service(kubectl, "early"))


async def test_of_many_that_start_at_once_one_leads(make):
    leases = [make(f"process-{number}")[0] for number in range(5)]
    tasks = [asyncio.create_task(lease.acquire()) for lease in leases]
    try:
        done, _ = await asyncio.wait(tasks, timeout=5)
        assert len(done) == 1
        assert [lease.is_held for lease in leases].count(True) == 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_api_server_takes_the_time_limit_of_a_write(api, kubectl):
    await Cluster(api, lambda: 2.9).apply(make_service(kubectl, "in-time"))
    assert kubectl.get("service", "in-time")
