"""How products of few rows are laid out over the processors of a device, and by which layout they are computed.

Reading the weights takes all of the time: a layout is good if every processor has loads under way, all the time. Which
one is best cannot be known from shapes alone, so a few are proposed, and the one that measures fastest is taken.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

ROW_COUNTS = (1, 2, 4, 8, 16, 32)
"""Numbers of rows for which layouts are chosen; other ones are computed as the next larger number is."""
ELEMENT_BYTES = 2
WARPS = 4
WEIGHTS_AT_ONCE = 8192
"""Weights that a program reads together: a few such programs or tiles on their way keep a processor busy."""
INPUTS_AT_ONCE = 16384
"""Elements of the rows at most that are read beside them."""
MOST_STAGES = 4
GAIN = 0.97
"""Part of the time of cuBLAS that Triton may take at most to be preferred: less is within what measuring varies by."""


class Product(NamedTuple):
    """Products that take the same time: `rows` times the transpose of weights [outs, width]."""

    rows: int
    outs: int
    width: int
    dtype: torch.dtype
    has_bias: bool

    @classmethod
    def of(cls, rows: int, weight: torch.Tensor, bias: torch.Tensor | None) -> "Product":
        """Return the product of so many rows, one of `ROW_COUNTS`, and the weights."""
        outs, width = weight.shape
        return cls(rows, outs, width, weight.dtype, bias is not None)


class Room(NamedTuple):
    """What a device has for the programs of a kernel."""

    processors: int
    shared_bytes: int
    """Shared memory of a program at most."""


class LinearTiling(NamedTuple):
    """The tile of a program: all `rows`, perhaps with padding, by so many outputs."""

    rows: int
    outs: int
    width: int
    """Weights of one output that are read at once."""
    parts: int
    """Sums of which each result is made: each warp multiplies a part of what is read at once."""
    stages: int
    """Tiles on their way at once, and the one that is computed with; a single row's are kept in registers."""


def row_count(rows: int) -> int | None:
    """Return as how many rows a number of them is computed, or None if they are too many to choose."""
    return next((count for count in ROW_COUNTS if rows <= count), None)


def tilings(product: Product, room: Room) -> tuple[LinearTiling, ...]:
    """Return the tilings worth trying, none where rows of weights do not begin at multiples of 16 bytes."""
    if product.dtype.itemsize != ELEMENT_BYTES or product.width % 16 != 0:
        return ()
    if product.rows == 1:
        return tuple(_single_row(product.width, outs) for outs in _outputs((8, 4, 2), product.outs, room.processors))
    several = (_several_rows(product.rows, outs, room.shared_bytes) for outs in (64, 32, 16, 8))
    fitting = {tiling.outs: tiling for tiling in several if tiling.stages > 1}
    return tuple(fitting[outs] for outs in _outputs(tuple(fitting), product.outs, room.processors))


def fastest(plain: float, times: Mapping[LinearTiling, float]) -> LinearTiling | None:
    """Return the tiling that takes the least time, or None if cuBLAS, whose time is `plain`, is about as fast."""
    best = min(times, key=lambda tiling: times[tiling], default=None)
    return best if best is not None and times[best] < GAIN * plain else None


def _outputs(sizes: tuple[int, ...], outs: int, programs: int) -> tuple[int, ...]:
    """Return the largest number of outputs, of descending ones, that makes so many programs, and the next smaller."""
    largest = next((place for place, size in enumerate(sizes) if outs >= size * programs), -1)
    return sizes[largest:][:2]


def _single_row(width: int, outs: int) -> LinearTiling:
    """Return a tiling of which each program reads as much at once as its registers hold."""
    return LinearTiling(1, outs, min(WEIGHTS_AT_ONCE // outs, 1 << (width - 1).bit_length()), WARPS, 1)


def _several_rows(rows: int, outs: int, shared_bytes: int) -> LinearTiling:
    """Return a tiling for matrix units, which compute no fewer than 16 rows, with as many tiles on their way as fit."""
    padded = max(16, rows)
    width = min(WEIGHTS_AT_ONCE // outs, INPUTS_AT_ONCE // padded)
    fitting = shared_bytes // (ELEMENT_BYTES * (padded + outs) * width)
    return LinearTiling(padded, outs, width, WARPS, min(MOST_STAGES, 1 + fitting))
