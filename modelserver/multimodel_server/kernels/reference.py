"""Every kernel in plain torch: the meaning of the fast ones, and what runs where there is none."""

import torch
import torch.nn.functional as F  # noqa: N812  (the name every torch reader knows)

from multimodel_server.kernels.layout import PagedLayout

QUERY_TILE = 512
"""New tokens of one sequence that attend at once; bounds the mask to `QUERY_TILE` x sequence length."""


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return `weight * hidden / rms(hidden)` over the last dimension, computed in float32 (arXiv 1910.07467)."""
    wide = hidden.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale).to(hidden.dtype) * weight


def add_rms_norm(
    hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the norm of `hidden + residual`, and that sum: the next residual."""
    total = hidden + residual
    return rms_norm(total, weight, eps), total


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return [tokens, heads, head_dim] turned by its positions' angles, `cos` and `sin` [tokens, head_dim / 2] float32.

    Pairs are (i, i + head_dim / 2), as in the Hugging Face layout of RoPE (arXiv 2104.09864).
    """
    first, second = heads.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up` of [tokens, 2 * width], whose halves are gate and up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def write_kv(
    keys: torch.Tensor,
    values: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Store [tokens, kv_heads, head_dim] in caches [blocks, block_size, kv_heads, head_dim] at their slots."""
    key_cache.view(-1, *key_cache.shape[2:]).index_copy_(0, slot_mapping, keys)
    value_cache.view(-1, *value_cache.shape[2:]).index_copy_(0, slot_mapping, values)


def paged_attention(
    query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, layout: PagedLayout, scale: float
) -> torch.Tensor:
    """Return causal attention of the new tokens over their own sequences, [tokens, heads, head_dim] as `query`.

    Caches are [blocks, block_size, kv_heads, head_dim] and already hold the new tokens; `heads` is a multiple of
    `kv_heads`. Decoding sequences and prompt chunks may be mixed in one call.
    """
    output = torch.empty_like(query)
    for group in _decode_groups(layout, key_cache.shape[1]):
        sequences = torch.tensor(group, device=query.device)
        tokens = layout.query_start_loc[sequences]
        lengths = [layout.host_seq_lens[sequence] for sequence in group]
        keys = _texts(key_cache, layout.block_tables[sequences], max(lengths))
        values = _texts(value_cache, layout.block_tables[sequences], max(lengths))
        # Without a mask, which equal lengths need not have, attention is much quicker.
        padded = layout.seq_lens[sequences] if min(lengths) < max(lengths) else None
        output[tokens] = _decode(query[tokens], keys, values, padded, scale)
    start = 0
    for sequence, (length, total) in enumerate(zip(layout.host_query_lens, layout.host_seq_lens, strict=True)):
        if length > 1:
            chunk = slice(start, start + length)
            table = layout.block_tables[sequence : sequence + 1]
            keys, values = _texts(key_cache, table, total), _texts(value_cache, table, total)
            output[chunk] = _prefill(query[chunk], keys, values, scale)
        start += length
    return output


def _decode_groups(layout: PagedLayout, block_size: int) -> list[list[int]]:
    """Return the sequences with one new token, grouped so that padding at most doubles the blocks read."""
    groups: dict[int, list[int]] = {}
    for sequence, (new, total) in enumerate(zip(layout.host_query_lens, layout.host_seq_lens, strict=True)):
        if new == 1:
            groups.setdefault(_blocks(total, block_size).bit_length(), []).append(sequence)
    return list(groups.values())


def _texts(cache: torch.Tensor, block_tables: torch.Tensor, length: int) -> torch.Tensor:
    """Return what the first `length` positions of sequences hold, [seqs, kv_heads, length, head_dim]."""
    tables = block_tables[:, : _blocks(length, cache.shape[1])]
    blocks = cache.index_select(0, tables.flatten())
    return blocks.view(len(tables), -1, *cache.shape[2:])[:, :length].transpose(1, 2)


def _decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attend with one token a sequence, over `lengths` of the positions, or all; heads that share keys are its rows."""
    known = None
    if lengths is not None:
        known = (torch.arange(keys.shape[2], device=query.device) < lengths.unsqueeze(1))[:, None, None, :]
    rows = query.view(len(query), keys.shape[1], -1, query.shape[-1])
    return F.scaled_dot_product_attention(rows, keys, values, attn_mask=known, scale=scale).reshape(query.shape)


def _prefill(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """Attend with the last tokens of one sequence, a tile of them at a time and only over what the tile can see."""
    kv_heads, total, head_dim = keys.shape[1:]
    group = query.shape[1] // kv_heads
    rows = query.view(-1, kv_heads, group, head_dim).permute(1, 2, 0, 3)  # [kv_heads, group, tokens, head_dim]
    keys, values = (text[0].unsqueeze(1).expand(-1, group, -1, -1) for text in (keys, values))
    tiles = []
    for start in range(0, query.shape[0], QUERY_TILE):
        tile = rows[:, :, start : start + QUERY_TILE]
        first = total - query.shape[0] + start
        seen = first + tile.shape[2]
        positions = torch.arange(seen, device=query.device)
        causal = positions <= positions[first:].unsqueeze(1)
        attend = F.scaled_dot_product_attention
        tiles.append(attend(tile, keys[:, :, :seen], values[:, :, :seen], attn_mask=causal, scale=scale))
    return torch.cat(tiles, dim=2).permute(2, 0, 1, 3).reshape(query.shape)


def _blocks(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)
