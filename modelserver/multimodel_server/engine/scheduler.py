"""Which tokens are computed next, and what their results mean for each request. Pure: no tensors, no clock, no I/O.

One token budget a step, for running requests in the order they were admitted, then for new ones in the order they
arrived. Nobody is admitted behind a prompt that used up the budget, so only the newest running request can be amid its
prompt: decoding comes first by itself.

A request holds the blocks of all its present tokens from admission on, so only growth by decoding can find the pool
empty; then the newest running request gives its blocks back and waits, before all others, to be computed again. The
oldest is never the newest unless it is alone, and alone every request fits: so every request ends.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from multimodel_server.engine.blocks import BlockPool
from multimodel_server.engine.messages import Tokens
from multimodel_server.engine.request import Request


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `end` of a request, computed in one step."""

    request: Request
    start: int
    end: int

    @property
    def samples(self) -> bool:
        """Tell whether the next token is known after this chunk: only if it reaches the end of the tokens."""
        return self.end == len(self.request.token_ids)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step and one request may be."""

    max_seqs: int
    max_batched_tokens: int
    max_request_tokens: int
    block_size: int
    vocab_size: int


class Scheduler:
    """Owns every request from admission to its end, and the blocks they hold."""

    def __init__(self, limits: Limits, blocks: BlockPool) -> None:
        if limits.max_request_tokens > blocks.total * limits.block_size:
            raise ValueError(f"{blocks.total} blocks cannot hold a request of {limits.max_request_tokens} tokens")
        self.limits = limits
        self.blocks = blocks
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.preemptions = 0

    @property
    def has_work(self) -> bool:
        """Tell whether any request is unfinished."""
        return bool(self.running or self.waiting)

    def refusal(self, request: Request) -> str | None:
        """Return why a request can never be served here, or None if it can."""
        total, limit = request.prompt_length + request.sampling.max_tokens, self.limits.max_request_tokens
        if request.prompt_length < 1:
            return "the prompt is empty; it needs at least one token"
        if request.sampling.max_tokens < 1:
            return f"max_tokens is {request.sampling.max_tokens}; it must be at least 1"
        if total > limit:
            return f"prompt and max_tokens make {total} tokens; at most {limit} fit"
        if not 0 <= min(request.token_ids) <= max(request.token_ids) < self.limits.vocab_size:
            return f"the prompt has token ids outside 0..{self.limits.vocab_size - 1}, the model's vocabulary"
        if any(other.request_id == request.request_id for other in (*self.running, *self.waiting)):
            return f"request id {request.request_id} is already in use"
        return None

    def add(self, request: Request) -> None:
        """Queue a request that `refusal` has nothing against."""
        self.waiting.append(request)

    def cancel(self, request_id: str) -> None:
        """Forget a request and free its blocks; unknown ids are ignored."""
        for request in (*self.running, *self.waiting):
            if request.request_id == request_id:
                (self.running if request in self.running else self.waiting).remove(request)
                self._release(request)

    def schedule(self) -> list[Chunk]:
        """Return the chunks of the next step, at most one a request; preempts and admits."""
        self._let_running_grow()
        budget = self.limits.max_batched_tokens
        chunks: list[Chunk] = []
        for request in self.running:
            budget -= self._take(request, budget, chunks)
        while budget and self._next_fits():
            request = self.waiting.popleft()
            self.running.append(request)
            request.block_table = self.blocks.allocate(self._missing_blocks(request))
            budget -= self._take(request, budget, chunks)
        return chunks

    def complete(self, chunks: Sequence[Chunk], sampled: Sequence[int]) -> list[Tokens]:
        """Take a step's results, one token for each chunk that `samples`; return what to tell about each request."""
        for chunk in chunks:
            chunk.request.computed = chunk.end
        finished = [chunk.request for chunk in chunks if chunk.samples]
        return [self._accept(request, token) for request, token in zip(finished, sampled, strict=True)]

    def _let_running_grow(self) -> None:
        """Give each running request, oldest first, the blocks of its tokens; what is missing the newest give back."""
        for request in tuple(self.running):
            while request in self.running and self._missing_blocks(request) > self.blocks.free:
                self._preempt(self.running.pop())
            if request in self.running:
                request.block_table += self.blocks.allocate(self._missing_blocks(request))

    def _preempt(self, request: Request) -> None:
        self._release(request)
        request.computed = 0
        self.waiting.appendleft(request)
        self.preemptions += 1

    def _next_fits(self) -> bool:
        """Tell whether the first waiting request can start and leave every running one a block to grow by."""
        if not self.waiting or len(self.running) >= self.limits.max_seqs:
            return False
        return self._missing_blocks(self.waiting[0]) + len(self.running) <= self.blocks.free

    def _take(self, request: Request, budget: int, chunks: list[Chunk]) -> int:
        """Append as much of a request as the budget allows; return the number of tokens."""
        count = min(request.remaining, budget)
        if count:
            chunks.append(Chunk(request, request.computed, request.computed + count))
        return count

    def _missing_blocks(self, request: Request) -> int:
        return -(-len(request.token_ids) // self.limits.block_size) - len(request.block_table)

    def _accept(self, request: Request, token: int) -> Tokens:
        finish_reason = request.accept(token)
        if finish_reason is not None:
            self.running.remove(request)
            self._release(request)
        return Tokens(request.request_id, [] if finish_reason == "stop" else [token], finish_reason)

    def _release(self, request: Request) -> None:
        """Free the blocks, the last first: the beginning of a text is worth keeping longest."""
        self.blocks.release(reversed(request.block_table))
        request.block_table = []
