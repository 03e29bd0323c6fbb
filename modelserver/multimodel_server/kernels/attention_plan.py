"""How attention is laid out over the processors of a device: decided on the host, from shapes and counts alone."""

from typing import NamedTuple

NARROWEST = 16
"""Least size of a side of the products that matrix units compute."""
BYTES_OF_KEYS = 16 * 1024
"""Size of a tile of keys in decoding, which reads as fast as such tiles follow each other."""
MOST_KEYS = 256
PROGRAMS_PER_PROCESSOR = 2
"""Programs that decoding is split into: while one waits for memory, another computes."""
MOST_SPLITS = 64
"""Parts at most that the keys of one text are read in."""


class Tiling(NamedTuple):
    """The tiles of a launch, `rows` of queries against `keys` positions, and what Triton makes of a program."""

    rows: int
    """Tokens times the query heads that share a KV head."""
    keys: int
    warps: int
    stages: int
    """Tiles of keys on their way at once, and the one that is computed with."""


def tiling(group: int, head_dim: int, query_bytes: int, cache_bytes: int, *, decodes: bool) -> Tiling:
    """Return the tiles for `group` query heads a KV head, and so many bytes an element of queries and of the cache.

    Of 16-bit queries, Hopper's registers hold what a program computes with, and the shared memory of a processor the
    tiles of two programs that decode.
    """
    least = max(NARROWEST, _power_of_two(group))
    narrow = padded(head_dim) <= 128
    if query_bytes > 2:
        return Tiling(least, 32, 4, 2) if narrow else Tiling(least, 16, 8, 2)
    if decodes:
        return Tiling(least, min(MOST_KEYS, BYTES_OF_KEYS // (padded(head_dim) * cache_bytes)), 4, 3)
    return Tiling(max(least, 128 if narrow else 64), 64, 8, 3 if narrow else 2)


def padded(head_dim: int) -> int:
    """Return the size that a head takes in a tile."""
    return max(NARROWEST, _power_of_two(head_dim))


def splits(seqs: int, kv_heads: int, table_tokens: int, keys: int, processors: int) -> int:
    """Return in how many parts, of whole tiles of `keys`, decoding reads texts of up to `table_tokens`."""
    wanted = PROGRAMS_PER_PROCESSOR * processors // (seqs * kv_heads)
    return max(1, min(wanted, MOST_SPLITS, -(-table_tokens // keys)))


def leading_decodes(query_lens: tuple[int, ...]) -> int:
    """Return how many sequences with one new token come first: each stands among the tokens where it does itself."""
    return next((index for index, length in enumerate(query_lens) if length != 1), len(query_lens))


def _power_of_two(number: int) -> int:
    """Return the least power of two that is no less than a positive number."""
    return 1 << (number - 1).bit_length()
