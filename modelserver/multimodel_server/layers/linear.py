"""Matrix products: plain ones, and several projections of one input fused into a single product."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from multimodel_server import kernels


class PartialWeights(nn.Module, ABC):
    """Parameters that a checkpoint may hold as a whole or in parts."""

    @abstractmethod
    def parts(self, name: str, kind: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the views of a parameter that tensors of their own may fill, by the names of those.

        `name` is this module's own, `kind` the parameter's within it.
        """


class Linear(nn.Module):
    """`y = x W^T (+ b)` with uninitialised weights, to be filled by the loader."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [tokens, out_features] for [tokens, in_features]."""
        return kernels.linear(x, self.weight, self.bias)


class FusedLinear(Linear, PartialWeights):
    """Projections of the same input, stacked in the order of `projections` (checkpoint name -> output features)."""

    def __init__(self, in_features: int, projections: dict[str, int], *, bias: bool = False) -> None:
        super().__init__(in_features, sum(projections.values()), bias=bias)
        self.projections = projections

    def parts(self, name: str, kind: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each projection's rows; in a checkpoint they stand beside where this module does."""
        parent = name.rpartition(".")[0]
        rows = torch.split(parameter, list(self.projections.values()))
        return {f"{parent}.{part}.{kind}": view for part, view in zip(self.projections, rows, strict=True)}
