"""Compiles the grammars of new requests beside the loop, which goes on with the others meanwhile."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llguidance import LLTokenizer

from multimodel_server.engine.grammar import GrammarError, GrammarGuide, read_tokenizer
from multimodel_server.engine.messages import Grammar, RequestFailed
from multimodel_server.engine.request import Request
from multimodel_server.engine.sampler import guide_request

SECONDS = 10.0
"""How long a request waits for its grammar; the compiler's own limits end the work itself, usually much sooner."""
_THREADS = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    request: Request
    guide: Future[GrammarGuide]
    deadline: float


class GrammarCompiler:
    """Holds requests back until their grammars are ready; reads the tokenizer when the first one comes."""

    def __init__(
        self,
        tokenizer_path: Path,
        vocab_size: int,
        *,
        seconds: float = SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokenizer_path = tokenizer_path
        self._vocab_size = vocab_size
        self._seconds = seconds
        self._now = now
        self._tokenizer: LLTokenizer | None = None
        self._reading = threading.Lock()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammar")
        self._jobs: dict[str, _Job] = {}

    @property
    def pending(self) -> bool:
        """Tell whether any request waits for its grammar."""
        return bool(self._jobs)

    def submit(self, request: Request, grammar: Grammar) -> None:
        """Begin to compile a request's grammar."""
        guide = self._pool.submit(self._compile, grammar)
        self._jobs[request.request_id] = _Job(request, guide, self._now() + self._seconds)

    def cancel(self, request_id: str) -> None:
        """Forget a request; unknown ids are ignored."""
        job = self._jobs.pop(request_id, None)
        if job is not None:
            job.guide.cancel()

    def settled(self) -> list[Request | RequestFailed]:
        """Return, once each, the requests that can be scheduled now, and what to tell about those that cannot ever."""
        settled: list[Request | RequestFailed] = []
        for job in tuple(self._jobs.values()):
            if job.guide.done():
                settled.append(_settle(job))
            elif self._now() >= job.deadline:
                message = f"the grammar was not compiled within {self._seconds:g} s; use a simpler one"
                settled.append(RequestFailed(job.request.request_id, message, invalid=True))
            else:
                continue
            self.cancel(job.request.request_id)
        return settled

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: Grammar) -> GrammarGuide:
        with self._reading:
            if self._tokenizer is None:
                self._tokenizer = read_tokenizer(self._tokenizer_path, self._vocab_size)
        return GrammarGuide.start(grammar, self._tokenizer)


def _settle(job: _Job) -> Request | RequestFailed:
    error = job.guide.exception()
    if error is None:
        guide_request(job.request, job.guide.result())
        return job.request
    if isinstance(error, GrammarError):
        return RequestFailed(job.request.request_id, f"the grammar cannot be used: {error}", invalid=True)
    log.error("The grammar of request %s could not be compiled", job.request.request_id, exc_info=error)
    return RequestFailed(job.request.request_id, f"the grammar compiler failed: {type(error).__name__}: {error}")
