"""A schedule as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from multimodel_server.engine.blocks import SINK
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk
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
    """Return the tensors of a step on `device`."""
    token_ids = [token for chunk in chunks for token in chunk.request.token_ids[chunk.start : chunk.end]]
    positions = [position for chunk in chunks for position in range(chunk.start, chunk.end)]
    ends = list(accumulate((chunk.end - chunk.start for chunk in chunks), initial=0))
    rows = [end - 1 for chunk, end in zip(chunks, ends[1:], strict=True) if chunk.samples]
    return Batch(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.tensor(positions, device=device),
        layout=_layout(chunks, ends, block_size, device),
        sampled_rows=torch.tensor(rows, dtype=torch.int64, device=device),
        sampled=tuple(chunk.request for chunk in chunks if chunk.samples),
        chunks=tuple(chunks),
    )


def _layout(chunks: Sequence[Chunk], ends: list[int], block_size: int, device: torch.device) -> PagedLayout:
    tables = [chunk.request.block_table for chunk in chunks]
    width = max(len(table) for table in tables)
    slots = [
        table[position // block_size] * block_size + position % block_size
        for chunk, table in zip(chunks, tables, strict=True)
        for position in range(chunk.start, chunk.end)
    ]
    seq_lens = [chunk.end for chunk in chunks]
    padded = [table + [SINK] * (width - len(table)) for table in tables]
    return PagedLayout(
        block_tables=torch.tensor(padded, dtype=torch.int32, device=device),
        query_start_loc=torch.tensor(ends, dtype=torch.int32, device=device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        slot_mapping=torch.tensor(slots, device=device),
        host_query_lens=tuple(chunk.end - chunk.start for chunk in chunks),
        host_seq_lens=tuple(seq_lens),
    )
