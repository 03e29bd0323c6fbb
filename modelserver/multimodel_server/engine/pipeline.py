"""Steps between plan and result: launched one after another, landed in that order, and set right where one fails.

Where a device computes by itself, the next step is planned and launched while one runs, so that the device never waits
for the host. What a step brought is read when it lands.

A fault in a step of several requests belongs to some of them: each is computed again by itself (what is in the cache
already is written again), and only those that fail alone are ended. A step launched behind a failed one took tokens
from it, and is computed again too. Faults in a row, with no good step between them, are the engine's own: then the last
one is raised.
"""

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from multimodel_server.engine.outcome import Outcome
from multimodel_server.engine.request import State
from multimodel_server.engine.scheduler import Chunk, Scheduler, Told

FAULTS_IN_A_ROW = 3
"""Failed computations without a good one between them after which the engine itself is taken to be broken."""

log = logging.getLogger(__name__)


class Launched(Protocol):
    """A step that a runner has begun, and may have finished."""

    def outcomes(self) -> list[Outcome]:
        """Wait for the end, and return the outcome of each chunk that samples, in order."""


class Launcher(Protocol):
    """What the pipeline needs of a runner."""

    @property
    def ahead(self) -> int:
        """How many steps may be launched behind one that runs: 1, or 0 where launching computes."""

    def launch(self, chunks: Sequence[Chunk]) -> Launched:
        """Begin a step; tokens of it that are not known are those that the step launched last chooses."""


@dataclass(frozen=True, slots=True)
class Landing:
    """What a step brought."""

    chunks: Sequence[Chunk]
    told: list[Told]
    seconds: float
    """How long it took, the time left out that it only waited for the step before."""


@dataclass(slots=True)
class _Flight:
    chunks: Sequence[Chunk]
    began: float
    launched: Launched | None
    """None if it is void, as it was launched behind a step that failed."""


@dataclass(frozen=True, slots=True)
class _NotLaunched:
    """A step that failed at once; told when its turn to land comes."""

    error: Exception

    def outcomes(self) -> list[Outcome]:
        raise self.error


class Pipeline:
    """The steps in flight of one engine."""

    def __init__(self, scheduler: Scheduler, runner: Launcher) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._flights: deque[_Flight] = deque()
        self._faults = 0
        self._last_landing = 0.0

    @property
    def busy(self) -> bool:
        """Whether anything is in flight."""
        return bool(self._flights)

    def launch(self) -> Sequence[Chunk]:
        """Plan the next step and begin it, if there is anything to compute; return its chunks."""
        chunks = self._scheduler.schedule()
        if chunks:
            self._flights.append(_Flight(chunks, time.monotonic(), self._launched(chunks)))
        return chunks

    def land(self, *, all_launched: bool) -> list[Landing]:
        """Wait for the oldest step if enough is launched behind it, or nothing more can be; return what landed.

        Behind a step that failed nothing may be launched, as nobody knows its tokens: then all land.

        Raises:
            Exception: the engine is broken; it is the last of `FAULTS_IN_A_ROW` faults.
        """
        landings: list[Landing] = []
        while self._flights and self._is_due(idle=all_launched and not landings):
            landings.append(self._land())
        return landings

    def _is_due(self, *, idle: bool) -> bool:
        last = self._flights[-1].launched
        has_failed = last is None or isinstance(last, _NotLaunched)
        return has_failed or idle or len(self._flights) > self._runner.ahead

    def _launched(self, chunks: Sequence[Chunk]) -> Launched:
        try:
            return self._runner.launch(chunks)
        except (EOFError, ConnectionError):
            raise  # The HTTP process is gone.
        except Exception as error:  # noqa: BLE001  (it is raised when the step lands)
            return _NotLaunched(error)

    def _land(self) -> Landing:
        flight = self._flights.popleft()
        told = self._taken(flight.chunks, flight.launched) if flight.launched else self._computed(flight.chunks)
        now = time.monotonic()
        seconds = now - max(flight.began, self._last_landing)
        self._last_landing = now
        return Landing(flight.chunks, told, seconds)

    def _taken(self, chunks: Sequence[Chunk], launched: Launched) -> list[Told]:
        """Hand each request what a step brought; return what to tell."""
        try:
            told = self._scheduler.complete(chunks, launched.outcomes())
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            for flight in self._flights:
                flight.launched = None
            if len(chunks) > 1 or chunks[0].request.state is State.ENDED:
                log.warning("A step of %d requests failed; computing each by itself: %r", len(chunks), error)
                return [message for chunk in chunks for message in self._computed([chunk])]
            self._faults += 1
            if self._faults >= FAULTS_IN_A_ROW:
                raise
            (chunk,) = chunks
            log.exception("Request %s failed", chunk.request.request_id)
            return [self._scheduler.fail(chunk.request, f"the model failed: {type(error).__name__}: {error}")]
        self._faults = 0
        return told

    def _computed(self, chunks: Sequence[Chunk]) -> list[Told]:
        """Compute chunks now, all before them having landed; those of requests that have ended need not be."""
        ended = [chunk for chunk in chunks if chunk.request.state is State.ENDED]
        self._scheduler.complete(ended, [Outcome() for chunk in ended if chunk.samples])
        alive = [chunk for chunk in chunks if chunk.request.state is not State.ENDED]
        return self._taken(alive, self._launched(alive)) if alive else []
