"""Where a device finds what a step computes: one piece of memory, which the host writes to once a step.

It begins with the ids that the last step chose; behind them comes what the host sends for the next one. An id of either
is named by one number, so that a step goes on from ids that the host has not seen yet.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from multimodel_server.engine.step_arrays import Draws, StepArrays
from multimodel_server.kernels import SamplingRows

Array = NDArray[Any]
LONG, INT = 8, 4
"""Bytes of an element."""
ALIGNMENT = 16
"""Kernels are compiled apart for addresses that are no multiple of it; so all are."""
ARRAYS = 14
"""How many are sent."""


class SentStep(NamedTuple):
    """The device's side of what the host sends: `StepArrays` and `Draws`."""

    token_sources: torch.Tensor
    """[tokens] int64: where `StepBuffer.tokens_at` finds each one's id."""
    positions: torch.Tensor
    slots: torch.Tensor
    sampled_rows: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    draws: SamplingRows


class StepBuffer:
    """The memory of steps of up to `tokens` tokens of `seqs` sequences, whose block tables have up to `columns`."""

    def __init__(self, seqs: int, tokens: int, columns: int, device: torch.device) -> None:
        self._start = _aligned(LONG * seqs)
        room = LONG * (4 * tokens + 3 * seqs) + INT * (6 * seqs + 1 + seqs * columns) + ALIGNMENT * ARRAYS
        self._memory = torch.zeros(self._start + room, dtype=torch.uint8, device=device)
        self._token_ids = self._memory[: self._start + LONG * tokens].view(torch.int64)
        self._page_locked = device.type == "cuda"
        self.ids = self._token_ids[:seqs]
        """[seqs] int64: what the last step chose; -1 where it could not."""
        self.block_tables = torch.zeros((seqs, columns), dtype=torch.int32, device=device)
        """Those of a step are its first rows; what stands behind the end of a sequence means nothing."""

    def packed(self, step: StepArrays, draws: Draws) -> list[Array]:
        """Return what is sent of a step, in this order: token ids first, tables, the only ones of any width, last."""
        known = self._start // LONG + np.arange(len(step.token_ids))
        sources = np.where(step.token_ids < 0, ~step.token_ids, known)
        tokens = (step.token_ids, sources, step.positions, step.slots)
        return [*tokens, step.sampled_rows, step.query_start_loc, step.seq_lens, *draws, step.block_tables]

    def send(self, arrays: Sequence[Array]) -> None:
        """Copy a packed step to the device in one go, without waiting for it."""
        places = _places(arrays)
        page = torch.empty(places[-1].stop, dtype=torch.uint8, pin_memory=self._page_locked)
        bytes_of_page = page.numpy()
        for array, place in zip(arrays, places, strict=True):
            bytes_of_page[place].view(array.dtype).reshape(array.shape)[...] = array
        received = self._memory[self._start :][: len(page)]
        received.copy_(page, non_blocking=True)
        seqs, columns = arrays[-1].shape
        self.block_tables[:seqs, :columns].copy_(received[places[-1]].view(torch.int32).view(seqs, columns))

    def sent(self, arrays: Sequence[Array]) -> SentStep:
        """Return where `send` puts a packed step: the same places for all of so many tokens, sequences and samples."""
        received = self._memory[self._start :]
        fields = [
            received[place].view(torch.from_numpy(array).dtype)
            for array, place in zip(arrays, _places(arrays), strict=True)
        ]
        _, sources, positions, slots, sampled_rows, query_start_loc, seq_lens, *draws, _ = fields
        return SentStep(sources, positions, slots, sampled_rows, query_start_loc, seq_lens, SamplingRows(*draws))

    def tokens_at(self, sources: torch.Tensor) -> torch.Tensor:
        """Return the token ids [tokens] behind `sources`; one that could not be chosen is 0, and of no use."""
        return self._token_ids.index_select(0, sources).clamp_(min=0)


def _places(arrays: Sequence[Array]) -> list[slice]:
    """Return the bytes where each array is sent."""
    starts = accumulate((_aligned(array.nbytes) for array in arrays), initial=0)
    return [slice(start, start + array.nbytes) for array, start in zip(arrays, starts, strict=False)]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
