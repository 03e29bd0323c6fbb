"""Without paged attention: first come, first served; only sequences of equal length are computed together.

A request reserves the blocks of its whole text, answer included, before it starts, so nothing is ever preempted. A
prompt is computed in one step, and the running sequences at other lengths wait meanwhile: who was passed over most
often goes next, of equals the shortest. What is kept for later prompts are the last `prefix_cache_n` whole texts.
"""

from collections import defaultdict

from multimodel_server.engine.blocks import BlockPool
from multimodel_server.engine.prefix import KeptTexts
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk, Limits, Scheduler


class DefaultScheduler(Scheduler):
    """Batches of equal length, in turns."""

    def __init__(self, limits: Limits, blocks: BlockPool) -> None:
        super().__init__(limits, blocks, KeptTexts(blocks, limits.block_size, count=limits.prefix_cache_n))

    def schedule(self) -> list[Chunk]:
        """Return the chunks of the next step, all of one length; admits."""
        self._admit()
        buckets: defaultdict[tuple[int, int], list[Request]] = defaultdict(list)
        for request in self.running:
            if request.remaining and not self._must_land_first(request):
                buckets[request.planned, request.remaining].append(request)
        if not buckets:
            return []
        bucket = max(buckets.values(), key=_urgency)
        length = bucket[0].remaining
        going = sorted(bucket, key=lambda request: request.rank)[: max(1, self.limits.max_batched_tokens // length)]
        for request in self.running:
            request.passed_over += 1
        for request in going:
            request.passed_over = 0
        return [self._plan(request, length) for request in going]

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.limits.max_seqs:
            request = self.waiting[0]
            if self._price(request, request.total) > self.blocks.free:
                return
            self._start(request, request.total)


def _urgency(bucket: list[Request]) -> tuple[int, int]:
    return max(request.passed_over for request in bucket), -(bucket[0].planned + bucket[0].remaining)
