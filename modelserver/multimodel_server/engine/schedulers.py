"""Which scheduler serves which settings."""

from multimodel_server.engine.blocks import BlockPool
from multimodel_server.engine.default_scheduler import DefaultScheduler
from multimodel_server.engine.paged_scheduler import PagedScheduler
from multimodel_server.engine.scheduler import Limits, Scheduler


def scheduler_for(limits: Limits, blocks: int) -> Scheduler:
    """Return a scheduler over so many blocks; without a KV cache there is no text to reserve for, so it is paged."""
    pool = BlockPool(blocks)
    return PagedScheduler(limits, pool) if limits.paged or not limits.kv_cache else DefaultScheduler(limits, pool)
