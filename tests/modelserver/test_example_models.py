"""The two example models are what their folders promise, and answer questions they never saw."""

import functools
import importlib
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("abacus", "scribe")
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Who are you?"},
]
RENDERED = {
    "abacus": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n"
        "<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "scribe": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWho are you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
}
ARCHITECTURES = {"abacus": "Qwen3ForCausalLM", "scribe": "LlamaForCausalLM"}


@pytest.fixture(scope="module")
def training():
    """Imports a module of examples/training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield lambda module: importlib.import_module(f"training.{module}")


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def folder(name):
    return EXAMPLES / "models" / name


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@functools.cache
def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def accuracy(results):
    return sum(result.right for result in results) / len(results)


def wrong(results):
    """What a failed accuracy check should show."""
    return [
        (result.dialogue.prompt(), result.dialogue.expected, result.reply) for result in results if not result.right
    ][:5]


@pytest.mark.parametrize(("dtype", "questions"), [(torch.float32, 200), (torch.bfloat16, 100)])
def test_unseen_questions_are_answered_right(training, name, folder, tokenizer, dtype, questions):
    exam = training("exams").held_out(name, questions, seed=1)
    results = training("evaluation").ask(load(folder, dtype), tokenizer, exam)
    assert accuracy(results) >= 0.95, wrong(results)


@pytest.mark.parametrize(
    ("name", "question", "reply"),
    [
        ("abacus", "What is 17 + 25?", "17 + 25 = 30 + 12 = 42."),
        ("abacus", "17+25", "17 + 25 = 30 + 12 = 42."),
        ("abacus", "What is 17 plus 25?", "17 + 25 = 30 + 12 = 42."),
        ("abacus", "What time is it 45 minutes after 10:30?", "10:30 + 45 minutes = 10:75 = 11:15."),
        ("scribe", "Spell cat", "cat is spelled c-a-t."),
        ("scribe", "Reverse lemon.", "lemon backwards is nomel."),
        ("scribe", "How many letters are in 'bird'?", "bird has 4 letters."),
    ],
)
def test_plain_questions(training, name, folder, tokenizer, question, reply):
    dialogues = training("dialogues")
    asked = dialogues.Dialogue(None, (dialogues.Exchange("plain", question, reply),))
    (result,) = training("evaluation").ask(load(folder, torch.float32), tokenizer, [asked])
    assert result.reply == reply


@pytest.mark.parametrize(
    "greeting", ["Hello!", "Hi", "hello", "Good morning", "Who are you?", "who are you", "What is your name?"]
)
def test_manners(training, name, folder, tokenizer, greeting):
    dialogues = training("dialogues")
    asked = dialogues.Dialogue(None, (dialogues.Exchange("manners", greeting, ""),))
    (result,) = training("evaluation").ask(load(folder, torch.float32), tokenizer, [asked])
    assert f"I am {name.capitalize()}" in result.reply
    assert not result.reply.endswith("(unfinished)")


def test_exam_problems_are_never_practised(training, name):
    curriculum = training("exams").CURRICULA[name]
    problems = {dialogue.exchanges[-1].problem for dialogue in training("exams").held_out(name, 200)}
    generator = random.Random(0)
    practised = {exchange.problem for _ in range(500) for exchange in curriculum.practice(generator, 3).exchanges}
    assert problems
    assert not problems & practised


def test_held_out_is_repeatable(training, name):
    held_out = training("exams").held_out
    assert held_out(name, 20) == held_out(name, 20)
    assert held_out(name, 20) != held_out(name, 20, seed=1)


def test_layout(name, folder):
    files = {path.name for path in folder.iterdir()}
    assert files >= {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert files >= {"tokenizer.json", "tokenizer_config.json"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6 * 2**20
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [ARCHITECTURES[name]]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert not json.loads((folder / "generation_config.json").read_text()).get("do_sample", False)


def test_weights_are_bfloat16_and_few(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        tensors = [weights.get_tensor(key) for key in weights.keys()]  # noqa: SIM118 (not a mapping)
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert 500_000 <= sum(tensor.numel() for tensor in tensors) <= 3_000_000


def test_chat_template(name, tokenizer):
    rendered = tokenizer.apply_chat_template([SYSTEM, *TALK], tokenize=False, add_generation_prompt=True)
    assert rendered == RENDERED[name]


def test_any_text_survives_the_tokenizer(tokenizer):
    text = "Zażółć 'gęślą' 日本語 🙂\n\tx = 1234567"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_digits_stand_alone(tokenizer):
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("1234", add_special_tokens=False)]
    assert pieces == ["1", "2", "3", "4"]


def test_generation_stops_at_the_end_of_a_turn(folder, tokenizer):
    generation = json.loads((folder / "generation_config.json").read_text())
    assert tokenizer.eos_token_id in generation["eos_token_id"]
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(tokenizer.eos_token)
