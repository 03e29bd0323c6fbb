"""The waiting room: a request for a model that is not ready wakes the model and waits until it is."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator
from datetime import UTC, datetime
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

from multimodel_api import errors
from multimodel_api.failures import MAY_PASS, FailureReason, LoadFailure
from multimodel_api.manifest import Model
from multimodel_api.state import ModelState
from multimodel_api.status import CommandAction, LastCommand
from multimodel_router.fleet import Endpoint, Fleet, FleetUnavailableError, ModelView
from multimodel_router.loads import LoadHistory
from multimodel_router.metrics import Metrics
from multimodel_router.settings import AbandonedLoads, WaitingSettings

logger = logging.getLogger(__name__)

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
    What a cluster may cure by itself, such as want of room, is waited for.
    """
    if view.desired == 0:
        return Step.WAKE
    if view.ready and view.desired:
        return Step.SERVE
    if view.failure and view.failure.reason not in MAY_PASS:
        return view.failure
    return Step.WAIT


class WaitingRoom:
    """Holds requests until their model is ready; those of one model share one wake."""

    def __init__(
        self,
        fleet: Fleet,
        metrics: Metrics,
        loads: LoadHistory,
        settings: WaitingSettings = WaitingSettings(),  # noqa: B008  (it is frozen)
    ) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._loads = loads
        self._settings = settings
        self._requests: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._wakes: dict[str, asyncio.Task[None]] = {}
        self._woken: set[str] = set()
        """Models that a request of this router has woken, for as long as any waits."""
        self._beside: set[asyncio.Task[None]] = set()

    def waiting(self, model: str) -> int:
        """Return how many requests wait for a model."""
        return self._requests[model]

    @contextlib.contextmanager
    def place(self, model: Model, size: int, *, again: bool) -> Iterator[None]:
        """Hold a place for a request of `size` bytes; one that waits `again` has been let in before, and always is.

        Raises:
            ApiError: the 429 with the time after which the model may be expected to be loaded.
        """
        if not again:
            self._require_room(model, size)
        name = model.name
        self._requests[name] += 1
        self._bytes[name] += size
        with self._metrics.waiting.labels(name).track_inprogress(), self._metrics.wait_seconds.labels(name).time():
            try:
                yield
            finally:
                self._requests[name] -= 1
                self._bytes[name] -= size
                self._end_abandoned_load(model)

    async def until_ready(self, model: Model, by: str) -> tuple[Endpoint, ...]:
        """Return the model's ready endpoints, waking it and waiting for it as long as it takes.

        Raises:
            ApiError: the model cannot be loaded (the typed reason), or the fleet cannot be told to load it.
        """
        while True:
            view = self._fleet.view(model.name)
            match next_step(view):
                case Step.SERVE:
                    return view.ready
                case Step.WAKE:
                    await self._wake_or_refuse(model, by)
                case Step.WAIT:
                    await self._fleet.changed()
                case LoadFailure() as failure:
                    raise errors.load_failed(model.api_id, failure)

    async def wake(self, model: Model, said: LastCommand) -> None:
        """Scale an unloaded model up, as was `said`; concurrent callers share one call.

        Raises:
            FleetUnavailableError: the fleet cannot be told to scale.
        """
        wake = self._wakes.get(model.name)
        if wake is None:
            wake = asyncio.create_task(self._scale_up(model, said))
            self._wakes[model.name] = wake
            wake.add_done_callback(lambda ended: self._wake_ended(model.name, ended))
        await asyncio.shield(wake)

    def keep(self, model: Model) -> None:
        """Let a load go on even when all requests that waited for it have gone."""
        self._woken.discard(model.name)

    def retry_after(self, model: Model) -> int:
        """Return in how many seconds a client may ask again, by how long this model's loads take."""
        return self._loads.retry_after(model.name, asyncio.get_running_loop().time())

    def patience(self, model: Model) -> float:
        """Return for how many seconds a request for a model is held."""
        return model.scaling.wait_seconds or self._settings.seconds

    def load_timeout(self, model: Model) -> LoadFailure:
        """Return the failure of a load that has taken longer than anybody waits for it."""
        return _load_timeout(self._fleet.view(model.name), self.patience(model))

    def waited_too_long(self, model: Model) -> errors.ApiError:
        """Return the 503 for a request whose model did not get ready in time; the load goes on meanwhile."""
        timeout = self.load_timeout(model)
        return errors.ApiError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"The model '{model.api_id}' could not be loaded in time. {timeout}",
            type="server_error",
            param="model",
            code=timeout.reason.value,
            retry_after=self.retry_after(model),
        )

    def _require_room(self, model: Model, size: int) -> None:
        name = model.name
        exceeded = self._settings.exceeded(
            self._requests.total() + 1, self._bytes.total() + size, self._requests[name] + 1, self._bytes[name] + size
        )
        if exceeded:
            self._metrics.refusals.labels(name).inc()
            raise errors.ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"The model '{model.api_id}' is being loaded, and {exceeded}. Ask again later.",
                type="rate_limit_error",
                param="model",
                code="too_many_waiting",
                retry_after=self.retry_after(model),
            )

    async def _wake_or_refuse(self, model: Model, by: str) -> None:
        try:
            await self.wake(model, command(CommandAction.WAKE, by))
        except FleetUnavailableError as unavailable:
            raise fleet_unavailable(model, unavailable) from unavailable

    async def _scale_up(self, model: Model, said: LastCommand) -> None:
        await self._fleet.scale(model.name, replicas_when_loaded(model))
        self._metrics.wakes.labels(model.name).inc()
        self._do_beside(self._fleet.record(model.name, said))  # nobody's wait shall be longer for it
        if said.action is CommandAction.WAKE:
            self._woken.add(model.name)
            self._end_abandoned_load(model)  # all may have left meanwhile

    def _wake_ended(self, name: str, wake: asyncio.Task[None]) -> None:
        del self._wakes[name]
        if not wake.cancelled() and (cause := wake.exception()):
            logger.warning("model %s is not woken: %s", name, cause)  # those who asked for it may have left

    def _end_abandoned_load(self, model: Model) -> None:
        """End a load that a request began and nobody waits for any more, where that is wanted.

        Another router whose requests still wait wakes the model again.
        """
        name = model.name
        if self._requests[name] or name not in self._woken:
            return
        self._woken.discard(name)
        if (
            self._settings.abandoned_loads is AbandonedLoads.CANCEL
            and self._fleet.view(name).state is ModelState.RELOADING
        ):
            self._do_beside(self._end_load(name))

    async def _end_load(self, name: str) -> None:
        try:
            await self._fleet.scale(name, 0)
        except FleetUnavailableError as unavailable:
            logger.warning("model %s: the load that nobody waits for goes on: %s", name, unavailable)

    def _do_beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)


def replicas_when_loaded(model: Model) -> int:
    """Return how many replicas a load asks for."""
    return max(1, model.scaling.min_replicas)


def command(
    action: CommandAction, by: str, reason: str | None = None, drain_seconds: float | None = None
) -> LastCommand:
    """Return a command that is given now."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return LastCommand(action=action, by=by, reason=reason, drain_seconds=drain_seconds, at=at)


def _load_timeout(view: ModelView, seconds: float) -> LoadFailure:
    """Return the failure that says how far a load came within the time it was given, or what it still waits for."""
    if view.failure:
        return LoadFailure(reason=view.failure.reason, message=f"not ready after {seconds:g} s: {view.failure.message}")
    phase = f"the load is in the phase {view.progress.phase}" if view.progress else "nothing is known of the load"
    return LoadFailure(
        reason=FailureReason.LOAD_TIMEOUT,
        message=f"not ready after {seconds:g} s, {phase}; try again, or raise the model's scaling.waitSeconds, or the "
        "router's waiting.maxSeconds (--wait-seconds)",
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


def untried(ready: Collection[Endpoint], last: Endpoint | None) -> list[Endpoint]:
    """Return the ready endpoints but the one that failed this request last, unless there is no other."""
    return [endpoint for endpoint in ready if endpoint != last] or list(ready)
