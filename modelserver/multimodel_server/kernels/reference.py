"""Every kernel in plain torch: the meaning of the fast ones, and what runs where there is none."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (the name every torch reader knows)

WEIGHTS_ON_THE_LEFT = range(8, 64)
"""Numbers of rows for which the CPU is quicker so."""


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float, *, plus_one: bool = False) -> torch.Tensor:
    """Return `weight * hidden / rms(hidden)` over the last dimension, computed in float32 (arXiv 1910.07467).

    With `plus_one` it is `1 + weight`, multiplied before the result is rounded to the element type of `hidden`.
    """
    if hidden.dtype == torch.float32 and not plus_one:
        return F.rms_norm(hidden, weight.shape, weight, eps)
    wide = hidden.float()
    unit = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    if plus_one:
        return (unit * (1.0 + weight.float())).to(hidden.dtype)
    return unit.to(hidden.dtype) * weight


def add_rms_norm(
    hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, plus_one: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the norm of `hidden + residual`, and that sum: the next residual."""
    total = hidden + residual
    return rms_norm(total, weight, eps, plus_one=plus_one), total


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return [tokens, heads, head_dim] turned by its positions' angles, `cos` and `sin` [tokens, dims / 2] float32.

    The first `dims` dimensions are turned, in pairs (i, i + dims / 2), as in the Hugging Face layout of RoPE
    (arXiv 2104.09864).
    """
    half = cos.shape[-1]
    first, second = heads[..., :half].float(), heads[..., half : 2 * half].float()
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = torch.empty_like(heads)
    torch.addcmul(first * cos, second, sin, value=-1, out=turned[..., :half])
    torch.addcmul(second * cos, first, sin, out=turned[..., half : 2 * half])
    if 2 * half < heads.shape[-1]:
        turned[..., 2 * half :] = heads[..., 2 * half :]
    return turned


class HeadNorms(NamedTuple):
    """The norms that heads have of their own: weights [head_dim], and the settings of `rms_norm`."""

    query_weight: torch.Tensor
    key_weight: torch.Tensor
    eps: float
    plus_one: bool


def prepare_heads(
    packed: torch.Tensor,
    heads: int,
    norms: HeadNorms | None,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """Return the queries [tokens, heads, head_dim] that attention asks with; store keys and values at their slots.

    `packed` [tokens, heads + 2 * kv_heads, head_dim] holds queries, keys and values. Queries and keys are normed, then
    turned by `rotation`, the cosines and sines that `rotate` takes; each of the two may be None.
    """
    kv_heads = (packed.shape[1] - heads) // 2
    query, keys, values = torch.split(packed, [heads, kv_heads, kv_heads], dim=1)
    if norms is not None:
        query = rms_norm(query, norms.query_weight, norms.eps, plus_one=norms.plus_one)
        keys = rms_norm(keys, norms.key_weight, norms.eps, plus_one=norms.plus_one)
    if rotation is not None:
        query, keys = rotate(query, *rotation), rotate(keys, *rotation)
    write_kv(keys, values, key_cache, value_cache, slot_mapping)
    return query.contiguous()


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `rows W^T (+ bias)`, [tokens, out], for [tokens, in] and [out, in].

    The CPU multiplies some rows up to half as quickly again with the weights on the left (`benches/LOG.md`).
    """
    if rows.device.type != "cpu" or rows.dtype != torch.float32 or len(rows) not in WEIGHTS_ON_THE_LEFT:
        return F.linear(rows, weight, bias)
    product = (weight @ rows.T).T
    return product.contiguous() if bias is None else product + bias


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up` of [tokens, 2 * width], whose halves are gate and up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return `gelu(gate) * up` of [tokens, 2 * width], whose halves are gate and up; gelu in its tanh form."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def soft_capped(scores: torch.Tensor, cap: float) -> torch.Tensor:
    """Return the scores bent smoothly into (-cap, cap)."""
    return torch.tanh(scores / cap) * cap


def mix_experts(
    hidden: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    activation: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return [tokens, width]: for each token, the weighted sum of what its chosen experts return for `hidden`.

    Stacked weights are `gate_up` [experts, 2 * inner, width] and `down` [experts, width, inner]; `chosen` [tokens,
    per_token] int64 names each token's experts, `weights` [tokens, per_token] float32 goes with it. Tokens are sorted
    by expert, so that each expert that is hit computes one product.
    """
    output = torch.zeros_like(hidden)
    choices = chosen.flatten()
    by_expert = choices.argsort(stable=True)
    counts = torch.bincount(choices, minlength=len(gate_up)).tolist()
    for expert, mine in enumerate(torch.split(by_expert, counts)):
        if len(mine):
            tokens = mine // chosen.shape[1]
            inner = activation(linear(hidden[tokens], gate_up[expert]))
            weighted = linear(inner, down[expert]) * weights.flatten()[mine].unsqueeze(1)
            output.index_add_(0, tokens, weighted.to(output.dtype))
    return output


def write_kv(
    keys: torch.Tensor,
    values: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Store [tokens, kv_heads, head_dim] in caches [blocks, block_size, kv_heads, head_dim] at their slots.

    A cache of `float8_e4m3fn` takes the nearest of its finite values.
    """
    for cache, new in ((key_cache, keys), (value_cache, values)):
        slots = cache.view(-1, *cache.shape[2:])
        if cache.dtype == torch.float8_e4m3fn:  # It has no infinity: what overflows would be no number.
            most = torch.finfo(cache.dtype).max
            slots.view(torch.uint8).index_copy_(
                0, slot_mapping, new.clamp(-most, most).to(cache.dtype).view(torch.uint8)
            )
        else:
            slots.index_copy_(0, slot_mapping, new.to(cache.dtype))
