"""A fleet whose endpoints count only once they have said for themselves which model they serve.

What an API server says of a pod may be minutes old; what the pod says is not. An endpoint that failed a request is
ejected, and asked until it says so again.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import NamedTuple

from multimodel_api.manifest import Model
from multimodel_api.status import LastCommand
from multimodel_router.catalog import Catalog
from multimodel_router.fleet import Changes, Endpoint, Fleet, ModelView
from multimodel_router.fleet.probe import Probe
from multimodel_router.loads import LoadHistory
from multimodel_router.metrics import Metrics

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.05
MAX_PAUSE = 2.0
SOUND_SECONDS = 10.0
"""An endpoint that is ejected sooner than this after it was admitted is asked later than the last time."""


class _Place(NamedTuple):
    """A model, as the manifest names it now, at an endpoint."""

    model: str
    api_id: str
    canonical_id: str
    endpoint: Endpoint


class VettedFleet:
    """Wraps a fleet; `view` is cheap, and shows nothing but what has been vetted."""

    def __init__(self, fleet: Fleet, probe: Probe, loads: LoadHistory, metrics: Metrics) -> None:
        self._fleet = fleet
        self._probe = probe
        self._loads = loads
        self._metrics = metrics
        self._views: dict[str, ModelView] = {}
        self._admitted: dict[_Place, float] = {}
        """The places that take requests, and since when."""
        self._pauses: dict[_Place, float] = {}
        """How long places that were ejected are left alone."""
        self._vetting: dict[_Place, asyncio.Task[None]] = {}
        self._changes = Changes()
        self._following: asyncio.Task[None] | None = None

    @property
    def catalog(self) -> Catalog:
        """The models that the fleet runs."""
        return self._fleet.catalog

    @property
    def synced(self) -> bool:
        """Whether the fleet has been seen whole at least once."""
        return self._fleet.synced

    @property
    def abandoned(self) -> bool:
        """Whether nobody will be served here any more."""
        return self._fleet.abandoned

    def view(self, model: str) -> ModelView:
        """Return what is known now of the model with this name."""
        view = self._views.get(model)
        return view if view is not None else dataclasses.replace(self._fleet.view(model), ready=())

    async def scale(self, model: str, replicas: int) -> None:
        """Want `replicas` of a model from now on; raises FleetUnavailableError."""
        await self._fleet.scale(model, replicas)
        self._refresh()

    async def record(self, model: str, command: LastCommand) -> None:
        """Write down who commanded what of a model, and why."""
        await self._fleet.record(model, command)
        self._refresh()

    async def record_calls(self, model: str, failing_since: str | None) -> None:
        """Write down since when every call of a model fails, or that one has not."""
        await self._fleet.record_calls(model, failing_since)
        self._refresh()

    async def changed(self) -> None:
        """Return when anything has changed since the call."""
        await self._changes.wait()

    async def start(self) -> None:
        """Begin to run, to watch and to vet; returns at once."""
        self._following = asyncio.create_task(self._follow())
        await self._fleet.start()
        self._refresh()

    async def stop(self) -> None:
        """End everything that `start` began."""
        tasks = [*self._vetting.values(), *([self._following] if self._following else [])]
        for task in tasks:
            task.cancel()
        await self._fleet.stop()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def eject(self, model: str, endpoint: Endpoint, why: str) -> None:
        """Send an endpoint no more requests until it says again that it serves its model."""
        for place in [place for place in self._admitted if (place.model, place.endpoint) == (model, endpoint)]:
            logger.warning("model %s: %s:%d is ejected (%s)", model, *endpoint, why)
            self._metrics.ejections.labels(model, why).inc()
            sound = asyncio.get_running_loop().time() - self._admitted.pop(place) > SOUND_SECONDS
            known = self._pauses.get(place)
            self._pauses[place] = 0.0 if sound or known is None else _longer(known)
        self._refresh()

    async def _follow(self) -> None:
        while True:
            await self._fleet.changed()
            self._refresh()

    def _refresh(self) -> None:
        """Look at everything anew: vet what has appeared, forget what has gone, show what is vetted."""
        views = [(model, self._fleet.view(model.name)) for model in self.catalog.models]
        places = {place for model, view in views for place in _places(model, view)}
        self._admitted = {place: since for place, since in self._admitted.items() if place in places}
        self._pauses = {place: pause for place, pause in self._pauses.items() if place in places}
        for place in [place for place in self._vetting if place not in places]:
            self._vetting.pop(place).cancel()
        for place in places - self._admitted.keys() - self._vetting.keys():
            self._vetting[place] = asyncio.create_task(self._vet(place))
        self._views = {model.name: self._vetted(model, view) for model, view in views}
        self._changes.notify()

    def _vetted(self, model: Model, view: ModelView) -> ModelView:
        ready = tuple(place.endpoint for place in _places(model, view) if place in self._admitted)
        if self.synced:  # an endpoint that is merely vetted again has not been loaded again
            self._loads.observe(model.name, view.state, asyncio.get_running_loop().time())
        return dataclasses.replace(view, ready=ready)

    async def _vet(self, place: _Place) -> None:
        pause = self._pauses.get(place, 0.0)
        mistaken = None
        while True:
            await asyncio.sleep(pause)
            pause = _longer(pause)
            said = await self._probe.readiness(place.endpoint)
            if said and (said.model, said.canonical_id) == (place.api_id, place.canonical_id):
                break
            if said and said.model != mistaken:
                mistaken = said.model
                logger.warning("model %s: %s:%d serves %s", place.model, *place.endpoint, said.model)
        self._vetting.pop(place, None)
        self._admitted[place] = asyncio.get_running_loop().time()
        self._refresh()


def _longer(pause: float) -> float:
    return min(MAX_PAUSE, max(FIRST_PAUSE, 2 * pause))


def _places(model: Model, view: ModelView) -> Iterator[_Place]:
    return (_Place(model.name, model.api_id, model.canonical_id, endpoint) for endpoint in view.ready)
