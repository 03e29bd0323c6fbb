"""Triton's paged attention against its definition in float64: interpreted, or compiled where there is a device."""

import random
from dataclasses import replace

import pytest
import torch

from multimodel_server.kernels import reference_attention, triton_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
MIXES = {
    "one token": [(0, 1)],
    "decodes": [(15, 1), (16, 1), (0, 1), (63, 1), (130, 1)],
    "a prompt": [(0, 100)],
    "chunks": [(70, 33), (0, 16), (128, 64)],
    "a mixed step": [(30, 1), (90, 1), (0, 9), (7, 1), (65, 13), (63, 1)],
    "prompts of one token": [(20, 5), (0, 1), (0, 1)],
    "padding": [(40, 1), (-1, 1), (3, 1), (-1, 1)],
    "padding alone": [(-1, 1), (-1, 1)],
    "padding within prompts": [(0, 5), (-1, 1), (9, 4), (-1, 1)],
}


def attend(step, window=None, soft_cap=None, scale=0.3):
    """Return Triton's attention for a step on this machine's device."""
    step = step.on(DEVICE)
    caches = (step.key_cache, step.value_cache)
    return triton_attention.paged_attention(step.query, *caches, step.layout, scale, window, soft_cap).cpu()


def distance(output, truth):
    """Return the relative error of the whole; what is no number is infinitely far."""
    error = ((output.double() - truth).norm() / truth.norm().clamp(min=1e-12)).item()
    return error if error == error else float("inf")


@pytest.fixture
def processors(monkeypatch):
    """Plan for so many processors instead of those there are."""
    return lambda count: monkeypatch.setattr(triton_attention, "_processors", lambda _: count)


@pytest.mark.parametrize("window", [None, 1, 20, 64])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.usefixtures("poisoned_outputs")
def test_every_mix_of_lengths(make_step, mix, window):
    step = make_step(MIXES[mix], kv_heads=1, window=window)
    assert distance(attend(step, window), step.truth(0.3, window)) < TOLERANCES[torch.float16]


@pytest.mark.parametrize("seed", range(14))
@pytest.mark.usefixtures("poisoned_outputs")
def test_random_shapes(make_step, processors, seed):
    draw = random.Random(seed)
    dtype = draw.choice(list(TOLERANCES))
    window, soft_cap = draw.choice([None, 1, 33, 90]), draw.choice([None, 0.7, 30.0])
    processors(draw.choice([1, 4, 40]))
    step = make_step(
        [(draw.randrange(200), 1) for _ in range(draw.randrange(4))]
        + [(draw.randrange(100), draw.randrange(1, 40)) for _ in range(draw.randrange(1, 3))],
        group=1 + seed % 8,
        kv_heads=draw.choice([1, 2]),
        head_dim=draw.choice([64, 80, 96, 128, 192, 256]),
        block_size=draw.choice([8, 16, 32]),
        dtype=dtype,
        cache_dtype=draw.choice([dtype, torch.float8_e4m3fn]),
        seed=seed,
        window=window,
    )
    assert distance(attend(step, window, soft_cap), step.truth(0.3, window, soft_cap)) < TOLERANCES[dtype]


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("processors_there", [1, 3, 8, 64])
@pytest.mark.usefixtures("poisoned_outputs")
def test_the_parts_of_a_text_make_the_whole(make_step, processors, processors_there, window):
    """Few parts of many tiles and more parts than tiles; short texts leave parts without work."""
    processors(processors_there)
    step = make_step([(700, 1), (-1, 1), (0, 1), (260, 1)], kv_heads=1, dtype=torch.float32, window=window)
    assert distance(attend(step, window), step.truth(0.3, window)) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("group", [16, 24])
def test_groups_wider_than_a_tile(make_step, group):
    step = make_step([(70, 1), (3, 5)], group=group, kv_heads=1)
    assert distance(attend(step), step.truth(0.3)) < TOLERANCES[torch.float16]


@pytest.mark.parametrize("soft_cap", [None, 50.0])
def test_large_scores_stay_numbers(make_step, soft_cap):
    """Exponents of either sign would overflow if they were taken of the scores themselves."""
    step = make_step([(80, 1), (0, 20)], kv_heads=1, dtype=torch.float32)
    assert distance(attend(step, None, soft_cap, 1e3), step.truth(1e3, None, soft_cap)) < 1e-4


@pytest.mark.parametrize("window", [None, 40])
def test_the_reference_computes_the_same(make_step, window):
    mix = MIXES["a mixed step"] + MIXES["padding"]
    step = make_step(mix, kv_heads=1, cache_dtype=torch.float8_e4m3fn).with_sink()
    arguments = (step.query.float(), step.key_cache, step.value_cache, step.layout, 0.3, window, 5.0)
    truth = reference_attention.paged_attention(*arguments).double()
    assert distance(attend(step, window, 5.0), truth) < TOLERANCES[torch.float16]


def test_only_counts_of_new_tokens_are_read_on_the_host(make_step):
    """A captured step is replayed with the lengths that stand on the device."""
    step = make_step([(150, 1), (-1, 1), (20, 1)])
    blind = replace(step, layout=replace(step.layout, host_seq_lens=()))
    assert distance(attend(blind), step.truth(0.3)) < TOLERANCES[torch.float16]


def test_a_text_that_holds_no_numbers_spoils_no_other(make_step):
    step = make_step([(30, 1), (70, 1), (20, 9), (64, 7)], kv_heads=1)
    for sequence in (1, 3):
        step.key_cache[step.layout.block_tables[sequence, 0]] = torch.nan
    output = attend(step).flatten(1)
    assert output.isnan().all(1).tolist() == [False, True] + [False] * 9 + [True] * 7
    assert output.isnan().any(1).tolist() == [False, True] + [False] * 9 + [True] * 7


def part_of(step, sequence, new):
    """Return the step of some of a sequence's new tokens: it ends with the last of them."""
    layout, first = step.layout, step.layout.query_start_loc[sequence].item()
    total = layout.host_seq_lens[sequence] - layout.host_query_lens[sequence] + new.stop
    alone = replace(
        layout,
        block_tables=layout.block_tables[sequence : sequence + 1],
        query_start_loc=torch.tensor([0, new.stop - new.start], dtype=torch.int32),
        seq_lens=torch.tensor([total], dtype=torch.int32),
        host_query_lens=(new.stop - new.start,),
        host_seq_lens=(total,),
    )
    return replace(step, query=step.query[first + new.start : first + new.stop], layout=alone)


def test_computed_in_chunks_or_at_once(make_step):
    """Tokens behind a prefix that was computed earlier attend as they would if all were computed now."""
    step = make_step([(0, 150)], kv_heads=1)
    parts = [attend(part_of(step, 0, range(*ends))) for ends in ((0, 17), (17, 80), (80, 149), (149, 150))]
    assert distance(torch.cat(parts), attend(step).double()) < TOLERANCES[torch.float16]


def test_answers_do_not_depend_on_neighbours_where_no_text_is_parted(make_step, processors):
    """Bit for bit. Where few sequences decode, in how many parts their texts are read does depend on how many."""
    processors(1)
    step = make_step([(150, 1), (20, 1), (40, 30), (0, 12)])
    alone = [attend(part_of(step, sequence, range(new))) for sequence, new in enumerate(step.layout.host_query_lens)]
    assert torch.equal(torch.cat(alone), attend(step))


@pytest.mark.parametrize("lengths", [[(20, 1)], [(10, 8)]])
def test_blocks_lie_beyond_32_bits(make_step, lengths):
    """Their places in elements overflow 32 bits; pages that nobody touches take no memory."""
    step = make_step(lengths, head_dim=128, kv_heads=4, block_size=32, group=1, cache_dtype=torch.float8_e4m3fn)
    far = 2**31 // step.key_cache[0].numel() + 3
    caches = []
    for cache in (step.key_cache, step.value_cache):
        wide = torch.empty((far + len(cache), *cache.shape[1:]), dtype=cache.dtype)
        wide[far:] = cache
        caches.append(wide)
    tables = step.layout.block_tables.clone()
    tables[:, :1] += far
    layout = replace(step.layout, block_tables=tables)
    distant = replace(step, key_cache=caches[0], value_cache=caches[1], layout=layout)
    assert distance(attend(distant), step.truth(0.3)) < TOLERANCES[torch.float16]


REAL_LENGTHS = {
    "one decode": [(16_000, 1)],
    "decodes": [(1000 + 37 * row, 1) for row in range(40)],
    "a prompt": [(0, 2048)],
    "a mixed step": [(3000, 1), (517, 1), (100, 900), (0, 333), (4000, 16)],
}


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", REAL_LENGTHS)
@pytest.mark.parametrize(
    ("head_dim", "group", "dtype", "cache_dtype", "window", "soft_cap"),
    [
        (128, 4, torch.bfloat16, torch.bfloat16, None, None),
        (128, 2, torch.bfloat16, torch.float8_e4m3fn, None, None),
        (64, 4, torch.float16, torch.float16, None, None),
        (64, 4, torch.float16, torch.float8_e4m3fn, 700, None),
        (256, 2, torch.bfloat16, torch.bfloat16, 1024, 50.0),
        (256, 2, torch.bfloat16, torch.float8_e4m3fn, None, None),
        (80, 7, torch.float16, torch.float16, None, None),
        (128, 4, torch.float32, torch.float32, None, None),
        (256, 4, torch.float32, torch.float32, 300, None),
    ],
)
@pytest.mark.usefixtures("poisoned_outputs")
def test_compiled_at_real_sizes(make_step, lengths, head_dim, group, dtype, cache_dtype, window, soft_cap):
    shape = {"head_dim": head_dim, "group": group, "kv_heads": 8 if head_dim < 256 else 4}
    step = make_step(REAL_LENGTHS[lengths], **shape, dtype=dtype, cache_dtype=cache_dtype, window=window)
    output = attend(step, window, soft_cap, head_dim**-0.5)
    truth = step.on(DEVICE).truth(head_dim**-0.5, window, soft_cap).cpu()
    assert distance(output, truth) < TOLERANCES[dtype]


@pytest.mark.gpu
def test_a_captured_step_is_replayed_with_other_texts(make_step):
    static, *steps = (
        make_step(lengths, seed=seed).on(DEVICE)
        for seed, lengths in enumerate(([(900, 1)] * 3, [(30, 1), (890, 1), (-1, 1)], [(800, 1), (-1, 1), (0, 1)]))
    )
    arguments = (static.query, static.key_cache, static.value_cache, static.layout, 0.1)
    triton_attention.paged_attention(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = triton_attention.paged_attention(*arguments)
    for step in steps:
        static.query.copy_(step.query)
        static.key_cache[: len(step.key_cache)] = step.key_cache
        static.value_cache[: len(step.value_cache)] = step.value_cache
        static.layout.block_tables[:, : step.layout.block_tables.shape[1]] = step.layout.block_tables
        static.layout.seq_lens.copy_(step.layout.seq_lens)
        output.fill_(torch.nan)
        graph.replay()
        assert distance(output.cpu(), step.truth(0.1).cpu()) < TOLERANCES[torch.float16]


@pytest.mark.gpu
def test_after_one_of_each_kind_nothing_compiles(make_step, monkeypatch):
    import triton

    compiled = []
    for lengths in ([(900, 1)], [(20, 1)] * 60, [(0, 40)]):
        attend(make_step(lengths, kv_heads=8))
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **kernel: compiled.append(kernel))
    for lengths in ([(3, 1)], [(500, 1)] * 16, [(90, 1)] * 17 + [(1, 33), (7, 1)], [(0, 1), (0, 16)], [(100, 700)]):
        attend(make_step(lengths, kv_heads=8))
    assert compiled == []
