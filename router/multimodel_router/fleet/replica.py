"""Keeps one model server process running: started, probed, restarted with back-off after a crash, until stopped."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.manifest import EngineSettings, Model
from multimodel_api.progress import LoadProgress
from multimodel_router.fleet import Endpoint
from multimodel_router.fleet.probe import Probe
from multimodel_router.fleet.server_process import DRAIN_SECONDS, Command, Launch, ServerProcess, free_endpoint

logger = logging.getLogger(__name__)

LOADING_INTERVAL = 0.1
READY_INTERVAL = 1.0
WEDGED_PROBES = 3
"""Probes in a row that must say that a server needs a restart before it gets one."""

LOOP_RESTARTS = 2
"""Restarts after which crashes without a typed cause count as a failure, as they do for pods."""

LONG_RUN = 60.0
"""A server that was ready for longer is restarted without back-off."""

MAX_BACK_OFF = 60.0

STOP_SECONDS = DRAIN_SECONDS + 15.0
"""From SIGTERM to SIGKILL."""


def back_off(crashes: int) -> float:
    """Return the pause in seconds after this many crashes in a row: none after the first, then doubling from 1."""
    return 0.0 if crashes <= 1 else min(MAX_BACK_OFF, 2.0 ** (crashes - 2))


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What every replica of a model is run with."""

    model: Model
    engine: EngineSettings
    folder: Path
    command: Command


class Replica:
    """One place for a model server process; `endpoint` is set while it is ready."""

    def __init__(self, settings: ReplicaSettings, probe: Probe, number: int, notify: Callable[[], None]) -> None:
        self.endpoint: Endpoint | None = None
        self.failure: LoadFailure | None = None
        self.progress: LoadProgress | None = None
        self._settings = settings
        self._probe = probe
        self._failure_file = settings.folder / f"{settings.model.name}-{number}.failure"
        self._notify = notify
        self._server: ServerProcess | None = None
        self._crashes = 0
        self._ready_since: float | None = None
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"replica of {settings.model.name}")

    async def stop(self) -> None:
        """Take no more requests, and end the process once it has finished those it has."""
        self._stopping.set()
        await self._task

    async def kill(self) -> None:
        """End the process at once, and all that it has begun."""
        self._stopping.set()
        if self._server:
            await self._server.kill()
        await self._task

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._run_once()
            except OSError as error:
                self._crashed(None, f"could not be started ({error})")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), back_off(self._crashes))

    async def _run_once(self) -> None:
        settings = self._settings
        start = Launch(settings.model, settings.engine, free_endpoint(), self._failure_file)
        server = self._server = await ServerProcess.spawn(start, settings.command)
        ended = asyncio.create_task(server.ended())
        watching = asyncio.create_task(self._watch(server.endpoint))
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((ended, watching, stopping), return_when=asyncio.FIRST_COMPLETED)
        wedged = watching.done() and not watching.cancelled()
        for task in (watching, stopping):
            task.cancel()
        self._show(endpoint=None, progress=None)
        if self._stopping.is_set():
            await server.stop(STOP_SECONDS)
            await ended
            return
        if wedged:
            logger.error("model %s: its server says that only a restart helps", settings.model.name)
            await server.kill()
        self._crashed(server.failure(), await ended)

    async def _watch(self, endpoint: Endpoint) -> None:
        """Probe the server for as long as it runs; return when it says that only a restart helps."""
        loop = asyncio.get_running_loop()
        wedged = 0
        while wedged < WEDGED_PROBES:
            if await self._probe.ready(endpoint):
                self._ready_since = self._ready_since or loop.time()
                self.failure, wedged = None, 0
                self._show(endpoint=endpoint, progress=None)
            else:
                self._show(endpoint=None, progress=await self._probe.progress(endpoint))
                wedged = wedged + 1 if self._ready_since and await self._probe.wedged(endpoint) else 0
            await asyncio.sleep(READY_INTERVAL if self.endpoint or wedged else LOADING_INTERVAL)

    def _crashed(self, typed: LoadFailure | None, how: str) -> None:
        served = self._ready_since is not None
        ran = asyncio.get_running_loop().time() - self._ready_since if self._ready_since is not None else 0.0
        self._ready_since = None
        self._crashes = 1 if ran > LONG_RUN else self._crashes + 1
        if typed:
            self.failure = typed
        elif self._crashes > LOOP_RESTARTS and not served:
            self.failure = LoadFailure(
                reason=FailureReason.SERVER_CRASHED,
                message=f"the model server {how} {self._crashes} times in a row; its log says why",
            )
        logger.error("model %s: its server %s. %s", self._settings.model.name, how, self.failure or "Restarting it.")
        self._notify()

    def _show(self, *, endpoint: Endpoint | None, progress: LoadProgress | None) -> None:
        if (endpoint, progress) != (self.endpoint, self.progress):
            self.endpoint, self.progress = endpoint, progress
            self._notify()
