"""Writes answers as a completion, whole or in chunks; the prompt comes first where it is echoed."""

import math

from multimodel_api.errors import ApiError
from multimodel_api.openai import Completion, CompletionChoice, CompletionRequest, Usage, each_prompt
from multimodel_server.answer import Answer, AnswerPlan, Piece
from multimodel_server.engine.messages import TokenLogprobs
from multimodel_server.routes.choices import Choices
from multimodel_server.routes.logprobs import CompletionLogprobsWriter, joined
from multimodel_server.routes.transcript import DONE, Event, openai_failure
from multimodel_server.text.tokenizer import TextTokenizer


class CompletionReply:
    """One completion of one or more prompts, each continued `n` times."""

    def __init__(
        self, choices: Choices, plans: list[AnswerPlan], body: CompletionRequest, model: str, tokenizer: TextTokenizer
    ) -> None:
        self._choices = choices
        self._body = body
        self._id = f"cmpl-{choices.identity.number}"
        self._created = choices.identity.created
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

    def opening(self, index: int) -> list[Event]:  # noqa: ARG002
        """Return nothing: an answer begins with its text."""
        return []

    def growth(self, index: int, piece: Piece) -> list[Event]:
        """Return the chunk with more of a choice."""
        unwanted = None if self._body.include_usage else {"usage"}
        choice = self._writers[index].choice(index, [piece])
        return [Event(self._completion([choice]).model_dump_json(exclude=unwanted))]

    def closing(self) -> list[Event]:
        """Return the usage, if it is wanted, and the end."""
        if not self._body.include_usage:
            return [DONE]
        return [Event(self._completion([], self._usage).model_dump_json()), DONE]

    def failure(self, error: ApiError) -> Event:
        """Return the event that tells of an error."""
        return openai_failure(error)

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
