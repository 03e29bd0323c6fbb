"""Log-probabilities against log-softmax, of answers and of whole prompts, however the prompt was cut into chunks."""

import msgspec
import pytest
import torch

from multimodel_server.engine import logprobs
from multimodel_server.engine.logprobs import token_logprobs
from multimodel_server.engine.messages import Sampling
from multimodel_server.engine.request import Request
from multimodel_server.engine.sampler import sample


def test_the_chosen_and_the_likeliest_are_those_of_log_softmax():
    logits = torch.randn((3, 50), generator=torch.Generator().manual_seed(1)) * 4
    expected = logits.double().log_softmax(dim=-1)
    for row, entry in enumerate(token_logprobs(logits, [3, 4, 5], [0, 2, 99])):
        assert entry.logprob == pytest.approx(float(expected[row, 3 + row]), abs=1e-5)
        best = expected[row].topk([0, 2, 50][row])
        assert [token for token, _ in entry.top] == best.indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_they_are_those_of_the_raw_logits():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    settings = Sampling(max_tokens=1, temperature=0.1, top_k=1, logit_bias={0: 100.0}, logprobs=1)
    (outcome,) = sample(logits, [Request("r", [1], 1, settings)])
    assert outcome.token == 0
    assert outcome.logprobs.logprob == pytest.approx(float(logits[0].log_softmax(0)[0]), abs=1e-6)
    assert outcome.logprobs.top[0][0] == 2


def test_only_rows_that_ask_get_them():
    logits = torch.randn((3, 20))
    asked = [None, 0, 5]
    requests = [Request(str(top), [1], 1, Sampling(max_tokens=1, logprobs=top)) for top in asked]
    entries = [outcome.logprobs for outcome in sample(logits, requests)]
    assert entries[0] is None
    assert [len(entry.top) for entry in entries[1:]] == [0, 5]


@pytest.mark.parametrize("budget", [4096, 7])
def test_an_echoed_prompt_has_those_of_transformers(tiny_model, stepped_engine, prompts, generate, monkeypatch, budget):
    monkeypatch.setattr(logprobs, "ROWS_AT_ONCE", 16)  # bug 25: never the whole prompt's logits at once
    tiny = tiny_model("qwen3_untied_biased")
    engine = stepped_engine(tiny.path, max_batched_tokens=budget)
    widest = 0
    compute = engine.runner.decoder.logits

    def watched(hidden):
        nonlocal widest
        widest = max(widest, len(hidden))
        return compute(hidden)

    monkeypatch.setattr(engine.runner.decoder, "logits", watched)
    for prompt in prompts:
        message = generate(prompt, 2, logprobs=1)
        engine.scheduler.add(Request.of(msgspec.structs.replace(message, prompt_logprobs=3)))
    told = []
    while engine.scheduler.has_work:
        told += engine.step()
    assert widest <= 16
    firsts = {len(tokens.prompt_logprobs): tokens for tokens in told if tokens.prompt_logprobs is not None}
    assert sum(tokens.prompt_logprobs is not None for tokens in told) == len(prompts)
    for prompt in prompts:
        expected = tiny.logits(prompt).log_softmax(dim=-1)
        entries = firsts[len(prompt) - 1].prompt_logprobs
        assert [entry.token_id for entry in entries] == prompt[1:]
        wanted = [float(expected[place, token]) for place, token in enumerate(prompt[1:])]
        assert [entry.logprob for entry in entries] == pytest.approx(wanted, abs=1e-4)
        assert all(len(entry.top) == 3 for entry in entries)
        first = firsts[len(prompt) - 1]
        assert first.logprobs[0].logprob == pytest.approx(float(expected[-1].max()), abs=1e-4)


def test_an_embedding_is_the_last_hidden_state_at_unit_length(tiny_model, stepped_engine, generate, prompts):
    tiny = tiny_model("llama_untied_scaled_rope")
    engine = stepped_engine(tiny.path, max_batched_tokens=32)
    engine.scheduler.add(Request.of(generate(prompts[1], 3)))  # an answer in the same steps
    embeds = {f"e{number}": prompt for number, prompt in enumerate(prompts)}
    for name, prompt in embeds.items():
        request = Request(name, list(prompt), len(prompt), Sampling(max_tokens=0), pools=True)
        engine.scheduler.add(request)
    vectors = {}
    while engine.scheduler.has_work:
        vectors |= {told.request_id: told.vector for told in engine.step() if hasattr(told, "vector")}
    for name, prompt in embeds.items():
        with torch.inference_mode():
            hidden = tiny.model.model(torch.tensor([prompt])).last_hidden_state[0, -1]
        expected = torch.nn.functional.normalize(hidden, dim=0)
        assert torch.allclose(torch.tensor(vectors[name]), expected, atol=1e-5)
