"""Every kernel at the sizes of real models against its definition in float64; outputs begin with no numbers in them."""

import math

import pytest
import torch

from multimodel_server import kernels
from multimodel_server.engine.products import room_of
from multimodel_server.kernels import HeadNorms, PagedLayout, SamplingRows, reference_sampling, triton_linear
from multimodel_server.kernels.linear_plan import Product, row_count, tilings

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

EPS = 1e-6
TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 6e-4, torch.float32: 2e-6}
"""Of one rounding; attention also rounds its weights."""
ATTENTION_TOLERANCE = {torch.bfloat16: 8e-3, torch.float16: 1.2e-3, torch.float32: 2e-3}
BLOCK_SIZE = 16
VOCABULARY = 151936
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
rows = pytest.mark.parametrize("tokens", [1, 7, 128, 4096])
widths = pytest.mark.parametrize("width", [1024, 2560, 4096])


@pytest.fixture
def poisoned(monkeypatch):
    """Have every tensor that is allocated without contents begin with no numbers in it."""
    for name in ("empty", "empty_like"):
        allocate = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *size, _allocate=allocate, **how: _poison(_allocate(*size, **how)))
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *size, **how: _poison(new_empty(*size, **how)))


def _poison(tensor):
    return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor


def distance(output, truth):
    """Return the relative error of the whole; what is no number is infinitely far."""
    error = float((output.double() - truth.double()).norm() / truth.double().norm())
    return error if math.isfinite(error) else math.inf


@pytest.fixture
def drawn(device):
    """Return what draws random tensors on the device."""
    generator = torch.Generator(device).manual_seed(9)

    def draw(*size, dtype=torch.bfloat16, scale=1.0):
        return (torch.randn(*size, generator=generator, device=device) * scale).to(dtype)

    return draw


def normed(hidden, weight, plus_one):
    wide = hidden.double()
    return wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * (weight.double() + plus_one)


@dtypes
@rows
@widths
@pytest.mark.parametrize("plus_one", [False, True])
def test_norms(drawn, tokens, width, dtype, plus_one):
    hidden, residual = drawn(tokens, width, dtype=dtype), drawn(tokens, width, dtype=dtype, scale=3.0)
    weight = drawn(width, dtype=dtype)
    bound = 2 * TOLERANCE[dtype]  # unit and weighted are rounded one after the other, as in transformers
    assert distance(kernels.rms_norm(hidden, weight, EPS, plus_one=plus_one), normed(hidden, weight, plus_one)) < bound
    total = hidden.double() + residual.double()
    output, kept = kernels.add_rms_norm(hidden, residual, weight, EPS, plus_one=plus_one)
    assert distance(kept, total) < TOLERANCE[dtype]
    assert distance(output, normed(kept, weight, plus_one)) < bound


@dtypes
@rows
@pytest.mark.parametrize("width", [3072, 9728, 12288])
def test_activations(drawn, tokens, width, dtype):
    gate_up = drawn(tokens, 2 * width, dtype=dtype, scale=2.0)
    gate, up = gate_up.double().chunk(2, dim=-1)
    bound = 2 * TOLERANCE[dtype]
    assert distance(kernels.silu_mul(gate_up), torch.nn.functional.silu(gate) * up) < bound
    assert distance(kernels.gelu_mul(gate_up), torch.nn.functional.gelu(gate, approximate="tanh") * up) < bound


@dtypes
@pytest.mark.parametrize("count", [1, 2, 7, 16, 32])
@pytest.mark.parametrize(
    ("outs", "width"), [(1024, 2048), (1024, 3072), (4096, 1024), (2560, 9728), (24576, 4096), (VOCABULARY, 1024)]
)
def test_products_of_few_rows(drawn, device, count, outs, width, dtype):
    rows, weight, bias = drawn(count, width, dtype=dtype), drawn(outs, width, dtype=dtype), drawn(outs, dtype=dtype)
    product = rows.double() @ weight.double().T
    for addend, truth in ((None, product), (bias, product + bias.double())):
        tried = tilings(Product.of(row_count(count), weight, addend), room_of(device))
        assert tried
        for tiling in tried:
            output = triton_linear.linear(rows, weight, addend, tiling=tiling)
            assert distance(output, truth) < TOLERANCE[dtype]
            assert torch.equal(output, triton_linear.linear(rows, weight, addend, tiling=tiling))


@pytest.mark.parametrize("count", [1, 16])
def test_products_that_begin_early_never_read_too_early(drawn, device, count):
    """A chain of products and norms, each of what the one before wrote: captured, and one by one."""
    weights = [drawn(4096, 4096, scale=1 / 64) for _ in range(8)]
    scale, hidden = drawn(4096), drawn(count, 4096)
    (tiling, *_) = tilings(Product.of(count, weights[0], None), room_of(device))

    def chain(between):
        content = hidden
        for weight in weights:
            content = kernels.rms_norm(content, scale, EPS)
            between()
            content = triton_linear.linear(content, weight, tiling=tiling)
            between()
        return content

    graph = torch.cuda.CUDAGraph()
    chain(torch.cuda.synchronize)
    with torch.cuda.graph(graph):
        output = chain(lambda: None)
    for _ in range(50):
        hidden.copy_(drawn(count, 4096))
        graph.replay()
        assert torch.equal(output, chain(torch.cuda.synchronize))


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(16, 8, 128), (32, 8, 128), (32, 8, 64), (8, 4, 256)])
@pytest.mark.parametrize("turned", [0, 0.5, 1])
@pytest.mark.parametrize("has_norms", [False, True])
@rows
def test_heads(drawn, device, heads, kv_heads, head_dim, turned, has_norms, tokens):
    packed = drawn(tokens, heads + 2 * kv_heads, head_dim)
    norms = HeadNorms(drawn(head_dim), drawn(head_dim), EPS, plus_one=False) if has_norms else None
    half = int(turned * head_dim) // 2
    angles = drawn(tokens, half, dtype=torch.float32, scale=10.0)
    blocks = tokens // BLOCK_SIZE + 2
    caches = [torch.full((blocks, BLOCK_SIZE, kv_heads, head_dim), 7.0, device=device).bfloat16() for _ in range(2)]
    slots = torch.randperm((blocks - 1) * BLOCK_SIZE, device=device)[:tokens] + BLOCK_SIZE
    rotation = (angles.cos(), angles.sin()) if half else None
    query = kernels.prepare_heads(packed, heads, norms, rotation, *caches, slots)
    split = packed.double().split((heads, kv_heads, kv_heads), dim=1)
    weights = (None, None) if norms is None else (norms.query_weight, norms.key_weight)
    truths = [prepared(part, weight, angles) for part, weight in zip(split[:2], weights, strict=True)]
    bound = 3 * TOLERANCE[torch.bfloat16]
    keys, values = (cache.view(-1, kv_heads, head_dim) for cache in caches)
    assert distance(query, truths[0]) < bound
    assert distance(keys[slots], truths[1]) < bound
    assert torch.equal(values[slots], packed[:, heads + kv_heads :])
    untouched = torch.ones(len(keys), dtype=torch.bool, device=device)
    untouched[slots] = False
    assert (keys[untouched] == 7.0).all()


def prepared(heads, weight, angles):
    """Return heads in float64, normed and turned."""
    heads = heads if weight is None else normed(heads, weight, False)
    half = angles.shape[1]
    cos, sin = angles.double().cos().unsqueeze(1), angles.double().sin().unsqueeze(1)
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


STEPS = {
    "one long text": [(16383, 1)],
    "many decode": [(900 + 3 * number, 1) for number in range(128)],
    "a prompt": [(0, 4096)],
    "a piece of a prompt": [(5000, 2048)],
    "all at once": [(1000, 1), (0, 700), (17, 1), (4000, 512), (16, 1), (0, 1), (2047, 33)],
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(16, 8, 128), (32, 8, 128), (32, 8, 64), (8, 4, 256)])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (512, None), (None, 30.0)])
@dtypes
def test_attention(drawn, device, step, heads, kv_heads, head_dim, window, soft_cap, dtype):
    lengths = STEPS[step]
    query, texts, caches, layout = laid_out(drawn, device, lengths, (heads, kv_heads, head_dim), dtype)
    output = kernels.paged_attention(query, *caches, layout, head_dim**-0.5, window, soft_cap)
    bound = ATTENTION_TOLERANCE[dtype]
    assert distance(output, attended(query, texts, lengths, window, soft_cap)) < bound


def test_attention_beyond_two_to_the_31_elements(drawn, device):
    lengths, heads = [(1000, 1), (300, 40)], (32, 8, 128)
    blocks = 2**31 // (BLOCK_SIZE * 8 * 128) + 200
    query, texts, caches, layout = laid_out(drawn, device, lengths, heads, torch.bfloat16, blocks)
    assert int(layout.block_tables[:, 0].min()) * BLOCK_SIZE * 8 * 128 > 2**31
    output = kernels.paged_attention(query, *caches, layout, 128**-0.5)
    assert distance(output, attended(query, texts, lengths, None, None)) < ATTENTION_TOLERANCE[torch.bfloat16]


def laid_out(drawn, device, lengths, heads, dtype, blocks=None):
    """Return queries, texts as [keys, values], and the caches that hold them, in blocks at the end in any order."""
    query_heads, kv_heads, head_dim = heads
    totals = [context + new for context, new in lengths]
    counts = [-(-total // BLOCK_SIZE) for total in totals]
    blocks = blocks or 1 + sum(counts)
    order = (torch.randperm(sum(counts)) + blocks - sum(counts)).to(device)
    caches = [torch.full((blocks, BLOCK_SIZE, kv_heads, head_dim), math.nan, dtype=dtype, device=device) for _ in "kv"]
    tables = torch.zeros((len(lengths), max(counts)), dtype=torch.int32, device=device)
    texts = []
    for row, (mine, total) in enumerate(zip(order.split(counts), totals, strict=True)):
        tables[row, : len(mine)] = mine
        slots = (mine.unsqueeze(1) * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=device)).flatten()[:total]
        texts.append([drawn(total, kv_heads, head_dim, dtype=dtype) for _ in caches])
        for cache, text in zip(caches, texts[-1], strict=True):
            cache.view(-1, kv_heads, head_dim)[slots] = text
    new = [count for _, count in lengths]
    layout = PagedLayout(
        block_tables=tables,
        query_start_loc=torch.tensor([0, *new], device=device).cumsum(0).int(),
        seq_lens=torch.tensor(totals, dtype=torch.int32, device=device),
        slot_mapping=torch.zeros(sum(new), dtype=torch.int64, device=device),
        host_query_lens=tuple(new),
        host_seq_lens=tuple(totals),
    )
    return drawn(sum(new), query_heads, head_dim, dtype=dtype), texts, caches, layout


def attended(query, texts, lengths, window, soft_cap):
    """Return attention by its definition in float64, one head at a time."""
    outputs, start = [], 0
    for (context, new), (keys, values) in zip(lengths, texts, strict=True):
        asking = query[start : start + new].double()
        start += new
        own = torch.arange(context, context + new, device=query.device).unsqueeze(1)
        position = torch.arange(context + new, device=query.device)
        hidden = (position > own) | (position <= own - (window or context + new))
        group = query.shape[1] // keys.shape[1]
        heads = []
        for head in range(query.shape[1]):
            scores = asking[:, head] @ keys[:, head // group].double().T * query.shape[-1] ** -0.5
            scores = scores if soft_cap is None else (scores / soft_cap).tanh() * soft_cap
            heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ values[:, head // group].double())
        outputs.append(torch.stack(heads, dim=1))
    return torch.cat(outputs)


@pytest.mark.parametrize("batch", [1, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_choice_of_tokens_is_the_references(drawn, device, batch, dtype):
    logits = drawn(batch, VOCABULARY, dtype=dtype, scale=4.0)
    number = torch.arange(batch, device=device)
    settings = SamplingRows(
        temperature=torch.where(number % 4 == 0, 0.0, 0.5 + number % 3 * 0.4),
        top_k=(number % 5 * 20).int(),
        top_p=1.0 - number % 3 * 0.05,
        min_p=number % 2 * 0.01,
        seed=number * 12345 + 6,
        position=number % 17,
    )
    if batch > 1:
        logits[5] = math.nan
    settings = SamplingRows(*(field.float() if field.is_floating_point() else field for field in settings))
    ids = kernels.sample(logits, settings)
    assert torch.equal(ids, reference_sampling.sample(logits, settings))
    assert batch == 1 or ids[5] == -1
