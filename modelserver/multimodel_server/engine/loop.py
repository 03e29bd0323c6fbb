"""The engine process: reads the model, then turns messages into tokens until it is told to stop or left alone."""

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
from multimodel_server.engine.batch import Batch, build_batch
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
    Step,
    Stop,
    Tokens,
    decode_to_engine,
    encode,
)
from multimodel_server.engine.pace import Pace
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk, Told
from multimodel_server.engine.schedulers import scheduler_for
from multimodel_server.errors import LoadError

HEARTBEAT_SECONDS = 0.5
FIRST_ALLOWANCE = 64
"""Prompt tokens computed beside decoding requests before it is known what they cost."""
FAULTS_IN_A_ROW = 3
"""Failed computations without a good one between them after which the engine itself is taken to be broken."""
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
        Engine(_load(config, connection), connection).run()
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
        self._faults = 0
        self._arrivals: dict[str, float] = {}
        self._pace = Pace(first_allowance=FIRST_ALLOWANCE)
        self._known_problems: list[str] = []
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
        if not self.scheduler.has_work:
            self._check_invariants()
        patience = 0.0 if self.scheduler.has_work else COMPILING_SECONDS if self.grammars.pending else HEARTBEAT_SECONDS
        while self.connection.poll(patience):
            patience = 0.0
            match decode_to_engine(self.connection.recv_bytes()):
                case Generate() | Embed() as message:
                    self._admit(Request.of(message))
                case Cancel(request_id):
                    self._arrivals.pop(request_id, None)
                    self.grammars.cancel(request_id)
                    self.scheduler.cancel(request_id)
                case Stop():
                    return False
        self._admit_compiled()
        return True

    def turn(self) -> None:
        """Do one step's work, if there is any."""
        chunks = self.scheduler.schedule()
        if chunks:
            began = time.monotonic()
            waits = [began - self._arrivals.pop(name) for name in _names(chunks) if name in self._arrivals]
            self._tell(self.compute(chunks), waits)
            self._learn(chunks, time.monotonic() - began)
        self._heartbeat_if_due()

    def compute(self, chunks: list[Chunk]) -> list[Told]:
        """Run the model over a step's chunks, and hand each request what it brought; return what to tell.

        A fault in a step of several requests belongs to some of them: each is computed again by itself (what is in the
        cache already is written again), and only those that fail alone are ended. Faults in a row, with no good step
        between them, are the engine's own: then the last one is raised.
        """
        try:
            told = self.scheduler.complete(chunks, self.runner.step(self._batch(chunks)))
        except (EOFError, ConnectionError):
            raise  # The HTTP process is gone.
        except Exception as error:
            if len(chunks) > 1:
                log.warning("A step of %d requests failed; computing each by itself: %r", len(chunks), error)
                return [message for chunk in chunks for message in self.compute([chunk])]
            self._faults += 1
            if self._faults >= FAULTS_IN_A_ROW:
                raise
            (chunk,) = chunks
            log.exception("Request %s failed", chunk.request.request_id)
            return [self.scheduler.fail(chunk.request, f"the model failed: {type(error).__name__}: {error}")]
        self._faults = 0
        return told

    def _learn(self, chunks: list[Chunk], seconds: float) -> None:
        """Have the next prompts computed in pieces that hold up nobody's next token for long."""
        prompts = [chunk.end - chunk.start for chunk in chunks if not chunk.decodes]
        self._pace.observe(len(chunks) - len(prompts), sum(prompts), seconds)
        self.scheduler.prompt_allowance = self._pace.allowance

    def _batch(self, chunks: list[Chunk]) -> Batch:
        return build_batch(chunks, self.scheduler.limits.block_size, self.runner.device)

    def _tell(self, messages: list[Told], waits: list[float]) -> None:
        """Send what a step brought: all its tokens in one message, with how long those waited that it began."""
        tokens = [message for message in messages if isinstance(message, Tokens)]
        if tokens or waits:
            self._send(Step(tokens, waits))
        for message in messages:
            if not isinstance(message, Tokens):
                self._send(message)

    def heartbeat(self) -> None:
        """Say that the loop turns, and how full it is."""
        self._last_heartbeat = time.monotonic()
        scheduler = self.scheduler
        self._was_idle = not scheduler.has_work
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
            )
        )

    def _heartbeat_if_due(self) -> None:
        """On the CPU, one step over a long prompt may take minutes, and is no sign of a hang.

        The start and the end of work are told at once: who reads the metrics of an idle engine must see it idle.
        """
        overdue = time.monotonic() - self._last_heartbeat >= HEARTBEAT_SECONDS
        if overdue or self._was_idle == self.scheduler.has_work:
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

    def _add(self, request: Request) -> None:
        self._arrivals[request.request_id] = time.monotonic()
        self.scheduler.add(request)

    def _admit_compiled(self) -> None:
        """Take the requests whose grammars have become ready, or wrong."""
        for settled in self.grammars.settled():
            if isinstance(settled, RequestFailed):
                self._send(settled)
            else:
                self._add(settled)

    def _check_invariants(self) -> None:
        """Recount the blocks of an idle engine; a leak is worth knowing, not worth dying of."""
        problems = self.scheduler.problems()
        if problems != self._known_problems:
            self._known_problems = problems
            log.error("The KV blocks do not add up in an idle engine: %s", "; ".join(problems))

    def _send(self, message: FromEngine) -> None:
        self.connection.send_bytes(encode(message))


def _names(chunks: list[Chunk]) -> list[str]:
    return [chunk.request.request_id for chunk in chunks]


def _load(config: EngineConfig, connection: Connection) -> LoadedModel:
    """Load the model, reporting progress and the outcome; ends the process if the model cannot be loaded."""
    reported = 0.0

    def report(done: int, total: int) -> None:
        nonlocal reported
        if done == total or time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            connection.send_bytes(encode(Loading(LoadPhase.READING_WEIGHTS, done, total)))

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
