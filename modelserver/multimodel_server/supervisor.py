"""Keeps one engine alive: starts it, warms it up, notices that it died or hangs, and starts it again.

A request outlives its engine as long as its client has seen none of the answer; then it goes to the next engine.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.progress import LoadPhase
from multimodel_server.engine.messages import (
    Cancel,
    Embed,
    Embedded,
    FromEngine,
    Generate,
    Heartbeat,
    LoadFailed,
    Loading,
    Ready,
    RequestFailed,
    Sampling,
    Slept,
    Step,
    Stop,
    ToEngine,
    Tokens,
    Woken,
)
from multimodel_server.engine_process import EngineHandle, Launch
from multimodel_server.errors import EngineDiedError, EngineGoneError, GenerationError, LoadError, RequestRefusedError
from multimodel_server.progress import LoadClock
from multimodel_server.recovery import EngineLimits, EngineWatch, is_wedged, may_reboot, may_requeue
from multimodel_server.rest import Rest

logger = logging.getLogger(__name__)

_WATCH_FRACTION = 8
"""How many times within the shortest limit the engine is looked at."""


@dataclass(slots=True, eq=False)
class Generation:
    """One request on its way through the engine, and perhaps through more than one."""

    request: Generate | Embed
    events: asyncio.Queue[Tokens | Embedded | GenerationError] = field(default_factory=asyncio.Queue)
    attempts: int = 0
    has_tokens: bool = False
    _unread: Embedded | GenerationError | None = None

    @property
    def tokens_needed(self) -> int:
        """The room that the request takes in the engine at most."""
        answer = self.request.sampling.max_tokens if isinstance(self.request, Generate) else 0
        return len(self.request.prompt_ids) + answer

    async def tokens(self) -> AsyncIterator[Tokens]:
        """Yield the tokens as they come, the last with its `finish_reason`; raises `GenerationError`."""
        while True:
            event = await self._event()
            if isinstance(event, Tokens):
                yield event
                if event.finish_reason is not None:
                    return

    def came(self) -> list[Tokens]:
        """Return the tokens that came since the last ones were read: some, if the reader is slower than the engine."""
        tokens: list[Tokens] = []
        while self._unread is None and not self.events.empty():
            event = self.events.get_nowait()
            if isinstance(event, Tokens):
                tokens.append(event)
            else:
                self._unread = event
        return tokens

    async def embedding(self) -> list[float]:
        """Return the embedding; raises `GenerationError`."""
        while not isinstance(event := await self._event(), Embedded):
            pass
        return event.vector

    async def _event(self) -> Tokens | Embedded:
        event = self._unread or await self.events.get()
        if isinstance(event, GenerationError):
            raise event
        return event


class Observer(Protocol):
    """Who wants to know what the supervisor sees."""

    def heard(self, heartbeat: Heartbeat) -> None:
        """The engine said how it is."""

    def waited(self, seconds: float) -> None:
        """A request waited so long in the engine for its first step."""

    def rebooted(self) -> None:
        """A dead engine is being replaced."""

    def gave_up(self, failure: LoadFailure) -> None:
        """No engine will be started any more."""


class Supervisor:
    """Owns the engine's life; all methods run on one event loop."""

    def __init__(
        self,
        launch: Launch,
        observer: Observer,
        *,
        model_id: str,
        warm_up_ids: list[int],
        progress: LoadClock,
        limits: EngineLimits | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launch = launch
        self._model_id = model_id
        self._warm_up_ids = warm_up_ids
        self._progress = progress
        self._limits = limits or EngineLimits()
        self._observer = observer
        self._now = now
        self._engine: EngineHandle | None = None
        self._loaded: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._running: dict[str, Generation] = {}
        self._queued: deque[Generation] = deque()
        self._reboots: list[float] = []
        self._last_heard = now()
        self._tasks: list[asyncio.Task[None]] = []
        self.rest = Rest(self._send, self._or_death, self._submit_queued)
        self.max_request_tokens = 0
        self.has_served = False
        self.gave_up = False

    @property
    def is_ready(self) -> bool:
        """Whether an engine is loaded and warm."""
        return self._progress.phase is LoadPhase.READY

    @property
    def is_live(self) -> bool:
        """Whether the engine answers, or is within its limits for coming back."""
        return not self.gave_up and not is_wedged(self._watched(), self._now(), self._limits)

    async def start(self) -> None:
        """Start the first engine and warm it up; raises `LoadError`."""
        self._in_background(self._kill_wedged())
        try:
            await self._boot()
        except EngineDiedError as error:
            raise LoadError(FailureReason.ENGINE_CRASHED, f"The engine {error} while it loaded.") from error
        self._serve()
        self._in_background(self._keep_alive())

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """End the engine; requests that still run end with `EngineGoneError`."""
        for task in self._tasks:
            task.cancel()
        self._give_up("The server is shutting down.")
        if self._engine is None:
            return
        if self.has_served:  # An engine that reads weights reads no messages.
            self._engine.send(Stop())
            await asyncio.wait([self._died], timeout=grace_seconds)
        self._engine.kill()

    @contextmanager
    def generation(
        self,
        prompt_ids: list[int],
        sampling: Sampling,
        *,
        priority: int = 0,
        cache_salt: str = "",
        prompt_logprobs: int | None = None,
        output_ids: Sequence[int] = (),
    ) -> Iterator[Generation]:
        """Submit a request, and cancel it if it is left before its end; the arguments are those of `Generate`."""
        request = Generate(_new_id(), prompt_ids, sampling, priority, cache_salt, prompt_logprobs, list(output_ids))
        with self._submitted(Generation(request)) as generation:
            yield generation

    async def embedding(self, prompt_ids: list[int]) -> list[float]:
        """Return a prompt's embedding, of unit length; raises `GenerationError`."""
        with self._submitted(Generation(Embed(_new_id(), prompt_ids))) as generation:
            return await generation.embedding()

    @contextmanager
    def _submitted(self, generation: Generation) -> Iterator[Generation]:
        if self.gave_up:
            raise EngineGoneError("The engine could not be kept alive.")
        if self.is_ready and not self.rest.holds_requests:
            self._submit(generation)
        else:
            self._queued.append(generation)
        try:
            yield generation
        finally:
            self._forget(generation)

    def _submit(self, generation: Generation) -> None:
        if self._engine is None:
            raise EngineGoneError("There is no engine.")
        request, needed = generation.request, generation.tokens_needed
        if needed > self.max_request_tokens:  # A rebooted engine may have found less memory than the one before.
            generation.events.put_nowait(RequestRefusedError(f"The engine has no room for {needed} tokens any more."))
            return
        generation.attempts += 1
        self._running[request.request_id] = generation
        self._engine.send(request)

    def _forget(self, generation: Generation) -> None:
        if self._running.pop(generation.request.request_id, None) and self._engine is not None:
            self._engine.send(Cancel(generation.request.request_id))
        with suppress(ValueError):
            self._queued.remove(generation)

    async def _boot(self) -> None:
        """Start an engine and warm it up; raises `LoadError`, or `EngineDiedError` if it dies on the way."""
        loop = asyncio.get_running_loop()
        self._loaded, self._died = loop.create_future(), loop.create_future()
        self._last_heard = self._now()
        self.rest.engine_started()
        self._engine = self._launch(self._receive, self._died.set_result)
        await self._or_death(self._loaded)
        self.max_request_tokens = self._loaded.result().max_request_tokens
        self._progress.enter(LoadPhase.WARMING_UP)
        await self._warm_up()

    async def _warm_up(self) -> None:
        """Complete `hello` by one token, so that no user pays for what the first run sets up."""
        logger.info("Beginning dummy run.")
        began = self._now()
        dummy = Generation(Generate("warm-up", self._warm_up_ids, Sampling(max_tokens=1)))
        self._submit(dummy)
        try:
            await self._or_death(asyncio.ensure_future(_exhaust(dummy)))
        except RequestRefusedError as error:
            raise LoadError(FailureReason.ENGINE_CRASHED, f"The dummy run failed: {error}") from error
        finally:
            self._running.pop("warm-up", None)
        logger.info("Dummy run completed in %.3fs.", self._now() - began)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until `stop`; if it fails there is nobody to keep an engine alive, so all is given up."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._background_ended)
        self._tasks.append(task)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("The supervisor failed", exc_info=error)
            self._fail(FailureReason.ENGINE_CRASHED, f"The supervisor failed: {type(error).__name__}: {error}")

    async def _or_death(self, wanted: asyncio.Future[Any]) -> None:
        """Wait for `wanted`, and raise what it raises; raises `EngineDiedError` if the engine ends before."""
        died = self._died  # of this engine: the next one's may take its place before we go on
        waited: list[asyncio.Future[Any]] = [wanted, died]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            wanted.cancel()
            raise EngineDiedError(died.result())
        wanted.result()

    async def _keep_alive(self) -> None:
        """Replace the engine each time that it dies, until the budget of reboots is spent."""
        while True:
            how = await asyncio.shield(self._died)
            self._progress.restart()
            self._settle(how)
            if not may_reboot(self._reboots, self._now(), self._limits):
                self._fail(FailureReason.ENGINE_CRASHED, f"The engine died too often; the last one {how}.")
                return
            logger.error("Engine %s is dead, rebooting", self._model_id)
            self._reboots.append(self._now())
            self._observer.rebooted()
            try:
                await self._boot()
            except EngineDiedError:
                continue
            except LoadError as error:
                self._fail(error.failure.reason, error.failure.message)
                return
            logger.info("Successfully rebooted engine %s", self._model_id)
            self._serve()

    def _serve(self) -> None:
        self.has_served = True
        self._progress.enter(LoadPhase.READY)
        self._submit_queued()

    def _submit_queued(self) -> None:
        """Send the engine what waits for it, if it can be had and is not about to sleep."""
        while self._queued and self.is_ready and not self.rest.holds_requests:
            self._submit(self._queued.popleft())

    def _send(self, message: ToEngine) -> None:
        if self._engine is not None:
            self._engine.send(message)

    async def _kill_wedged(self) -> None:
        """Kill an engine that is silent for too long; its death is then dealt with like any other."""
        limits = self._limits
        while True:
            await asyncio.sleep(min(limits.heartbeat_seconds, limits.load_silence_seconds) / _WATCH_FRACTION)
            silence = self._now() - self._last_heard
            if self._engine is not None and is_wedged(self._watched(), self._now(), limits):
                logger.error("Engine %s has been silent for %.1f s; killing it", self._model_id, silence)
                self._engine.kill()
                await asyncio.wait([self._died])

    def _watched(self) -> EngineWatch:
        loading = not self._loaded.done()
        return EngineWatch(last_heard=self._last_heard, loading=loading, has_work=bool(self._running))

    def _settle(self, how: str) -> None:
        """Queue the dead engine's requests again where their clients have seen nothing; end the others."""
        waiting = []
        for generation in self._running.values():
            if may_requeue(has_tokens=generation.has_tokens, attempts=generation.attempts, limits=self._limits):
                waiting.append(generation)
            else:
                generation.events.put_nowait(EngineDiedError(f"The engine {how} while it answered."))
        self._running.clear()
        self._queued.extendleft(reversed(waiting))

    def _fail(self, reason: FailureReason, message: str) -> None:
        logger.error("Engine %s is not rebooted again: %s", self._model_id, message)
        failure = LoadFailure(reason=reason, message=message)
        self._progress.fail(failure)
        self._give_up(message)
        self._observer.gave_up(failure)

    def _give_up(self, why: str) -> None:
        self.gave_up = True
        for generation in [*self._running.values(), *self._queued]:
            generation.events.put_nowait(EngineGoneError(why))
        self._queued.clear()

    def _receive(self, message: FromEngine) -> None:
        self._last_heard = self._now()
        match message:
            case Step():
                for seconds in message.queue_seconds:
                    self._observer.waited(seconds)
                for tokens in message.tokens:
                    self._deliver(tokens)
            case RequestFailed() | Embedded():
                self._deliver(message)
            case Heartbeat():
                self._observer.heard(message)
            case Loading():
                self._progress.enter(message.phase)
                self._progress.count(message.bytes_done, message.bytes_total)
            case Ready():
                self._loaded.set_result(message)
            case Slept() | Woken():
                self.rest.heard(message)
            case LoadFailed():
                self._loaded.set_exception(LoadError(FailureReason(message.reason), message.message))

    def _deliver(self, message: Tokens | Embedded | RequestFailed) -> None:
        generation = self._running.get(message.request_id)
        if generation is None:
            return  # Cancelled a moment ago.
        if isinstance(message, RequestFailed):
            del self._running[message.request_id]
            generation.events.put_nowait(RequestRefusedError(message.message, invalid=message.invalid))
            return
        if isinstance(message, Tokens):
            generation.has_tokens = generation.has_tokens or bool(message.token_ids)
        if isinstance(message, Embedded) or message.finish_reason is not None:
            del self._running[message.request_id]
        generation.events.put_nowait(message)


def _new_id() -> str:
    return secrets.token_hex(8)


async def _exhaust(generation: Generation) -> None:
    async for _ in generation.tokens():
        pass
