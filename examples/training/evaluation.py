"""How often a model answers unseen questions right, word for word, and stops by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from training.dialogues import Dialogue
from training.recipes import Model
from transformers import PreTrainedTokenizerFast

TOGETHER = 64
LONGEST_REPLY = 160


@dataclass(frozen=True)
class Result:
    """A dialogue with the reply the model gave to its last question."""

    dialogue: Dialogue
    reply: str

    @property
    def right(self) -> bool:
        """Whether the reply is the expected one, to the letter."""
        return self.reply == self.dialogue.expected


def ask(model: Model, tokenizer: PreTrainedTokenizerFast, dialogues: Sequence[Dialogue]) -> list[Result]:
    """The greedy replies to the last question of each dialogue, marked where they do not end by themselves."""
    tokenizer.padding_side = "left"
    results: list[Result] = []
    for first in range(0, len(dialogues), TOGETHER):
        asked = sorted(dialogues[first : first + TOGETHER], key=lambda dialogue: len(dialogue.expected))
        results += [
            Result(dialogue, reply) for dialogue, reply in zip(asked, _replies(model, tokenizer, asked), strict=True)
        ]
    return results


def _replies(model: Model, tokenizer: PreTrainedTokenizerFast, dialogues: Sequence[Dialogue]) -> list[str]:
    prompts = [
        str(tokenizer.apply_chat_template(dialogue.prompt(), tokenize=False, add_generation_prompt=True))
        for dialogue in dialogues
    ]
    inputs = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST_REPLY)
    replies = output[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(replies, skip_special_tokens=True)
    ended = (replies == tokenizer.eos_token_id).any(dim=1).tolist()
    return [text if stopped else f"{text} (unfinished)" for text, stopped in zip(texts, ended, strict=True)]


def accuracy_by_task(results: Sequence[Result]) -> dict[str, tuple[int, int]]:
    """Right replies and questions, of each task."""
    table: dict[str, tuple[int, int]] = {}
    for result in results:
        right, asked = table.get(result.dialogue.task, (0, 0))
        table[result.dialogue.task] = (right + result.right, asked + 1)
    return dict(sorted(table.items()))
