"""The fused Triton kernels against formulas in float64: interpreted anywhere, compiled where there is a device."""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from multimodel_server.kernels import HeadNorms, reference, triton_activation, triton_heads, triton_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6
ERROR = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float8_e4m3fn: 0.06}
"""Of ‖output‖; a bfloat16 result may be rounded twice on its way."""
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


@pytest.fixture(autouse=True)
def rounding_interpreter(monkeypatch):
    """Have the interpreter round to narrow types as devices do: it cuts bfloat16 off, and carries wrongly in float8."""
    convert, narrow = interpreter._convert_float, {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn}

    def rounded(values, source, target, mode):
        if source != tl.float32 or target not in narrow:
            return convert(values, source, target, mode)
        bits = torch.int16 if target == tl.bfloat16 else torch.int8
        return torch.from_numpy(np.array(values)).to(narrow[target]).view(bits).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    with np.errstate(all="ignore"):  # Devices do not warn of infinities either.
        yield


def error(output, truth):
    assert output.shape == truth.shape
    return ((output.double() - truth).norm() / truth.norm()).item()


def random(generator, *shape, dtype=torch.float32, spread=1.0):
    return (torch.randn(shape, generator=generator) * spread).to(DEVICE, dtype)


def normed(hidden, weight, plus_one=False):
    unit = hidden.double() * torch.rsqrt(hidden.double().square().mean(-1, keepdim=True) + EPS)
    return unit * (weight.double() + plus_one)


def turned(heads, cos, sin):
    half = cos.shape[-1]
    cos, sin = cos.double().unsqueeze(1), sin.double().unsqueeze(1)
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("shape", [(3, 48), (1, 64), (2, 5, 257)])
def test_norms(shape, plus_one, dtype):
    generator = torch.Generator().manual_seed(shape[-1])
    hidden, residual = (random(generator, *shape, dtype=dtype, spread=30.0) for _ in range(2))
    weight = random(generator, shape[-1], dtype=dtype)
    given = hidden.clone(), residual.clone()

    alone = triton_norm.rms_norm(hidden, weight, EPS, plus_one=plus_one)
    output, total = triton_norm.add_rms_norm(hidden, residual, weight, EPS, plus_one=plus_one)

    assert alone.dtype == output.dtype == total.dtype == dtype
    assert error(alone, normed(hidden, weight, plus_one)) < ERROR[dtype]
    assert torch.equal(total, hidden + residual)
    assert error(output, normed(total, weight, plus_one)) < ERROR[dtype]
    assert torch.equal(hidden, given[0])
    assert torch.equal(residual, given[1])


def test_a_norm_of_heads_that_lie_apart():
    packed = random(torch.Generator().manual_seed(0), 3, 6, 32)
    heads, weight = packed[:, 1:4], torch.ones(32, device=DEVICE)
    assert error(triton_norm.rms_norm(heads, weight, EPS), normed(heads, weight)) < ERROR[torch.float32]


def test_a_norm_of_vectors_near_zero_is_damped():
    tiny, weight = torch.full((1, 16), 1e-4, device=DEVICE), torch.ones(16, device=DEVICE)
    assert error(triton_norm.rms_norm(tiny, weight, EPS), normed(tiny, weight)) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 80), (3, 2 * 1030), (2, 3, 64)])
def test_gates(shape, dtype):
    gate_up = random(torch.Generator().manual_seed(shape[-1]), *shape, dtype=dtype, spread=4.0)
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert error(triton_activation.silu_mul(gate_up), gate * gate.sigmoid() * up) < ERROR[dtype]
    gelu = torch.nn.functional.gelu(gate, approximate="tanh")
    assert error(triton_activation.gelu_mul(gate_up), gelu * up) < ERROR[dtype]


def test_gates_of_extremes_are_numbers():
    gate_up = torch.tensor([[-1e30, -200.0, 200.0, 1e30, 1.0, 1.0, 1.0, 1.0]], device=DEVICE)
    for gate in (triton_activation.silu_mul, triton_activation.gelu_mul):
        assert gate(gate_up).tolist() == [[0.0, 0.0, 200.0, pytest.approx(1e30)]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "half", "norms"),
    [
        (4, 4, 64, 32, None),
        (6, 2, 96, 48, False),  # no power of two
        (9, 3, 80, 10, False),  # some dimensions are not turned
        (16, 2, 128, 0, True),  # none is
        (3, 1, 256, 128, True),
        (5, 1, 64, 0, None),
    ],
)
def test_heads_are_normed_turned_and_stored(heads, kv_heads, head_dim, half, norms, dtype):
    check_heads(heads, kv_heads, head_dim, half, norms, dtype, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float8_cache_takes_the_nearest_of_its_finite_numbers(dtype):
    caches = check_heads(4, 2, 64, 32, None, dtype, torch.float8_e4m3fn, spread=300.0)
    assert caches.float().abs().max() == 448.0


def check_heads(heads, kv_heads, head_dim, half, plus_one, dtype, cache_dtype, spread=1.0):
    """Compare with float64; `plus_one` None has no norms. Return the caches."""
    tokens, blocks, block_size = 5, 3, 8
    generator = torch.Generator().manual_seed(head_dim + half)
    packed = random(generator, tokens, heads + 2 * kv_heads, head_dim, dtype=dtype, spread=spread)
    weights = [random(generator, head_dim, dtype=dtype) for _ in range(2)]
    norms = None if plus_one is None else HeadNorms(*weights, EPS, plus_one)
    angles = random(generator, tokens, half)
    rotation = (angles.cos(), angles.sin()) if half else None
    slots = torch.randperm(blocks * block_size, generator=generator)[:tokens].to(DEVICE)
    before = random(generator, 2, blocks, block_size, kv_heads, head_dim).to(cache_dtype)
    caches = before.clone()

    query = triton_heads.prepare_heads(packed, heads, norms, rotation, *caches, slots)

    asked, keys, values = packed.double().split((heads, kv_heads, kv_heads), dim=1)
    if norms is not None:
        asked, keys = (normed(part, weight, plus_one) for part, weight in zip((asked, keys), weights, strict=True))
    if rotation is not None:
        asked, keys = turned(asked, *rotation), turned(keys, *rotation)
    assert query.is_contiguous()
    assert query.dtype == dtype
    assert error(query, asked) < ERROR[dtype]
    untouched = torch.ones(blocks * block_size, dtype=torch.bool, device=DEVICE).index_fill(0, slots, value=False)
    for cache, old, truth in zip(caches.float(), before.float(), (keys, values), strict=True):
        flat = cache.flatten(0, 1)
        assert error(flat[slots], truth.clamp(-448, 448) if cache_dtype != dtype else truth) < ERROR[cache_dtype]
        assert torch.equal(flat[untouched], old.flatten(0, 1)[untouched])
    same = before.clone()
    assert error(query, reference.prepare_heads(packed, heads, norms, rotation, *same, slots).double()) < ERROR[dtype]
    assert error(caches.float(), same.double()) < ERROR[dtype]
    return caches


def test_padding_rows_may_share_a_slot():
    packed, slots = torch.ones(3, 4, 16, device=DEVICE), torch.tensor([0, 9, 0], device=DEVICE)
    caches = torch.zeros(2, 2, 8, 1, 16, device=DEVICE)
    triton_heads.prepare_heads(packed, 2, None, None, *caches, slots)
    assert caches.flatten(1, 2).any(dim=-1).squeeze().nonzero().tolist() == [[0, 0], [0, 9], [1, 0], [1, 9]]
