"""Paged attention in plain torch: the meaning of the fast one, and what attends where there is none."""

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (the name every torch reader knows)

from multimodel_server.kernels.layout import PagedLayout
from multimodel_server.kernels.reference import soft_capped

QUERY_TILE = 512
"""New tokens of one sequence that attend at once; bounds the mask to `QUERY_TILE` x sequence length."""


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    layout: PagedLayout,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """Return causal attention of the new tokens over their own sequences, [tokens, heads, head_dim] as `query`.

    Caches are [blocks, block_size, kv_heads, head_dim] and already hold the new tokens; `heads` is a multiple of
    `kv_heads`. Decoding sequences and prompt chunks may be mixed in one call. A token sees the last `window`
    positions, its own included, or all; scaled products are bent into (-soft_cap, soft_cap) before the softmax. Caches
    of a narrower type are widened to the query's. A sequence of no length, which pads a batch, gets zeros.
    """
    attend = partial(_attend, scale=scale, soft_cap=soft_cap)
    plan = _plan(layout, key_cache.shape[1], window)
    if len(plan) == 1 and plan[0].everything:
        return _answer(plan[0], query, key_cache, value_cache, window, attend)
    output = torch.zeros_like(query)
    for part in plan:
        output[part.tokens] = _answer(part, query[part.tokens], key_cache, value_cache, window, attend)
    return output


class Part(NamedTuple):
    """Sequences that are computed together: several that decode, or one with a chunk of its prompt."""

    tokens: slice | torch.Tensor
    """Where their new tokens stand among those of the step."""
    everything: bool
    """Whether those are all tokens of the step, in their order."""
    decodes: bool
    tables: torch.Tensor  # [seqs, blocks]: the blocks that new tokens see
    ends: list[int]
    """Where each text ends, counted from the first block that is seen."""
    tails: torch.Tensor  # [2, slots]: the rows and positions that end each text's last block


@lru_cache(maxsize=4)
def _plan(layout: PagedLayout, block_size: int, window: int | None) -> list[Part]:
    """Return the parts of a step, which all layers with the same window share."""
    groups = _decode_groups(layout, block_size, window)
    starts = list(accumulate(layout.host_query_lens, initial=0))
    plan = []
    for group in groups:
        everything = len(group) == starts[-1]
        tokens = torch.tensor([starts[sequence] for sequence in group], device=layout.slot_mapping.device)
        tables, ends = _seen_blocks(layout, group, block_size, window)
        plan.append(Part(tokens, everything, True, tables, ends, _tails(ends, block_size, tables.device)))
    for sequence, length in enumerate(layout.host_query_lens):
        if length > 1:
            chunk = slice(starts[sequence], starts[sequence] + length)
            everything = length == starts[-1]
            tables, ends = _seen_blocks(layout, [sequence], block_size, window)
            plan.append(Part(chunk, everything, False, tables, ends, _tails(ends, block_size, tables.device)))
    return plan


def _answer(
    part: Part,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    window: int | None,
    attend: "Attend",
) -> torch.Tensor:
    """Attend with a part's new tokens."""
    longest = max(part.ends)
    keys, values = (_texts(cache, part.tables, longest).to(query.dtype) for cache in (key_cache, value_cache))
    rows, positions = part.tails
    for text in (keys, values):  # Who had the block before may have left what is no number: weights of 0 would keep it.
        text[rows, :, positions] = 0
    if part.decodes:
        return _decode(query, keys, values, part.ends, window, attend)
    return _prefill(query, keys, values, longest, window, attend)


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""`_attend` with its scale and soft cap given."""


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scale: float,
    soft_cap: float | None,
) -> torch.Tensor:
    """Attend with queries [..., rows, head_dim] to texts [..., positions, head_dim] where the mask is true."""
    if soft_cap is None:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    scores = soft_capped(query @ keys.transpose(-1, -2) * scale, soft_cap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=wide).to(query.dtype) @ values


def _first_block(layout: PagedLayout, sequence: int, block_size: int, window: int | None) -> int:
    """Return the first block of a sequence that its new tokens see."""
    context = layout.host_seq_lens[sequence] - layout.host_query_lens[sequence]
    return 0 if window is None else max(0, context + 1 - window) // block_size


def _decode_groups(layout: PagedLayout, block_size: int, window: int | None) -> list[list[int]]:
    """Return the sequences with one new token, grouped so that padding at most doubles the blocks read."""
    groups: dict[int, list[int]] = {}
    for sequence, (new, total) in enumerate(zip(layout.host_query_lens, layout.host_seq_lens, strict=True)):
        if new == 1 and total:
            seen = _blocks(total, block_size) - _first_block(layout, sequence, block_size, window)
            groups.setdefault(seen.bit_length(), []).append(sequence)
    return list(groups.values())


def _seen_blocks(
    layout: PagedLayout, group: list[int], block_size: int, window: int | None
) -> tuple[torch.Tensor, list[int]]:
    """Return the blocks that a group's new tokens see, [seqs, blocks], and where each text ends.

    A text begins with the first block that is seen; its end is counted from there.
    """
    device = layout.block_tables.device
    firsts = [_first_block(layout, sequence, block_size, window) for sequence in group]
    ends = [layout.host_seq_lens[sequence] - first * block_size for sequence, first in zip(group, firsts, strict=True)]
    columns = torch.arange(_blocks(max(ends), block_size), device=device)
    columns = columns + torch.tensor(firsts, device=device).unsqueeze(1)
    rows = layout.block_tables[torch.tensor(group, device=device)]
    return rows.gather(1, columns.clamp(max=rows.shape[1] - 1)), ends


def _tails(ends: list[int], block_size: int, device: torch.device) -> torch.Tensor:
    """Return the rows and positions, [2, slots], of the slots that follow texts in their last blocks."""
    longest = max(ends)
    lasts = [min(longest, _blocks(end, block_size) * block_size) for end in ends]
    slots = [(row, slot) for row, (end, last) in enumerate(zip(ends, lasts, strict=True)) for slot in range(end, last)]
    return torch.tensor(slots, dtype=torch.int64, device=device).view(-1, 2).T


def _texts(cache: torch.Tensor, tables: torch.Tensor, length: int) -> torch.Tensor:
    """Return a copy of the first `length` positions of each row's blocks, [rows, kv_heads, length, head_dim]."""
    blocks = cache.index_select(0, tables.flatten())
    return blocks.view(len(tables), -1, *cache.shape[2:])[:, :length].transpose(1, 2)


def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    ends: list[int],
    window: int | None,
    attend: Attend,
) -> torch.Tensor:
    """Attend with one token a sequence, the last of its text; heads that share keys are its rows."""
    longest, mask = keys.shape[2], None
    if min(ends) < longest:
        own = torch.tensor(ends, device=query.device).unsqueeze(1) - 1
        mask = _seen(torch.arange(longest, device=query.device), own, window)[:, None, None, :]
    elif window is not None:  # Without a mask, which equal lengths need not have, attention is much quicker.
        keys, values = keys[:, :, -window:], values[:, :, -window:]
    rows = query.view(len(query), keys.shape[1], -1, query.shape[-1])
    return attend(rows, keys, values, mask).reshape(query.shape)


def _prefill(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, end: int, window: int | None, attend: Attend
) -> torch.Tensor:
    """Attend with the last tokens of one text, a tile of them at a time and only over what the tile can see."""
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    group = query.shape[1] // kv_heads
    rows = query.view(-1, kv_heads, group, head_dim).permute(1, 2, 0, 3)  # [kv_heads, group, tokens, head_dim]
    keys, values = (text[0].unsqueeze(1).expand(-1, group, -1, -1) for text in (keys, values))
    tiles, first = [], end - len(query)
    for tile in torch.split(rows, QUERY_TILE, dim=2):
        last = first + tile.shape[2]
        seen = slice(0 if window is None else max(0, first + 1 - window), last)
        own = torch.arange(first, last, device=query.device).unsqueeze(1)
        mask = _seen(torch.arange(seen.start, last, device=query.device), own, window)
        tiles.append(attend(tile, keys[:, :, seen], values[:, :, seen], mask))
        first = last
    return torch.cat(tiles, dim=2).permute(2, 0, 1, 3).reshape(query.shape)


def _seen(positions: torch.Tensor, own: torch.Tensor, window: int | None) -> torch.Tensor:
    """Tell which positions the tokens at the positions `own` see."""
    causal = positions <= own
    return causal if window is None else causal & (positions > own - window)


def _blocks(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)
