"""The paged cache: addresses for as many blocks as there may ever be, and memory behind as many as there is room for.

So the cache can grow and sleep, and never moves: what was captured with its addresses stays valid.
"""

import torch

from multimodel_server.engine.capacity import CacheShape
from multimodel_server.memory import granule, reserve


class KvCache:
    """Keys and values of all layers in blocks; only the first `blocks` have memory, and nothing else may be touched."""

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device, *, most: int, blocks: int) -> None:
        """Reserve addresses for `most` blocks; the first `blocks` get zeroed memory.

        Raises:
            MemoryError: the device has too little.
        """
        self.shape = shape
        self.blocks = 0
        self._granule = granule(device)
        self._parts = 2 * shape.layers
        """Keys and values of a layer are apart: each of them grows at its end."""
        self._block_bytes = shape.block_bytes // self._parts
        self._part_bytes = self._whole(most * self._block_bytes)
        self._region = reserve(self._parts * self._part_bytes, device)
        self.grow(blocks)
        block = (shape.block_size, shape.kv_heads, shape.head_dim)
        part = self._part_bytes // dtype.itemsize
        strides = (2 * part, part, *torch.empty(1, *block, device="meta").stride())
        self.tensor = self._region.bytes.view(dtype).as_strided((shape.layers, 2, most, *block), strides)
        """[layers, 2, most, block_size, kv_heads, head_dim]"""

    @property
    def rounding(self) -> int:
        """The most bytes that the cache takes beyond those of its blocks."""
        return self._parts * (self._granule - 1)

    @property
    def bytes(self) -> int:
        """The memory that the cache has."""
        return self._parts * self._whole(self.blocks * self._block_bytes)

    def grow(self, blocks: int) -> None:
        """Have zeroed memory behind so many blocks; those that had some keep what they hold.

        Raises:
            MemoryError: the device has too little.
        """
        before, after = self._whole(self.blocks * self._block_bytes), self._whole(blocks * self._block_bytes)
        if before < after:
            for start in range(0, self._parts * self._part_bytes, self._part_bytes):
                self._region.back(start + before, start + after)
        self.blocks = max(blocks, self.blocks)

    def drop(self) -> int:
        """Give all memory back; return the number of blocks that had some."""
        blocks, self.blocks = self.blocks, 0
        self._region.drop()
        return blocks

    def _whole(self, size: int) -> int:
        return -(-size // self._granule) * self._granule
