"""Greedy tokens equal transformers' on the same float32 weights, however the work is cut, mixed and repeated."""

import json

import pytest
import torch

from multimodel_server.engine.batch import build_batch
from multimodel_server.engine.request import Request
from multimodel_server.kernels import native

COUNT = 12


@pytest.fixture(scope="module")
def expected(any_tiny_model, prompts):
    return [any_tiny_model.greedy(prompt, COUNT) for prompt in prompts]


def _answers(engine, messages, arrival_steps=None):
    steps = arrival_steps or [0] * len(messages)
    answers = engine.answer(list(zip(steps, messages, strict=True)))
    return [answers[message.request_id] for message in messages]


def test_alone(any_tiny_model, stepped_engine, generate, prompts, expected):
    engine = stepped_engine(any_tiny_model.path)
    answers = [_answers(engine, [generate(prompt, COUNT)])[0] for prompt in prompts]
    assert answers == expected


def test_batched_at_once(any_tiny_model, stepped_engine, generate, prompts, expected):
    engine = stepped_engine(any_tiny_model.path)
    assert _answers(engine, [generate(prompt, COUNT) for prompt in prompts]) == expected
    assert engine.steps < 2 * COUNT


@pytest.mark.parametrize("block_size", [8, 16, 32])
def test_staggered_arrivals(any_tiny_model, stepped_engine, generate, prompts, expected, block_size):
    engine = stepped_engine(any_tiny_model.path, max_seqs=3, block_size=block_size)
    arrivals = [0, 0, 3, 4, 5, 5, 11, 30]
    assert _answers(engine, [generate(prompt, COUNT) for prompt in prompts], arrivals) == expected


@pytest.mark.parametrize("budget", [1, 7, 33])
def test_chunked_prefill_mixed_with_decoding(any_tiny_model, stepped_engine, generate, prompts, expected, budget):
    engine = stepped_engine(any_tiny_model.path, max_batched_tokens=budget)
    assert _answers(engine, [generate(prompt, COUNT) for prompt in prompts]) == expected


def test_preempted_and_computed_again(any_tiny_model, stepped_engine, generate, prompts, expected):
    engine = stepped_engine(any_tiny_model.path, context_len=104, block_size=8, max_batched_tokens=24)
    assert _answers(engine, [generate(prompt, COUNT) for prompt in prompts]) == expected
    assert engine.scheduler.preemptions > 0


def test_logits_of_a_mixed_batch_are_transformers(any_tiny_model, stepped_engine, generate, prompts):
    engine = stepped_engine(any_tiny_model.path)
    requests = [Request.of(generate(prompt, COUNT)) for prompt in prompts]
    for request in requests:
        engine.scheduler.add(request)
    engine.step()  # now all decode, each with another length of context
    chunks = engine.scheduler.schedule()
    batch = build_batch(chunks, engine.config.block_size, engine.runner.device)
    decoder = engine.runner.decoder
    hidden = decoder(batch.token_ids, batch.positions, engine.runner.layers, batch.layout)
    for row, request in enumerate(batch.sampled):
        truth = any_tiny_model.logits(request.token_ids)[-1]
        torch.testing.assert_close(decoder.logits(hidden)[row], truth, atol=1e-4, rtol=1e-4)


def test_sharded_weights_answer_the_same(tiny_model, stepped_engine, generate, prompts, tmp_path):
    tiny = tiny_model("qwen3_untied_biased")
    tiny.model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    [answer] = _answers(stepped_engine(tmp_path), [generate(prompts[5], COUNT)])
    assert answer == tiny.greedy(prompts[5], COUNT)


@pytest.mark.parametrize(("has_native_code", "held"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_weights_are_computed_with_in_float32(
    tiny_model, stepped_engine, generate, prompts, tmp_path, monkeypatch, has_native_code, held
):
    if not has_native_code:
        monkeypatch.setattr(native, "library", lambda: None)
    tiny = tiny_model("llama_untied_scaled_rope")
    rounded = type(tiny.model).from_pretrained(tiny.path, dtype=torch.bfloat16)
    rounded.save_pretrained(tmp_path)
    engine = stepped_engine(tmp_path)
    parameters = engine.runner.decoder.parameters()
    assert {parameter.dtype for parameter in parameters if parameter.ndim > 1} == {held}
    [answer] = _answers(engine, [generate(prompts[5], COUNT)])
    assert answer == type(tiny)(tmp_path, rounded.float()).greedy(prompts[5], COUNT)


def test_rope_settings_of_older_files_mean_the_same(tiny_model, stepped_engine, generate, prompts, tmp_path):
    tiny = tiny_model("llama_untied_scaled_rope")
    (tmp_path / "model.safetensors").write_bytes((tiny.path / "model.safetensors").read_bytes())
    config = json.loads((tiny.path / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling, "torch_dtype": config.pop("dtype")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    [answer] = _answers(stepped_engine(tmp_path), [generate(prompts[7], COUNT)])
    assert answer == tiny.greedy(prompts[7], COUNT)


@pytest.mark.parametrize("variant", ["qwen3_tied_wide_heads", "gemma2", "gemma3", "mixtral", "phi3"])
def test_bf16_arithmetic_agrees_on_most_tokens(tiny_model, stepped_engine, generate, prompts, variant):
    """Rounding may flip a close decision; a mistake would flip nearly all."""
    tiny = tiny_model(variant)
    engine = stepped_engine(tiny.path, dtype="bf16")
    engine.scheduler.add(Request.of(generate(prompts[7], COUNT)))
    batch = build_batch(engine.scheduler.schedule(), engine.config.block_size, engine.runner.device)
    decoder = engine.runner.decoder
    logits = decoder.logits(decoder(batch.token_ids, batch.positions, engine.runner.layers, batch.layout))
    agreement = (logits.argmax(-1) == tiny.logits(prompts[7]).argmax(-1)).float().mean()
    assert agreement > 0.85
