"""Writes answers as a completion, whole or in chunks; the prompt comes first where it is echoed."""

import math
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from multimodel_api.openai import Completion, CompletionChoice, CompletionRequest, Usage, each_prompt
from multimodel_server.answer import Answer, AnswerPlan, Piece
from multimodel_server.engine.messages import TokenLogprobs
from multimodel_server.routes.choices import Choices
from multimodel_server.routes.logprobs import CompletionLogprobsWriter, joined
from multimodel_server.routes.streams import Event
from multimodel_server.text.tokenizer import TextTokenizer


class CompletionReply:
    """One completion of one or more prompts, each continued `n` times."""

    def __init__(
        self, choices: Choices, plans: list[AnswerPlan], body: CompletionRequest, model: str, tokenizer: TextTokenizer
    ) -> None:
        self._choices = choices
        self._body = body
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        echoes = [_Echo(prompt, plan, tokenizer) for prompt, plan in zip(each_prompt(body.prompt), plans, strict=True)]
        self._writers = [
            _ChoiceWriter(body, echoes[place // body.candidates], answer, tokenizer)
            for place, answer in enumerate(choices.answers)
        ]

    async def whole(self) -> Completion:
        """Return the completion: of each prompt the best `n` answers."""
        found = await self._choices.whole()
        of_each, wanted = self._body.candidates, self._body.n
        places = [place for first in range(0, len(found), of_each) for place in _best(found, first, of_each)[:wanted]]
        choices = [self._writers[place].choice(index, found[place]) for index, place in enumerate(places)]
        return self._completion(choices, self._usage)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the chunks, and the usage if it is wanted."""
        unwanted = None if self._body.include_usage else {"usage"}
        async with aclosing(self._choices.pieces()) as pieces:
            async for index, piece in pieces:
                choice = self._writers[index].choice(index, [piece])
                yield Event(self._completion([choice]).model_dump_json(exclude=unwanted))
        if self._body.include_usage:
            yield Event(self._completion([], self._usage).model_dump_json())

    @property
    def _usage(self) -> Usage:
        usage = self._choices.usage
        if self._body.max_tokens == 0:  # The engine had to make a token, but nobody asked for it.
            return usage.model_copy(update={"completion_tokens": 0, "total_tokens": usage.prompt_tokens})
        return usage

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)


class _Echo:
    """A prompt as it is said again."""

    def __init__(self, prompt: str | list[int], plan: AnswerPlan, tokenizer: TextTokenizer) -> None:
        self._prompt = prompt
        self._tokenizer = tokenizer
        self.prompt_ids = plan.prompt_ids

    @property
    def text(self) -> str:
        if isinstance(self._prompt, str):
            return self._prompt
        return self._tokenizer.decode(self._prompt, special=False)


class _ChoiceWriter:
    """Writes one answer, at once or piece by piece."""

    def __init__(self, body: CompletionRequest, echo: _Echo, answer: Answer, tokenizer: TextTokenizer) -> None:
        self._body = body
        self._echo = echo
        self._answer = answer
        self._echoes = body.echo
        self._logprobs = CompletionLogprobsWriter(tokenizer)

    def choice(self, index: int, pieces: list[Piece]) -> CompletionChoice:
        only_echo = self._body.max_tokens == 0
        said = "" if only_echo else "".join(piece.text for piece in pieces)
        tokens = [] if only_echo else [token for piece in pieces for token in piece.logprobs]
        logprobs = None
        if self._echoes and self._body.logprobs is not None:
            prompt = self._logprobs.prompt(self._echo.prompt_ids, self._answer.prompt_logprobs)
            logprobs = joined(prompt, self._logprobs.tokens(tokens))
        elif self._body.logprobs is not None:
            logprobs = self._logprobs.tokens(tokens)
        text = self._echo.text + said if self._echoes else said
        self._echoes = False
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=pieces[-1].finish_reason)


def _best(found: list[list[Piece]], first: int, count: int) -> list[int]:
    """Return the places of one prompt's answers, the likeliest first: by the mean log-probability of its tokens."""
    return sorted(range(first, first + count), key=lambda place: _likelihood(found[place]), reverse=True)


def _likelihood(pieces: list[Piece]) -> float:
    logprobs: list[TokenLogprobs] = [token for piece in pieces for token in piece.logprobs]
    return math.fsum(token.logprob for token in logprobs) / len(logprobs) if logprobs else 0.0
