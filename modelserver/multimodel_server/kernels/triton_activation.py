"""The gates of an MLP in Triton: one program a tile of one token's inner vector."""

# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from multimodel_server.kernels.triton_overlap import overlap, take_turn

TILE = 1024
ROOT = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up`, as `reference.silu_mul` does."""
    return _gate(gate_up, is_gelu=False)


def gelu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return `gelu(gate) * up` with gelu in its tanh form, as `reference.gelu_mul` does."""
    return _gate(gate_up, is_gelu=True)


def _gate(gate_up: torch.Tensor, *, is_gelu: bool) -> torch.Tensor:
    gate_up = gate_up.contiguous()
    width = gate_up.shape[-1] // 2
    output = gate_up.new_empty((*gate_up.shape[:-1], width))
    tile = min(TILE, triton.next_power_of_2(width))
    grid = (output.numel() // width, triton.cdiv(width, tile))
    overlapping = overlap(gate_up.device)
    _gate_tile[grid](gate_up, output, width=width, tile=tile, is_gelu=is_gelu, num_warps=4, **overlapping)
    return output


@triton.jit
def _gate_tile(
    gate_up: tl.tensor,  # [tokens, 2 * width]
    output: tl.tensor,  # [tokens, width]
    width: tl.constexpr,
    tile: tl.constexpr,
    is_gelu: tl.constexpr,
    overlaps: tl.constexpr,
) -> None:
    take_turn(overlaps)
    token = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * tile + tl.arange(0, tile)
    used = dims < width
    dtype: tl.constexpr = output.dtype.element_ty
    gate = tl.load(gate_up + token * (2 * width) + dims, mask=used, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * (2 * width) + width + dims, mask=used, other=0.0).to(tl.float32)
    # x / 2 * (1 + tanh(y)) is x * sigmoid(2 y).
    bent = 2.0 * ROOT * (gate + 0.044715 * gate * gate * gate) if is_gelu else gate
    opened = (gate * tl.sigmoid(bent)).to(dtype).to(tl.float32)
    tl.store(output + token * width + dims, (opened * up).to(dtype), mask=used)
