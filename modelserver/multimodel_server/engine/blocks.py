"""The pool of cache blocks: which are free, and how many block tables name each of the others."""

from collections import Counter, deque
from collections.abc import Iterable

SINK = 0
"""The block that no sequence owns: where padding may point and be written without harm."""


class BlockPool:
    """Blocks 1 .. `total`, handed out and taken back; pure bookkeeping, no tensors."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = deque(range(SINK + 1, total + 1))
        self._references: Counter[int] = Counter()

    @property
    def free(self) -> int:
        """Number of blocks that can be allocated."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Number of blocks that some table names."""
        return self.total - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Return `count` blocks, referenced once each.

        Raises:
            ValueError: fewer are free; ask `free` first.
        """
        if count > len(self._free):
            raise ValueError(f"{count} blocks were asked for, {len(self._free)} are free")
        blocks = [self._free.popleft() for _ in range(count)]
        self._references.update(blocks)
        return blocks

    def release(self, table: Iterable[int]) -> None:
        """Drop one reference to each block; those without any are free again.

        Raises:
            ValueError: a block is not in use.
        """
        for block in table:
            references = self._references[block]
            if references < 1:
                raise ValueError(f"block {block} is released but not in use")
            if references > 1:
                self._references[block] -= 1
                continue
            del self._references[block]
            self._free.append(block)

    def problems(self, tables: Iterable[list[int]]) -> list[str]:
        """Return what is wrong, given every block table there is; nothing is, in a sound engine."""
        named = Counter(block for table in tables for block in table)
        free = set(self._free)
        found = [
            f"block {block}: {named[block]} tables name it, {self._references[block]} references are counted"
            for block in sorted(named.keys() | self._references.keys())
            if named[block] != self._references[block]
        ]
        found += [f"block {block} is both free and in use" for block in sorted(free & self._references.keys())]
        if len(free) != len(self._free):
            found.append("a block is free twice")
        if len(free) + len(self._references) != self.total:
            found.append(f"{len(free)} free and {len(self._references)} used blocks are not {self.total}")
        return found
