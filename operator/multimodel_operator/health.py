"""Answers the kubelet's probes by what the operator gets done, not by its being there."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from aiohttp import web

from multimodel_api import names

logger = logging.getLogger(__name__)

STUCK_SECONDS = 300.0
"""A look at everything, or the work on one MultiModel, that takes longer than this will never end."""


class Health:
    """What the probes are answered from."""

    def __init__(self, longest_work: Callable[[], float]) -> None:
        self._longest_work = longest_work
        self._last_look = asyncio.get_running_loop().time()
        self._reached = False

    def looked(self, *, reached: bool) -> None:
        """Note the end of a look at everything, and whether the API server was reached."""
        self._last_look = asyncio.get_running_loop().time()
        self._reached = reached

    @property
    def live(self) -> bool:
        """Whether work goes on; an API server that is away is no reason to restart."""
        return max(asyncio.get_running_loop().time() - self._last_look, self._longest_work()) < STUCK_SECONDS

    @property
    def ready(self) -> bool:
        """Whether the last look at everything succeeded."""
        return self._reached


@asynccontextmanager
async def answering(health: Health, host: str, port: int) -> AsyncIterator[None]:
    """Answer probes for the length of the block."""

    async def live(_: web.Request) -> web.Response:
        return _answer(health.live)

    async def ready(_: web.Request) -> web.Response:
        return _answer(health.ready)

    app = web.Application()
    app.add_routes([web.get(names.LIVE_PATH, live), web.get(names.READY_PATH, ready)])
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
