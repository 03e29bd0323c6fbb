"""How attention and MLP hang on the residual stream."""

from collections.abc import Mapping

import torch
from torch import nn

from multimodel_server.kernels import PagedLayout
from multimodel_server.layers.attention import Attention, LayerCache
from multimodel_server.layers.norm import Norm
from multimodel_server.layers.rotary import Rope, Rotation


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, width: int, norm: Norm, self_attn: Attention, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = norm(width)
        self.self_attn = self_attn
        self.post_attention_layernorm = norm(width)
        self.mlp = mlp

    def forward(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor,
        rotations: Mapping[Rope, Rotation],
        cache: LayerCache,
        layout: PagedLayout,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this layer's output, not yet added, and the residual it is to be added to."""
        hidden, residual = self.input_layernorm.add(hidden, residual)
        hidden = self.self_attn(hidden, rotations, cache, layout)
        hidden, residual = self.post_attention_layernorm.add(hidden, residual)
        return self.mlp(hidden), residual


class SandwichLayer(DecoderLayer):
    """Attention and MLP, each between two norms: what they return is normalised too before it is added."""

    def __init__(self, width: int, norm: Norm, self_attn: Attention, mlp: nn.Module) -> None:
        super().__init__(width, norm, self_attn, mlp)
        self.pre_feedforward_layernorm = norm(width)
        self.post_feedforward_layernorm = norm(width)

    def forward(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor,
        rotations: Mapping[Rope, Rotation],
        cache: LayerCache,
        layout: PagedLayout,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this layer's output, not yet added, and the residual it is to be added to."""
        hidden, residual = self.input_layernorm.add(hidden, residual)
        hidden = self.post_attention_layernorm(self.self_attn(hidden, rotations, cache, layout))
        hidden, residual = self.pre_feedforward_layernorm.add(hidden, residual)
        return self.post_feedforward_layernorm(self.mlp(hidden)), residual
