"""Rotary position embedding: the angles of a step, computed once and used by every layer."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the slow frequencies beyond the context it was pretrained on."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


class Rotation(NamedTuple):
    """The angles of a step's tokens."""

    cos: torch.Tensor  # [tokens, head_dim / 2] float32
    sin: torch.Tensor


class Rotary:
    """Turns positions into angles; keeps no table, so there is nothing to size, load or lose."""

    def __init__(self, head_dim: int, theta: float, scaling: Llama3Scaling | None = None) -> None:
        powers = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies = 1.0 / theta**powers
        self.frequencies = frequencies if scaling is None else _stretched(frequencies, scaling)

    def __call__(self, positions: torch.Tensor) -> Rotation:
        """Return the angles at `positions` [tokens]."""
        angles = torch.outer(positions.float(), self.frequencies)
        return Rotation(angles.cos(), angles.sin())


def _stretched(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Return the frequencies of Llama 3.1: fast ones kept, slow ones divided, those between blended."""
    wavelengths = 2 * math.pi / frequencies
    context = scaling.original_max_position_embeddings
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((context / wavelengths - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies
