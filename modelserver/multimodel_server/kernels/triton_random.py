"""Random numbers of tokens in Triton: those of `reference_sampling`, word for word."""

# mypy: disable-error-code="untyped-decorator"

import triton
import triton.language as tl

from multimodel_server.kernels import reference_sampling

EARLY = tl.constexpr(reference_sampling.EARLY)
LOW_HALF = tl.constexpr(0xFFFFFFFF)


@triton.jit
def tile_words(seed: tl.tensor, position: tl.tensor, first: tl.tensor, tile: tl.constexpr) -> tl.tensor:
    """Return the words of `tile` tokens from `first` on, a multiple of four: each block gives those of four tokens."""
    first_word, second, third, fourth = _block(seed, position, first // 4 + tl.arange(0, tile // 4))
    return tl.interleave(tl.interleave(first_word, third), tl.interleave(second, fourth))


@triton.jit
def token_words(seed: tl.tensor, position: tl.tensor, token: tl.tensor) -> tl.tensor:
    """Return the words of tokens that need not be neighbours."""
    first, second, third, fourth = _block(seed, position, token // 4)
    even, odd = tl.where(token % 4 == 0, first, third), tl.where(token % 4 == 1, second, fourth)
    return tl.where(token % 2 == 0, even, odd)


@triton.jit
def _block(
    seed: tl.tensor, position: tl.tensor, number: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return the four words of each numbered block."""
    zero = number * 0
    low = zero + (position & LOW_HALF).to(tl.uint32).to(tl.int32, bitcast=True)
    high = zero + (position >> 32).to(tl.int32)
    first, second, third, fourth = tl.philox(seed, number, low, high, zero)
    return first, second, third, fourth


@triton.jit
def exponential(words: tl.tensor) -> tl.tensor:
    """Return exponentially distributed times, as `reference_sampling.exponential` does."""
    uniform = tl.minimum((words.to(tl.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    series = uniform * (1 / 4 + uniform * (1 / 5 + uniform * (1 / 6)))
    series = uniform * (1.0 + uniform * (1 / 2 + uniform * (1 / 3 + series)))
    return tl.where(uniform < EARLY, series, -tl.log(1.0 - uniform))
