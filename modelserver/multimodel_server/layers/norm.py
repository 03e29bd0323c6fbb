"""Root-mean-square normalisation, alone or fused with the residual sum before it."""

from collections.abc import Callable

import torch
from torch import nn

from multimodel_server import kernels


class RmsNorm(nn.Module):
    """Scales each vector of `width` to unit root mean square, then by learnt weights, or by one plus them."""

    def __init__(self, width: int, eps: float, *, plus_one: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.eps = eps
        self.plus_one = plus_one

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the norm of [..., width]."""
        return kernels.rms_norm(hidden, self.weight, self.eps, plus_one=self.plus_one)

    def add(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norm of `hidden + residual`, and that sum."""
        return kernels.add_rms_norm(hidden, residual, self.weight, self.eps, plus_one=self.plus_one)


Norm = Callable[[int], RmsNorm]
"""Makes a model's kind of norm, of a width."""
