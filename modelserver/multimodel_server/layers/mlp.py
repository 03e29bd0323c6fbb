"""The feed-forward half of a decoder layer."""

import torch
from torch import nn

from multimodel_server import kernels
from multimodel_server.layers.linear import FusedLinear, Linear


class GatedMlp(nn.Module):
    """`down(silu(gate(x)) * up(x))`, gate and up in one product (arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_up_proj = FusedLinear(width, {"gate_proj": inner, "up_proj": inner}, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [tokens, width] for [tokens, width]."""
        output: torch.Tensor = self.down_proj(kernels.silu_mul(self.gate_up_proj(hidden)))
        return output
