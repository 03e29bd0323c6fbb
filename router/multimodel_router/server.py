"""The server under the router: it listens, watches its clients' deadlines, and stops without cutting anybody off."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator

from multimodel_router.certificate import Certificate
from multimodel_router.http1.connection import Connection
from multimodel_router.router import Router
from multimodel_router.settings import Settings

logger = logging.getLogger(__name__)

BACKLOG = 4096
LAST_LOOKS = 3
"""Turns of the loop before the listening socket closes: who has not been accepted by then is reset."""

SWEEP_SECONDS = 1.0
DRAIN_LOOK_SECONDS = 0.05
ABANDONED_SECONDS = 1.0
"""A pod in the place of one that is deleted is there by then, if one comes."""
FRESH_SECONDS = 2.0
"""How long a client whose connection was the last to be taken may need to send its request."""
NEXT_SECONDS = 0.25
"""How long one whose connection was kept after an answer may need to send the next."""


class Server:
    """Serves a router until it is told to stop; `url` once `started`."""

    def __init__(self, router: Router, settings: Settings) -> None:
        self.started = asyncio.Event()
        self.url = ""
        self._router = router
        self._site = router.site
        self._settings = settings
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def serve(self) -> None:
        """Serve until `stop`; raises OSError when the address is taken."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        certificate = Certificate(settings.tls) if settings.tls else None
        async with self._router.running():
            listening = await loop.create_server(
                lambda: Connection(self._site),
                settings.host,
                settings.port,
                backlog=BACKLOG,
                ssl=certificate.context if certificate else None,
                reuse_port=settings.workers > 1 or None,
            )
            self._say_where(listening)
            beside = [asyncio.create_task(self._sweep())]
            if certificate:
                beside.append(asyncio.create_task(certificate.follow()))
            await self._stop.wait()
            await self._drain(listening)
            for task in beside:
                task.cancel()

    def stop(self) -> None:
        """Take no new clients and finish what runs; a second call ends at once."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT while the block runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _say_where(self, listening: asyncio.Server) -> None:
        host, port = listening.sockets[0].getsockname()[:2]
        scheme = "https" if self._settings.tls else "http"
        self.url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        self.started.set()
        logger.info("MultiModel answers on %s/v1 (the models: %s/v1/models)", self.url, self.url)

    async def _sweep(self) -> None:
        """Hold clients to their deadlines: one look at all of them costs less than a timer for each."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = loop.time()
            for connection in [connection for connection in self._site.connections if connection.deadline < now]:
                connection.expire()

    async def _drain(self, listening: asyncio.Server) -> None:
        """Stop in three steps: say so, take no more clients, and wait for the running requests."""
        self._site.closing = True
        await self._be_a_lame_duck()
        for _ in range(LAST_LOOKS):
            await asyncio.sleep(0)
        listening.close()
        loop = asyncio.get_running_loop()
        closed_at = loop.time()
        deadline = closed_at + self._settings.drain_seconds
        while self._site.connections and not self._hurry.is_set() and loop.time() < deadline:
            now = loop.time()
            patient = now < closed_at + FRESH_SECONDS
            for connection in [at for at in self._site.connections if at.idle_for(now) > NEXT_SECONDS]:
                if not (connection.fresh and patient):
                    connection.close()
            await self._pause(DRAIN_LOOK_SECONDS)
        if self._site.connections:
            logger.warning("%d connections are cut off: their time to finish is over", len(self._site.connections))
        for connection in list(self._site.connections):
            connection.abort()

    async def _be_a_lame_duck(self) -> None:
        """Go on accepting until all have learned that this router goes; for a moment only where all routers do.

        The controller that deletes a namespace looks for its pods after five seconds, and then not before half of their
        grace is over, which is minutes.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        until = began + self._settings.lame_duck_seconds
        while (now := loop.time()) < until and not self._hurry.is_set():
            if now >= began + ABANDONED_SECONDS and self._router.fleet.abandoned:
                logger.info("every pod of the MultiModel is being deleted: no more clients are waited for")
                return
            await self._pause(min(DRAIN_LOOK_SECONDS, until - now))

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless a second stop has been asked for."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)
