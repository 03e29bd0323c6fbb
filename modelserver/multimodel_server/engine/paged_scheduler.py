"""Memory by blocks as texts grow, and one token budget a step: decoding comes first, prompts fill what is left.

Requests go by rank: the smaller priority, then who came first. A request holds the blocks of all its present tokens
from admission on, so only growth by decoding can find the pool empty; then the running request of the worst rank gives
its blocks back and waits to be computed again. Waiting requests are admitted in the order of their ranks, none past
another; one that does not fit may take the place of running ones of a worse priority, never of its own.

The best-ranked request that runs is preempted by no growth but its own, and alone every request fits: so every request
ends, as long as not ever more of better priority come.
"""

from multimodel_server.engine.blocks import BlockPool
from multimodel_server.engine.prefix import PrefixCache
from multimodel_server.engine.request import Request, State
from multimodel_server.engine.scheduler import Chunk, Limits, Scheduler

WATERMARK = 0.01
"""Part of the blocks that admission leaves free, for running requests to grow into."""


class PagedScheduler(Scheduler):
    """Continuous batching with chunked prompts, prefix sharing and preemption."""

    def __init__(self, limits: Limits, blocks: BlockPool) -> None:
        shares_prefixes = limits.kv_cache and limits.prefix_cache_n > 0
        super().__init__(limits, blocks, PrefixCache(blocks, limits.block_size, enabled=shares_prefixes))

    def schedule(self) -> list[Chunk]:
        """Return the chunks of the next step, at most one a request; admits, and may preempt."""
        self._let_running_grow()
        self._admit()
        left, left_for_prompts = self.limits.max_batched_tokens, self._prompt_budget()
        chunks: list[Chunk] = []
        for request in sorted(self.running, key=_turn):
            decodes = request.decodes
            count = min(self._can_compute(request), left if decodes else min(left, left_for_prompts))
            if count:
                left -= count
                left_for_prompts -= 0 if decodes else count
                chunks.append(self._plan(request, count))
        return chunks

    def _let_running_grow(self) -> None:
        """Give each running request, the best-ranked first, the blocks of its tokens; most have them already."""
        short = [request for request in self.running if self._missing(request) > 0]
        for request in sorted(short, key=_rank):
            self._grow(request, self._missing(request))

    def _missing(self, request: Request) -> int:
        return self._blocks_for(request.planned + request.remaining) - len(request.block_table)

    def _grow(self, request: Request, missing: int) -> None:
        """Give a request more blocks, for which the worst-ranked that run make room; it may be one of them."""
        while request.state is State.RUNNING and missing > self.blocks.free + self._coming_back():
            self._preempt(max(self.running, key=_rank))
        if request.state is State.RUNNING and missing <= self.blocks.free:
            request.block_table += self.blocks.allocate(missing)

    def _admit(self) -> None:
        """Start waiting requests while the budget has tokens left for them, and the pool blocks."""
        while self.waiting:
            request = self.waiting[0]
            if request.in_flight or self._uses_up_step(request) or self._finds_more_soon(request):
                return
            if not self._make_way(request):
                return
            self._start(request, len(request.token_ids))

    def _uses_up_step(self, request: Request) -> bool:
        """Tell whether those that run leave no token of a step to a request behind them."""
        ahead = [other for other in self.running if _turn(other) < _turn(request)]
        prompts = sum(other.remaining for other in ahead if not other.decodes)
        tokens = sum(other.remaining for other in ahead)
        return tokens >= self.limits.max_batched_tokens or prompts >= self._prompt_budget()

    def _finds_more_soon(self, request: Request) -> bool:
        """Tell whether half of what a request would compute now is just being computed for another."""
        common = [
            tokens
            for other in self.running
            if not other.decodes and (tokens := self.prefixes.common_tokens(request, other)) > other.computed
        ]
        found = len(self.prefixes.find(request)) * self.limits.block_size if common else 0
        return bool(common) and 2 * (max(common) - found) >= len(request.token_ids) - found

    def _prompt_budget(self) -> int:
        """Return the tokens of prompts that a step may compute: fewer where answers wait for their next token."""
        decodes = any(request.decodes for request in self.running)
        return self.prompt_allowance if decodes else self.limits.max_batched_tokens

    def _make_way(self, request: Request) -> bool:
        """Tell whether a waiting request can start now; preempts running ones of a worse priority if that helps."""
        running, coming = len(self.running), self._coming_back()
        worse = sorted((other for other in self.running if other.priority > request.priority), key=_rank)
        victims: list[Request] = []
        while running >= self.limits.max_seqs or self._shortage(request, running) > coming:
            if not worse:
                return False
            victims.append(worse.pop())
            coming += len(victims[-1].block_table)
            running -= 1
        for victim in victims:
            self._preempt(victim)
        return self._shortage(request, running) <= 0

    def _shortage(self, request: Request, running: int) -> int:
        """Return how many blocks are missing to start a request beside so many others, each with one to grow into."""
        reserve = max(running, int(self.blocks.total * WATERMARK)) if running else 0
        return self._price(request, len(request.token_ids)) + reserve - self.blocks.free

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._queue(request)
        self._leave(request)
        self.preemptions += 1

    def _coming_back(self) -> int:
        """Return the number of blocks that come back when what is in flight has landed, unless others share them."""
        return sum(len(request.block_table) for request in self._landing)

    def _can_compute(self, request: Request) -> int:
        """Return the number of a running request's next tokens that have room, and need no token still unknown."""
        if self._must_land_first(request):
            return 0
        return min(request.remaining, len(request.block_table) * self.limits.block_size - request.planned)


def _rank(request: Request) -> tuple[int, int]:
    return request.rank


def _turn(request: Request) -> tuple[bool, tuple[int, int]]:
    """Return the place in a step: decoding before prompts."""
    return not request.decodes, request.rank
