"""What every scheduler does with requests: takes them in, hears what steps brought, ends them, and keeps their blocks.

Pure: no tensors, no clock, no I/O. How the next step is chosen is told by `schedule`: see `paged_scheduler` and
`default_scheduler`.

A step is a list of chunks. It is in flight from `schedule` until each of its chunks was handed to `complete`, or its
request to `fail`; steps land in the order they were handed out. The next step may be planned while one is in flight: a
token that is being sampled then counts as present though unknown, `pending`; only a request whose tokens the host
chooses has nothing planned behind such a token. Blocks are given back when nothing in flight can write to them any
more: a request that ends or is preempted before that keeps its blocks until it landed.
"""

import bisect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from multimodel_server.engine.blocks import BlockPool
from multimodel_server.engine.messages import Embedded, RequestFailed, Tokens
from multimodel_server.engine.outcome import Outcome
from multimodel_server.engine.prefix import PrefixCache
from multimodel_server.engine.request import Request, State

Told = Tokens | Embedded | RequestFailed
"""What is to be told about a request after a step."""


class Chunk(NamedTuple):
    """Tokens `start` to `end` of a request, computed in one step; an unknown one is what the step before samples."""

    request: Request
    start: int
    end: int
    samples: bool
    """Whether the next token is known after this chunk: only if it reaches the end of the tokens."""

    @property
    def decodes(self) -> bool:
        """Whether this is one more token of an answer, not a piece of a prompt."""
        return self.end - self.start == 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step and one request may be, and what is kept of a request."""

    max_seqs: int
    max_batched_tokens: int
    max_request_tokens: int
    block_size: int
    vocab_size: int
    paged: bool = True
    """Whether memory is shared out by blocks as texts grow, or for the whole of a text when it is admitted."""
    prefix_cache_n: int = 16
    """0 keeps no prefix; without paging, so many texts are kept."""
    kv_cache: bool = True
    """Without it, all of a text is computed again for each of its tokens."""


class Scheduler(ABC):
    """Owns every request from admission to its end, and the blocks they hold."""

    def __init__(self, limits: Limits, blocks: BlockPool, prefixes: PrefixCache) -> None:
        if limits.max_request_tokens > blocks.total * limits.block_size:
            raise ValueError(f"{blocks.total} blocks cannot hold a request of {limits.max_request_tokens} tokens")
        self.limits = limits
        self.blocks = blocks
        self.prefixes = prefixes
        self.waiting: list[Request] = []  # by rank
        self.running: list[Request] = []
        self.preemptions = 0
        self.prompt_allowance = limits.max_batched_tokens
        """Prompt tokens of a step in which something decodes; whoever measures steps may change it."""
        self._landing: set[Request] = set()  # no longer running, but with steps in flight
        self._arrivals = itertools.count()

    @abstractmethod
    def schedule(self) -> list[Chunk]:
        """Return the chunks of the next step, at most one a request; admits, and may preempt."""

    @property
    def has_work(self) -> bool:
        """Tell whether any request is unfinished."""
        return bool(self.running or self.waiting)

    def refusal(self, request: Request) -> str | None:
        """Return why a request can never be served here, or None if it can."""
        limit, max_tokens = self.limits.max_request_tokens, request.sampling.max_tokens
        if request.prompt_length < 1:
            return "the prompt is empty; it needs at least one token"
        if max_tokens < 1 and not request.pools:
            return f"max_tokens is {max_tokens}; it must be at least 1"
        if request.generated and request.generated >= max_tokens:
            return f"the answer has {request.generated} tokens already; max_tokens is {max_tokens}"
        if request.total > limit:
            room = limit - request.prompt_length
            advice = f"ask for at most {room}" if room > 0 else f"shorten the prompt of {request.prompt_length}"
            return f"prompt and max_tokens make {request.total} tokens; at most {limit} fit: {advice}"
        if not 0 <= min(request.token_ids) <= max(request.token_ids) < self.limits.vocab_size:
            return f"there are token ids outside 0..{self.limits.vocab_size - 1}, the model's vocabulary"
        if any(other.request_id == request.request_id for other in (*self.running, *self.waiting)):
            return f"request id {request.request_id} is already in use"
        return None

    def add(self, request: Request) -> None:
        """Queue a request that `refusal` has nothing against."""
        request.arrival = next(self._arrivals)
        self._queue(request)

    def cancel(self, request_id: str) -> None:
        """Forget a request and free its blocks; unknown ids are ignored."""
        for request in (*self.running, *self.waiting):
            if request.request_id == request_id:
                self._end(request)

    def complete(self, chunks: Sequence[Chunk], outcomes: Sequence[Outcome]) -> list[Told]:
        """Take the results of chunks, an outcome for each that `samples`; return what to tell about each request.

        The chunks are those of the oldest step in flight, or some of them.

        Raises:
            ValueError: there are more or fewer outcomes; then nothing has changed.
        """
        sampled = (chunk.request for chunk in chunks if chunk.samples)
        brought = list(zip(sampled, outcomes, strict=True))
        for chunk in chunks:
            if chunk.request.state is not State.ENDED:
                chunk.request.computed = chunk.end
                self.prefixes.computed(chunk.request, chunk.start)
            self._land(chunk.request)
        told = [self._accept(request, outcome) for request, outcome in brought]
        return [message for message in told if message is not None]

    def fail(self, request: Request, message: str) -> RequestFailed:
        """End a request, whose oldest chunk in flight, if any, could not be computed; return what to tell about it.

        Its blocks come back, and nothing that the chunk was to write can be found in the prefix cache.
        """
        if request.in_flight:
            self._land(request)
        self._end(request)
        return RequestFailed(request.request_id, message)

    def problems(self) -> list[str]:
        """Return what is wrong with the blocks; nothing is, in a sound engine."""
        return self.blocks.problems([request.block_table for request in (*self.running, *self._landing)])

    def _queue(self, request: Request) -> None:
        request.state = State.WAITING
        bisect.insort(self.waiting, request, key=lambda other: other.rank)

    def _price(self, request: Request, tokens: int) -> int:
        """Return how many free blocks it takes to start a request with room for so many tokens."""
        found = self.prefixes.find(request)
        return self._blocks_for(tokens) - len(found) + self.blocks.cached_among(found)

    def _start(self, request: Request, tokens: int) -> None:
        """Let a waiting request run, with room for so many tokens, after what the prefix cache holds of them."""
        self.waiting.remove(request)
        found = self.prefixes.find(request)
        self.blocks.share(found)  # before others are allocated, which may evict
        request.block_table = found + self.blocks.allocate(self._blocks_for(tokens) - len(found))
        request.computed = request.planned = len(found) * self.limits.block_size
        request.state = State.RUNNING
        self.running.append(request)
        self.prefixes.note_admission(request, request.computed)

    def _plan(self, request: Request, count: int) -> Chunk:
        """Hand out a request's next tokens to be computed."""
        start, end = request.planned, request.planned + count
        samples = count == request.remaining
        request.planned = end
        request.in_flight += 1
        request.pending += samples
        return Chunk(request, start, end, samples)

    def _must_land_first(self, request: Request) -> bool:
        """Tell whether nothing more of a request can be computed before its token in flight is known."""
        return request.pending > 0 and (request.chosen_on_host or not self.limits.kv_cache)

    def _land(self, request: Request) -> None:
        """Note that a chunk is no longer in flight; was it the last of a request that left, its blocks come back."""
        request.in_flight -= 1
        if request in self._landing and not request.in_flight:
            self._landing.remove(request)
            self._give_back(request)

    def _accept(self, request: Request, outcome: Outcome) -> Told | None:
        """Act on what a request's sampling chunk brought; nothing is told of one that ended before."""
        request.pending -= 1
        if request.state is State.ENDED:
            return None
        if outcome.error is None and outcome.token is not None:
            return self._continue(request, outcome.token, outcome)
        if outcome.error is None and outcome.embedding is not None:
            self._finish(request)
            return Embedded(request.request_id, outcome.embedding)
        self._end(request)
        return RequestFailed(request.request_id, outcome.error or "the model gave no result", outcome.invalid)

    def _continue(self, request: Request, token: int, outcome: Outcome) -> Tokens:
        is_first = request.generated == 0
        finish_reason = request.accept(token)
        is_kept = finish_reason != "stop"
        if finish_reason is not None:
            self._finish(request)
        elif not self.limits.kv_cache:
            self._give_back(request)
        return Tokens(
            request.request_id,
            [token] if is_kept else [],
            finish_reason,
            logprobs=[outcome.logprobs] if is_kept and outcome.logprobs is not None else None,
            prompt_logprobs=outcome.prompt_logprobs,
            cached_tokens=(request.cached_tokens or 0) if is_first else 0,
        )

    def _finish(self, request: Request) -> None:
        self.prefixes.finished(request)
        self._end(request)

    def _end(self, request: Request) -> None:
        if request.state is not State.ENDED:
            (self.running if request.state is State.RUNNING else self.waiting).remove(request)
            request.state = State.ENDED
            self._leave(request)

    def _leave(self, request: Request) -> None:
        """Have the blocks of a request that runs no more come back, as soon as nothing in flight writes to them."""
        if request.in_flight:
            self._landing.add(request)
        else:
            self._give_back(request)

    def _give_back(self, request: Request) -> None:
        """Free the blocks, the last first: the beginning of a text is worth keeping longest."""
        self.blocks.release(reversed(request.block_table))
        request.block_table = []
        request.computed = request.planned = 0

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_size)
