"""Self-attention over the paged cache."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from multimodel_server import kernels
from multimodel_server.kernels import HeadNorms, PagedLayout
from multimodel_server.layers.linear import FusedLinear, Linear
from multimodel_server.layers.norm import Norm
from multimodel_server.layers.rotary import Rope, Rotation


class LayerCache(NamedTuple):
    """One layer's part of the paged cache."""

    keys: torch.Tensor  # [blocks, block_size, kv_heads, head_dim]
    values: torch.Tensor


class Heads(NamedTuple):
    """How many heads ask and how many answer; each answering one is shared by equally many asking ones."""

    query: int
    kv: int
    dim: int


class Scores(NamedTuple):
    """What becomes of the products of queries and keys before the softmax."""

    scale: float
    window: int | None = None
    """How many positions a token sees, its own included; all that there are if None."""
    soft_cap: float | None = None
    """Bound that scores approach smoothly; `cap * tanh(score / cap)`."""


class Attention(nn.Module):
    """Grouped-query attention; with `rope` heads are turned by their positions, after `head_norm` if there is one."""

    def __init__(
        self,
        width: int,
        heads: Heads,
        rope: Rope | None,
        scores: Scores,
        *,
        qkv_bias: bool = False,
        output_bias: bool = False,
        head_norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.rope, self.scores = heads, rope, scores
        sizes = {"q_proj": heads.query * heads.dim, "k_proj": heads.kv * heads.dim, "v_proj": heads.kv * heads.dim}
        self.qkv_proj = FusedLinear(width, sizes, bias=qkv_bias)
        self.o_proj = Linear(heads.query * heads.dim, width, bias=output_bias)
        self.q_norm = None if head_norm is None else head_norm(heads.dim)
        self.k_norm = None if head_norm is None else head_norm(heads.dim)

    def forward(
        self, hidden: torch.Tensor, rotations: Mapping[Rope, Rotation], cache: LayerCache, layout: PagedLayout
    ) -> torch.Tensor:
        """Return [tokens, width] for [tokens, width]; stores the tokens' keys and values in `cache`."""
        packed = self.qkv_proj(hidden).unflatten(-1, (-1, self.heads.dim))
        rotation = None if self.rope is None else rotations[self.rope]
        slots = layout.slot_mapping
        query = kernels.prepare_heads(packed, self.heads.query, self._head_norms(), rotation, *cache, slots)
        scale, window, soft_cap = self.scores
        mixed = kernels.paged_attention(query, *cache, layout, scale, window, soft_cap)
        output: torch.Tensor = self.o_proj(mixed.flatten(1))
        return output

    def _head_norms(self) -> HeadNorms | None:
        if self.q_norm is None or self.k_norm is None:
            return None
        return HeadNorms(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps, self.q_norm.plus_one)
