"""`python -m multimodel_operator`: keeps MultiModels in line until told to stop."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Protocol

from multimodel_operator import inventory, settings
from multimodel_operator.api_server import ApiServer, connected
from multimodel_operator.cache import Cache
from multimodel_operator.cluster import Cluster
from multimodel_operator.fit_check import FitCheck
from multimodel_operator.health import Health, answering
from multimodel_operator.leader import Elector, Timing
from multimodel_operator.load_reports import LoadReports
from multimodel_operator.metrics import Metrics
from multimodel_operator.objects import Key
from multimodel_operator.pace import Pace
from multimodel_operator.reconcile import Reconciler
from multimodel_operator.resync import Resync
from multimodel_operator.scaler import Scaler
from multimodel_operator.settings import Settings
from multimodel_operator.workqueue import GATHER_SECONDS, WorkQueue

logger = logging.getLogger("multimodel_operator")

LISTS_PER_LOOK = 2
"""A list mends what a watch has missed; a look without anything new is against faults of our own, and takes longer."""


class Duty(Protocol):
    """Something that only the leader does."""

    async def run(self) -> None:
        """Do it until cancelled, which happens when another leads; then maybe again."""


class Operator:
    """The parts of one operator, and who among several does what."""

    def __init__(self, api: ApiServer, chosen: Settings, metrics: Metrics) -> None:
        self._chosen = chosen
        self._metrics = metrics
        self._elector = _elector(api, chosen)
        self._cache = Cache(api, chosen.namespace, chosen.resync_seconds / LISTS_PER_LOOK)
        pace = Pace(chosen.requests_per_second, chosen.requests_burst)
        cluster = Cluster(api, self._cache, pace, metrics, self._leads)
        load_reports = LoadReports(self._look_again)
        fit_check = FitCheck(chosen.hub_endpoint, api, self._look_again)
        reconciler = Reconciler(
            self._cache,
            cluster,
            chosen.images,
            load_reports,
            fit_check,
            self._look_again,
            require_api_keys=chosen.require_api_keys,
            metrics_namespaces=chosen.metrics_namespaces,
        )
        scaler = Scaler(self._cache, cluster, metrics)
        self._queue = WorkQueue(reconciler.reconcile, chosen.workers, metrics)
        self._queues = self._queue, scaler.queue
        self._duties: Sequence[Duty] = (
            self._queue,
            Resync(self._cache, self._queue, chosen.resync_seconds),
            load_reports,
            fit_check,
            scaler,
        )
        self._publish()

    async def run(self) -> None:
        """Watch, and do the duties while leading, until cancelled."""
        health = Health(self._cache, self._queues)
        answers = answering(health, self._metrics, self._chosen.health_host, self._chosen.health_port)
        async with answers, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._cache.run())
            await self._cache.synced()
            logger.info("all is seen: %d MultiModels", len(self._cache.keys()))
            await (self._elector.run(self._lead) if self._elector else self._lead())

    async def _lead(self) -> None:
        with self._cache.following(self._queue.add):
            async with asyncio.TaskGroup() as duties:
                for duty in self._duties:
                    duties.create_task(duty.run())

    def _look_again(self, key: Key, delay: float = GATHER_SECONDS) -> None:
        self._queue.add(key, delay)

    def _leads(self) -> bool:
        return self._elector is None or self._elector.leads

    def _publish(self) -> None:
        publish, publish_each, cache = self._metrics.watch, self._metrics.watch_each, self._cache
        publish("leader", "1 while this operator writes.", lambda: float(self._leads()))
        publish("queue_length", "MultiModels that wait for a worker.", lambda: len(self._queue))
        waits = "How long the first that is to be reconciled or scaled has waited."
        publish("queue_age_seconds", waits, lambda: max(queue.longest_wait_seconds() for queue in self._queues))
        ages = "How long the oldest work has been going on."
        publish("work_age_seconds", ages, lambda: max(queue.longest_work_seconds() for queue in self._queues))
        publish_each(
            "multimodels", "MultiModels.", "state", lambda: inventory.multimodels_by_state(cache.multimodels())
        )
        publish_each("models", "Models.", "state", lambda: inventory.models_by_state(cache.multimodels()))
        publish_each("seen_objects", "Objects seen.", "kind", lambda: {m.kind.name: len(m) for m in cache.mirrors})
        listed = "Time since all objects of a kind were listed."
        publish_each("seen_age_seconds", listed, "kind", lambda: {m.kind.name: m.age_seconds for m in cache.mirrors})


def _elector(api: ApiServer, chosen: Settings) -> Elector | None:
    election = chosen.election
    if election is None:
        return None
    return Elector(api, Key(election.namespace, election.name), election.identity, Timing(election.seconds))


async def operate(chosen: Settings) -> None:
    """Run an operator until SIGTERM or SIGINT."""
    metrics = Metrics()
    async with connected(metrics) as api:
        running = asyncio.create_task(Operator(api, chosen, metrics).run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        await asyncio.wait((running,))
        if not running.cancelled():
            running.result()


def main() -> None:
    """Run the operator."""
    chosen = settings.parse(sys.argv[1:])
    logging.basicConfig(level=chosen.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logger.info("watching MultiModels in %s", chosen.namespace or "every namespace")
    asyncio.run(operate(chosen))


if __name__ == "__main__":
    main()
