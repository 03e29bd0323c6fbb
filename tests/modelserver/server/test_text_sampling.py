"""Which value of a sampling setting counts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from multimodel_api.openai import CompletionRequest
from multimodel_server.engine.messages import Dry, Sampling
from multimodel_server.text.sampling import GenerationDefaults, read_defaults, sampling
from multimodel_server.text.tokenizer import TextTokenizer

MODEL = Path(__file__).parents[3] / "examples" / "models" / "scribe"


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.load(MODEL)


@pytest.fixture
def chosen(tokenizer: TextTokenizer) -> Callable[..., Sampling]:
    """Return the sampling of a completion whose model has such defaults and ends with token 1."""

    def choose(defaults: dict[str, object] | None = None, **request: object) -> Sampling:
        return sampling(
            CompletionRequest.model_validate_json(json.dumps({"prompt": "a", **request})),
            GenerationDefaults.model_validate(defaults or {}),
            tokenizer,
            max_tokens=7,
            stop_token_ids=frozenset({1}),
        )

    return choose


@pytest.mark.parametrize(
    ("defaults", "request_fields", "expected"),
    [
        ({}, {}, (1.0, 1.0, 0)),
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 20}, {}, (0.6, 0.9, 20)),
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 20}, {"temperature": 0.1, "top_p": 1, "top_k": 3}, (0.1, 1.0, 3)),
        ({"do_sample": False, "temperature": 0.6}, {}, (0.0, 1.0, 0)),
        ({"do_sample": False, "top_k": 5}, {"temperature": 0.5}, (0.5, 1.0, 5)),
        ({"do_sample": True}, {}, (1.0, 1.0, 0)),
        ({"top_k": -1, "temperature": None}, {}, (1.0, 1.0, 0)),
        ({}, {"temperature": 0}, (0.0, 1.0, 0)),
        ({}, {"temperature": 9e-8}, (0.0, 1.0, 0)),
        ({"temperature": 0.6}, {"temperature": None}, (0.6, 1.0, 0)),
    ],
)
def test_the_request_wins_over_the_model_over_the_server(
    chosen: Callable[..., Sampling],
    defaults: dict[str, object],
    request_fields: dict[str, object],
    expected: tuple[float, float, int],
) -> None:
    got = chosen(defaults, **request_fields)
    assert (got.temperature, got.top_p, got.top_k) == expected
    assert (got.max_tokens, got.stop_token_ids) == (7, {1})


def test_a_seed_is_kept_and_a_missing_one_is_random(chosen: Callable[..., Sampling]) -> None:
    assert chosen(seed=-5).seed == -5
    assert chosen(seed=0).seed == 0
    assert chosen().seed != chosen().seed


def test_without_a_word_nothing_is_filtered_or_penalised(chosen: Callable[..., Sampling]) -> None:
    assert chosen(seed=1) == Sampling(max_tokens=7, temperature=1.0, seed=1, stop_token_ids=frozenset({1}))


def test_the_model_may_set_min_p_and_repetition_penalty(chosen: Callable[..., Sampling]) -> None:  # bug 35
    model = {"min_p": 0.05, "repetition_penalty": 1.1, "presence_penalty": 1.0}
    got = chosen(model)
    assert (got.min_p, got.repetition_penalty, got.presence_penalty) == (0.05, 1.1, 0.0)
    got = chosen(model, min_p=0, repetition_penalty=1, presence_penalty=-0.5, frequency_penalty=2)
    assert (got.min_p, got.repetition_penalty, got.presence_penalty, got.frequency_penalty) == (0, 1, -0.5, 2)


def test_a_bias_names_tokens_as_text(chosen: Callable[..., Sampling]) -> None:
    assert chosen(logit_bias={"5": -100, "17": 1.5}).logit_bias == {5: -100.0, 17: 1.5}


def test_dry_has_the_published_defaults_and_breaks_at_the_last_token_of_each_text(
    chosen: Callable[..., Sampling], tokenizer: TextTokenizer
) -> None:
    assert chosen(dry_base=2, dry_multiplier=0).dry is None
    dry = chosen(dry_multiplier=0.8).dry
    assert dry is not None
    assert (dry.multiplier, dry.base, dry.allowed_length) == (0.8, 1.75, 2)
    assert dry.sequence_breaker_ids == {tokenizer.encode_rendered(f"a{text}")[-1] for text in '\n:"*'}
    settings = {"dry_multiplier": 1, "dry_base": 3, "dry_allowed_length": 5, "dry_sequence_breakers": []}
    assert chosen(**settings).dry == Dry(1.0, 3.0, 5, frozenset())


def test_ignore_eos_leaves_out_the_stop_tokens_of_the_model_alone(chosen: Callable[..., Sampling]) -> None:
    assert chosen(stop_token_ids=[8]).stop_token_ids == {1, 8}
    assert chosen(stop_token_ids=[8], ignore_eos=True).stop_token_ids == {8}


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [1, 2]}, {"eos_token_id": 3}, {1, 2}),
        ({"eos_token_id": 0}, {}, {0}),
        ({}, {"eos_token_id": [3]}, {3}),
        (None, {"eos_token_id": 3}, {3}),
        (None, {}, set()),
    ],
)
def test_end_tokens(
    tmp_path: Path, generation: dict[str, object] | None, config: dict[str, object], expected: set[int]
) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_defaults(tmp_path).eos_ids == expected
