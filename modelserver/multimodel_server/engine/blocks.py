"""The pool of cache blocks: who uses them, and which known contents the others still hold.

A block is in use (some table names it), or cached (no table does, but its content has a name and may be found again),
or blank. Blank blocks are handed out first, then the cached one that was given back longest ago.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

SINK = 0
"""The block that no sequence owns: where padding may point and be written without harm."""


class BlockPool:
    """Blocks 1 .. `total`, handed out, shared and taken back; pure bookkeeping, no tensors."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.evictions = 0
        self._blank = list(range(total, SINK, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # the next to be evicted first
        self._references: Counter[int] = Counter()
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Number of blocks that can be allocated: blank or cached."""
        return len(self._blank) + len(self._cached)

    @property
    def cached(self) -> int:
        """Number of blocks that no table names, and whose content can be found."""
        return len(self._cached)

    @property
    def used(self) -> int:
        """Number of blocks that some table names."""
        return self.total - self.free

    def allocate(self, count: int) -> list[int]:
        """Return `count` blocks of no known content, referenced once each.

        Raises:
            ValueError: fewer are free; ask `free` first.
        """
        if count > self.free:
            raise ValueError(f"{count} blocks were asked for, {self.free} are free")
        blocks = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        self._references.update(blocks)
        return blocks

    def release(self, table: Iterable[int]) -> None:
        """Drop one reference to each block; what no table names any more is free, the first to be evicted first.

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
            if block in self._digest_of:
                self._cached[block] = None
            else:
                self._blank.append(block)

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """Return the blocks that hold the contents named by the first `digests`, up to the first unknown one."""
        found = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def cached_among(self, blocks: Sequence[int]) -> int:
        """Return how many of the blocks are cached: to share them takes so many free ones."""
        return sum(block in self._cached for block in blocks)

    def share(self, blocks: Sequence[int]) -> None:
        """Add a reference to each of the blocks, all found just now."""
        for block in blocks:
            self._cached.pop(block, None)
        self._references.update(blocks)

    def name(self, block: int, digest: bytes) -> None:
        """Say what a block in use holds; an equal one that is known already stays the one that is found.

        Raises:
            ValueError: the block is not in use, or holds something else.
        """
        if self._references[block] < 1:
            raise ValueError(f"block {block} is named but not in use")
        if self._digest_of.get(block, digest) != digest:
            raise ValueError(f"block {block} has another content already")
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def forget(self, digests: Iterable[bytes]) -> None:
        """Have the contents no longer found; blocks in use stay in use."""
        for digest in digests:
            block = self._block_of.pop(digest, None)
            if block is not None:
                del self._digest_of[block]
                if block in self._cached:
                    del self._cached[block]
                    self._blank.append(block)

    def forget_everything(self) -> None:
        """Have no content found any longer."""
        self.forget(list(self._block_of))

    def problems(self, tables: Iterable[Sequence[int]]) -> list[str]:
        """Return what is wrong, given every block table there is; nothing is, in a sound engine."""
        named = Counter(block for table in tables for block in table)
        found = [
            f"block {block}: {named[block]} tables name it, {self._references[block]} references are counted"
            for block in sorted(named.keys() | self._references.keys())
            if named[block] != self._references[block]
        ]
        free = Counter([*self._blank, *self._cached])
        found += [f"block {block} is both free and in use" for block in sorted(free.keys() & self._references.keys())]
        found += [f"block {block} is free {count} times" for block, count in sorted(free.items()) if count > 1]
        if len(free) + len(self._references) != self.total:
            found.append(f"{len(free)} free and {len(self._references)} used blocks are not {self.total}")
        return found + self._naming_problems()

    def _naming_problems(self) -> list[str]:
        found = [
            f"block {block} is the content of no digest, or of another"
            for block, digest in sorted(self._digest_of.items())
            if self._block_of.get(digest) != block
        ]
        if len(self._block_of) != len(self._digest_of):
            found.append(f"{len(self._block_of)} digests name {len(self._digest_of)} blocks")
        found += [f"block {block} is cached without a digest" for block in self._cached.keys() - self._digest_of.keys()]
        found += [f"block {block} is blank with a digest" for block in self._digest_of.keys() & set(self._blank)]
        return found

    def _evict(self) -> int:
        """Take the block back whose content was of use longest ago."""
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._digest_of.pop(block)]
        self.evictions += 1
        return block
