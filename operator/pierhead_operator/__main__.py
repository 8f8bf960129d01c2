"""Starts the operator: `python -m pierhead_operator --config FILE`."""

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import aiohttp
import kopf
from kubernetes.aio.client import ApiClient
from kubernetes.aio.config import ConfigException, list_kube_config_contexts

from pierhead_operator import health, logs
from pierhead_operator import lease as election
from pierhead_operator import settings as operator_settings
from pierhead_operator.batch_reconcile import BatchReconciler
from pierhead_operator.cluster import Cluster, ClusterError, Key, Rejected, load_configuration
from pierhead_operator.feed import Feed, watched_kinds
from pierhead_operator.handlers import make_kopf_settings, make_registry
from pierhead_operator.installation import Installations, make_name, spare_others
from pierhead_operator.lease import Candidate, Lease, LeaseLostError
from pierhead_operator.metrics import Metrics
from pierhead_operator.prober import Prober
from pierhead_operator.progress import ProgressPoller
from pierhead_operator.queue import RetryLater, WorkQueue
from pierhead_operator.reconcile import Reconciler
from pierhead_operator.resource_metrics import ResourceMetrics
from pierhead_operator.resync import Resync
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.store import Store
from pierhead_operator.types import BatchPredictionJob

logger = logging.getLogger("pierhead_operator")

_CONCURRENCY = 16  # reconciles at once: they wait for the API server most of the time
_RETRY_SECONDS = 5.0

Work = Callable[[Key], Awaitable[float | None]]


async def run(settings: OperatorSettings) -> None:
    """Runs the operator until it is told to stop; raises LeaseLostError, in a group, where another one took over."""
    metrics, events = Metrics(), health.Heartbeat()
    kinds = watched_kinds(settings)
    store = Store(kinds)
    async with ApiClient(await load_configuration()) as api, _make_session() as session:
        lease, installation = _make_lease(api, metrics, settings), make_name(_find_lease_key())

        async def reconcile(key: Key) -> float | None:
            work = (batches if key.kind == BatchPredictionJob.KIND else reconciler).reconcile
            return await spare_others(key, work, installations, reconciler.withdraw)

        queue = WorkQueue[Key](
            make_work(reconcile, metrics), _CONCURRENCY, metrics.observe_wait, lambda key: key.namespace
        )
        feed = Feed(store, queue, events.beat)
        cluster = Cluster(api, lease.seconds_left, metrics.observe_request, store=store, tell_written=feed.tell_written)
        prober, clock = Prober(session, queue.add), partial(datetime.now, UTC)
        installations = Installations(cluster, installation)
        reconciler = Reconciler(cluster, prober, settings, clock, installation)
        batches = BatchReconciler(cluster, ProgressPoller(prober), settings, clock, installation)
        resync = Resync(cluster, kinds, settings.watch_namespaces, feed.tell_listed, metrics.set_resources)

        def silence() -> float:
            # Where nobody deploys anything there may be no events for long.
            return min(events.age, resync.age)

        metrics.watch(lambda: queue.length, lambda: lease.is_held, lambda: resync.age)
        metrics.watch_others(lambda: installations.count_left)
        resources = ResourceMetrics(store, lambda: lease.is_held)
        server = await health.serve(health.make_app(silence, metrics, resources))
        begin = asyncio.Event()
        tidy = _keep_tidy(begin, installations, reconciler)
        duties = (queue.run(begin), resync.run(), tidy, _lead(lease, resync, begin))
        try:
            async with asyncio.TaskGroup() as tasks:
                own = [tasks.create_task(duty) for duty in duties]
                # kopf cancels at its end what was started after it: let these be there before.
                await asyncio.sleep(0)
                await _watch(feed, kinds, settings)
                for task in own:
                    task.cancel()
        finally:
            # Nothing is written any more: the next one need not wait until the lease runs out.
            await lease.release()
            await server.cleanup()


async def _watch(feed: Feed, kinds: Collection[str], settings: OperatorSettings) -> None:
    """Hands on what changes, whether this process leads or waits, until it is told to stop."""
    await kopf.operator(
        registry=make_registry(feed, kinds),
        settings=make_kopf_settings(kinds),
        standalone=True,
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
    )


async def _lead(lease: Lease, resync: Resync, begin: asyncio.Event) -> None:
    """Lets the work begin once this process is the leader; raises LeaseLostError when it is no longer.

    It does not ask to lead before it has seen all that is there: by half of it, it would judge wrongly.
    """
    await resync.complete.wait()
    await lease.acquire()
    begin.set()
    await lease.keep()


async def _keep_tidy(begin: asyncio.Event, installations: Installations, reconciler: Reconciler) -> None:
    """Deletes what is there of other settings: at the start, and once another installation is gone."""
    await begin.wait()
    while await installations.to_tidy.wait():
        installations.to_tidy.clear()
        await _tidy(installations, reconciler)


async def _tidy(installations: Installations, reconciler: Reconciler) -> None:
    namespaces: Sequence[str | None] = reconciler.settings.watch_namespaces or [None]
    for namespace in namespaces:
        while True:
            try:
                await reconciler.delete_of_other_settings(namespace, installations.was_made_by_another)
                break
            except (ClusterError, Rejected) as error:
                logger.warning("what other settings left is looked for later: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)


def make_work(reconcile: Work, metrics: Metrics) -> Work:
    """A reconcile as the queue wants it: told in logs and metrics, and asked for again where it failed."""

    async def work(key: Key) -> float | None:
        with logs.about(key.kind, key.namespace, key.name), metrics.time_reconcile(key.kind):
            try:
                return await reconcile(key)
            except (ClusterError, Rejected) as error:
                metrics.count_error(key.kind, "environment")
                logger.warning("%s %s/%s put off: %s", key.kind, key.namespace, key.name, error)
                raise RetryLater from error
            except Exception as error:
                # A bug with one resource must not stop the care for all others.
                metrics.count_error(key.kind, "bug")
                logger.exception("%s %s/%s failed", key.kind, key.namespace, key.name)
                raise RetryLater from error

    return work


def _make_session() -> aiohttp.ClientSession:
    """How pods are asked. Who asks bounds how many at once: workers that hang take no connection that a probe needs.

    A cookie of one tenant's pod must not come with a request to another's.
    """
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar())


def _find_lease_key() -> Key:
    """The Lease that the operators of an installation share."""
    return Key(
        election.KIND,
        os.environ.get("POD_NAMESPACE") or _find_namespace(),
        os.environ.get("PIERHEAD_LEASE_NAME") or election.NAME,
    )


def _make_lease(api: ApiClient, metrics: Metrics, settings: OperatorSettings) -> Lease:
    identity = election.make_identity(os.environ.get("POD_NAME") or socket.gethostname())
    cluster = Cluster(api, observe=metrics.observe_request, timeout=election.REQUEST_SECONDS)
    return Lease(cluster, _find_lease_key(), Candidate(identity, settings.watch_namespaces))


def _find_namespace() -> str:
    """Outside a cluster, the namespace that kubectl would use."""
    try:
        _, active = list_kube_config_contexts()  # type: ignore[no-untyped-call]
    except ConfigException:
        return "default"
    return str(active["context"].get("namespace") or "default")


def main() -> None:
    parser = argparse.ArgumentParser(prog="pierhead-operator", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the settings, as the chart writes them")
    parser.add_argument("--log-format", choices=("json", "text"), default="json", help="how each line is written")
    arguments = parser.parse_args()
    logs.configure_logging(json=arguments.log_format == "json")
    lost = False
    try:
        # In variables of their own, where Kustomize finds them to replace them.
        images = (os.environ.get(f"PIERHEAD_{name}_IMAGE") for name in ("SERVER", "OPENVINO"))
        asyncio.run(run(operator_settings.load(arguments.config, *images)))
    except* LeaseLostError as group:
        logger.error("ends: %s", "; ".join(str(error) for error in group.exceptions))
        lost = True
    # Kubernetes starts it anew, and it waits with nothing in its memory that may be out of date.
    if lost:
        sys.exit(1)


if __name__ == "__main__":
    main()
