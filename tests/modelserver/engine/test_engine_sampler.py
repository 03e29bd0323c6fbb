"""Sampling: greedy, exact support of the filters, the right frequencies, and nothing learnt from neighbours."""

import pytest
import torch

from multimodel_server.engine.messages import Sampling
from multimodel_server.engine.request import Request
from multimodel_server.engine.sampler import draw, sample, uniform

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 3.0, 1.0, -30.0, 0.5])
DRAWS = 1500


def request(position=0, **sampling):
    return Request("r", [1] * (3 + position), 3, Sampling(max_tokens=9, **sampling))


def support(**sampling):
    settings = Sampling(max_tokens=9, **{"temperature": 1.0, **sampling})
    return {draw(LOGITS, settings, position) for position in range(DRAWS)}


def test_temperature_zero_is_greedy():
    assert sample(torch.stack([LOGITS, -LOGITS]), [request(), request()]) == [4, 6]


@pytest.mark.parametrize(
    ("top_k", "kept"), [(1, {4}), (2, {4, 1}), (4, {4, 1, 2, 5}), (5, {4, 1, 2, 5, 7}), (8, None), (99, None)]
)
def test_top_k_keeps_exactly_the_k_most_probable(top_k, kept):
    assert support(top_k=top_k) == (kept or {0, 1, 2, 3, 4, 5, 7})


@pytest.mark.parametrize("top_p", [0.0, 1e-9, 0.3, 0.55, 0.8, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p):
    order = LOGITS.argsort(descending=True, stable=True).tolist()
    weights = LOGITS.double().softmax(0)[order]
    size = next(n for n in range(1, len(order) + 1) if weights[:n].sum() >= top_p)
    assert support(top_p=top_p) == set(order[:size])


def test_top_p_counts_what_top_k_left():
    # Of {4, 1}, token 4 has 73 %: it alone reaches 0.7. Of all tokens it has 54 %.
    assert support(top_k=2, top_p=0.7) == {4}
    assert support(top_p=0.7) == {4, 1}


def test_draws_have_the_softmax_frequencies():
    settings = Sampling(max_tokens=9, temperature=0.7, seed=11)
    counts = torch.zeros(len(LOGITS))
    for position in range(DRAWS):
        counts[draw(LOGITS, settings, position)] += 1
    expected = (LOGITS.double() / 0.7).softmax(0) * DRAWS
    likely = expected > 5
    chi_square = ((counts - expected) ** 2 / expected)[likely].sum()
    assert chi_square < 24.3  # 7 degrees of freedom: exceeded once in a thousand seeds


def test_numbers_are_uniform_and_differ_by_seed_and_position():
    numbers = torch.tensor([[uniform(seed, position) for position in range(100)] for seed in (-1, 0, 1, 2**63)])
    assert numbers.unique().numel() == numbers.numel()
    assert 0 <= numbers.min() <= numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.05
    assert (torch.histc(numbers, bins=10, min=0, max=1) > 20).all()


@pytest.mark.parametrize("filters", [{}, {"top_k": 50}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.9}])
def test_a_seed_gives_the_same_tokens_alone_and_among_others(filters):  # bug 39
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn((40, 300), generator=generator) * 3
    rows = [request(position, temperature=0.9, seed=5, **filters) for position in range(20)]
    others = [request(position, temperature=1.3, seed=77, top_k=7) for position in range(20)]
    alone = [sample(logits[row : row + 1], [rows[row]])[0] for row in range(20)]
    mixed = sample(logits, [*rows, *others])
    assert mixed[:20] == alone
    assert len(set(alone)) > 5


def test_each_position_of_a_request_draws_anew():
    tokens = [sample(LOGITS[None], [request(position, temperature=1.0)])[0] for position in range(50)]
    assert len(set(tokens)) > 2


def test_tokens_about_equally_probable_may_swap_ranks_without_changing_the_draw():
    settings = Sampling(max_tokens=9, temperature=1.0, top_k=3)
    nearly_tied = torch.tensor([1.0, 1.0 + 1e-6, 0.5, -9.0])
    swapped = torch.tensor([1.0 + 1e-6, 1.0, 0.5, -9.0])
    for position in range(200):
        assert draw(nearly_tied, settings, position) == draw(swapped, settings, position)


def test_a_tiny_temperature_is_almost_greedy_and_finite():
    assert support(temperature=1e-30) == {4}


def test_a_token_without_weight_is_never_drawn(monkeypatch):
    monkeypatch.setattr("multimodel_server.engine.sampler.uniform", lambda *_: 1 - 2.0**-53)
    settings = Sampling(max_tokens=9, temperature=1e-3)
    assert draw(torch.tensor([5.0, 1.0, 0.0]), settings, 0) == 0
