"""The trained example models answer as they do in transformers, whoever else is being answered."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODELS = Path(__file__).parents[3] / "examples" / "models"
QUESTIONS = (
    "Hello!",
    "Who are you?",
    "What is 127 + 358?",
    "What time is it 50 minutes after 11:35?",
    "Count from 7 to 19.",
    "Spell the word harbour.",
    "Write lantern backwards.",
    "How many letters are in the word strawberry?",
)
COUNT = 24


@pytest.fixture(scope="module", params=["abacus", "scribe"])
def example(request):
    """A model's folder, its prompts, and transformers' greedy answers in float32."""
    path = MODELS / request.param
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    prompts, answers = [], []
    for question in QUESTIONS:
        talk = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        text = list(prompt)
        with torch.inference_mode():
            for _ in range(COUNT):
                text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
        prompts.append(prompt)
        answers.append(text[len(prompt) :])
    return path, prompts, answers


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_seqs": 1}, {"max_batched_tokens": 5}, {"context_len": 160, "block_size": 8}],
    ids=["batched", "alone", "chunked", "preempted"],
)
def test_answers_are_transformers(example, stepped_engine, generate, settings):
    path, prompts, expected = example
    engine = stepped_engine(path, **settings)
    messages = [generate(prompt, COUNT) for prompt in prompts]
    answers = engine.answer([(0, message) for message in messages])
    assert [answers[message.request_id] for message in messages] == expected
    assert (engine.scheduler.preemptions > 0) == ("context_len" in settings)


@pytest.mark.parametrize("filters", [{}, {"top_k": 20, "top_p": 0.9}])
def test_a_seed_gives_the_same_answer_alone_and_among_others(example, stepped_engine, generate, filters):  # bug 39
    path, prompts, _ = example
    sampling = {"temperature": 1.2, "seed": 1234, **filters}
    [alone] = stepped_engine(path).answer([(0, generate(prompts[2], COUNT, **sampling))]).values()
    crowd = [generate(prompt, COUNT, temperature=1.5, seed=seed) for seed, prompt in enumerate(prompts)]
    among = generate(prompts[2], COUNT, **sampling)
    answers = stepped_engine(path, max_batched_tokens=11).answer([(i, m) for i, m in enumerate([*crowd, among])])
    assert answers[among.request_id] == alone
