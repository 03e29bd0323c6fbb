"""Root-mean-square normalisation in Triton, alone or with the residual sum before it: one program a vector."""

# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from multimodel_server.kernels.triton_overlap import overlap, take_turn

ELEMENTS_A_LANE = 8
"""One 16-byte load of 16-bit elements."""
MOST_WARPS = 16


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float, *, plus_one: bool = False) -> torch.Tensor:
    """Return the norm over the last dimension, as `reference.rms_norm` does."""
    hidden = hidden.contiguous()
    normed = torch.empty_like(hidden)
    _launch(hidden, hidden, weight, normed, normed, eps, plus_one=plus_one, adds=False)
    return normed


def add_rms_norm(
    hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, plus_one: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the norm of `hidden + residual`, and that sum, as `reference.add_rms_norm` does."""
    hidden, residual = hidden.contiguous(), residual.contiguous()
    normed, total = torch.empty_like(hidden), torch.empty_like(hidden)
    _launch(hidden, residual, weight, normed, total, eps, plus_one=plus_one, adds=True)
    return normed, total


def _launch(
    hidden: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    normed: torch.Tensor,
    total: torch.Tensor,
    eps: float,
    *,
    plus_one: bool,
    adds: bool,
) -> None:
    width = hidden.shape[-1]
    padded = triton.next_power_of_2(width)
    _rms_norm[(hidden.numel() // width,)](
        hidden,
        residual,
        weight,
        normed,
        total,
        eps=eps,
        width=width,
        padded=padded,
        plus_one=plus_one,
        adds=adds,
        num_warps=max(1, min(MOST_WARPS, padded // (32 * ELEMENTS_A_LANE))),
        **overlap(hidden.device),
    )


@triton.jit
def _rms_norm(
    hidden: tl.tensor,  # [vectors, width]
    residual: tl.tensor,  # likewise, where it `adds`
    weight: tl.tensor,  # [width]
    normed: tl.tensor,  # [vectors, width]
    total: tl.tensor,  # likewise, where it `adds`
    eps: tl.constexpr,
    width: tl.constexpr,
    padded: tl.constexpr,
    plus_one: tl.constexpr,
    adds: tl.constexpr,
    overlaps: tl.constexpr,
) -> None:
    take_turn(overlaps)
    dims = tl.arange(0, padded)
    used = dims < width
    place = tl.program_id(0).to(tl.int64) * width + dims
    dtype: tl.constexpr = normed.dtype.element_ty
    content = tl.load(hidden + place, mask=used, other=0.0).to(tl.float32)
    if adds:
        # Rounded before it is normed: what is normed is what the next layer adds to.
        rounded = (content + tl.load(residual + place, mask=used, other=0.0).to(tl.float32)).to(dtype)
        tl.store(total + place, rounded, mask=used)
        content = rounded.to(tl.float32)
    unit = content * tl.rsqrt(tl.sum(content * content, 0) / width + eps)
    scales = tl.load(weight + dims, mask=used, other=0.0).to(tl.float32)
    tl.store(normed + place, scaled(unit, scales, plus_one, dtype), mask=used)


@triton.jit
def scaled(unit: tl.tensor, weight: tl.tensor, plus_one: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """Return unit vectors times weights (or one plus them), rounded where `reference.rms_norm` rounds."""
    product = unit * (1.0 + weight) if plus_one else unit.to(dtype).to(tl.float32) * weight
    return product.to(dtype)
