"""What must not change a single token: graphs, planning ahead, neighbours, and sleep."""

import random

import pytest
import torch

from multimodel_server.engine.messages import Cancel

pytestmark = pytest.mark.gpu

NEW_TOKENS = 40
CHOICES = (
    {},
    {"temperature": 0.8, "seed": 11},
    {"temperature": 1.2, "seed": 12, "top_k": 40},
    {"temperature": 1.0, "seed": 13, "top_p": 0.9},
    {"temperature": 1.0, "seed": 14, "min_p": 0.02, "top_k": 200, "top_p": 0.95},
    {"temperature": 0.7, "seed": 15, "repetition_penalty": 1.2},
    {"logprobs": 3},
)


@pytest.fixture
def mixed_load(generate, prompts):
    """Return requests of every kind that come while others run, some of which are cancelled."""
    rng = random.Random(3)
    arrivals = []
    for number in range(30):
        request = generate(rng.choice(prompts), rng.randrange(1, NEW_TOKENS), **CHOICES[number % len(CHOICES)])
        came = rng.randrange(25)
        arrivals.append((came, request))
        if number % 10 == 9:
            arrivals.append((came + rng.randrange(1, 6), Cancel(request.request_id)))
    return arrivals


def kept(answers, arrivals):
    """Return the answers that nobody cancelled."""
    cancelled = {message.request_id for _, message in arrivals if isinstance(message, Cancel)}
    return {name: tokens for name, tokens in answers.items() if name not in cancelled}


def test_graphs_change_nothing(real_model, loaded, answer, mixed_load, monkeypatch):
    model = real_model("qwen3")
    with_graphs = answer(loaded(model.path), mixed_load)
    monkeypatch.setenv("MULTIMODEL_CUDA_GRAPHS", "0")
    without = answer(loaded(model.path), mixed_load)
    assert kept(with_graphs, mixed_load) == kept(without, mixed_load)


def test_planning_ahead_changes_nothing(real_model, loaded, answer, generate, prompts, monkeypatch):
    model = loaded(real_model("qwen3").path)
    requests = [generate(prompt, NEW_TOKENS, **CHOICES[row % len(CHOICES)]) for row, prompt in enumerate(prompts)]
    ahead = [answer(model, [(0, request)]) for request in requests]
    monkeypatch.setattr(model.runner, "ahead", 0)
    assert [answer(model, [(0, request)]) for request in requests] == ahead


def test_the_same_load_brings_the_same_answers(real_model, loaded, answer, mixed_load):
    path = real_model("llama").path
    first = answer(loaded(path), mixed_load)
    assert kept(answer(loaded(path), mixed_load), mixed_load) == kept(first, mixed_load)


def test_logits_after_waking_are_those_before(real_model, loaded, answer, generate, prompts):
    model = loaded(real_model("qwen3").path)
    logits = []
    hook = model.runner.decoder.register_forward_hook(
        lambda decoder, _, hidden: logits.append(decoder.logits(hidden[-1:]).clone())
    )
    before = answer(model, [(0, generate(prompts[-1], NEW_TOKENS))])["r0"]
    logits_before = logits[0]
    for number in range(1, 4):
        model.memory.sleep(keep_weights=number != 2)
        model.memory.wake(lambda: None)
        logits.clear()
        assert answer(model, [(0, generate(prompts[-1], NEW_TOKENS))])[f"r{number}"] == before
        assert torch.equal(logits[0], logits_before)
    hook.remove()


def test_a_sleeping_model_gives_the_device_back(real_model, loaded, device):
    model = loaded(real_model("llama").path)
    held = model.memory.arena.size + model.memory.cache.bytes
    awake, _ = torch.cuda.mem_get_info(device)
    model.memory.sleep(keep_weights=True)
    asleep, _ = torch.cuda.mem_get_info(device)
    assert asleep - awake >= held
    model.memory.wake(lambda: None)
    awake_again, _ = torch.cuda.mem_get_info(device)
    assert asleep - awake_again >= held


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """What Triton compiles from now on, with nothing left of what it compiled before."""
    triton = pytest.importorskip("triton")
    import sys

    for name, module in list(sys.modules.items()):
        if name.startswith("multimodel_server.kernels"):
            for value in vars(module).values():
                if isinstance(value, triton.JITFunction):
                    value.device_caches.clear()
    names: list[str] = []
    hook = lambda **told: names.append(told["repr"])  # noqa: E731
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", hook)
    return names


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_nothing_is_compiled_after_the_load(real_model, loaded, answer, mixed_load, compiled, family):
    model = loaded(real_model(family).path)
    assert compiled, "the load compiles"
    compiled.clear()
    answer(model, mixed_load)
    assert compiled == []
