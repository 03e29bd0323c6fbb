"""A schedule as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk
from multimodel_server.engine.step_arrays import BlockTables, step_arrays
from multimodel_server.kernels import PagedLayout


@dataclass(frozen=True, slots=True)
class Batch:
    """The packed tokens of one step, where they stand in the cache, and which of them are followed by a new one."""

    token_ids: torch.Tensor  # [tokens] int64
    positions: torch.Tensor  # [tokens] int64
    layout: PagedLayout
    sampled_rows: torch.Tensor  # [samples] int64: each one's row among the tokens
    sampled: tuple[Request, ...]
    chunks: tuple[Chunk, ...]


def build_batch(chunks: Sequence[Chunk], block_size: int, device: torch.device) -> Batch:
    """Return the tensors of a step on `device`, all of whose tokens are known."""
    tables = BlockTables(len(chunks), max(len(chunk.request.block_table) for chunk in chunks))
    arrays = step_arrays(chunks, block_size, tables, {})
    placed = [torch.from_numpy(array).to(device) for array in arrays]
    token_ids, positions, slots, sampled_rows, query_start_loc, seq_lens, block_tables = placed
    return Batch(
        token_ids=token_ids,
        positions=positions,
        layout=PagedLayout(
            block_tables=block_tables,
            query_start_loc=query_start_loc,
            seq_lens=seq_lens,
            slot_mapping=slots,
            host_query_lens=tuple(chunk.end - chunk.start for chunk in chunks),
            host_seq_lens=tuple(chunk.end for chunk in chunks),
        ),
        sampled_rows=sampled_rows,
        sampled=tuple(chunk.request for chunk in chunks if chunk.samples),
        chunks=tuple(chunks),
    )
