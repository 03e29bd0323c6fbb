"""Which value of a sampling setting counts."""

import json
from pathlib import Path

import pytest

from multimodel_api.openai import CompletionRequest
from multimodel_server.engine.messages import Sampling
from multimodel_server.text.sampling import GenerationDefaults, read_defaults, sampling


def chosen(defaults: dict[str, object] | None = None, **request: object) -> Sampling:
    return sampling(
        CompletionRequest.model_validate({"prompt": "a", **request}),
        GenerationDefaults.model_validate(defaults or {}),
        max_tokens=7,
        stop_token_ids=frozenset({1}),
    )


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
    defaults: dict[str, object], request_fields: dict[str, object], expected: tuple[float, float, int]
) -> None:
    got = chosen(defaults, **request_fields)
    assert (got.temperature, got.top_p, got.top_k) == expected
    assert (got.max_tokens, got.stop_token_ids) == (7, {1})


def test_a_seed_is_kept_and_a_missing_one_is_random() -> None:
    assert chosen(seed=-5).seed == -5
    assert chosen(seed=0).seed == 0
    assert chosen().seed != chosen().seed


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
