"""The fleet of this machine: every model of a manifest as child processes."""

import asyncio
import logging
import tempfile
from pathlib import Path

from multimodel_api.manifest import Model, MultiModelSpec
from multimodel_api.status import LastCommand
from multimodel_router.catalog import Catalog
from multimodel_router.fleet import Changes, ModelView, unload_of, unsupported_source
from multimodel_router.fleet.probe import Probe
from multimodel_router.fleet.replica import Replica, ReplicaSettings
from multimodel_router.fleet.server_process import Command, model_server_command
from multimodel_router.upstream import Upstream

logger = logging.getLogger(__name__)

END_SECONDS = 35.0
"""How long model servers may take when the fleet ends: its clients have had their time before."""


class ProcessFleet:
    """Runs the models of a spec; a model that no server can load has nothing to scale."""

    synced = True
    abandoned = False

    def __init__(
        self,
        spec: MultiModelSpec,
        upstream: Upstream,
        *,
        command: Command = model_server_command,
        end_seconds: float = END_SECONDS,
    ) -> None:
        self.catalog = Catalog(spec)
        self._spec = spec
        self._probe = Probe(upstream)
        self._command = command
        self._end_seconds = end_seconds
        self._folder = tempfile.TemporaryDirectory(prefix="multimodel-router-", ignore_cleanup_errors=True)
        self._changes = Changes()
        self._commands: dict[str, LastCommand] = {}
        self._calls_failing: set[str] = set()
        self._replicas: dict[str, list[Replica]] = {model.name: [] for model in spec.models}
        self._stopping: dict[asyncio.Task[None], Replica] = {}
        self._started = 0

    def view(self, model: str) -> ModelView:
        """Return what this machine shows of a model."""
        if not self._model(model).loadable:
            return ModelView(desired=None, failure=unsupported_source(self._model(model)))
        replicas = self._replicas[model]
        return ModelView(
            desired=len(replicas),
            ready=tuple(replica.endpoint for replica in replicas if replica.endpoint),
            failure=next((replica.failure for replica in replicas if replica.failure), None),
            progress=next((replica.progress for replica in replicas if replica.progress), None),
            unload=unload_of(self._commands.get(model)),
            calls_failing=model in self._calls_failing,
        )

    async def scale(self, model: str, replicas: int) -> None:
        """Start or stop processes until as many are wanted; those that stop finish what they have begun."""
        running = self._replicas[model]
        while len(running) < replicas:
            running.append(self._start(self._model(model)))
        while len(running) > replicas:
            self._stop(running.pop())
        self._changes.notify()

    async def record(self, model: str, command: LastCommand) -> None:
        """Remember a command; a person at this machine finds it in the log."""
        self._commands[model] = command
        logger.info("model %s: %s by %s (%s)", model, command.action, command.by, command.reason or "no reason given")

    async def record_calls(self, model: str, failing_since: str | None) -> None:
        """Remember whether every call of a model fails, and log it."""
        if failing_since:
            self._calls_failing.add(model)
            logger.error("model %s: every call has failed since %s", model, failing_since)
        else:
            self._calls_failing.discard(model)
            logger.info("model %s: calls are answered again", model)

    async def changed(self) -> None:
        """Return when anything has changed since the call."""
        await self._changes.wait()

    async def start(self) -> None:
        """Begin to load the models that are wanted from the beginning."""
        for model in self._spec.models:
            if model.loadable:
                await self.scale(model.name, model.scaling.min_replicas)

    async def stop(self) -> None:
        """End all processes and wait until none is left."""
        for name in self._replicas:
            await self.scale(name, 0)
        if self._stopping:
            _, late = await asyncio.wait(self._stopping, timeout=self._end_seconds)
            await asyncio.gather(*(self._stopping[task].kill() for task in late))
        self._folder.cleanup()

    def _model(self, name: str) -> Model:
        return next(model for model in self._spec.models if model.name == name)

    def _start(self, model: Model) -> Replica:
        folder = Path(self._folder.name)
        settings = ReplicaSettings(model, self._spec.engine_of(model), folder, self._command)
        self._started += 1
        return Replica(settings, self._probe, self._started, self._changes.notify)

    def _stop(self, replica: Replica) -> None:
        stopping = asyncio.create_task(replica.stop())
        self._stopping[stopping] = replica
        stopping.add_done_callback(self._stopping.pop)
