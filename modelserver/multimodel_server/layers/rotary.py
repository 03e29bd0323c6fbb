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
        powers = torch.arange(0, rope.dims, 2, dtype=torch.float32, device=device) / rope.dims
        plain = 1.0 / rope.theta**powers
        self.frequencies = plain if rope.scaling is None else rope.scaling.stretched(plain, rope.theta, context)
        self.magnitude = 1.0 if rope.scaling is None else rope.scaling.magnitude

    def __call__(self, positions: torch.Tensor) -> Rotation:
        """Return the angles at `positions` [tokens]."""
        angles = torch.outer(positions.float(), self.frequencies)
        return Rotation(angles.cos() * self.magnitude, angles.sin() * self.magnitude)
