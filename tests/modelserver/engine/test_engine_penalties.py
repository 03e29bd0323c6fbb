"""Penalties against their definitions, as a request's answer grows."""

import random
from collections import Counter

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from multimodel_server.engine.messages import Dry, Sampling
from multimodel_server.engine.penalties import LONGEST_REPEAT, Penalties, Repeats

VOCABULARY = 60


def penalised(logits, prompt, answer, **sampling):
    penalties = Penalties(Sampling(max_tokens=1, **sampling), prompt)
    penalties.follow(answer)
    changed = logits.clone()
    penalties.apply(changed)
    return changed


@pytest.fixture
def text():
    """A prompt and an answer with repetitions, and logits of both signs."""
    chance = random.Random(5)
    prompt = [chance.randrange(20) for _ in range(90)]
    answer = [chance.randrange(10, 30) for _ in range(150)]
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(2)) * 3, prompt, answer


@pytest.mark.parametrize("penalty", [0.7, 1.3, 20.0])
def test_repetition_is_that_of_transformers_over_prompt_and_answer(text, penalty):
    logits, prompt, answer = text
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + answer]), logits[None].clone())[0]
    assert torch.allclose(penalised(logits, prompt, answer, repetition_penalty=penalty), expected)


def test_presence_and_frequency_count_the_answer_alone(text):
    logits, prompt, answer = text
    expected = logits.clone()
    for token, count in Counter(answer).items():
        expected[token] -= 0.5 + 0.25 * count
    changed = penalised(logits, prompt, answer, presence_penalty=0.5, frequency_penalty=0.25)
    assert torch.allclose(changed, expected)
    assert torch.equal(penalised(logits, prompt, [], presence_penalty=2.0, frequency_penalty=2.0), logits)


def test_repetition_comes_before_presence(text):
    logits, _, _ = text
    changed = penalised(logits, [], [7], repetition_penalty=2.0, presence_penalty=1.0)
    assert changed[7] == pytest.approx(float(logits[7] / 2 if logits[7] > 0 else logits[7] * 2) - 1)


def test_an_answer_followed_token_by_token_is_penalised_like_a_whole_one(text):
    logits, prompt, answer = text
    settings = {"repetition_penalty": 1.2, "frequency_penalty": 0.1, "dry": Dry(multiplier=0.8)}
    growing = Penalties(Sampling(max_tokens=1, **settings), prompt)
    for count, token in enumerate(answer, start=1):
        growing.follow([token])
        changed = logits.clone()
        growing.apply(changed)
        if count % 25 == 0:
            assert torch.equal(changed, penalised(logits, prompt, answer[:count], **settings))


def longest_by_definition(text, breakers):
    """For each token: the longest end of the text that stands before it somewhere, up to the last breaker."""
    longest = {}
    for place in range(1, len(text)):
        length = 0
        while length < min(place, LONGEST_REPEAT) and text[place - 1 - length] == text[-1 - length] not in breakers:
            length += 1
        if length and text[place] not in breakers:
            longest[text[place]] = max(length, longest.get(text[place], 0))
    return longest


@pytest.mark.parametrize("alphabet", [1, 2, 3, 8])
@pytest.mark.parametrize("breakers", [frozenset(), frozenset({1})])
def test_repeats_are_those_of_the_definition(alphabet, breakers):
    chance = random.Random(alphabet)
    for length in (1, 2, 3, 10, 63, 64, 65, 150):
        text = [chance.randrange(alphabet) for _ in range(length)]
        repeats = Repeats(Dry(multiplier=1.0, sequence_breaker_ids=breakers), text)
        assert repeats.longest() == longest_by_definition(text, breakers), text


def test_dry_grows_exponentially_from_the_allowed_length():
    logits = torch.zeros(10)
    prompt = [1, 2, 3, 4, 9, 1, 2, 3]  # 4 would be the fourth of a run repeated
    dry = Dry(multiplier=0.5, base=3.0, allowed_length=2)
    assert penalised(logits, prompt, [], dry=dry).tolist() == [0, 0, 0, 0, -0.5 * 3.0, 0, 0, 0, 0, 0]
    assert penalised(logits, prompt[:-1], [], dry=dry)[3] == -0.5
    assert torch.equal(penalised(logits, prompt[:-2], [], dry=dry), logits)  # a run of one is allowed


def test_a_very_long_repeat_stays_cheap_and_finite():  # a prompt of one token, ten thousand times
    dry = Dry(multiplier=100.0, base=10.0)
    changed = penalised(torch.zeros(10), [3] * 10_000, [], dry=dry)
    assert changed[3] < -1e30
    assert torch.isfinite(changed[[0, 1, 2, 4]]).all()


def test_nothing_is_penalised_by_neutral_settings():
    assert not Sampling(max_tokens=1).penalises
    assert Sampling(max_tokens=1, dry=Dry(multiplier=1.0)).penalises
