"""`python -m multimodel_operator`: watches MultiModels until told to stop."""

import asyncio
import logging
import sys

import kopf

from multimodel_operator import handlers, settings
from multimodel_operator.cluster import connected
from multimodel_operator.health import Health, answering
from multimodel_operator.reconcile import Reconciler
from multimodel_operator.resync import Resync
from multimodel_operator.settings import Settings
from multimodel_operator.workqueue import WorkQueue

logger = logging.getLogger("multimodel_operator")


async def operate(chosen: Settings) -> None:
    """Reconcile on every event and at every resync, until kopf is told to stop (SIGTERM, SIGINT) or fails."""
    async with connected() as cluster:
        queue = WorkQueue(Reconciler(cluster, chosen.images).reconcile, chosen.workers)
        health = Health(queue.longest_seconds)
        resync = Resync(cluster, queue, health, chosen.namespace)
        async with answering(health, chosen.health_host, chosen.health_port), asyncio.TaskGroup() as tasks:
            await resync.until_answered()
            background = [tasks.create_task(queue.run()), tasks.create_task(resync.every(chosen.resync_seconds))]
            await asyncio.sleep(0)  # starts the workers: kopf, when it ends, waits for tasks that began after it
            await kopf.operator(
                registry=handlers.registry(queue.add),
                settings=handlers.kopf_settings(),
                clusterwide=chosen.namespace is None,
                namespaces=[chosen.namespace] if chosen.namespace else [],
            )
            for task in background:
                task.cancel()


def main() -> None:
    """Run the operator."""
    chosen = settings.parse(sys.argv[1:])
    logging.basicConfig(level=chosen.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logger.info("watching MultiModels in %s", chosen.namespace or "every namespace")
    asyncio.run(operate(chosen))


if __name__ == "__main__":
    main()
