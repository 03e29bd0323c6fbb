"""Looks at every MultiModel from time to time, whatever the watches say.

kopf lists again after a lost watch, but never tells what vanished meanwhile; a look at everything mends that.
"""

import asyncio
import logging

from multimodel_operator.cluster import Cluster
from multimodel_operator.errors import OperatorError
from multimodel_operator.health import Health
from multimodel_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

FIRST_LOOK_SECONDS = 2.0


class Resync:
    """Asks for work on every MultiModel of a namespace, or of all for None."""

    def __init__(self, cluster: Cluster, queue: WorkQueue, health: Health, namespace: str | None) -> None:
        self._cluster = cluster
        self._queue = queue
        self._health = health
        self._namespace = namespace

    async def until_answered(self) -> None:
        """Wait for the CRD and the rights, which an installation may bring later than this process."""
        while not await self.look():  # noqa: ASYNC110  (nothing here could set an event)
            await asyncio.sleep(FIRST_LOOK_SECONDS)

    async def every(self, seconds: float) -> None:
        """Look at everything until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            await self.look()

    async def look(self) -> bool:
        """Ask for work on every MultiModel; returns whether the API server told which there are."""
        try:
            keys = await self._cluster.multimodels(self._namespace)
        except OperatorError as error:
            logger.warning("cannot list MultiModels: %s", error)
            self._health.looked(reached=False)
            return False
        for key in keys:
            self._queue.add(key)
        self._health.looked(reached=True)
        return True
