"""A schedule as plain arrays: what a step computes, and where its tokens stand in the cache.

Made anew for every step while a device waits for it, so nothing here costs more than a few operations a sequence.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multimodel_server.engine.blocks import SINK
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]

LARGEST_TOP_K = 2**31 - 1
"""More than there are tokens: all of them are kept."""


class StepArrays(NamedTuple):
    """The packed tokens of one step; the fields of a `PagedLayout`, and which tokens are followed by a new one."""

    token_ids: Int64s
    """Of a token that is not known yet, `~row`: it is what the step before chooses in its row of that number."""
    positions: Int64s
    slots: Int64s
    sampled_rows: Int64s
    """[samples]: each one's row among the tokens."""
    query_start_loc: Int32s
    seq_lens: Int32s
    block_tables: Int32s


class Draws(NamedTuple):
    """How the next tokens of requests are chosen: the fields of `SamplingRows`."""

    temperature: Float32s
    top_k: Int32s
    top_p: Float32s
    min_p: Float32s
    seed: Int64s
    position: Int64s


class BlockTables:
    """Block tables as the rows of one array, of which a step writes only what is new since the last one."""

    def __init__(self, seqs: int, columns: int) -> None:
        self._array: Int32s = np.full((seqs, columns), SINK, dtype=np.int32)
        self._shown: list[list[int]] = [[] for _ in range(seqs)]
        self._lengths = [0] * seqs

    def of(self, chunks: Sequence[Chunk]) -> Int32s:
        """Return [chunks, widest] with a row for each chunk, as long as this is not called again."""
        for row, chunk in enumerate(chunks):
            table = chunk.request.block_table
            if self._shown[row] is not table:  # a table grows in place; whoever starts again has a new one
                self._array[row, : self._lengths[row]] = SINK
                self._shown[row], self._lengths[row] = table, 0
            known = self._lengths[row]
            if known < len(table):
                self._array[row, known : len(table)] = table[known:]
                self._lengths[row] = len(table)
        return self._array[: len(chunks), : max(self._lengths[: len(chunks)])]


def step_arrays(
    chunks: Sequence[Chunk], block_size: int, tables: BlockTables, rows_before: Mapping[Request, int]
) -> StepArrays:
    """Return the arrays of a step; `rows_before` tells where the step before it chooses the tokens that are unknown."""
    seqs = len(chunks)
    starts = np.fromiter((chunk.start for chunk in chunks), np.int64, seqs)
    ends = np.fromiter((chunk.end for chunk in chunks), np.int64, seqs)
    lengths = ends - starts
    query_start_loc = np.zeros(seqs + 1, dtype=np.int32)
    np.cumsum(lengths, out=query_start_loc[1:])
    sequences = np.repeat(np.arange(seqs), lengths)
    positions = np.arange(len(sequences)) + (starts - query_start_loc[:-1])[sequences]
    block_tables = tables.of(chunks)
    blocks = block_tables[sequences, positions // block_size]
    samples = np.fromiter((chunk.samples for chunk in chunks), np.bool_, seqs)
    return StepArrays(
        token_ids=np.fromiter(chain.from_iterable(_token_ids(chunk, rows_before) for chunk in chunks), np.int64),
        positions=positions,
        slots=blocks * np.int64(block_size) + positions % block_size,
        sampled_rows=query_start_loc[1:][samples] - np.int64(1),
        query_start_loc=query_start_loc,
        seq_lens=ends.astype(np.int32),
        block_tables=block_tables,
    )


def _token_ids(chunk: Chunk, rows_before: Mapping[Request, int]) -> list[int]:
    known = chunk.request.token_ids[chunk.start : chunk.end]
    return known if len(known) == chunk.end - chunk.start else [*known, ~rows_before[chunk.request]]


def draws(chunks: Sequence[Chunk]) -> Draws:
    """Return how the tokens after chunks are chosen; the position of one counts the tokens generated before it."""
    settings = [chunk.request.sampling for chunk in chunks]
    generated = [chunk.end - chunk.request.prompt_length for chunk in chunks]
    return Draws(
        temperature=np.array([sampling.temperature for sampling in settings], np.float32),
        top_k=np.array([min(sampling.top_k, LARGEST_TOP_K) for sampling in settings], np.int32),
        top_p=np.array([sampling.top_p for sampling in settings], np.float32),
        min_p=np.array([sampling.min_p for sampling in settings], np.float32),
        seed=np.array([sampling.seed % 2**64 for sampling in settings], np.uint64).view(np.int64),
        position=np.array(generated, np.int64),
    )
