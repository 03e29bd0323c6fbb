"""One model and all that serves it: its load, its engine, its metrics, and whether new work is welcome."""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from multimodel_api.errors import ApiError, load_failed, model_not_found
from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.names import DEFAULT_MODEL_ID
from multimodel_api.progress import LoadPhase
from multimodel_api.readiness import Readiness
from multimodel_api.state import ModelState
from multimodel_server import hub
from multimodel_server.config import ServerConfig
from multimodel_server.engine.messages import Heartbeat
from multimodel_server.engine_process import EngineProcess
from multimodel_server.errors import LoadError
from multimodel_server.metrics import Metrics
from multimodel_server.progress import LoadClock
from multimodel_server.recovery import EngineLimits
from multimodel_server.supervisor import Supervisor
from multimodel_server.text.model_text import ModelText, load_text

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

WARM_UP_PROMPT = "hello"
RETRY_SECONDS = 5
"""When a client that came too early, or too late, may come again."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What answers requests once the model is loaded."""

    text: ModelText
    supervisor: Supervisor


class ModelService:
    """The one model of this process."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.created = int(time.time())
        self.boot = secrets.token_hex(8)
        """Tells this process from others that served, or will serve, at its address."""
        self.metrics = Metrics(config.api_id)
        self.metrics.requests_capacity.set(config.max_seqs)
        self.progress = LoadClock(time.monotonic)
        self.draining = False
        self._loaded: LoadedModel | None = None
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def load(self) -> None:
        """Find the model, start its engine and warm it up; raises `LoadError`."""
        if self.config.isq is not None:
            raise LoadError(
                FailureReason.BAD_QUANTIZATION,
                f"In-situ quantisation (--isq {self.config.isq}) is not supported yet; remove inSituQuant.",
            )
        model_dir = await self._find()
        self.progress.enter(LoadPhase.STARTING)
        text = await asyncio.to_thread(
            load_text,
            model_dir,
            chat_template=self.config.chat_template,
            jinja_explicit=self.config.jinja_explicit,
        )
        supervisor = Supervisor(
            partial(EngineProcess, self.config.engine(model_dir)),
            self,
            model_id=self.config.model,
            warm_up_ids=text.tokenizer.encode_prompt(WARM_UP_PROMPT),
            progress=self.progress,
            limits=EngineLimits(heartbeat_seconds=self.config.heartbeat_seconds),
        )
        self._loaded = LoadedModel(text, supervisor)
        await supervisor.start()
        self.metrics.loaded(self.progress.snapshot())

    async def close(self) -> None:
        """End the engine."""
        if self._loaded is not None:
            await self._loaded.supervisor.stop()

    async def drain(self, seconds: float) -> None:
        """Refuse new work, and wait until what runs has ended or the time is over."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            logger.warning("%d requests still run after %g s; ending them", self._in_flight, seconds)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request for as long as it runs."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    @property
    def is_ready(self) -> bool:
        """Whether requests sent now are answered at once."""
        return not self.draining and self.progress.phase is LoadPhase.READY

    @property
    def readiness(self) -> Readiness:
        """How far the load is, and which server this is."""
        return Readiness(
            **dict(self.progress.snapshot()), model=self.config.api_id, canonical_id=self.config.model, boot=self.boot
        )

    @property
    def is_live(self) -> bool:
        """Whether this process does its work, or can be expected to come back to it."""
        return self._loaded is None or self._loaded.supervisor.is_live

    @property
    def state(self) -> ModelState:
        """The model's state, in the words of the lifecycle routes."""
        states = {LoadPhase.READY: ModelState.LOADED, LoadPhase.FAILED: ModelState.INTERNAL_ERROR}
        return states.get(self.progress.phase, ModelState.RELOADING)

    def loaded(self) -> LoadedModel:
        """Return what answers requests; raises the 503 of a model that is not loaded yet, or not any more.

        While a dead engine is replaced requests are taken: they wait for the new one.
        """
        progress = self.progress.snapshot()
        if progress.failure is not None:
            raise load_failed(self.config.api_id, progress.failure)
        if self._loaded is None or not self._loaded.supervisor.has_served:
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"The model '{self.config.api_id}' is loading ({progress.phase}).",
                type="server_error",
                code="model_loading",
                retry_after=RETRY_SECONDS,
            )
        return self._loaded

    def require_model(self, model: str | None) -> None:
        """Check that a request's `model` names this one; raises the 404 otherwise."""
        known = dict.fromkeys((self.config.api_id, self.config.model, DEFAULT_MODEL_ID))
        if model is not None and model not in known:
            raise model_not_found(model, known)

    def heard(self, heartbeat: Heartbeat) -> None:
        """Show what the engine said of itself."""
        self.metrics.requests_running.set(heartbeat.running)
        self.metrics.requests_waiting.set(heartbeat.waiting)
        self.metrics.kv_blocks_used.set(heartbeat.kv_blocks_used)
        self.metrics.kv_blocks_total.set(heartbeat.kv_blocks_total)
        self.metrics.preemptions.reached(heartbeat.preemptions)
        self.metrics.prefix_lookups.reached(heartbeat.prefix_lookups)
        self.metrics.prefix_hits.reached(heartbeat.prefix_hits)
        self.metrics.prefix_evictions.reached(heartbeat.prefix_evictions)
        self.metrics.late_compilations.reached(heartbeat.late_compilations)

    def waited(self, seconds: float) -> None:
        """Note how long a request waited in the engine for its first step."""
        self.metrics.queue_seconds.observe(seconds)

    def rebooted(self) -> None:
        """Count an engine's death."""
        self.metrics.engine_reboots.inc()

    def gave_up(self, failure: LoadFailure) -> None:
        """Leave the reason for whoever restarts this process."""
        self.record(failure)

    def record(self, failure: LoadFailure) -> None:
        """Log a failure, and write it where the fleet looks for it."""
        self.progress.fail(failure)
        logger.error("Cannot serve %s: %s", self.config.model, failure)
        if self.config.failure_file is None:
            return
        try:
            self.config.failure_file.write_text(failure.to_document(), encoding="utf-8")
        except OSError as error:
            logger.error("The reason cannot be written to --failure-file: %s", error)  # noqa: TRY400

    async def _find(self) -> Path:
        """Return the model's folder, downloaded if need be."""
        if not hub.is_hub_id(self.config.model):
            return hub.local_folder(self.config.model)
        self.progress.enter(LoadPhase.DOWNLOADING)
        return await _in_daemon_thread(
            partial(
                hub.download,
                self.config.model,
                revision=self.config.revision,
                cache_dir=self.config.cache_dir,
                offline=self.config.offline,
                report=self.progress.count,
            )
        )


async def _in_daemon_thread(work: Callable[[], Result]) -> Result:
    """Await work that may take very long; unlike an executor's thread, this one does not hold up the exit."""
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001  (it is raised again where it is awaited)
            done.set_exception(error)

    threading.Thread(target=run, name="download", daemon=True).start()
    return await asyncio.wrap_future(done)
