"""Unload, reload, status: what the lifecycle routes answer."""

import asyncio

from multimodel_api.lifecycle import LifecycleReply, LifecycleRequest
from multimodel_api.manifest import Model
from multimodel_api.state import ModelState
from multimodel_api.status import CommandAction, LastCommand
from multimodel_router.fleet import Fleet, FleetUnavailableError, ModelView
from multimodel_router.waiting import WaitingRoom, command


class Lifecycle:
    """Acts on a fleet for the lifecycle routes; ids are echoed as they came, `by` is the name of the caller's key."""

    def __init__(self, fleet: Fleet, waiting: WaitingRoom) -> None:
        self._fleet = fleet
        self._waiting = waiting

    async def status(self, wanted: LifecycleRequest, by: str) -> LifecycleReply:  # noqa: ARG002  (anybody may ask)
        """Tell how a model fares."""
        model = self._fleet.catalog.find(wanted.model_id)
        return self._reply(wanted.model_id, model) if model else _not_found(wanted.model_id)

    async def unload(self, wanted: LifecycleRequest, by: str) -> LifecycleReply:
        """Scale a model to 0; its servers finish what they have begun, within `drain_seconds` where that is given.

        Requests that wait for the model came first: they load it again.
        """
        model_id = wanted.model_id
        model = self._fleet.catalog.find(model_id)
        if model is None:
            return _not_found(model_id)
        if self._fleet.view(model.name).state is ModelState.NO_LOADER_CONFIG:
            return self._reply(model_id, model)
        try:
            await self._fleet.scale(model.name, 0)
        except FleetUnavailableError as unavailable:
            return _internal_error(model_id, str(unavailable))
        unload = command(CommandAction.UNLOAD, by, wanted.reason, wanted.drain_seconds)
        await self._fleet.record(model.name, unload)
        return LifecycleReply(model_id=model_id, status=ModelState.UNLOADED)

    async def reload(self, wanted: LifecycleRequest, by: str) -> LifecycleReply:
        """Load a model that is not loaded and wait for it; one whose load failed is started afresh."""
        model_id = wanted.model_id
        model = self._fleet.catalog.find(model_id)
        if model is None:
            return _not_found(model_id)
        try:
            async with asyncio.timeout(self._waiting.patience(model)):
                await self._load(model, command(CommandAction.RELOAD, by, wanted.reason))
        except TimeoutError:
            return _internal_error(model_id, str(self._waiting.load_timeout(model)))
        except FleetUnavailableError as unavailable:
            return _internal_error(model_id, str(unavailable))
        return self._reply(model_id, model)

    async def _load(self, model: Model, said: LastCommand) -> None:
        if self._view(model).state is ModelState.INTERNAL_ERROR:
            await self._clear_failure(model)
        if self._view(model).state is ModelState.UNLOADED:
            await self._waiting.wake(model, said)
        elif self._view(model).state is not ModelState.NO_LOADER_CONFIG:
            await self._fleet.record(model.name, said)
        self._waiting.keep(model)
        while self._view(model).state is ModelState.RELOADING:  # an unload that comes later ends it
            await self._fleet.changed()

    async def _clear_failure(self, model: Model) -> None:
        """Take the failed servers away, so that new ones start without their back-off."""
        await self._fleet.scale(model.name, 0)
        while (view := self._view(model)).desired == 0 and view.failure:
            await self._fleet.changed()

    def _view(self, model: Model) -> ModelView:
        return self._fleet.view(model.name)

    def _reply(self, model_id: str, model: Model) -> LifecycleReply:
        view = self._view(model)
        return LifecycleReply(model_id=model_id, status=view.state, error=_error(view))


def _error(view: ModelView) -> str | None:
    if view.state not in (ModelState.NO_LOADER_CONFIG, ModelState.INTERNAL_ERROR):
        return None
    return str(view.failure) if view.failure else "nothing exists yet that could load this model"


def _not_found(model_id: str) -> LifecycleReply:
    return LifecycleReply(model_id=model_id, status=ModelState.NOT_FOUND)


def _internal_error(model_id: str, error: str) -> LifecycleReply:
    return LifecycleReply(model_id=model_id, status=ModelState.INTERNAL_ERROR, error=error)
