"""Where models run: one interface over processes of this machine and pods of a cluster."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.manifest import LOADABLE_KINDS, Model
from multimodel_api.progress import LoadProgress
from multimodel_api.state import ModelState, model_state
from multimodel_api.status import CommandAction, LastCommand
from multimodel_router.catalog import Catalog


class Endpoint(NamedTuple):
    """Where a ready model server listens."""

    host: str
    port: int


class Unload(NamedTuple):
    """When a model was unloaded, in seconds since the epoch, and how long running answers may take after that."""

    at: float
    drain_seconds: float


@dataclass(frozen=True, slots=True)
class ModelView:
    """What a fleet shows of one model; `desired` is None when nothing exists that could be scaled."""

    desired: int | None
    ready: tuple[Endpoint, ...] = ()
    failure: LoadFailure | None = None
    progress: LoadProgress | None = None
    waits_for: str | None = None
    """What a load waits for before its server can tell: a place, or its image."""
    unload: Unload | None = None
    """The last unload, if it limited how long running answers may take."""
    calls_failing: bool = False
    """Whether some router has told that every call fails, and none that one did not."""

    @property
    def state(self) -> ModelState:
        """The state that the lifecycle routes report."""
        return model_state(desired_replicas=self.desired, ready_replicas=len(self.ready), failure=self.failure)


def unload_of(command: LastCommand | None) -> Unload | None:
    """Return the unload that a command is, if it limits running answers."""
    if command is None or command.action is not CommandAction.UNLOAD or command.drain_seconds is None:
        return None
    return Unload(datetime.fromisoformat(command.at).timestamp(), command.drain_seconds)


class FleetUnavailableError(Exception):
    """The fleet cannot be told to scale at the moment; the message says why."""


class Fleet(Protocol):
    """The models, how they fare, and the one thing to be done with them: scaling."""

    @property
    def catalog(self) -> Catalog:
        """The models that the fleet runs."""

    @property
    def synced(self) -> bool:
        """Whether the fleet has been seen whole at least once."""

    @property
    def abandoned(self) -> bool:
        """Whether all that serves is on its way out, and nothing comes: nobody will be served here any more."""

    def view(self, model: str) -> ModelView:
        """Return what is known now of the model with this name."""

    async def scale(self, model: str, replicas: int) -> None:
        """Want `replicas` of a model from now on; the next `view` says so already. Idempotent.

        Raises:
            FleetUnavailableError: it could not be told.
        """

    async def record(self, model: str, command: LastCommand) -> None:
        """Write down who commanded what of a model; where that cannot be done, it is logged."""

    async def record_calls(self, model: str, failing_since: str | None) -> None:
        """Write down since when every call of a model fails, or that one has not; a failure to do so is logged."""

    async def changed(self) -> None:
        """Return when anything has changed since the call."""

    async def start(self) -> None:
        """Begin to run and to watch; returns at once."""

    async def stop(self) -> None:
        """End everything that `start` began."""


class Changes:
    """Wakes every task that waits for the next change."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Wake those who wait now."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self) -> None:
        """Return at the next `notify`."""
        await self._next.wait()


def unsupported_source(model: Model) -> LoadFailure:
    """Return why nothing can load a model whose source kind no model server knows."""
    return LoadFailure(
        reason=FailureReason.UNSUPPORTED_SOURCE,
        message=f"model {model.name}: a source of kind '{model.kind}' cannot be loaded; "
        f"use one of the kinds: {', '.join(LOADABLE_KINDS)}",
    )
