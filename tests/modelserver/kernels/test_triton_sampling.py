"""The choice of tokens: right frequencies, exact filters, and Triton's ids equal to those of plain torch."""

import random

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from multimodel_server.kernels import SamplingRows, reference_sampling, triton_filters, triton_sampling
from multimodel_server.kernels.triton_filters import heights, least_kept, read_keys, token_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {"TILE": 64, "ROOM": 128, "CHUNK": 128}
TILE = SIZES["TILE"]
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0, "position": 0}
FILTERS = [
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 9, "top_p": 0.7},
    {"top_k": 60, "top_p": 0.95, "min_p": 0.02},
    {"top_k": 10_000, "top_p": 0.5},
    {"top_p": 0.0},
    {"top_p": 0.6},
    {"top_p": 0.999},
    {"top_p": 0.9, "min_p": 0.3},
    {"min_p": 0.05},
    {"min_p": 1.0},
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Have small vocabularies take many tiles, and more than one read of the list."""
    for name, size in SIZES.items():
        monkeypatch.setattr(triton_sampling, name, size)


@pytest.fixture(autouse=True)
def quick_interpreter(monkeypatch):
    """Have the interpreter take over the language once a launch, not at each call; devices warn of no infinities."""
    take_over, taken = interpreter._patch_lang, set()

    def take_over_once(function):
        modules = frozenset(id(value) for value in function.__globals__.values() if value is tl or value is tl.core)
        if modules in taken:
            return interpreter._LangPatchScope()
        scope, launches = take_over(function), not taken
        taken.add(modules)
        restore = scope.restore
        scope.restore = lambda: (launches and taken.clear(), restore())
        return scope

    monkeypatch.setattr(interpreter, "_patch_lang", take_over_once)
    with np.errstate(all="ignore"):
        yield


def settings(*rows):
    """Return rows of settings given by name, on this machine's device."""
    columns = zip(*({**PLAIN, **row}.values() for row in rows), strict=True)
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64, torch.int64)
    return SamplingRows(*(torch.tensor(column, dtype=dtype) for column, dtype in zip(columns, dtypes, strict=True)))


def ids(logits, rows):
    """Return Triton's choice, which must be that of plain torch."""
    logits, rows = logits.to(DEVICE), SamplingRows(*(column.to(DEVICE) for column in rows))
    chosen = triton_sampling.sample(logits, rows)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == reference_sampling.sample(logits, rows).tolist()
    return chosen.tolist()


def drawn(seed, *shape, spread=3.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread


def oracle(logits, top_k=0, top_p=1.0, min_p=0.0, temperature=1.0):
    """Return the tokens that stay, by sorting and summing in float64."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    weights = np.exp((np.array(logits) - max(logits)) / temperature)
    order = order[:top_k] if 0 < top_k < len(logits) else order
    if top_p < 1:
        total = weights[order].sum()
        size = next(n for n in range(1, len(order) + 1) if weights[order[:n]].sum() >= top_p * total)
        order = order[:size]
    return {token for token in order if weights[token] >= min_p}


def kept_by_reference(logits, rows):
    weights = (logits - logits.amax(dim=1, keepdim=True)) / rows.temperature.unsqueeze(1)
    return [set(row.nonzero().flatten().tolist()) for row in reference_sampling.kept(logits, weights, rows)]


@triton.jit
def _keep(
    logits, top_k, top_p, min_p, temperature, peaks, weights, listed, held, kept,
    vocabulary: tl.constexpr, tiles: tl.constexpr, padded_tiles: tl.constexpr, room: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    number = tl.arange(0, padded_tiles)
    peak = tl.max(heights(peaks, number, tiles), 0)
    weight = tl.sum(tl.load(weights + number, mask=number < tiles, other=0), 0)
    cut, has_list, length = least_kept(
        logits, listed, tl.load(held), weight, tl.load(top_k), tl.load(top_p), tl.load(min_p), tl.load(temperature),
        peak, 1.0 / tl.load(temperature), vocabulary, room, chunk,
    )  # fmt: skip
    for start in range(0, length, chunk):
        keys = read_keys(logits, listed, has_list, length, start, chunk)
        tl.store(kept + token_of(keys), 1, mask=keys >= cut)


def kept_by_triton(logits, row, monkeypatch):
    """Return the tokens among which a row's one is chosen."""
    kept = torch.zeros(len(logits), dtype=torch.int8, device=DEVICE)

    def keep(logits, temperature, top_k, top_p, min_p, *others, **sizes):
        _, _, peaks, _, _, weights, listed, held, _ = others
        sizes = {name: size for name, size in sizes.items() if name not in {"stride", "num_warps"}}
        _keep[(1,)](logits, top_k, top_p, min_p, temperature, peaks, weights, listed, held, kept, **sizes)

    monkeypatch.setattr(triton_sampling, "_choose", {(1,): keep})
    triton_sampling.sample(logits[None].to(DEVICE), SamplingRows(*(column.to(DEVICE) for column in row)))
    return set(kept.nonzero().flatten().tolist())


def test_random_words_are_philox():
    """The known answers that its authors publish."""
    cases = [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, answer in cases:
        words = reference_sampling.philox(*(tuple(map(torch.tensor, numbers)) for numbers in (counter, key)))
        assert " ".join(f"{int(word):08x}" for word in words) == answer


def test_arrivals_are_exponential_and_precise_where_they_are_early():
    words = torch.cat((torch.arange(2000), 2 ** torch.arange(1, 32), 2**32 - 1 - torch.arange(2000)))
    times = reference_sampling.exponential(words).double()
    truth = -torch.log1p(-(words.double() + 0.5) * 2.0**-32)
    assert times.isfinite().all()
    assert (times > 0).all()
    assert ((times - truth).abs() / truth)[words < 2**31].max() < 1e-6
    sample = reference_sampling.arrivals(torch.arange(40), torch.arange(40), 5000).double()
    assert abs(sample.mean() - 1) < 0.01
    assert abs(sample.var() - 1) < 0.02


@pytest.mark.parametrize("row", [{}, {"temperature": 0.6}, {"top_k": 9, "top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_draws_have_the_frequencies_of_the_weights(row):
    draws, (logits,) = 40_000, drawn(5, 1, 40, spread=1.5)
    rows = settings(*({**row, "seed": 11 + number % 2, "position": number // 2} for number in range(draws)))
    counts = torch.bincount(reference_sampling.sample(logits.expand(draws, -1), rows), minlength=40).double()
    stays = torch.zeros(40, dtype=torch.bool)
    stays[list(oracle(logits.tolist(), **row))] = True
    weights = (logits.double() / row.get("temperature", 1.0)).exp() * stays
    expected = weights / weights.sum() * draws
    assert not counts[~stays].any()
    likely = expected > 5
    freedom = int(likely.sum()) - 1
    chi_square = ((counts - expected) ** 2 / expected)[likely].sum()
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("row", FILTERS, ids=str)
def test_the_filters_of_plain_torch_keep_what_sorting_keeps(row, ties):
    logits = drawn(1, 30, 300)
    logits = logits.round() if ties else logits
    kept = kept_by_reference(logits, settings(*[row] * len(logits)))
    assert kept == [oracle(line, **row) for line in logits.double().tolist()]


@pytest.mark.parametrize("row", FILTERS, ids=str)
def test_the_filters_of_triton_keep_what_sorting_keeps(row, monkeypatch):
    draw = random.Random(str(row))
    for vocabulary, spread in ((50, 3.0), (300, draw.choice([0.2, 3.0]))):
        (logits,) = drawn(draw.randrange(99), 1, vocabulary, spread=spread)
        logits = logits.round() if draw.random() < 0.5 else logits
        logits[draw.randrange(vocabulary)] = -torch.inf
        assert kept_by_triton(logits, settings(row), monkeypatch) == oracle(logits.double().tolist(), **row)


@pytest.mark.skipif(DEVICE == "cuda", reason="a compiled kernel keeps its constants")
@pytest.mark.parametrize("tail", [1e-6, 1e-2, 1.0])
def test_a_list_that_lacks_tokens_is_not_believed(tail, monkeypatch):
    monkeypatch.setattr(triton_filters, "MOST_TAIL", tl.constexpr(tail))
    (logits,), row = drawn(8, 1, 200), {"top_p": 0.9}
    assert kept_by_triton(logits, settings(row), monkeypatch) == oracle(logits.double().tolist(), **row)


@pytest.mark.parametrize("row", [{"top_k": 70}, {"top_p": 0.5}, {"top_k": 200, "top_p": 0.9}], ids=str)
def test_of_equal_tokens_the_first_ones_stay(row, monkeypatch):
    """Also where more stay than can be listed."""
    logits = torch.zeros(300)
    assert (
        kept_by_triton(logits, settings(row), monkeypatch)
        == oracle(logits.tolist(), **row)
        == set(range(kept_of_equals(**row)))
    )


def kept_of_equals(top_k=300, top_p=1.0):
    return round(top_k * top_p)


@pytest.mark.parametrize(("dtype", "count"), [(torch.float32, 8), (torch.bfloat16, 3), (torch.float16, 3)])
def test_triton_chooses_what_plain_torch_chooses(dtype, count):
    draw = random.Random(7)
    rows = [
        {
            "temperature": draw.choice([0.0, 0.3, 1.0, 1.7]),
            **draw.choice([{}, {}, *FILTERS]),
            "seed": draw.randrange(-(2**63), 2**63),
            "position": draw.randrange(2**40),
        }
        for _ in range(count)
    ]
    chosen = ids(drawn(2, count, 200).to(dtype), settings(*rows))
    assert len(set(chosen)) > 1


def test_every_common_vocabulary_has_a_last_token():
    logits = torch.zeros(3, 2 * TILE + 1)
    logits[:, -1] = 50.0
    assert ids(logits, settings({"temperature": 0.0}, {}, {"top_k": 3})) == [2 * TILE] * 3


def test_a_row_is_chosen_alike_whatever_its_neighbours():
    rows = [{**row, "seed": number, "position": 3} for number, row in enumerate([{}, {"top_k": 5}, {"top_p": 0.8}])]
    logits = drawn(3, 3, 200)
    together = ids(logits, settings(*rows))
    assert ids(logits.flip(0), settings(*reversed(rows))) == together[::-1]
    assert [ids(logits[row : row + 1], settings(rows[row]))[0] for row in range(3)] == together


def test_seeds_and_positions_draw_anew():
    changed = [{"seed": 1}, {"seed": 2**32}, {"seed": -1}, {"position": 1}, {"position": 2**32}, {}]
    chosen = ids(torch.zeros(6, 300), settings(*changed))
    assert len(set(chosen)) == 6


def test_temperature_zero_takes_the_first_of_the_likeliest():
    logits = torch.zeros(2, 4 * TILE)
    logits[0, [TILE - 1, TILE, 3 * TILE]] = 1.0
    logits[1] = -0.0
    logits[1, 9] = 0.0
    assert ids(logits, settings(*[{"temperature": 0.0, "top_k": 5, "top_p": 0.1}] * 2)) == [TILE - 1, 0]


@pytest.mark.parametrize("row", [{}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.0}], ids=str)
def test_a_row_that_is_not_finite_has_no_token(row):
    logits = drawn(4, 4, 100)
    logits[1, 5] = torch.nan
    logits[2, 90] = torch.inf
    logits[3] = -torch.inf
    chosen = ids(logits, settings(*[row] * 4))
    assert [token == -1 for token in chosen] == [False, True, True, True]


@pytest.mark.parametrize("row", [{}, {"top_k": 90}, {"top_p": 0.99}, {"min_p": 0.01}], ids=str)
def test_masked_tokens_are_never_chosen(row):
    logits = torch.full((2, 3 * TILE), -torch.inf)
    logits[:, [70, 75]] = torch.tensor([-5.0, -5.5])
    assert set(ids(logits, settings(*({**row, "seed": seed} for seed in range(2))))) <= {70, 75}


@pytest.mark.parametrize("row", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_huge_logits_and_tiny_temperatures(row):
    logits = torch.zeros(3, 130)
    logits[0, [7, 120]] = torch.tensor([3e38, -3e38])
    logits[1] = -1e30
    logits[1, 129] = -1e29
    logits[2, 100] = 1e-3
    temperatures = (1.0, 5.0, 1e-30)
    rows = [{**row, "temperature": temperature} for temperature in temperatures]
    assert ids(logits, settings(*rows)) == [7, 129, 100]


def test_rows_may_lie_apart():
    wide = drawn(6, 2, 300)
    rows = settings({"seed": 1}, {"seed": 2, "top_k": 10})
    assert ids(wide[:, :170], rows) == ids(wide[:, :170].contiguous(), rows)
