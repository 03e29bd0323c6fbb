"""The choice of next tokens in plain torch: all rows at once, each by its own settings and its own random numbers.

A token is drawn by a race (Gumbel-max, in another form): each token arrives after a time that is exponentially
distributed with the token's weight as its rate, and the first one wins. The times come from Philox numbers of (seed,
position, token id), so that a draw depends on nothing but its own row.
"""

from typing import NamedTuple

import torch

SMALLEST_TEMPERATURE = 1e-30
"""Below it, differences of logits are no longer finite once they are divided."""
EARLY = 1 / 16
"""Times before it are sums of a series: 1 - u would round away what tells early ones apart."""
PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORDS = 4
"""Numbers that one Philox block gives: those of so many neighbouring tokens."""


class SamplingRows(NamedTuple):
    """How each row's token is chosen; every tensor is [rows]."""

    temperature: torch.Tensor
    """float32; 0 takes the likeliest token, the first of equal ones."""
    top_k: torch.Tensor
    """int32; 0 keeps all tokens."""
    top_p: torch.Tensor
    """float32; 1 keeps all tokens."""
    min_p: torch.Tensor
    """float32; 0 keeps all tokens."""
    seed: torch.Tensor
    """int64."""
    position: torch.Tensor
    """int64: how many tokens of the answer there are."""


def sample(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """Return ids [rows] int64 of next tokens for logits [rows, vocabulary]; -1 where a row has no finite maximum.

    The temperature goes first, then top-k, then top-p of what top-k left, then min-p, then the draw. Of equally likely
    tokens those with the smaller ids are kept.
    """
    logits = logits.float()
    peak = logits.amax(dim=-1, keepdim=True)
    # 1 / T times is what the device computes, too: dividing would round otherwise.
    scale = 1.0 / rows.temperature.clamp(min=SMALLEST_TEMPERATURE)
    heights = (logits - peak) * scale.unsqueeze(1)
    times = arrivals(rows.seed, rows.position, logits.shape[1]) * torch.exp(-heights)
    drawn = times.masked_fill(~kept(logits, heights, rows), torch.inf).argmin(dim=-1)
    ids = torch.where(rows.temperature > 0, drawn, logits.argmax(dim=-1))
    return ids.masked_fill(~peak.squeeze(1).isfinite(), -1)


def kept(logits: torch.Tensor, heights: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """Tell which tokens may be drawn, for logits [rows, vocabulary] whose weights are `exp(heights)`."""
    vocabulary = logits.shape[1]
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    top_k = torch.where(rows.top_k > 0, rows.top_k, vocabulary).unsqueeze(1)
    stays = torch.arange(vocabulary, device=logits.device) < top_k
    weights = heights.gather(1, order).double().exp() * stays
    before = weights.cumsum(dim=-1) - weights
    asked = rows.top_p.double().unsqueeze(1)
    stays = stays & ((before < asked * weights.sum(dim=-1, keepdim=True)) | (asked >= 1))
    stays[:, 0] = True  # the likeliest token stays, whatever top_p
    stays &= ordered >= ordered[:, :1] + (rows.min_p.log() * rows.temperature).unsqueeze(1)
    return torch.zeros_like(stays).scatter(1, order, stays)


def arrivals(seed: torch.Tensor, position: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return exponentially distributed times [rows, vocabulary] float32 of mean one."""
    blocks = torch.arange(-(-vocabulary // WORDS), device=seed.device).unsqueeze(0)
    low, high = (part.unsqueeze(1) for part in _halves(position))
    words = philox((blocks, low, high, torch.zeros_like(low)), tuple(part.unsqueeze(1) for part in _halves(seed)))
    numbers = torch.stack(words, dim=-1).flatten(1)[:, :vocabulary]
    return exponential(numbers)


def exponential(numbers: torch.Tensor) -> torch.Tensor:
    """Return -log(1 - u) for u = number / 2**32, precise where it is small: the earliest decides."""
    uniform = ((numbers.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    series = uniform * (1 / 4 + uniform * (1 / 5 + uniform * (1 / 6)))
    series = uniform * (1.0 + uniform * (1 / 2 + uniform * (1 / 3 + series)))
    return torch.where(uniform < EARLY, series, -torch.log(1.0 - uniform))


def philox(counter: tuple[torch.Tensor, ...], key: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return the four words of Philox-4x32-10 (Salmon et al., SC'11) for broadcastable int64 words below 2**32."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(PHILOX_ROUNDS):
        (high0, low0), (high2, low2) = _product(c0, PHILOX_MULTIPLIERS[0]), _product(c2, PHILOX_MULTIPLIERS[1])
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = ((k + step) & 0xFFFFFFFF for k, step in zip((k0, k1), PHILOX_KEY_STEPS, strict=True))
    return c0, c1, c2, c3


def _product(word: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the high and the low 32 bits of a product of 32-bit words."""
    upper = (word >> 16) * multiplier + ((word & 0xFFFF) * multiplier >> 16)
    return upper >> 16, word * multiplier & 0xFFFFFFFF


def _halves(number: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the low and the high 32 bits."""
    return number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF
