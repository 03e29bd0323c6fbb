"""How many blocks the KV cache gets, from what was asked for and what there is. Pure."""

import dataclasses
from dataclasses import dataclass

from multimodel_api.failures import FailureReason
from multimodel_server.config import KvSize
from multimodel_server.errors import LoadError

MIB = 1 << 20
DEVICE_FRACTION = 0.9
"""Part of an accelerator's free memory that the cache takes where no size is stated."""
HOST_BYTES = 1024 * MIB
"""Most memory that the cache takes on the CPU where no size is stated."""
HOST_CONTEXTS = 8
"""Full-length contexts that the cache holds on the CPU, memory permitting, where no size is stated."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Sizes that decide what a block costs."""

    layers: int
    kv_heads: int
    head_dim: int
    block_size: int
    element_size: int

    @property
    def block_bytes(self) -> int:
        """Bytes of a block: the keys and values of its tokens in every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.block_size * self.element_size


def cache_blocks(size: KvSize, shape: CacheShape, free_bytes: int) -> int:
    """Return the blocks of a cache of a size, the sink included.

    Raises:
        LoadError: BadConfiguration if the size is no size or holds no block; OutOfMemory if it is more than is free.
    """
    stated = {name: value for name, value in dataclasses.asdict(size).items() if value is not None}
    if len(stated) != 1:
        raise _bad(f"the KV cache has {len(stated)} sizes ({', '.join(stated)}); give one of them")
    ((name, value),) = stated.items()
    if value <= 0 or (name == "memory_fraction" and value > 1):
        bounds = "above 0 and at most 1" if name == "memory_fraction" else "at least 1"
        raise _bad(f"{name} is {value}; it must be {bounds}")
    if size.context_len is not None:
        blocks = -(-size.context_len // shape.block_size) + 1
    else:
        room = size.memory_mb * MIB if size.memory_mb is not None else int(value * free_bytes)
        blocks = room // shape.block_bytes
    if blocks < 2:
        least = f"{2 * shape.block_bytes / MIB:.1f} MiB"
        raise _bad(f"{name} is {value}: too little for a block of {shape.block_size} tokens; the least is {least}")
    if blocks * shape.block_bytes > free_bytes:
        needed, free = blocks * shape.block_bytes // MIB, free_bytes // MIB
        message = f"{name} is {value}: the KV cache would take {needed} MiB, {free} MiB are free; give a smaller size"
        raise LoadError(FailureReason.OUT_OF_MEMORY, message)
    return blocks


def default_size(shape: CacheShape, *, on_host: bool, max_seqs: int, context: int) -> KvSize:
    """Return the size of a cache nobody sized, for sequences of up to `context` tokens."""
    if not on_host:
        return KvSize(memory_fraction=DEVICE_FRACTION)
    affordable = (HOST_BYTES // shape.block_bytes - 1) * shape.block_size
    return KvSize(context_len=max(shape.block_size, min(context * min(HOST_CONTEXTS, max_seqs), affordable)))


def _bad(message: str) -> LoadError:
    return LoadError(FailureReason.BAD_CONFIGURATION, message)
