"""Sampling: the filters of transformers, the right frequencies, nothing learnt from neighbours, faults kept apart."""

import itertools

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from multimodel_server.engine import sampler
from multimodel_server.engine.draw import draw, uniform
from multimodel_server.engine.messages import Dry, Sampling
from multimodel_server.engine.request import Request
from multimodel_server.engine.sampler import refusal, sample

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 3.0, 1.0, -30.0, 0.5])
DRAWS = 600
EVERY_OPTION = [
    {"temperature": 0.9},
    {"temperature": 0.9, "top_k": 50},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 0.9, "min_p": 0.05},
    {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
    {"presence_penalty": 1.5},
    {"frequency_penalty": -1.0, "temperature": 1.0},
    {"repetition_penalty": 1.3},
    {"dry": Dry(multiplier=2.0)},
    {"logit_bias": {3: 5.0, 7: -100.0}, "temperature": 1.0},
    {"logprobs": 4, "temperature": 0.7},
]


def request(position=0, prompt=(1, 1, 1), **sampling):
    answer = [index % 7 for index in range(position)]
    return Request("r", [*prompt, *answer], len(prompt), Sampling(max_tokens=99, **sampling))


def tokens(logits, requests):
    return [outcome.token for outcome in sample(logits, requests)]


def support(**sampling):
    settings = Sampling(max_tokens=9, **{"temperature": 1.0, **sampling})
    return {draw(LOGITS, settings, position) for position in range(DRAWS)}


def random_logits(rows, vocabulary, spread=3.0):
    return torch.randn((rows, vocabulary), generator=torch.Generator().manual_seed(vocabulary)) * spread


def test_temperature_zero_is_greedy():
    assert tokens(torch.stack([LOGITS, -LOGITS]), [request(), request()]) == [4, 6]


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


@pytest.mark.parametrize("spread", [0.5, 4.0])  # flat enough to sort everything for top-p, and not
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(0, 1.0, 0.0), (40, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1), (40, 0.9, 0.0), (40, 0.8, 0.2), (0, 0.9, 0.3)],
)
def test_the_filters_leave_the_distribution_that_those_of_transformers_leave(monkeypatch, spread, top_k, top_p, min_p):
    (logits,) = random_logits(1, 3000, spread)
    filters = LogitsProcessorList([TemperatureLogitsWarper(0.8)])
    filters += [TopKLogitsWarper(top_k)] if top_k else []
    filters += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    filters += [MinPLogitsWarper(min_p)] if min_p else []
    expected = filters(torch.empty((1, 0), dtype=torch.int64), logits[None].double())[0].softmax(dim=0).cumsum(dim=0)
    settings = Sampling(max_tokens=1, temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)
    for number in torch.linspace(0.0001, 0.9999, 200, dtype=torch.float64):
        monkeypatch.setattr("multimodel_server.engine.draw.uniform", lambda *_, number=number: number)
        drawn = draw(logits, settings, 0)
        before = expected[drawn - 1] if drawn else 0.0
        assert before - 1e-5 <= number <= expected[drawn] + 1e-5
        assert expected[drawn] > before


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


@pytest.mark.parametrize("option", EVERY_OPTION, ids=str)
def test_a_request_gets_the_same_alone_and_among_others(option):  # bugs 38 and 39
    logits = random_logits(40, 300)
    mine = [request(position, seed=5, **option) for position in range(20)]
    others = [request(row, seed=row, **other) for row, other in zip(range(20), itertools.cycle(EVERY_OPTION))]
    mixed = sample(logits, [*mine, *others])[:20]
    alone = [sample(logits[row : row + 1], [request(row, seed=5, **option)])[0] for row in range(20)]
    assert all(outcome.error is None for outcome in alone)
    assert [outcome.token for outcome in mixed] == [outcome.token for outcome in alone]
    for together, by_itself in zip(mixed, alone, strict=True):
        if "logprobs" in option:
            assert together.logprobs.logprob == pytest.approx(by_itself.logprobs.logprob, abs=1e-6)
            assert [token for token, _ in together.logprobs.top] == [token for token, _ in by_itself.logprobs.top]
        else:
            assert together.logprobs is None


def test_the_same_step_computed_again_chooses_the_same_token():
    # After a fault or a preemption; penalties and draws follow the request's tokens, not the calls.
    logits = random_logits(1, 300)
    again = request(5, temperature=1.0, seed=3, frequency_penalty=1.0, dry=Dry(multiplier=1.0))
    first = sample(logits, [again])
    assert first[0].token is not None
    assert [sample(logits, [again]) for _ in range(3)] == [first] * 3


def test_each_position_of_a_request_draws_anew():
    drawn = [tokens(LOGITS[None], [request(position, temperature=1.0)])[0] for position in range(50)]
    assert len(set(drawn)) > 2


def test_tokens_about_equally_probable_may_swap_ranks_without_changing_the_draw():
    settings = Sampling(max_tokens=9, temperature=1.0, top_k=3)
    nearly_tied = torch.tensor([1.0, 1.0 + 1e-6, 0.5, -9.0])
    swapped = torch.tensor([1.0 + 1e-6, 1.0, 0.5, -9.0])
    for position in range(200):
        assert draw(nearly_tied, settings, position) == draw(swapped, settings, position)


def test_a_tiny_temperature_is_almost_greedy_and_finite():
    assert support(temperature=1e-30) == {4}


@pytest.mark.parametrize("filters", [{}, {"top_k": 2}, {"top_p": 0.99}, {"min_p": 0.5}])
def test_a_token_without_weight_is_never_drawn(monkeypatch, filters):
    monkeypatch.setattr("multimodel_server.engine.draw.uniform", lambda *_: 1 - 2.0**-53)
    settings = Sampling(max_tokens=9, temperature=1e-3, **filters)
    assert draw(torch.tensor([5.0, 1.0, 0.0]), settings, 0) == 0


def test_a_bias_makes_and_unmakes_the_likeliest():
    assert tokens(LOGITS[None], [request(logit_bias={6: 100.0})]) == [6]
    assert tokens(LOGITS[None], [request(logit_bias={4: -100.0})]) == [1]


@pytest.mark.parametrize("token", [-1, 8, 10**9])
def test_a_bias_for_a_token_that_the_model_does_not_have_is_refused(token):
    assert refusal(Sampling(max_tokens=1, logit_bias={0: 1.0, 7: 1.0}), 8) is None
    problem = f"logit_bias names token {token}; the model's tokens are 0..7"
    assert refusal(Sampling(max_tokens=1, logit_bias={token: 1.0}), 8) == problem


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_end_their_request_alone(temperature, broken):
    logits = torch.stack([LOGITS, LOGITS, LOGITS])
    logits[1, 2] = broken
    outcomes = sample(logits, [request(), request(temperature=temperature), request()])
    assert [outcome.token for outcome in outcomes] == [4, None, 4]
    assert outcomes[1].error == "the model's logits are not finite"


def test_a_fault_in_choosing_ends_its_request_alone(monkeypatch):
    def fault(logits, sampling, position):
        if sampling.seed == 13:
            raise ArithmeticError("broken")
        return draw(logits, sampling, position)

    monkeypatch.setattr(sampler, "draw", fault)
    rows = [request(temperature=1.0, seed=seed, logprobs=1) for seed in (12, 13, 14)]
    first, second, third = sample(torch.stack([LOGITS] * 3), rows)
    assert second.error == "the sampler failed: ArithmeticError: broken"
    assert second.token is None is second.logprobs
    assert None not in (first.token, third.token, first.logprobs, third.logprobs)
