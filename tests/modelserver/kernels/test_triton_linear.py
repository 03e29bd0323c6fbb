"""Products of few rows in Triton against float64: interpreted anywhere, compiled where there is a device."""

import random

import pytest
import torch

from multimodel_server.kernels import triton_linear
from multimodel_server.kernels.linear_plan import Product, Room, row_count, tilings

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ERROR = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Of ‖output‖; the interpreter cuts bfloat16 off where devices round it."""
ROOM = Room(4, 1 << 20)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


def drawn(generator, *shape, dtype):
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def check(rows, weight, bias, tiling):
    output = triton_linear.linear(rows, weight, bias, tiling=tiling)
    truth = rows.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    assert output.shape == truth.shape
    assert output.dtype == rows.dtype
    assert (output.double() - truth).norm() / truth.norm() < ERROR[rows.dtype]


@pytest.mark.parametrize("seed", range(12))
def test_products_of_any_shape(seed):
    """Outputs and inputs fill no tile, or several; every tiling that may be tried for the shape is."""
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    count, outs, width = chance.choice((1, 1, chance.randint(2, 32))), chance.randint(1, 90), 16 * chance.randint(1, 90)
    dtype = chance.choice(tuple(ERROR))
    rows, weight = drawn(generator, count, width, dtype=dtype), drawn(generator, outs, width, dtype=dtype)
    bias = drawn(generator, outs, dtype=dtype) if chance.random() < 0.5 else None
    tried = tilings(Product.of(row_count(count), weight, bias), ROOM)
    assert tried
    for tiling in tried:
        check(rows, weight, bias, tiling)


def test_rows_that_lie_apart_are_those_that_count():
    generator = torch.Generator().manual_seed(0)
    wide = drawn(generator, 3, 96, dtype=torch.float16)
    weight = drawn(generator, 9, 48, dtype=torch.float16)
    (tiling, *_) = tilings(Product.of(4, weight, None), ROOM)
    check(wide[:, 48:], weight, None, tiling)


@pytest.mark.parametrize("count", [1, 3])
def test_sums_are_rounded_once(count):
    """Thousands of terms that cancel: in sixteen bits the sum would be lost."""
    weight = torch.ones(8, 4096, dtype=torch.float16, device=DEVICE)
    rows = torch.full((count, 4096), 15.0, dtype=torch.float16, device=DEVICE)
    rows[:, 2048:] = -15.0
    rows[:, -1] = -14.75
    for tiling in tilings(Product.of(row_count(count), weight, None), ROOM):
        assert (triton_linear.linear(rows, weight, tiling=tiling) == 0.25).all()
