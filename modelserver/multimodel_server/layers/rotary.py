"""Rotary position embedding: the angles of a step, computed once and used by every layer."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from multimodel_server.layers.rope_scaling import Scaling


@dataclass(frozen=True, slots=True)
class Rope:
    """How positions turn heads: their first `dims` dimensions, at frequencies of base `theta`, perhaps stretched."""

    dims: int
    theta: float
    scaling: Scaling | None = None


class Rotation(NamedTuple):
    """The angles of a step's tokens."""

    cos: torch.Tensor  # [tokens, dims / 2] float32
    sin: torch.Tensor


class Rotary:
    """Turns positions into angles; keeps no table, so there is nothing to size, load or lose."""

    def __init__(self, rope: Rope, context: int, device: torch.device) -> None:
        self._rope = rope
        self.frequencies = torch.empty(-(-rope.dims // 2), dtype=torch.float32, device=device)
        self.magnitude = 1.0 if rope.scaling is None else rope.scaling.magnitude
        self.limit(context)

    def limit(self, context: int) -> None:
        """Tell how long texts may become; the frequencies stay at their address, which graphs may have captured."""
        powers = torch.arange(0, self._rope.dims, 2, dtype=torch.float32, device=self.frequencies.device)
        frequencies, scaling = 1.0 / self._rope.theta ** (powers / self._rope.dims), self._rope.scaling
        if scaling is not None:
            frequencies = scaling.stretched(frequencies, self._rope.theta, context)
        self.frequencies.copy_(frequencies)

    def __call__(self, positions: torch.Tensor) -> Rotation:
        """Return the angles at `positions` [tokens]."""
        angles = positions.unsqueeze(1) * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        return Rotation(cos, sin) if self.magnitude == 1.0 else Rotation(cos * self.magnitude, sin * self.magnitude)
