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
from multimodel_server.engine import host
from multimodel_server.engine.batch import build_batch
from multimodel_server.engine.blocks import BlockPool
from multimodel_server.engine.loading import LoadedModel, load
from multimodel_server.engine.messages import (
    Cancel,
    FromEngine,
    Generate,
    Heartbeat,
    LoadFailed,
    Loading,
    Ready,
    RequestFailed,
    Stop,
    decode_to_engine,
    encode,
)
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk, Scheduler
from multimodel_server.errors import LoadError

HEARTBEAT_SECONDS = 0.5
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
        self.scheduler = Scheduler(model.limits, BlockPool(model.blocks))
        self.connection = connection
        self._last_heartbeat = time.monotonic()
        self._known_problems: list[str] = []
        self.runner.after_each_layer(self._heartbeat_if_due)

    def run(self) -> None:
        """Turn until told to stop; raises EOFError or ConnectionError when the other end is gone."""
        while self.drain():
            chunks = self.scheduler.schedule()
            if chunks:
                sampled = self.compute(chunks)
                self.postprocess(chunks, sampled)
            self.heartbeat()

    def drain(self) -> bool:
        """Take every message there is, waiting for one if there is nothing to do; tell whether to go on."""
        if not self.scheduler.has_work:
            self._check_invariants()
        patience = 0.0 if self.scheduler.has_work else HEARTBEAT_SECONDS
        while self.connection.poll(patience):
            patience = 0.0
            match decode_to_engine(self.connection.recv_bytes()):
                case Generate() as message:
                    self._admit(Request.of(message))
                case Cancel(request_id):
                    self.scheduler.cancel(request_id)
                case Stop():
                    return False
        return True

    def compute(self, chunks: list[Chunk]) -> list[int]:
        """Run the model over a step's chunks; return the sampled tokens."""
        return self.runner.step(build_batch(chunks, self.scheduler.limits.block_size, self.runner.device))

    def postprocess(self, chunks: list[Chunk], sampled: list[int]) -> None:
        """Hand each request its token, and tell the HTTP process."""
        for tokens in self.scheduler.complete(chunks, sampled):
            self._send(tokens)

    def heartbeat(self) -> None:
        """Say that the loop turns, and how full it is."""
        self._last_heartbeat = time.monotonic()
        scheduler = self.scheduler
        self._send(
            Heartbeat(
                running=len(scheduler.running),
                waiting=len(scheduler.waiting),
                kv_blocks_used=scheduler.blocks.used,
                kv_blocks_total=scheduler.blocks.total,
                preemptions=scheduler.preemptions,
            )
        )

    def _heartbeat_if_due(self) -> None:
        """On the CPU, one step over a long prompt may take minutes, and is no sign of a hang."""
        if time.monotonic() - self._last_heartbeat >= HEARTBEAT_SECONDS:
            self.heartbeat()

    def _admit(self, request: Request) -> None:
        refusal = self.scheduler.refusal(request)
        if refusal is None:
            self.scheduler.add(request)
        else:
            self._send(RequestFailed(request.request_id, refusal))

    def _check_invariants(self) -> None:
        """Recount the blocks of an idle engine; a leak is worth knowing, not worth dying of."""
        problems = self.scheduler.blocks.problems([])
        if problems != self._known_problems:
            self._known_problems = problems
            log.error("The KV blocks do not add up in an idle engine: %s", "; ".join(problems))

    def _send(self, message: FromEngine) -> None:
        self.connection.send_bytes(encode(message))


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
