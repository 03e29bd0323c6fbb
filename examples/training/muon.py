"""Muon: gradient descent with momentum whose every update of a matrix is made orthogonal.

It needs about two thirds of the steps that AdamW needs here. PyTorch's own computes in bfloat16, which processors
without bfloat16 instructions only emulate: three times slower than this float32 one.
Method: https://kellerjordan.github.io/posts/muon/
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch

MOMENTUM = 0.95
ITERATIONS = 5
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315
"""Coefficients of the odd polynomial that drives every singular value towards 1."""


class Muon(torch.optim.Optimizer):
    """For the matrices inside a model; embeddings, output layer and norms are for AdamW."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": learning_rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every parameter; those of one shape are made orthogonal together."""
        for group in self.param_groups:
            for alike in by_shape(group["params"]):
                rows, columns = alike[0].shape
                updates = orthogonal(torch.stack([self._momentum(parameter) for parameter in alike]))
                size = group["lr"] * max(1.0, rows / columns) ** 0.5
                for parameter, update in zip(alike, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)

    def _momentum(self, parameter: torch.Tensor) -> torch.Tensor:
        if parameter.grad is None:
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)} has no gradient: call backward() before step()"
            )
        average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
        average.lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(average, MOMENTUM)


def by_shape(parameters: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The parameters in groups of one shape."""
    groups: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
    for parameter in parameters:
        groups[parameter.shape].append(parameter)
    yield from groups.values()


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices, roughly, by Newton-Schulz iteration; shape (count, rows, columns)."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = wide @ wide.mT
        polynomial = torch.baddbmm(square, square, square, beta=CUBIC, alpha=QUINTIC)
        wide = torch.baddbmm(wide, polynomial, wide, beta=LINEAR)
    return wide.mT if tall else wide
