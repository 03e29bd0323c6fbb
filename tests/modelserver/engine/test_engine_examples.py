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
    [
        {},
        {"max_seqs": 1},
        {"max_batched_tokens": 5},
        {"context_len": 160, "block_size": 8},
        {"paged_attention": "off"},
        {"no_kv_cache": True},
    ],
    ids=["batched", "alone", "chunked", "preempted", "equal_lengths", "without_a_cache"],
)
def test_answers_are_transformers(example, stepped_engine, generate, settings):
    path, prompts, expected = example
    engine = stepped_engine(path, **settings)
    messages = [generate(prompt, COUNT) for prompt in prompts]
    answers = engine.answer([(0, message) for message in messages])
    assert [answers[message.request_id] for message in messages] == expected
    assert (engine.scheduler.preemptions > 0) == ("context_len" in settings)


@pytest.mark.parametrize("paged_attention", ["on", "off"])
def test_a_prompt_found_in_the_cache_gets_the_same_answer(  # bug 16
    example, stepped_engine, generate, paged_attention
):
    path, prompts, expected = example
    engine = stepped_engine(path, block_size=8, paged_attention=paged_attention)
    for _ in range(2):
        for prompt, answer in zip(prompts, expected, strict=True):
            message = generate(prompt, 5)
            assert engine.answer([(0, message)]) == {message.request_id: answer[:5]}
    asked, found = engine.scheduler.prefixes.lookups, engine.scheduler.prefixes.hits
    again = sum((len(prompt) - 1) // 8 * 8 for prompt in prompts)
    assert asked == 2 * sum(map(len, prompts))
    assert again <= found < asked


@pytest.mark.parametrize("cut", [1, 8, 9, 20])
def test_an_answer_goes_on_from_a_cached_beginning(example, stepped_engine, generate, cut):
    """A second turn finds the first one's prompt and answer, and continues as if computed from the start."""
    path, prompts, expected = example
    engine = stepped_engine(path, block_size=8)
    engine.answer([(0, generate(prompts[2], COUNT))])
    message = generate(prompts[2] + expected[2][:cut], COUNT - cut)
    assert engine.answer([(0, message)]) == {message.request_id: expected[2][cut:]}
    assert engine.scheduler.prefixes.hits == (len(prompts[2]) + cut - 1) // 8 * 8


@pytest.mark.parametrize("filters", [{}, {"top_k": 20, "top_p": 0.9}])
def test_a_seed_gives_the_same_answer_alone_and_among_others(example, stepped_engine, generate, filters):  # bug 39
    path, prompts, _ = example
    sampling = {"temperature": 1.2, "seed": 1234, **filters}
    [alone] = stepped_engine(path).answer([(0, generate(prompts[2], COUNT, **sampling))]).values()
    crowd = [generate(prompt, COUNT, temperature=1.5, seed=seed) for seed, prompt in enumerate(prompts)]
    among = generate(prompts[2], COUNT, **sampling)
    answers = stepped_engine(path, max_batched_tokens=11).answer([(i, m) for i, m in enumerate([*crowd, among])])
    assert answers[among.request_id] == alone
