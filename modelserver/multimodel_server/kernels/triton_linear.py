"""Products of few rows in Triton, as decoding has them: one launch, whose time is that of reading the weights.

A program computes some outputs of all rows, its warps side by side along the inputs, so that few outputs suffice to
have all processors read. The sums of a result are added in the same order every time.
"""

# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from multimodel_server.kernels.linear_plan import LinearTiling
from multimodel_server.kernels.triton_overlap import let_next_begin, overlap, take_turn, wait_for_last

LANE = tl.constexpr(8)
"""Elements of a 16-byte load."""


def linear(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, tiling: LinearTiling
) -> torch.Tensor:
    """Return `rows W^T (+ bias)`, as `reference.linear` does, for as many rows as the tiling has, or fewer."""
    rows = rows.contiguous()
    count, width = rows.shape
    outs = len(weight)
    output = rows.new_empty((count, outs))
    grid = (triton.cdiv(outs, tiling.outs),)
    shared = {"tile_outs": tiling.outs, "has_bias": bias is not None, "num_warps": tiling.parts, **overlap(rows.device)}
    addends = output if bias is None else bias
    if tiling.rows == 1:
        _one_row[grid](rows, weight, addends, output, outs, width, tile_width=tiling.width, **shared)
        return output
    _some_rows[grid](
        rows,
        weight,
        addends,
        output,
        count,
        outs,
        width,
        tile_rows=tiling.rows,
        part_width=tiling.width // tiling.parts,
        parts=tiling.parts,
        stages=tiling.stages,
        **shared,
    )
    return output


@triton.jit
def _one_row(
    row: tl.tensor,  # [width]
    weight: tl.tensor,  # [outs, width]
    bias: tl.tensor,  # [outs], where it `has_bias`
    output: tl.tensor,  # [outs]
    outs: int,
    width: int,
    tile_outs: tl.constexpr,
    tile_width: tl.constexpr,
    has_bias: tl.constexpr,
    overlaps: tl.constexpr,
) -> None:
    let_next_begin(overlaps)
    out = tl.program_id(0) * tile_outs + tl.arange(0, tile_outs)
    used = out < outs
    dims = tl.arange(0, tile_width)
    place = weight + out.to(tl.int64)[:, None] * width + dims[None, :]
    ahead = tl.load(place, mask=used[:, None] & (dims < width)[None, :], other=0.0, eviction_policy="evict_first")
    wait_for_last(overlaps)
    sums = tl.zeros((tile_outs, tile_width // LANE), tl.float32)
    for start in range(0, width, tile_width):
        held = ahead
        later = start + tile_width + dims
        unread = used[:, None] & (later < width)[None, :]
        ahead = tl.load(place + start + tile_width, mask=unread, other=0.0, eviction_policy="evict_first")
        content = tl.load(row + start + dims, mask=start + dims < width, other=0.0).to(tl.float32)
        products = tl.reshape(held.to(tl.float32) * content[None, :], (tile_outs, tile_width // LANE, LANE))
        sums += tl.sum(products, 2)
    total = tl.sum(sums, 1)
    if has_bias:
        total += tl.load(bias + out, mask=used, other=0.0).to(tl.float32)
    tl.store(output + out, total.to(output.dtype.element_ty), mask=used)


# No number of rows may bring a kernel of its own: nothing compiles while requests wait.
@triton.jit(do_not_specialize=("count",))
def _some_rows(
    rows: tl.tensor,  # [count, width]
    weight: tl.tensor,  # [outs, width]
    bias: tl.tensor,  # [outs], where it `has_bias`
    output: tl.tensor,  # [count, outs]
    count: int,
    outs: int,
    width: int,
    tile_rows: tl.constexpr,
    tile_outs: tl.constexpr,
    part_width: tl.constexpr,
    parts: tl.constexpr,
    stages: tl.constexpr,
    has_bias: tl.constexpr,
    overlaps: tl.constexpr,
) -> None:
    take_turn(overlaps)
    row = tl.arange(0, tile_rows)
    out = tl.program_id(0) * tile_outs + tl.arange(0, tile_outs)
    dims = tl.arange(0, parts)[:, None, None] * part_width + tl.arange(0, part_width)[None, None, :]
    contents = rows + row[None, :, None] * width
    weights = weight + out.to(tl.int64)[None, :, None] * width
    sums = tl.zeros((parts, tile_rows, tile_outs), tl.float32)
    for start in tl.range(0, width, parts * part_width, num_stages=stages):
        dim = start + dims
        content = tl.load(contents + dim, mask=(row < count)[None, :, None] & (dim < width), other=0.0)
        held = tl.load(weights + dim, mask=(out < outs)[None, :, None] & (dim < width), other=0.0)
        sums = tl.dot(content, tl.trans(held, 0, 2, 1), sums)
    total = tl.sum(sums, 0)
    if has_bias:
        total += tl.load(bias + out, mask=out < outs, other=0.0).to(tl.float32)[None, :]
    used = (row < count)[:, None] & (out < outs)[None, :]
    tl.store(output + row[:, None] * outs + out[None, :], total.to(output.dtype.element_ty), mask=used)
