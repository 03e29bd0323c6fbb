"""The feed-forward half of a decoder layer: one gated MLP, or many of which each token takes a few."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import nn

from multimodel_server import kernels
from multimodel_server.layers.linear import FusedLinear, Linear, PartialWeights

Activation = Callable[[torch.Tensor], torch.Tensor]
"""Turns [..., 2 * width], a gate beside what it lets through, into [..., width]."""

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"silu": kernels.silu_mul, "gelu_pytorch_tanh": kernels.gelu_mul}
)
"""By their names in `config.json`."""


class GatedMlp(nn.Module):
    """`down(activation(gate(x)) * up(x))`, gate and up in one product (arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int, activation: Activation, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_up_proj = FusedLinear(width, {"gate_proj": inner, "up_proj": inner}, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)
        self.activation = activation

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [tokens, width] for [tokens, width]."""
        output: torch.Tensor = self.down_proj(self.activation(self.gate_up_proj(hidden)))
        return output


class Experts(PartialWeights):
    """The weights of many gated MLPs of one size, stacked."""

    def __init__(self, count: int, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * inner, width), requires_grad=False)
        self.down_proj = nn.Parameter(torch.empty(count, width, inner), requires_grad=False)

    def parts(self, name: str, kind: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return every expert's projections, by their names in a checkpoint."""
        if kind == "down_proj":
            return {f"{name}.{expert}.down_proj.weight": weight for expert, weight in enumerate(parameter)}
        halves: dict[str, torch.Tensor] = {}
        for expert, weight in enumerate(parameter):
            gate, up = weight.chunk(2)
            halves |= {f"{name}.{expert}.gate_proj.weight": gate, f"{name}.{expert}.up_proj.weight": up}
        return halves


class SparseMlp(nn.Module):
    """A mixture of experts: each token takes its `per_token` most probable ones, weighted by their probabilities.

    With `normalised`, the weights of a token's experts are scaled to sum to one (arXiv 2401.04088).
    """

    def __init__(
        self, width: int, inner: int, activation: Activation, experts: int, per_token: int, *, normalised: bool
    ) -> None:
        super().__init__()
        self.gate = Linear(width, experts)
        self.experts = Experts(experts, width, inner)
        self.activation = activation
        self.per_token = per_token
        self.normalised = normalised

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [tokens, width] for [tokens, width]."""
        weights, chosen = self.gate(hidden).float().softmax(dim=-1).topk(self.per_token, dim=-1)
        if self.normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        gate_up, down = self.experts.gate_up_proj, self.experts.down_proj
        return kernels.mix_experts(hidden, gate_up, down, chosen, weights, self.activation)
