"""The plain torch kernels against formulas in float64, over random layouts and poisoned caches."""

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from multimodel_server import kernels
from multimodel_server.kernels import PagedLayout, reference, reference_attention

KV_HEADS, HEADS, HEAD_DIM, BLOCKS = 2, 6, 12, 64


def random_layout(generator, block_size, lengths):
    """Return the layout of sequences given as (context, new tokens), with blocks in random order."""
    free = (torch.randperm(BLOCKS - 1, generator=generator) + 1).tolist()
    tables = [[free.pop() for _ in range(-(-(context + new) // block_size))] for context, new in lengths]
    width = max(map(len, tables)) + 1
    slots = [
        table[position // block_size] * block_size + position % block_size
        for (context, new), table in zip(lengths, tables, strict=True)
        for position in range(context, context + new)
    ]
    news = [new for _, new in lengths]
    totals = [context + new for context, new in lengths]
    return PagedLayout(
        block_tables=torch.tensor([table + [0] * (width - len(table)) for table in tables], dtype=torch.int32),
        query_start_loc=torch.tensor([0, *news]).cumsum(0).int(),
        seq_lens=torch.tensor(totals, dtype=torch.int32),
        slot_mapping=torch.tensor(slots),
        host_query_lens=tuple(news),
        host_seq_lens=tuple(totals),
    )


def naive_attention(query, texts, layout, scale, window, soft_cap):
    """Return attention computed token by token over contiguous keys and values."""
    output, token = torch.empty_like(query), 0
    for (keys, values), new, total in zip(texts, layout.host_query_lens, layout.host_seq_lens, strict=True):
        for position in range(total - new, total):
            for head in range(HEADS):
                shared = head // (HEADS // KV_HEADS)
                seen = slice(max(0, position + 1 - window), position + 1)
                scores = (keys[seen, shared] @ query[token, head]) * scale
                scores = (scores / soft_cap).tanh() * soft_cap if soft_cap else scores
                output[token, head] = scores.softmax(0) @ values[seen, shared]
            token += 1
    return output


@pytest.mark.parametrize("block_size", [8, 16])
@pytest.mark.parametrize(
    ("window", "soft_cap"), [(None, None), (1, None), (7, None), (16, 0.5), (40, None), (1000, None), (None, 0.5)]
)
@pytest.mark.parametrize(
    "lengths",
    [
        [(0, 1)],
        [(0, 40)],
        [(15, 1), (16, 1), (17, 1), (3, 1), (120, 1)],
        [(30, 1), (0, 9), (7, 1), (20, 13), (63, 1)],
        [(8, 8), (16, 16)],
        [(47, 1), (47, 1)],
    ],
)
def test_paged_attention_is_attention(block_size, lengths, window, soft_cap, monkeypatch):
    monkeypatch.setattr(reference_attention, "QUERY_TILE", 5)
    generator = torch.Generator().manual_seed(block_size + len(lengths))
    layout = random_layout(generator, block_size, lengths)
    shape = (BLOCKS, block_size, KV_HEADS, HEAD_DIM)
    key_cache, value_cache = torch.full(shape, torch.nan).double(), torch.full(shape, torch.nan).double()
    texts = []
    for table, total in zip(layout.block_tables.tolist(), layout.host_seq_lens, strict=True):
        keys, values = torch.randn((2, total, KV_HEADS, HEAD_DIM), generator=generator).double()
        texts.append((keys, values))
        owned = table[: -(-total // block_size)]
        for cache, text in ((key_cache, keys), (value_cache, values)):
            room = torch.zeros((len(owned) * block_size, KV_HEADS, HEAD_DIM)).double()
            room[:total] = text
            cache[owned] = room.view(len(owned), block_size, KV_HEADS, HEAD_DIM)
    key_cache[0] = value_cache[0] = 0.0  # the sink; every block of nobody stays NaN
    query = torch.randn((sum(layout.host_query_lens), HEADS, HEAD_DIM), generator=generator).double()

    attended = kernels.paged_attention(query, key_cache, value_cache, layout, 0.3, window, soft_cap)

    truth = naive_attention(query, texts, layout, 0.3, window or 10_000, soft_cap)
    torch.testing.assert_close(attended, truth, atol=1e-9, rtol=1e-9)


def test_a_window_reads_no_block_before_it():
    """Whatever stands there, even what is no number, cannot reach the tokens."""
    layout = random_layout(torch.Generator().manual_seed(0), 8, [(199, 1), (150, 10), (120, 1)])
    cache = torch.zeros((BLOCKS, 8, KV_HEADS, HEAD_DIM))
    for table, new, total in zip(layout.block_tables, layout.host_query_lens, layout.host_seq_lens, strict=True):
        cache[table[: (total - new + 1 - 16) // 8]] = torch.nan
    query = torch.zeros((12, HEADS, HEAD_DIM))
    assert kernels.paged_attention(query, cache, cache, layout, 0.3, 16).isfinite().all()


def test_write_kv_touches_only_its_slots():
    caches = torch.zeros((2, 4, 8, KV_HEADS, HEAD_DIM))
    keys, values = torch.randn((2, 3, KV_HEADS, HEAD_DIM))
    reference.write_kv(keys, values, caches[0], caches[1], torch.tensor([9, 31, 16]))
    for cache, written in ((caches[0], keys), (caches[1], values)):
        flat = cache.view(32, KV_HEADS, HEAD_DIM)
        assert torch.equal(flat[[9, 31, 16]], written)
        others = [slot for slot in range(32) if slot not in {9, 31, 16}]
        assert not flat[others].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("norm", "plus_one"), [(LlamaRMSNorm, False), (Gemma2RMSNorm, True)])
def test_rms_norm_is_transformers(dtype, norm, plus_one):
    hidden = torch.randn((5, 48)).to(dtype)
    theirs = norm(48, eps=1e-5).to(dtype)
    theirs.weight.data.normal_()
    assert torch.equal(kernels.rms_norm(hidden, theirs.weight, 1e-5, plus_one=plus_one), theirs(hidden))


@pytest.mark.parametrize("plus_one", [False, True])
def test_add_rms_norm_returns_the_sum_too(plus_one):
    hidden, residual, weight = torch.randn((3, 4, 48)).unbind(0)
    normed, total = kernels.add_rms_norm(hidden, residual, weight[0], 1e-5, plus_one=plus_one)
    assert torch.equal(total, hidden + residual)
    assert torch.equal(normed, kernels.rms_norm(total, weight[0], 1e-5, plus_one=plus_one))


def test_rotate_is_transformers():
    heads, angles = torch.randn((7, HEADS, HEAD_DIM)), torch.randn((7, HEAD_DIM // 2))
    doubled = torch.cat((angles, angles), dim=-1).unsqueeze(0)
    theirs, _ = apply_rotary_pos_emb(
        heads.transpose(0, 1)[None], heads.transpose(0, 1)[None], doubled.cos(), doubled.sin()
    )
    torch.testing.assert_close(reference.rotate(heads, angles.cos(), angles.sin()), theirs[0].transpose(0, 1))


def test_silu_mul():
    gate, up = torch.randn((2, 5, 80))
    torch.testing.assert_close(kernels.silu_mul(torch.cat((gate, up), dim=-1)), gate * gate.sigmoid() * up)


def test_rotate_leaves_the_dimensions_beyond_the_angles():
    heads, angles = torch.randn((7, HEADS, HEAD_DIM)), torch.randn((7, 4))
    turned = reference.rotate(heads, angles.cos(), angles.sin())
    assert torch.equal(turned[..., 8:], heads[..., 8:])
    torch.testing.assert_close(turned[..., :8], reference.rotate(heads[..., :8], angles.cos(), angles.sin()))


def test_gelu_mul():
    gate, up = torch.randn((2, 5, 80))
    theirs = ACT2FN["gelu_pytorch_tanh"](gate) * up
    torch.testing.assert_close(kernels.gelu_mul(torch.cat((gate, up), dim=-1)), theirs)


@pytest.mark.parametrize("tokens", [1, 9])
def test_mix_experts_is_the_sum_over_each_tokens_experts(tokens):
    experts, width, inner, per_token = 5, 12, 20, 3
    hidden, weights = torch.randn((tokens, width)), torch.rand((tokens, per_token))
    gate_up, down = torch.randn((experts, 2 * inner, width)), torch.randn((experts, width, inner))
    chosen = torch.stack([torch.randperm(4)[:per_token] for _ in range(tokens)])  # the last expert is never hit
    mixed = kernels.mix_experts(hidden, gate_up, down, chosen, weights, kernels.silu_mul)
    for token in range(tokens):
        products = [down[expert] @ kernels.silu_mul(gate_up[expert] @ hidden[token]) for expert in chosen[token]]
        truth = sum(weight * product for weight, product in zip(weights[token], products, strict=True))
        torch.testing.assert_close(mixed[token], truth, atol=1e-4, rtol=1e-4)
