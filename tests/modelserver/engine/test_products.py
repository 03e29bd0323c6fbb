"""Who computes products of few rows: what measured faster, once for all, and only where it was measured."""

import logging
from functools import partial

import pytest
import torch

from multimodel_server import kernels
from multimodel_server.engine.products import BYTES_IN_TURN, choose_linears
from multimodel_server.kernels import reference
from multimodel_server.kernels.linear_plan import ROW_COUNTS, Product, Room

HOPPER = Room(132, 227 * 1024)


class OnCuda(torch.Tensor):
    """A tensor that says it is on a CUDA device."""

    is_cuda = True


@pytest.fixture
def linears(monkeypatch):
    """The choices of this process, of which there is none yet."""
    chosen = {}
    monkeypatch.setattr(kernels, "linears", chosen)
    return chosen


@pytest.fixture
def clock():
    return Clock()


class Clock:
    """Tells made-up times: by tilings' outputs, with cuBLAS under 0; a missing one is slow."""

    def __init__(self):
        self.times = {}
        self.asked = []

    def seconds(self, linear, product, weights):
        outs = linear.keywords["tiling"].outs if isinstance(linear, partial) else 0
        self.asked.append((product, outs, len(weights)))
        return self.times.get((product.rows, outs), 1e-5 if outs == 0 else 1e-4)


def matrix(outs=4096, width=1024, dtype=torch.bfloat16):
    return torch.empty(outs, width, dtype=dtype, device="meta")


def test_the_fastest_is_chosen_for_each_number_of_rows(linears, clock, caplog):
    clock.times = {(1, 8): 5e-6, (1, 4): 4e-6, (2, 16): 6e-6, (4, 16): 9.9e-6}
    with caplog.at_level(logging.INFO):
        choose_linears([(matrix(), None)] * 3, HOPPER, clock.seconds)
    chosen = {product.rows: linear for product, linear in linears.items()}
    assert list(chosen) == list(ROW_COUNTS)
    assert chosen[1].keywords["tiling"].outs == 4
    assert chosen[2].keywords["tiling"].outs == 16
    assert {chosen[rows] for rows in (4, 8, 16, 32)} == {reference.linear}
    first, *_ = [record.message for record in caplog.records]
    assert first == (
        "Products of 4096 x 1024, 1 at once: cuBLAS 10.0 µs, Triton 5.0 µs (8 x 1024), 4.0 µs (4 x 1024); "
        "by Triton (4 x 1024), 2.10 TB/s at best"
    )


def test_what_is_chosen_is_not_measured_again(linears, clock):
    choose_linears([(matrix(), None)], HOPPER, clock.seconds)
    before, clock.times = dict(linears), {(1, 8): 1e-9}
    asked = len(clock.asked)
    choose_linears([(matrix(), None), (matrix(outs=2048), None)], HOPPER, clock.seconds)
    assert linears.items() >= before.items()
    assert {product.outs for product, *_ in clock.asked[asked:]} == {2048}


def test_weights_of_one_shape_are_multiplied_by_in_turn_as_far_as_that_tells_more(linears, clock):
    layers = 3 * BYTES_IN_TURN // matrix().nbytes
    choose_linears([*[(matrix(), None)] * layers, (matrix(outs=1 << 20), None)], HOPPER, clock.seconds)
    counts = {product.outs: count for product, _, count in clock.asked}
    assert counts == {4096: layers // 3, 1 << 20: 1}


def test_biases_make_products_of_their_own(linears, clock):
    choose_linears([(matrix(), None), (matrix(), torch.empty(4096))], HOPPER, clock.seconds)
    assert {(product.has_bias, count) for product, _, count in clock.asked} == {(False, 1), (True, 1)}


def test_float32_is_left_to_cublas_unmeasured(linears, clock):
    choose_linears([(matrix(dtype=torch.float32), None)], HOPPER, clock.seconds)
    assert linears == {}
    assert clock.asked == []


def test_a_choice_holds_for_its_product_on_the_device_alone(linears):
    weight, other = torch.ones(8, 16), torch.ones(9, 16)
    linears[Product.of(4, weight, None)] = lambda *_: "chosen"
    rows = torch.ones(3, 16).as_subclass(OnCuda)
    assert kernels.linear(rows, weight) == kernels.linear(torch.ones(4, 16).as_subclass(OnCuda), weight) == "chosen"
    for unmeasured in (
        kernels.linear(rows[:2], weight),
        kernels.linear(rows, weight, torch.zeros(8)),
        kernels.linear(torch.ones(3, 16), weight),
        kernels.linear(torch.ones(40, 16).as_subclass(OnCuda), weight),
    ):
        assert (unmeasured == 16).all()
    assert (kernels.linear(rows, other) == 16).all()


def test_all_that_a_decoder_multiplies_by_is_measured(any_architecture, stepped_engine, generate, monkeypatch):
    engine = stepped_engine(any_architecture.path)
    used, linear = set(), kernels.linear

    def noted(rows, weight, bias=None):
        used.add((weight.data_ptr(), bias is not None))
        return linear(rows, weight, bias)

    monkeypatch.setattr(kernels, "linear", noted)
    engine.answer([(0, generate([1, 2, 3], 2))])
    assert used == {(weight.data_ptr(), bias is not None) for weight, bias in engine.runner.decoder.matrices()}
