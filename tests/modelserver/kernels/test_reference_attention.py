"""The plain torch attention on what only a serving engine gives it: padding, narrow caches, blocks with a past."""

import pytest
import torch

from multimodel_server.kernels import reference, reference_attention

MIXES = [
    [(40, 1), (-1, 1), (3, 1), (-1, 1)],
    [(-1, 1)],
    [(30, 1), (90, 1), (0, 9), (-1, 1), (65, 13), (63, 1)],
    [(0, 100)],
]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("cache_dtype", [torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_padding_narrow_caches_and_blocks_that_held_no_numbers(make_step, mix, cache_dtype, soft_cap):
    """Slots behind a text's end keep what the block's last owner left there."""
    step = make_step(mix, dtype=torch.float64, cache_dtype=cache_dtype).with_sink()
    caches = (step.key_cache, step.value_cache)
    output = reference_attention.paged_attention(step.query, *caches, step.layout, 0.3, None, soft_cap)
    torch.testing.assert_close(output, step.truth(0.3, None, soft_cap), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cache_of_8_bits_takes_the_nearest_value_it_has(dtype):
    caches = torch.zeros((2, 3, 8, 1, 4)).to(torch.float8_e4m3fn)
    keys = torch.tensor([[[1.0, -0.3, 500.0, -1000.0]], [[0.0, 447.0, torch.inf, torch.nan]]]).to(dtype)
    reference.write_kv(keys, -keys, *caches, torch.tensor([9, 23]))
    stored = caches.float().view(2, 24, 4)
    expected = torch.tensor([[1.0, -0.3125, 448.0, -448.0], [0.0, 448.0, 448.0, torch.nan]])
    assert torch.equal(stored[0, [9, 23]].nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(stored[1, [9, 23]].nan_to_num(7), (-expected).nan_to_num(7))
    assert stored.nan_to_num(7).count_nonzero() == 2 * 7
