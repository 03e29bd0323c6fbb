"""Answers of which the first tokens are known: the engine goes on with them as it would have by itself."""

from collections.abc import Callable
from typing import Any

import pytest

from multimodel_server.engine.messages import Dry, Generate, Sampling
from multimodel_server.engine.request import Request

PROMPT = list(range(20, 50))
COUNT = 24
ENGINES: dict[str, dict[str, Any]] = {
    "paged": {},
    "small blocks and chunks": {"block_size": 8, "max_batched_tokens": 8},
    "no prefixes": {"prefix_cache_n": 0},
    "default scheduler": {"paged_attention": "off"},
    "no cache": {"no_kv_cache": True},
}
PENALISED = {"temperature": 1.0, "presence_penalty": 1.0, "repetition_penalty": 1.5, "dry": Dry(multiplier=1.0)}


def asked(name: str, output_ids: list[int], **sampling: Any) -> Generate:
    return Generate(name, PROMPT, Sampling(max_tokens=COUNT, seed=7, **sampling), output_ids=output_ids)


@pytest.mark.parametrize("settings", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("sampling", [{}, PENALISED], ids=["greedy", "penalised"])
def test_an_answer_goes_on_after_any_of_its_tokens(
    tiny_model: Callable[..., Any],
    stepped_engine: Callable[..., Any],
    settings: dict[str, Any],
    sampling: dict[str, Any],
) -> None:
    path = tiny_model("qwen3_tied_wide_heads").path
    whole = stepped_engine(path, **settings).answer([(0, asked("whole", [], **sampling))])["whole"]
    assert len(whole) == COUNT
    engine = stepped_engine(path, **settings)
    requests = [(length, asked(f"after {length}", whole[:length], **sampling)) for length in range(COUNT)]
    answers = engine.answer(requests)
    assert answers == {f"after {length}": whole[length:] for length in range(COUNT)}
    assert set(engine.finished.values()) == {"length"}


def test_answers_that_go_on_outlive_preemption(
    tiny_model: Callable[..., Any], stepped_engine: Callable[..., Any]
) -> None:
    path = tiny_model("qwen3_tied_wide_heads").path
    whole = stepped_engine(path).answer([(0, asked("whole", [], temperature=1.0))])["whole"]
    engine = stepped_engine(path, block_size=8, context_len=88, prefix_cache_n=0)
    answers = engine.answer([(0, asked(name, whole[:5], temperature=1.0)) for name in "ab"])
    assert answers == {"a": whole[5:], "b": whole[5:]}
    assert engine.scheduler.preemptions


def test_prompt_and_known_tokens_are_found_in_the_prefix_cache(
    tiny_model: Callable[..., Any], stepped_engine: Callable[..., Any]
) -> None:
    engine = stepped_engine(tiny_model("qwen3_tied_wide_heads").path, block_size=8)
    whole = engine.answer([(0, asked("whole", []))])["whole"]
    before = engine.scheduler.prefixes.hits
    assert engine.answer([(0, asked("rest", whole[:20]))])["rest"] == whole[20:]
    assert engine.scheduler.prefixes.hits - before == 48


def test_an_answer_that_has_all_its_tokens_is_refused(
    tiny_model: Callable[..., Any], stepped_engine: Callable[..., Any]
) -> None:
    engine = stepped_engine(tiny_model("qwen3_tied_wide_heads").path)
    refusal = engine.scheduler.refusal(Request.of(asked("a", [1] * COUNT)))
    assert refusal == "the answer has 24 tokens already; max_tokens is 24"
    assert "token ids outside" in engine.scheduler.refusal(Request.of(asked("a", [211])))
