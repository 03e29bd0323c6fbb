"""Matrix products: plain ones, and several projections of one input fused into a single product."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class Linear(nn.Module):
    """`y = x W^T (+ b)` with uninitialised weights, to be filled by the loader."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., out_features] for [..., in_features]."""
        return F.linear(x, self.weight, self.bias)


class FusedLinear(Linear):
    """Projections of the same input, stacked in the order of `parts` (checkpoint name -> output features)."""

    def __init__(self, in_features: int, parts: dict[str, int], *, bias: bool = False) -> None:
        super().__init__(in_features, sum(parts.values()), bias=bias)
        self.parts = parts
