"""What heads go through between their projection and attention, in one Triton kernel: norm, rotation and the cache."""

# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from multimodel_server.kernels.reference import HeadNorms
from multimodel_server.kernels.triton_norm import scaled
from multimodel_server.kernels.triton_overlap import overlap, take_turn

HEADS_AT_ONCE = 8
"""Heads that one program takes: some kilobytes, and still several programs for a single token."""
LARGEST_FP8 = tl.constexpr(448.0)
"""The largest finite number of `float8_e4m3fn`."""


def prepare_heads(
    packed: torch.Tensor,
    heads: int,
    norms: HeadNorms | None,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """Return the queries and store keys and values, as `reference.prepare_heads` does."""
    packed = packed.contiguous()
    tokens, every, head_dim = packed.shape
    query = packed.new_empty((tokens, heads, head_dim))
    query_weight, key_weight, eps, plus_one = norms or (packed, packed, 0.0, False)
    cos, sin = rotation or (packed, packed)
    _prepare_heads[(tokens, triton.cdiv(every, HEADS_AT_ONCE))](
        packed,
        query,
        key_cache,
        value_cache,
        slot_mapping,
        query_weight,
        key_weight,
        cos,
        sin,
        eps=eps,
        heads=heads,
        kv_heads=(every - heads) // 2,
        head_dim=head_dim,
        padded_dim=triton.next_power_of_2(head_dim),
        half=0 if rotation is None else cos.shape[-1],
        has_norms=norms is not None,
        plus_one=plus_one,
        at_once=HEADS_AT_ONCE,
        num_warps=4,
        **overlap(packed.device),
    )
    return query


@triton.jit(do_not_specialize_on_alignment=("slot_mapping",))
def _prepare_heads(
    packed: tl.tensor,  # [tokens, heads + 2 * kv_heads, head_dim]: queries, keys, values
    query: tl.tensor,  # [tokens, heads, head_dim]
    key_cache: tl.tensor,  # [blocks, block_size, kv_heads, head_dim]
    value_cache: tl.tensor,
    slot_mapping: tl.tensor,  # [tokens] int64
    query_weight: tl.tensor,  # [head_dim], where it `has_norms`
    key_weight: tl.tensor,
    cos: tl.tensor,  # [tokens, half] float32, where that is not 0
    sin: tl.tensor,
    eps: tl.constexpr,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    half: tl.constexpr,
    has_norms: tl.constexpr,
    plus_one: tl.constexpr,
    at_once: tl.constexpr,
    overlaps: tl.constexpr,
) -> None:
    take_turn(overlaps)
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * at_once + tl.arange(0, at_once))[:, None]
    dims = tl.arange(0, padded_dim)[None, :]
    used = (dims < head_dim) & (head < heads + 2 * kv_heads)
    line = packed + (token * (heads + 2 * kv_heads) + head) * head_dim
    is_query, is_value = head < heads, head >= heads + kv_heads
    dtype: tl.constexpr = packed.dtype.element_ty
    read = tl.load(line + dims, mask=used, other=0.0).to(tl.float32)
    content = read
    if has_norms:
        to_unit = tl.rsqrt(tl.sum(read * read, 1)[:, None] / head_dim + eps)
        weight = _weight(query_weight, key_weight, dims, is_query, dims < head_dim)
        content = scaled(read * to_unit, weight, plus_one, dtype).to(tl.float32)
    if half > 0:
        # Dimension i turns with its partner, i + half or i - half.
        turns = dims < 2 * half
        partner = tl.where(dims < half, dims + half, dims - half)
        other = tl.load(line + partner, mask=used & turns, other=0.0).to(tl.float32)
        if has_norms:
            weight = _weight(query_weight, key_weight, partner, is_query, turns)
            other = scaled(other * to_unit, weight, plus_one, dtype).to(tl.float32)
        angle = token * half + dims % half
        sine = tl.load(sin + angle, mask=turns, other=0.0)
        content = content * tl.load(cos + angle, mask=turns, other=1.0) + other * tl.where(dims < half, -sine, sine)
    content = tl.where(is_value, read, content)

    tl.store(query + (token * heads + head) * head_dim + dims, content.to(dtype), mask=used & is_query)
    slot = tl.load(slot_mapping + token) * kv_heads - heads
    stored = _stored(content, dtype, key_cache.dtype.element_ty)
    is_key = (head >= heads) & (head < heads + kv_heads)
    tl.store(key_cache + (slot + head) * head_dim + dims, stored, mask=used & is_key)
    tl.store(value_cache + (slot - kv_heads + head) * head_dim + dims, stored, mask=used & is_value)


@triton.jit
def _weight(
    query_weight: tl.tensor, key_weight: tl.tensor, dims: tl.tensor, is_query: tl.tensor, used: tl.tensor
) -> tl.tensor:
    """Return each head's norm weights at some dimensions."""
    of_queries = tl.load(query_weight + dims, mask=used, other=0.0).to(tl.float32)
    return tl.where(is_query, of_queries, tl.load(key_weight + dims, mask=used, other=0.0).to(tl.float32))


@triton.jit
def _stored(content: tl.tensor, dtype: tl.constexpr, cache_dtype: tl.constexpr) -> tl.tensor:
    """Return what the cache holds of keys or values: rounded as they would be without a cache, and within its range."""
    rounded = content.to(dtype)
    if cache_dtype == tl.float8e4nv:
        rounded = tl.minimum(tl.maximum(rounded.to(tl.float32), -LARGEST_FP8), LARGEST_FP8)
    return rounded.to(cache_dtype)
