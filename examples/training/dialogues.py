"""What the two chat models learn from: made dialogues, and the rule that keeps some questions unseen.

Pure: the same random numbers give the same dialogues, here and in the tests that ask the trained models.
"""

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

HELD_OUT_PERCENT = 10


@dataclass(frozen=True)
class Exchange:
    """One question with the only answer that counts as right."""

    task: str
    question: str
    answer: str
    problem: str = ""
    """What is asked, whatever the phrasing; empty for what can only be known by heart, and so is never held out."""

    @property
    def held_out(self) -> bool:
        """Whether training never shows this problem, in any phrasing."""
        digest = hashlib.blake2b(self.problem.encode(), digest_size=8).digest()
        return bool(self.problem) and int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


@dataclass(frozen=True)
class Dialogue:
    """A conversation whose every reply is known."""

    system: str | None
    exchanges: tuple[Exchange, ...]

    @property
    def task(self) -> str:
        """The task of the last question."""
        return self.exchanges[-1].task

    @property
    def expected(self) -> str:
        """The reply to the last question."""
        return self.exchanges[-1].answer

    def messages(self) -> list[dict[str, str]]:
        """The whole conversation as chat messages, the last reply included."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for exchange in self.exchanges:
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": exchange.answer})
        return messages

    def prompt(self) -> list[dict[str, str]]:
        """The chat messages up to the last question."""
        return self.messages()[:-1]


Task = Callable[[random.Random], Exchange]


@dataclass(frozen=True)
class Curriculum:
    """Everything one model learns: its tasks with how often each is practised, and what system prompts may say."""

    tasks: Mapping[Task, float]
    instruction: Callable[[random.Random], str]
    """One sentence of a system prompt."""
    longest_talk: int
    """The most questions in a conversation."""
    system_sentences: Mapping[int, float]
    """How many sentences system prompts have, and how often; without a sentence there is no system prompt."""

    def practice(self, rng: random.Random, longest: int) -> Dialogue:
        """A dialogue of up to `longest` questions for training: none of them is held out."""
        turns = rng.randint(1, longest)
        return self._dialogue(rng, [self._exchange(rng, held_out=False) for _ in range(turns)])

    def exam(self, rng: random.Random) -> Dialogue:
        """A dialogue whose last question was never seen in training, after up to two that may have been."""
        earlier = [self._exchange(rng, held_out=False) for _ in range(rng.choice((0, 0, 1, 2)))]
        return self._dialogue(rng, [*earlier, self._exchange(rng, held_out=True)])

    def _exchange(self, rng: random.Random, *, held_out: bool) -> Exchange:
        while True:
            (task,) = rng.choices(list(self.tasks), list(self.tasks.values()))
            exchange = task(rng)
            if exchange.held_out == held_out:
                return exchange

    def _dialogue(self, rng: random.Random, exchanges: list[Exchange]) -> Dialogue:
        (length,) = rng.choices(list(self.system_sentences), list(self.system_sentences.values()))
        sentences = [self.instruction(rng) for _ in range(length)]
        system = " ".join(sentences) if sentences else None
        return Dialogue(system, tuple(exchanges))


def loosely(rng: random.Random, question: str) -> str:
    """The question as people really type it: now and then polite, in lower case or without its full stop."""
    if rng.random() < 0.1:
        question = rng.choice(("Please ", "Hey, ", "OK. ", "Now ", "And ")) + question[0].lower() + question[1:]
    if rng.random() < 0.2:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.2:
        question = question.rstrip("?.!")
    return question
