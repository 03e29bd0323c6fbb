"""The engine process: reads the model, then turns messages into tokens until it is told to stop or left alone."""

import gc
import logging
import os
import signal
import sys
import time
from multiprocessing.connection import Connection

import torch

from multimodel_api.failures import FailureReason
from multimodel_api.progress import LoadPhase
from multimodel_server.config import EngineConfig
from multimodel_server.engine import host, sampler
from multimodel_server.engine.grammar_compiler import GrammarCompiler
from multimodel_server.engine.loading import LoadedModel, load
from multimodel_server.engine.messages import (
    Cancel,
    Embed,
    FromEngine,
    Generate,
    Heartbeat,
    LoadFailed,
    Loading,
    Ready,
    RequestFailed,
    Sleep,
    Slept,
    Step,
    Stop,
    Tokens,
    Wake,
    Woken,
    decode_to_engine,
    encode,
)
from multimodel_server.engine.pace import Pace
from multimodel_server.engine.pipeline import Landing, Pipeline
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Told
from multimodel_server.engine.schedulers import scheduler_for
from multimodel_server.errors import LoadError

HEARTBEAT_SECONDS = 0.5
FIRST_ALLOWANCE = 64
"""Prompt tokens computed beside decoding requests before it is known what they cost."""
DEVICE_ALLOWANCE = 512
"""As many, at least, on a device: fewer would leave it idle, as it computes them while it reads the weights."""
COMPILING_SECONDS = 0.01
"""How often an engine that does nothing else looks whether a grammar is ready."""
REPORT_SECONDS = 0.1
"""Least time between two reports of bytes read."""

log = logging.getLogger(__name__)


def main(config: EngineConfig, connection: Connection) -> None:
    """Run an engine over `connection`, whose other end is the HTTP process; the target of a spawned process.

    Returns when told to stop or when the other end is gone. Ends the process with status 1 if the model cannot be
    loaded; any other exception ends it too, for the supervisor to see.
    """
    # A terminal or an init system signals the whole group, but the HTTP process alone decides when the work is done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(host.cpu_threads())
    try:
        model = _load(config, connection)
        gc.collect()
        gc.freeze()  # what was loaded stays; looking through it for garbage would hold up steps
        Engine(model, connection).run()
    except (EOFError, ConnectionError):
        log.info("The HTTP process is gone; the engine ends")


class Engine:
    """A loaded model serving the requests of one connection."""

    def __init__(self, model: LoadedModel, connection: Connection) -> None:
        self.runner = model.runner
        self.scheduler = scheduler_for(model.limits, model.blocks)
        self.connection = connection
        self.grammars = GrammarCompiler(model.tokenizer_path, model.limits.vocab_size)
        self._last_heartbeat = time.monotonic()
        self._was_idle = True
        self._pipeline = Pipeline(self.scheduler, self.runner)
        self._waits: list[float] = []
        self._arrivals: dict[str, float] = {}
        on_device = self.runner.ahead > 0
        self._pace = Pace(DEVICE_ALLOWANCE, least=DEVICE_ALLOWANCE) if on_device else Pace(FIRST_ALLOWANCE)
        self._known_problems: list[str] = []
        self._is_recounted = False
        self._memory = model.memory
        self._asleep = False
        self._sleep_wanted: Sleep | None = None
        self.runner.after_each_layer(self._heartbeat_if_due)

    def run(self) -> None:
        """Turn until told to stop; raises EOFError or ConnectionError when the other end is gone."""
        try:
            while self.drain():
                self.turn()
        finally:
            self.grammars.close()

    def drain(self) -> bool:
        """Take every message there is, waiting for one if there is nothing to do; tell whether to go on."""
        patience = 0.0 if self._is_busy else COMPILING_SECONDS if self.grammars.pending else HEARTBEAT_SECONDS
        while self.connection.poll(patience):
            patience = 0.0
            match decode_to_engine(self.connection.recv_bytes()):
                case Generate() | Embed() as message:
                    self._admit(Request.of(message))
                case Cancel(request_id):
                    self._arrivals.pop(request_id, None)
                    self.grammars.cancel(request_id)
                    self.scheduler.cancel(request_id)
                case Sleep() as message:
                    self._sleep_wanted = message
                case Wake():
                    self._sleep_wanted = None
                    self._wake()
                case Stop():
                    return False
        if patience == HEARTBEAT_SECONDS and not self._is_recounted:  # nothing came: nobody waits while we count
            self._recount()
        self._admit_compiled()
        self._sleep_if_wanted()
        return True

    def turn(self) -> None:
        """Begin the next step, if there is anything to compute, and tell what those brought that landed."""
        began = time.monotonic()
        chunks = self._pipeline.launch()
        names = (chunk.request.request_id for chunk in chunks)
        self._waits += [began - self._arrivals.pop(name) for name in names if name in self._arrivals]
        for landing in self._pipeline.land(all_launched=not chunks):
            self._tell(landing.told)
            self._learn(landing)
        self._heartbeat_if_due()

    @property
    def _is_busy(self) -> bool:
        """Whether requests are unfinished, or what was computed for some that have ended is still on its way."""
        return self.scheduler.has_work or self._pipeline.busy

    def _learn(self, landing: Landing) -> None:
        """Have the next prompts computed in pieces that hold up nobody's next token for long."""
        prompts = [chunk.end - chunk.start for chunk in landing.chunks if not chunk.decodes]
        self._pace.observe(len(landing.chunks) - len(prompts), sum(prompts), landing.seconds)
        self.scheduler.prompt_allowance = self._pace.allowance

    def _tell(self, messages: list[Told]) -> None:
        """Send what a step brought: all its tokens in one message, with how long those waited that began meanwhile."""
        tokens = [message for message in messages if isinstance(message, Tokens)]
        if tokens or self._waits:
            self._send(Step(tokens, self._waits))
            self._waits = []
        for message in messages:
            if not isinstance(message, Tokens):
                self._send(message)

    def heartbeat(self) -> None:
        """Say that the loop turns, and how full it is."""
        self._last_heartbeat = time.monotonic()
        scheduler = self.scheduler
        self._was_idle = not self._is_busy
        self._send(
            Heartbeat(
                running=len(scheduler.running),
                waiting=len(scheduler.waiting),
                kv_blocks_used=scheduler.blocks.used,
                kv_blocks_total=scheduler.blocks.total,
                preemptions=scheduler.preemptions,
                prefix_lookups=scheduler.prefixes.lookups,
                prefix_hits=scheduler.prefixes.hits,
                prefix_evictions=scheduler.blocks.evictions,
                late_compilations=self.runner.late_compilations,
            )
        )

    def _heartbeat_if_due(self) -> None:
        """On the CPU, one step over a long prompt may take minutes, and is no sign of a hang.

        The start and the end of work are told at once: who reads the metrics of an idle engine must see it idle.
        """
        overdue = time.monotonic() - self._last_heartbeat >= HEARTBEAT_SECONDS
        if overdue or self._was_idle == self._is_busy:
            self.heartbeat()

    def _admit(self, request: Request) -> None:
        sampling = request.sampling
        refusal = self.scheduler.refusal(request) or sampler.refusal(sampling, self.scheduler.limits.vocab_size)
        if refusal is not None:
            self._send(RequestFailed(request.request_id, refusal, invalid=True))
        elif sampling.grammar is not None:
            self.grammars.submit(request, sampling.grammar)
        else:
            self._add(request)

    def _sleep_if_wanted(self) -> None:
        """Give the memory back, once nothing needs it."""
        needed = self._is_busy or self.grammars.pending
        if self._sleep_wanted is None or needed:
            return
        if not self._asleep:
            self._memory.sleep(keep_weights=self._sleep_wanted.keep_weights)
            self.scheduler.prefixes.clear()
        self._asleep, self._sleep_wanted = True, None
        self._send(Slept())

    def _wake(self) -> None:
        """Take the memory again; an engine that cannot have it ends, and the next one is told why."""
        if self._asleep:
            self._memory.wake(self._heartbeat_if_due)
        self._asleep = False
        self._send(Woken())

    def _add(self, request: Request) -> None:
        if self._asleep:
            self._wake()
        self._is_recounted = False
        self._arrivals[request.request_id] = time.monotonic()
        self.scheduler.add(request)

    def _admit_compiled(self) -> None:
        """Take the requests whose grammars have become ready, or wrong."""
        for settled in self.grammars.settled():
            if isinstance(settled, RequestFailed):
                self._send(settled)
            else:
                self._add(settled)

    def _recount(self) -> None:
        """Recount the blocks of an engine that came to rest; a leak is worth knowing, not worth dying of.

        It takes a large device's engine longer than several steps.
        """
        self._is_recounted = True
        problems = self.scheduler.problems()
        if problems != self._known_problems:
            self._known_problems = problems
            log.error("The KV blocks do not add up in an idle engine: %s", "; ".join(problems))

    def _send(self, message: FromEngine) -> None:
        self.connection.send_bytes(encode(message))


def _load(config: EngineConfig, connection: Connection) -> LoadedModel:
    """Load the model, reporting progress and the outcome; ends the process if the model cannot be loaded."""
    reported = 0.0

    def report(phase: LoadPhase, done: int, total: int) -> None:
        nonlocal reported
        if done == total or time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            connection.send_bytes(encode(Loading(phase, done, total)))

    try:
        model = load(config, report)
    except LoadError as error:
        connection.send_bytes(encode(LoadFailed(error.failure.reason, error.failure.message)))
        sys.exit(1)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        connection.send_bytes(encode(LoadFailed(FailureReason.ENGINE_CRASHED, message)))
        raise
    connection.send_bytes(encode(Ready(model.limits.max_request_tokens, model.blocks, model.limits.block_size)))
    return model
