"""Made dialogues as batches of token ids of which only the model's own replies count."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from training.dialogues import Dialogue
from transformers import PreTrainedTokenizerFast

IGNORED = -100
POOL = 512


@dataclass(frozen=True)
class Batch:
    """Token ids and targets, int64 of shape (dialogues, length); targets are `IGNORED` where the model is silent."""

    ids: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Writer:
    """Writes dialogues as token ids, through the chat template."""

    tokenizer: PreTrainedTokenizerFast

    def ids(self, dialogue: Dialogue) -> list[int]:
        """The whole conversation, the last reply and its end-of-turn token included."""
        return self._encoded(dialogue.messages(), invite=False)

    def targets(self, ids: list[int], opening: list[int]) -> list[int]:
        """What the model must say next at each position: everything after an `opening`, up to its end-of-turn token."""
        targets = [IGNORED] * len(ids)
        speaking = False
        for position in range(len(opening), len(ids)):
            speaking = speaking or ids[position - len(opening) : position] == opening
            if speaking:
                targets[position - 1] = ids[position]
                speaking = ids[position] != self.tokenizer.eos_token_id
        return targets

    def opening(self) -> list[int]:
        """The ids with which the chat template lets the model speak."""
        question = [{"role": "user", "content": "?"}]
        asked, invited = (self._encoded(question, invite=invite) for invite in (False, True))
        return invited[len(asked) :]

    def _encoded(self, messages: list[dict[str, str]], *, invite: bool) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=invite)
        return self.tokenizer.backend_tokenizer.encode(str(text), add_special_tokens=False).ids


def batches(writer: Writer, draw: Callable[[], Dialogue], tokens: int, rng: random.Random) -> Iterator[Batch]:
    """Endless batches of at most `tokens` ids, padded on the right, each of dialogues of about the same length."""
    opening = writer.opening()
    while True:
        pool = sorted((writer.ids(draw()) for _ in range(POOL)), key=len)
        groups = list(_groups(pool, tokens))
        rng.shuffle(groups)
        for group in groups:
            yield _padded(group, [writer.targets(ids, opening) for ids in group], writer.tokenizer.pad_token_id)


def _groups(by_length: list[list[int]], tokens: int) -> Iterator[list[list[int]]]:
    group: list[list[int]] = []
    for ids in by_length:
        if group and (len(group) + 1) * len(ids) > tokens:
            yield group
            group = []
        group.append(ids)
    yield group


def _padded(rows: list[list[int]], targets: list[list[int]], padding: int) -> Batch:
    width = max(map(len, rows))
    return Batch(
        ids=torch.tensor([row + [padding] * (width - len(row)) for row in rows]),
        targets=torch.tensor([row + [IGNORED] * (width - len(row)) for row in targets]),
    )
