"""Layouts of products of few rows, and that what they make of the kernels reads as fast as a Hopper processor can."""

import itertools
import json

import pytest
import torch

from multimodel_server.kernels.linear_plan import ROW_COUNTS, LinearTiling, Product, Room, fastest, row_count, tilings

ELEMENTS_OF_A_LOAD = 8
HOPPER = Room(132, 227 * 1024)
SHAPES = [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (2560, 9728), (24576, 4096), (151936, 4096)]


def product(rows=1, outs=4096, width=1024, dtype=torch.bfloat16):
    return Product(rows, outs, width, dtype, has_bias=False)


def test_rows_are_computed_as_the_next_larger_number():
    assert [row_count(rows) for rows in (1, 2, 3, 5, 8, 9, 17, 32)] == [1, 2, 4, 8, 8, 16, 32, 32]
    assert row_count(33) is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", ROW_COUNTS)
def test_every_processor_has_something_to_read(rows, shape):
    tried = tilings(product(rows, *shape), HOPPER)
    assert 1 <= len(tried) <= 2
    for tiling in tried:
        assert shape[0] / tiling.outs > 0.9 * HOPPER.processors
        assert tiling.rows >= rows
        assert all(size.bit_count() == 1 for size in tiling)
        assert tiling.width // tiling.parts >= 16


def test_few_outputs_are_parted_as_far_as_they_can_be():
    assert [tiling.outs for tiling in tilings(product(1, outs=200), HOPPER)] == [2]
    assert [tiling.outs for tiling in tilings(product(4, outs=200), HOPPER)] == [8]


def test_what_is_on_its_way_fits_the_shared_memory():
    ada = Room(142, 99 * 1024)
    for rows, shape in itertools.product(ROW_COUNTS[1:], SHAPES):
        for tiling in tilings(product(rows, *shape), ada):
            assert 2 * (tiling.stages - 1) * (tiling.rows + tiling.outs) * tiling.width <= ada.shared_bytes
            assert tiling.stages >= 2
    assert tilings(product(8), Room(142, 16 * 1024)) == ()
    assert len(tilings(product(1), Room(142, 16 * 1024))) == 2


@pytest.mark.parametrize("unfit", [product(dtype=torch.float32), product(width=1000)])
def test_what_cannot_be_read_16_bytes_at_a_time_in_16_bits_is_left_to_cublas(unfit):
    assert tilings(unfit, HOPPER) == ()


def test_triton_is_taken_where_it_is_clearly_faster():
    slow, quick = LinearTiling(1, 8, 1024, 4, 2), LinearTiling(1, 4, 1024, 4, 2)
    assert fastest(10.0, {slow: 9.0, quick: 8.0}) == quick
    assert fastest(10.0, {slow: 9.9, quick: 12.0}) is None
    assert fastest(10.0, {slow: 10.0}) is None
    assert fastest(10.0, {}) is None


@pytest.fixture(scope="module")
def hopper(run_compiler):
    return json.loads(run_compiler("compile_linear.py"))


def test_programs_fit_a_processor(hopper):
    for kernel in hopper:
        assert kernel["spilled_bytes"] == 0, kernel
        assert kernel["shared_bytes"] <= HOPPER.shared_bytes, kernel


def test_no_number_of_rows_brings_a_kernel_of_its_own(hopper):
    """Each tiling was asked for twice, with all of its rows and with fewer."""
    hashes = [kernel["hash"] for kernel in hopper]
    assert hashes[::2] == hashes[1::2]
    assert len(set(hashes)) == len(hopper) / 2


def test_all_is_read_16_bytes_at_a_time(hopper):
    assert [kernel["narrow_loads"] for kernel in hopper] == [[]] * len(hopper)


def test_a_single_rows_weights_are_under_way_before_the_kernel_ahead_has_ended(hopper):
    singles = [kernel for kernel in hopper if kernel["name"] == "_one_row"]
    assert singles
    for kernel in singles:
        assert kernel["loads_before_waiting"] * kernel["lanes"] * ELEMENTS_OF_A_LOAD == kernel["tile"]


def test_nothing_is_written_before_the_kernel_ahead_has_ended(hopper):
    assert {(kernel["waits"], kernel["stores_before_waiting"]) for kernel in hopper} == {(1, 0)}


def test_several_rows_go_through_the_matrix_units_with_tiles_on_their_way(hopper):
    several = [kernel for kernel in hopper if kernel["name"] == "_some_rows"]
    assert several
    for kernel in several:
        assert kernel["uses_matrix_units"]
        assert kernel["loads_before_waiting"] == 0
        assert kernel["tiles_on_their_way"] >= 3
