"""Answers the kubelet's probes by what the operator gets done, not by its being there; and shows its metrics."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from multimodel_api import names
from multimodel_operator.cache import Cache
from multimodel_operator.metrics import Metrics
from multimodel_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

STUCK_SECONDS = 300.0
"""A round of listing and watching, the work on one MultiModel, or a wait for it that takes longer will never end."""
METRICS_PATH = "/metrics"


class Health:
    """What the probes are answered from."""

    def __init__(self, cache: Cache, queues: Sequence[WorkQueue]) -> None:
        self._cache = cache
        self._queues = queues

    @property
    def live(self) -> bool:
        """Whether work goes on; an API server that is away is no reason to restart."""
        times = [mirror.idle_seconds for mirror in self._cache.mirrors]
        times += [
            seconds
            for queue in self._queues
            for seconds in (queue.longest_work_seconds(), queue.longest_wait_seconds())
        ]
        return max(times) < STUCK_SECONDS

    @property
    def ready(self) -> bool:
        """Whether everything has been seen, and the API server answers."""
        return all(mirror.reachable for mirror in self._cache.mirrors)


@asynccontextmanager
async def answering(health: Health, metrics: Metrics, host: str, port: int) -> AsyncIterator[None]:
    """Answer probes, and who asks for metrics, for the length of the block."""

    async def live(_: web.Request) -> web.Response:
        return _answer(health.live)

    async def ready(_: web.Request) -> web.Response:
        return _answer(health.ready)

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get(names.LIVE_PATH, live), web.get(names.READY_PATH, ready), web.get(METRICS_PATH, page)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        for address in runner.addresses:
            logger.info("health probes are answered on http://%s:%s", *address[:2])
        yield
    finally:
        await runner.cleanup()


def _answer(good: bool) -> web.Response:
    return web.Response(status=HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE)
