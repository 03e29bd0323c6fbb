"""Self-attention over the paged cache."""

from typing import NamedTuple

import torch
from torch import nn

from multimodel_server import kernels
from multimodel_server.kernels import PagedLayout
from multimodel_server.layers.linear import FusedLinear, Linear
from multimodel_server.layers.norm import RmsNorm
from multimodel_server.layers.rotary import Rotation


class LayerCache(NamedTuple):
    """One layer's part of the paged cache."""

    keys: torch.Tensor  # [blocks, block_size, kv_heads, head_dim]
    values: torch.Tensor


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; with `qk_norm_eps`, heads are normalised before turning."""

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, *, bias: bool, qk_norm_eps: float | None = None
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        parts = {"q_proj": heads * head_dim, "k_proj": kv_heads * head_dim, "v_proj": kv_heads * head_dim}
        self.qkv_proj = FusedLinear(width, parts, bias=bias)
        self.o_proj = Linear(heads * head_dim, width, bias=bias)
        self.q_norm = None if qk_norm_eps is None else RmsNorm(head_dim, qk_norm_eps)
        self.k_norm = None if qk_norm_eps is None else RmsNorm(head_dim, qk_norm_eps)

    def forward(self, hidden: torch.Tensor, rotation: Rotation, cache: LayerCache, layout: PagedLayout) -> torch.Tensor:
        """Return [tokens, width] for [tokens, width]; stores the tokens' keys and values in `cache`."""
        packed = self.qkv_proj(hidden).unflatten(-1, (-1, self.head_dim))
        query, keys, values = packed.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            query, keys = self.q_norm(query), self.k_norm(keys)
        query, keys = kernels.rotate(query, *rotation), kernels.rotate(keys, *rotation)
        kernels.write_kv(keys, values, *cache, layout.slot_mapping)
        mixed = kernels.paged_attention(query, *cache, layout, self.head_dim**-0.5)
        output: torch.Tensor = self.o_proj(mixed.flatten(1))
        return output
