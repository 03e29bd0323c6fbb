"""In bfloat16 on the device the engine is as near to the truth, float32, as transformers is."""

import pytest
import torch

pytestmark = pytest.mark.gpu

NEW_TOKENS = 48
LESS_OFTEN = 0.03
"""How much less often than transformers the engine may choose the truth's token."""
AS_NEAR = 1.5
"""How many times transformers' own distance from the truth ours may be."""
ROUNDING = 2e-3


def distance(output: torch.Tensor, truth: torch.Tensor) -> float:
    return float((output.double() - truth.double()).norm() / truth.double().norm())


@torch.inference_mode()
def teacher_forced(model, prompt, answer) -> torch.Tensor:
    """Return the logits [tokens, vocabulary] by which a model would choose each token of an answer."""
    text = torch.tensor([[*prompt, *answer]], device=model.device)
    return model(text, use_cache=False).logits[0, len(prompt) - 1 : -1].float()


def test_greedy_tokens_are_the_truths_as_often_as_transformers(
    any_model, loaded, answer, generate, prompts, record_property
):
    answers = answer(loaded(any_model.path), [(0, generate(prompt, NEW_TOKENS)) for prompt in prompts])
    rounded, truth = any_model.truth(torch.bfloat16), any_model.truth(torch.float32)
    ours, theirs, best = [], [], []
    for prompt, tokens in zip(prompts, answers.values(), strict=True):
        assert len(tokens) == NEW_TOKENS
        ours.append(torch.tensor(tokens))
        theirs.append(teacher_forced(rounded, prompt, tokens).argmax(-1).cpu())
        best.append(teacher_forced(truth, prompt, tokens).argmax(-1).cpu())
    said = {
        "engine and transformers": agreement(ours, theirs),
        "engine and truth": agreement(ours, best),
        "transformers and truth": agreement(theirs, best),
    }
    for name, value in said.items():
        record_property(f"top-1 agreement of {name}", value)
        print(f"top-1 agreement of {name}: {value:.3f}")
    assert said["engine and truth"] >= said["transformers and truth"] - LESS_OFTEN


def agreement(left, right) -> float:
    return float((torch.cat(left) == torch.cat(right)).double().mean())


def test_hidden_states_and_logits_are_as_near_to_the_truth_as_transformers(
    any_model, loaded, answer, generate, prompts, record_property
):
    prompt = prompts[-1]
    ours, ours_last = hidden_states(loaded(any_model.path), answer, generate(prompt, 1))
    theirs, theirs_last = states_of(any_model.truth(torch.bfloat16), prompt)
    truth, truth_last = states_of(any_model.truth(torch.float32), prompt)
    assert len(ours) == len(truth)
    names = [*(f"layer {number}" for number in range(len(ours))), "logits"]
    rows = zip(names, [*ours, ours_last], [*theirs, theirs_last], [*truth, truth_last], strict=True)
    far = {name: (distance(mine, right), distance(peer, right)) for name, mine, peer, right in rows}
    for name, (mine, peer) in far.items():
        record_property(name, mine)
        print(f"{name}: {mine:.5f} (transformers {peer:.5f})")
    assert all(mine <= AS_NEAR * peer + ROUNDING for mine, peer in far.values()), far


def hidden_states(model, answer, request) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the engine's residual stream after each layer but the last, and the logits after the last token."""
    states, logits = [], []
    decoder = model.runner.decoder
    hooks = [
        layer.register_forward_hook(lambda _, __, brought: states.append((brought[0] + brought[1]).clone()))
        for layer in decoder.layers[:-1]
    ]
    hooks.append(decoder.register_forward_hook(lambda _, __, hidden: logits.append(decoder.logits(hidden[-1:]))))
    answer(model, [(0, request)])
    for hook in hooks:
        hook.remove()
    return states, logits[0][0]


@torch.inference_mode()
def states_of(model, prompt) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the same of transformers, whose first state is the embedding and whose last one is normed."""
    text = torch.tensor([prompt], device=model.device)
    output = model(text, use_cache=False, output_hidden_states=True)
    return [state[0] for state in output.hidden_states[1:-1]], output.logits[0, -1]
