"""Tiles and parts of attention, and that what they make of the kernels fits a Hopper processor, without a device."""

import itertools
import json

import pytest

from multimodel_server.kernels.attention_plan import MOST_SPLITS, leading_decodes, padded, splits, tiling

HOPPER_SHARED_BYTES = 227 * 1024
HOPPER_PROCESSORS = 132


@pytest.mark.parametrize("decodes", [True, False])
@pytest.mark.parametrize("group", [1, 3, 4, 7, 8, 16, 71])
def test_a_tile_holds_the_heads_of_a_token(group, decodes):
    for head_dim, *sizes in itertools.product((12, 64, 80, 96, 128, 192, 256), (2, 4), (1, 2, 4)):
        tiles = tiling(group, head_dim, *sizes, decodes=decodes)
        assert tiles.rows >= group
        assert padded(head_dim) >= head_dim
        for size in (tiles.rows, tiles.keys, padded(head_dim)):
            assert size >= 16
            assert size.bit_count() == 1


@pytest.mark.parametrize(
    ("seqs", "table_tokens", "expected"),
    [(1, 16384, 33), (1, 1024, 16), (1, 64, 1), (2, 16384, 16), (16, 16384, 2), (32, 16384, 1), (256, 16384, 1)],
)
def test_few_long_texts_are_parted_to_fill_the_device(seqs, table_tokens, expected):
    assert splits(seqs, 8, table_tokens, 64, HOPPER_PROCESSORS) == expected


def test_parts_are_bounded():
    assert splits(1, 1, 1 << 20, 64, HOPPER_PROCESSORS) == MOST_SPLITS


@pytest.mark.parametrize(
    ("query_lens", "expected"), [((1,), 1), ((1, 1, 1), 3), ((1, 1, 7, 1), 2), ((5, 1), 0), ((0, 1), 0), ((), 0)]
)
def test_leading_decodes(query_lens, expected):
    assert leading_decodes(query_lens) == expected


@pytest.fixture(scope="module")
def hopper(run_compiler):
    return json.loads(run_compiler("compile_attention.py"))


@pytest.mark.parametrize(("name", "head_dim"), [("decode", 128), ("decode_narrow", 64), ("decode_wide_fp8", 256)])
def test_decoding_keeps_tiles_on_their_way_and_fits_a_processor_twice(hopper, name, head_dim):
    kernel = hopper[name]
    assert 2 * kernel["shared_bytes"] <= HOPPER_SHARED_BYTES
    assert kernel["spilled_bytes"] == 0
    assert kernel["ttgir"].count(f"!ttg.memdesc<2x{kernel['keys']}x{head_dim}x") >= 2, "only one tile is on its way"


def test_prompts_use_the_matrix_units_of_a_warp_group(hopper):
    kernel = hopper["prompt"]
    assert kernel["shared_bytes"] <= HOPPER_SHARED_BYTES
    assert kernel["spilled_bytes"] == 0
    assert "wgmma.mma_async" in kernel["ptx"]


def test_no_length_brings_a_kernel_of_its_own(hopper):
    """Decoding as a whole and in parts, merging those, and prompts: each is compiled once, whatever the batch."""
    names = [asked.split()[0] for asked in hopper["specializations"]]
    assert names == ["_attend", "_attend", "_attend", "_merge"]
