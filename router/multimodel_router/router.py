"""Puts the router together: what stands behind its one entrance, and what runs beside it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from multimodel_router.access import Access, KeyFolder
from multimodel_router.app import Control, create_app
from multimodel_router.balance import Balance
from multimodel_router.call import AccessLog
from multimodel_router.cors import Cors
from multimodel_router.endpoints import Endpoints
from multimodel_router.exchange import Desk
from multimodel_router.fleet import Fleet
from multimodel_router.fleet.probe import Probe
from multimodel_router.fleet.vetted import VettedFleet
from multimodel_router.front import Front
from multimodel_router.http1.connection import Site
from multimodel_router.http1.limits import Limits
from multimodel_router.lifecycle import Lifecycle
from multimodel_router.loads import LoadHistory
from multimodel_router.metrics import Metrics
from multimodel_router.outcomes import Outcomes
from multimodel_router.relay import Relay
from multimodel_router.settings import Settings
from multimodel_router.upstream import Upstream
from multimodel_router.waiting import WaitingRoom


class Router:
    """One router over a fleet; `site` answers requests while it is `running`."""

    def __init__(self, fleet: Fleet, upstream: Upstream, settings: Settings, limits: Limits = Limits()) -> None:  # noqa: B008
        self.metrics = Metrics()
        loads = LoadHistory()
        self._upstream = upstream
        self._access = KeyFolder(settings.api_keys) if settings.api_keys else Access.open()
        probe = Probe(upstream)
        self.fleet = VettedFleet(fleet, probe, loads, self.metrics)
        self._endpoints = Endpoints(probe)
        self.waiting = WaitingRoom(self.fleet, self.metrics, loads, settings.waiting)
        desk = Desk(
            fleet=self.fleet,
            waiting=self.waiting,
            endpoints=self._endpoints,
            upstream=upstream,
            metrics=self.metrics,
            resume=settings.resume,
            balance=Balance(settings.balance),
        )
        cors = Cors(settings.cors_origins)
        lifecycle = Lifecycle(self.fleet, self.waiting)
        app = create_app(Control(self.fleet, lifecycle, self._access, self.metrics, probe, lambda: self.site.closing))
        relay, outcomes = Relay(desk, self._access), Outcomes(self.fleet)
        front = Front(app, relay, cors, self.metrics, outcomes, AccessLog(settings.access_log))
        self.site = Site(front.handle, limits, cors.headers, front.note_refusal)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the fleet, and what looks after it, for as long as the block."""
        await self.fleet.start()
        beside = [asyncio.create_task(self._endpoints.watch(self.fleet))]
        if isinstance(self._access, KeyFolder):
            beside.append(asyncio.create_task(self._access.run()))
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self.fleet.stop()
            self._upstream.close()
