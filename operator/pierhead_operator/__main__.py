"""Starts the operator: `python -m pierhead_operator --config FILE`."""

import argparse
import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path

import kopf
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from pierhead_operator import settings as operator_settings
from pierhead_operator.cluster import Cluster, ClusterError, Key
from pierhead_operator.handlers import make_kopf_settings, make_registry
from pierhead_operator.queue import RetryLater, WorkQueue
from pierhead_operator.reconcile import Reconciler
from pierhead_operator.resync import Resync, serve_health
from pierhead_operator.settings import OperatorSettings

logger = logging.getLogger("pierhead_operator")

_CONCURRENCY = 8


async def run(settings: OperatorSettings) -> None:
    """Runs the operator until it is told to stop."""
    async with ApiClient(await _load_configuration()) as api:
        cluster = Cluster(api)
        reconciler = Reconciler(cluster, settings, lambda: datetime.now(UTC))

        async def work(key: Key) -> None:
            try:
                await reconciler.reconcile(key)
            except ClusterError as error:
                logger.warning("%s %s/%s put off: %s", key.kind, key.namespace, key.name, error)
                raise RetryLater from error
            except Exception as error:
                # A bug with one resource must not stop the care for all others.
                logger.exception("%s %s/%s failed", key.kind, key.namespace, key.name)
                raise RetryLater from error

        queue = WorkQueue[Key](work, _CONCURRENCY)
        resync = Resync(cluster, queue.add, settings.watch_namespaces)
        health = await serve_health(resync)
        try:
            async with asyncio.TaskGroup() as tasks:
                own = [tasks.create_task(queue.run()), tasks.create_task(resync.run())]
                # kopf cancels at its end what was started after it: let these be there before.
                await asyncio.sleep(0)
                await kopf.operator(
                    registry=make_registry(queue.add, settings),
                    settings=make_kopf_settings(),
                    standalone=True,
                    clusterwide=not settings.watch_namespaces,
                    namespaces=settings.watch_namespaces,
                )
                for task in own:
                    task.cancel()
        finally:
            await health.cleanup()


async def _load_configuration() -> Configuration:
    """A pod's own service account; outside a cluster the kubeconfig."""
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        await load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    return configuration


def main() -> None:
    parser = argparse.ArgumentParser(prog="pierhead-operator", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the settings, as the chart writes them")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Else a line for each event of each object.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    asyncio.run(run(operator_settings.load(arguments.config)))


if __name__ == "__main__":
    main()
