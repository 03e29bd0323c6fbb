"""Every architecture answers as transformers does: below and beyond its window, alone, batched, in chunks."""

import json
import shutil

import pytest
import torch

from multimodel_server.engine.batch import build_batch
from multimodel_server.engine.request import Request
from multimodel_server.engine.scheduler import Chunk

COUNT = 20
LENGTHS = (5, 70)


@pytest.fixture(scope="module")
def texts(prompts):
    return [prompts[-1][:length] for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(any_architecture, texts):
    return [any_architecture.generate(text, COUNT) for text in texts]


@pytest.fixture
def answers(any_architecture, stepped_engine, generate, texts):
    def answers(arrival_steps, **settings):
        messages = [generate(text, COUNT) for text in texts]
        engine = stepped_engine(any_architecture.path, **settings)
        by_id = engine.answer(list(zip(arrival_steps, messages, strict=True)))
        return [by_id[message.request_id] for message in messages]

    return answers


@pytest.fixture
def logprobs(stepped_engine, generate):
    """Return [tokens, vocabulary] of a text that is computed in chunks of the given sizes, the last one repeated."""

    @torch.inference_mode()
    def logprobs(path, text, sizes, **settings):
        engine = stepped_engine(path, **settings)
        decoder, block_size = engine.runner.decoder, engine.config.block_size
        request = Request.of(generate(text, 1))
        request.block_table = list(range(1, -(-len(text) // block_size) + 1))[::-1]
        rows, start, sizes = [], 0, list(sizes)
        while start < len(text):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            end = min(start + size, len(text))
            batch = build_batch([Chunk(request, start, end, end == len(text))], block_size, engine.runner.device)
            hidden = decoder(batch.token_ids, batch.positions, engine.runner.layers, batch.layout)
            rows.append(decoder.logits(hidden))
            start = end
        return torch.cat(rows).log_softmax(dim=-1)

    return logprobs


def test_alone(answers, expected):
    assert answers([0, 1000]) == expected


def test_with_others(answers, expected):
    assert answers([0, 3], block_size=8) == expected


def test_a_prompt_in_chunks_beside_another(answers, expected):
    assert answers([0, 0], max_batched_tokens=9) == expected


def test_preempted_and_then_found_in_the_prefix_cache(any_architecture, stepped_engine, generate, texts, expected):
    engine = stepped_engine(any_architecture.path, context_len=104, block_size=8)
    messages = [generate(text, COUNT) for text in texts]
    assert list(engine.answer([(0, message) for message in messages]).values()) == expected
    assert (engine.scheduler.preemptions > 0, engine.scheduler.prefixes.hits) == (True, 0)
    again = generate(texts[-1], COUNT)
    assert engine.answer([(0, again)])[again.request_id] == expected[-1]
    assert engine.scheduler.prefixes.hits == 64


@pytest.mark.parametrize("sizes", [(1000,), (7,), (16,), (69, 1), (3, 62, 5)])
def test_logprobs_of_a_whole_text(any_architecture, logprobs, texts, expected, sizes):
    text = texts[-1] + expected[-1]
    truth = any_architecture.logits(text).log_softmax(dim=-1)
    ours = logprobs(any_architecture.path, text, sizes)
    torch.testing.assert_close(ours, truth, atol=1e-4, rtol=0)


def test_a_served_context_within_the_original_keeps_short_factors(tiny_model, edit_json, logprobs, texts, tmp_path):
    tiny = tiny_model("phi3_long_partial")
    shutil.copytree(tiny.path, tmp_path, dirs_exist_ok=True)
    edit_json(tmp_path / "config.json", original_max_position_embeddings=128, pad_token_id=0, eos_token_id=0)
    theirs = type(tiny.model).from_pretrained(tmp_path, attn_implementation="eager")
    with torch.inference_mode():
        truth = theirs(torch.tensor([texts[-1]])).logits[0].log_softmax(dim=-1)
    assert (truth - tiny.logits(texts[-1]).log_softmax(dim=-1)).abs().max() > 1
    ours = logprobs(tmp_path, texts[-1], (30, 40), context_len=112)
    torch.testing.assert_close(ours, truth, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("variant", "older"),
    [
        (
            "gemma3",
            {
                "layer_types": None,
                "sliding_window_pattern": 2,
                "rope_parameters": None,
                "rope_theta": 2000.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "rope_local_base_freq": 50.0,
            },
        ),
        ("gemma2", {"layer_types": None, "rope_parameters": None, "rope_theta": 10_000.0, "tie_word_embeddings": None}),
        ("qwen2_late_windows", {"layer_types": None, "dtype": None, "torch_dtype": "float32"}),
        ("qwen3_moe", {"num_local_experts": None, "num_experts": 6, "rope_parameters": None, "rope_theta": 10_000.0}),
        ("smollm3_windowed", {"layer_types": None, "no_rope_layers": None, "tie_word_embeddings": None}),
    ],
)
def test_older_files_mean_the_same(tiny_model, edit_json, logprobs, texts, tmp_path, variant, older):
    tiny = tiny_model(variant)
    shutil.copytree(tiny.path, tmp_path, dirs_exist_ok=True)
    edit_json(tmp_path / "config.json", **older)
    truth = tiny.logits(texts[-1]).log_softmax(dim=-1)
    torch.testing.assert_close(logprobs(tmp_path, texts[-1], (70,)), truth, atol=1e-4, rtol=0)


def test_an_older_longrope_file_means_the_same(tiny_model, edit_json, logprobs, texts, tmp_path):
    tiny = tiny_model("phi3_long_partial")
    shutil.copytree(tiny.path, tmp_path, dirs_exist_ok=True)
    rope = json.loads((tiny.path / "config.json").read_text())["rope_parameters"]
    scaling = {"type": "su", "long_factor": rope["long_factor"], "short_factor": rope["short_factor"]}
    older = {"rope_theta": rope["rope_theta"], "rope_scaling": scaling, "partial_rotary_factor": 0.5}
    edit_json(tmp_path / "config.json", rope_parameters=None, **older)
    truth = tiny.logits(texts[-1]).log_softmax(dim=-1)
    torch.testing.assert_close(logprobs(tmp_path, texts[-1], (70,)), truth, atol=1e-4, rtol=0)
