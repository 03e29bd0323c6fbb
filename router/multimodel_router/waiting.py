"""The waiting room: a request for a model that is not ready wakes the model and waits until it is."""

import asyncio
import contextlib
from collections.abc import Collection, Iterator
from enum import Enum, auto
from http import HTTPStatus

from multimodel_api import errors
from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.manifest import Model
from multimodel_router.fleet import Endpoint, Fleet, FleetUnavailableError, ModelView
from multimodel_router.metrics import Metrics

RETRY_AFTER_LOAD = 30
"""Seconds after which a client whose wait was too long may ask again; the load goes on meanwhile."""

RETRY_AFTER_FLEET = 5
"""Seconds after which a client may ask again when the fleet could not be told to scale."""


class Step(Enum):
    """What a request for a model does next, unless a failure ends its wait."""

    SERVE = auto()
    WAKE = auto()
    WAIT = auto()


def next_step(view: ModelView) -> Step | LoadFailure:
    """Return what a request does about a model that looks like `view`; pure.

    A model that is being unloaded may still show endpoints; they take no new work, so the model is woken again.
    """
    if view.desired == 0:
        return Step.WAKE
    if view.ready and view.desired:
        return Step.SERVE
    return view.failure or Step.WAIT


class WaitingRoom:
    """Holds requests until their model is ready; those of one model share one wake."""

    def __init__(self, fleet: Fleet, metrics: Metrics) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._wakes: dict[str, asyncio.Task[None]] = {}

    async def until_ready(self, model: Model) -> tuple[Endpoint, ...]:
        """Return the model's ready endpoints, waking it and waiting for it as long as it takes.

        Raises:
            ApiError: the model cannot be loaded (the typed reason), or the fleet cannot be told to load it.
        """
        view = self._fleet.view(model.name)
        if next_step(view) is Step.SERVE:
            return view.ready
        with self._counted(model):
            return await self._wait(model)

    async def wake(self, model: Model) -> None:
        """Scale an unloaded model up; concurrent callers share one call.

        Raises:
            FleetUnavailableError: the fleet cannot be told to scale.
        """
        wake = self._wakes.get(model.name)
        if wake is None:
            wake = asyncio.create_task(self._scale_up(model))
            self._wakes[model.name] = wake
            wake.add_done_callback(lambda _: self._wakes.pop(model.name, None))
        await asyncio.shield(wake)

    async def change(self, seconds: float) -> None:
        """Return when anything in the fleet changes, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._fleet.changed(), seconds)

    async def _wait(self, model: Model) -> tuple[Endpoint, ...]:
        while True:
            view = self._fleet.view(model.name)
            match next_step(view):
                case Step.SERVE:
                    return view.ready
                case Step.WAKE:
                    await self._wake_or_refuse(model)
                case Step.WAIT:
                    await self._fleet.changed()
                case LoadFailure() as failure:
                    raise errors.load_failed(model.api_id, failure)

    async def _wake_or_refuse(self, model: Model) -> None:
        try:
            await self.wake(model)
        except FleetUnavailableError as unavailable:
            raise fleet_unavailable(model, unavailable) from unavailable

    async def _scale_up(self, model: Model) -> None:
        await self._fleet.scale(model.name, replicas_when_loaded(model))
        self._metrics.wakes.labels(model.name).inc()

    @contextlib.contextmanager
    def _counted(self, model: Model) -> Iterator[None]:
        with (
            self._metrics.waiting.labels(model.name).track_inprogress(),
            self._metrics.wait_seconds.labels(model.name).time(),
        ):
            yield


def replicas_when_loaded(model: Model) -> int:
    """Return how many replicas a load asks for."""
    return max(1, model.scaling.min_replicas)


def waited_too_long(model: Model, view: ModelView, seconds: float) -> errors.ApiError:
    """Return the 503 for a request whose model did not get ready in time; it may ask again."""
    return errors.ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"The model '{model.api_id}' could not be loaded in time. {load_timeout(view, seconds)}",
        type="server_error",
        param="model",
        code=FailureReason.LOAD_TIMEOUT.value,
        retry_after=RETRY_AFTER_LOAD,
    )


def load_timeout(view: ModelView, seconds: float) -> LoadFailure:
    """Return the failure that says how far a load came within the time it was given."""
    phase = f"the load is in the phase {view.progress.phase}" if view.progress else "nothing is known of the load"
    return LoadFailure(
        reason=FailureReason.LOAD_TIMEOUT,
        message=f"not ready after {seconds:g} s, {phase}; try again, or raise the router's --wait-seconds",
    )


def fleet_unavailable(model: Model, cause: FleetUnavailableError) -> errors.ApiError:
    """Return the 503 for a request whose model cannot be woken now."""
    return errors.ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"The model '{model.api_id}' is not loaded and cannot be loaded now: {cause}",
        type="server_error",
        param="model",
        code="fleet_unavailable",
        retry_after=RETRY_AFTER_FLEET,
    )


def untried(ready: Collection[Endpoint], tried: Collection[Endpoint]) -> list[Endpoint]:
    """Return the ready endpoints that have not failed this request yet."""
    return [endpoint for endpoint in ready if endpoint not in tried]
