"""The ways in which models stretch rotary frequencies to reach beyond the context of their pretraining."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch


class Scaling(Protocol):
    """A stretch of the frequencies, and of the turned vectors' length."""

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""

    def stretched(self, frequencies: torch.Tensor, theta: float, context: int) -> torch.Tensor:
        """Return [dims / 2] float32 for plain frequencies of base `theta`; texts grow to `context` tokens at most."""


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """All frequencies divided alike (arXiv 2306.15595)."""

    factor: float
    magnitude = 1.0

    def stretched(self, frequencies: torch.Tensor, theta: float, context: int) -> torch.Tensor:  # noqa: ARG002
        """Return the divided frequencies."""
        return frequencies / self.factor


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's: fast frequencies kept, slow ones divided, those between blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int
    magnitude = 1.0

    def stretched(self, frequencies: torch.Tensor, theta: float, context: int) -> torch.Tensor:  # noqa: ARG002
        """Return the blended frequencies."""
        wavelengths = 2 * math.pi / frequencies
        span = self.high_freq_factor - self.low_freq_factor
        kept = ((self.original_context / wavelengths - self.low_freq_factor) / span).clamp(0.0, 1.0)
        return (1 - kept) * frequencies / self.factor + kept * frequencies


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN's: the blend goes by how often a dimension turns within the original context (arXiv 2309.00071)."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    whole_dims: bool = True
    """Whether the blend begins and ends at whole dimensions."""
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    @property
    def magnitude(self) -> float:
        """The stated attention factor, or the paper's for the stretch."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is not None and self.mscale_all_dim is not None:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    def stretched(self, frequencies: torch.Tensor, theta: float, context: int) -> torch.Tensor:  # noqa: ARG002
        """Return the blended frequencies."""
        dims = 2 * len(frequencies)
        first, last = (self._dimension(turns, dims, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.whole_dims:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, dims - 1)
        steps = torch.arange(len(frequencies), dtype=torch.float32, device=frequencies.device)
        divided = ((steps - first) / (last - first or 0.001)).clamp(0.0, 1.0)
        return divided * (frequencies / self.factor) + (1 - divided) * frequencies

    def _dimension(self, turns: float, dims: int, theta: float) -> float:
        """Return the pair of dimensions that turns so often over the original context."""
        return dims * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def _temperature(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True, slots=True)
class LongScaling:
    """LongRoPE's: a searched factor for every frequency, one set per length of context (arXiv 2402.13753).

    The published models choose the set by the length that a text has reached, which would leave cached keys turned by
    the other set. Here the longest text that is served decides, once and for all texts.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_context: int
    factor: float
    attention_factor: float | None = None

    @property
    def magnitude(self) -> float:
        """The stated attention factor, or the paper's for the stretch."""
        if self.attention_factor is not None:
            return self.attention_factor
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context)) if self.factor > 1 else 1.0

    def stretched(self, frequencies: torch.Tensor, theta: float, context: int) -> torch.Tensor:  # noqa: ARG002
        """Return the divided frequencies, by the long factors if texts may outgrow the original context."""
        factors = self.long_factors if context > self.original_context else self.short_factors
        return frequencies / torch.tensor(factors, device=frequencies.device)
