"""One answer: the engine's tokens as text, cut at stop strings, counted and measured on the way."""

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from http import HTTPStatus

from multimodel_api.errors import ApiError, invalid_request, server_error
from multimodel_api.openai import FinishReason, SamplingFields, Usage
from multimodel_server.engine.messages import Tokens
from multimodel_server.errors import EngineDiedError, EngineGoneError, GenerationError
from multimodel_server.metrics import Metrics
from multimodel_server.service import LoadedModel
from multimodel_server.text.sampling import sampling
from multimodel_server.text.stops import StopFilter

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"


@dataclass(frozen=True, slots=True)
class Piece:
    """What an answer grows by; the last piece says why it ends."""

    text: str
    finish_reason: FinishReason | None = None


class Answer:
    """The answer to one prompt; iterate `pieces` once."""

    def __init__(
        self, model: LoadedModel, metrics: Metrics, request: SamplingFields, prompt_ids: list[int], max_tokens: int
    ) -> None:
        self._supervisor = model.supervisor
        self._metrics = metrics
        self._prompt_ids = prompt_ids
        self._sampling = sampling(
            request, model.text.defaults, max_tokens=max_tokens, stop_token_ids=model.text.stop_token_ids
        )
        self._detokenizer = model.text.tokenizer.detokenizer()
        self._stops = StopFilter(request.stop)
        self._completion_tokens = 0
        self._last_token = time.monotonic()

    @property
    def usage(self) -> Usage:
        """The tokens counted so far."""
        prompt, completion = len(self._prompt_ids), self._completion_tokens
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the text as it comes; leaving early cancels the request. Raises `ApiError`."""
        self._metrics.prompt_tokens.inc(len(self._prompt_ids))
        reason = "cancelled"
        try:
            with self._supervisor.generation(self._prompt_ids, self._sampling) as generation:
                async for tokens in generation.tokens():
                    self._measure(tokens)
                    piece = self._piece(tokens)
                    reason = piece.finish_reason or reason
                    if piece.text or piece.finish_reason:
                        yield piece
                    if piece.finish_reason:
                        return
        except GenerationError as error:
            reason = "error"
            raise _explained(error) from error
        finally:
            self._metrics.completed(reason)

    def _piece(self, tokens: Tokens) -> Piece:
        text = self._stops.feed(self._detokenizer.feed(tokens.token_ids))
        if tokens.finish_reason is not None and not self._stops.stopped:
            text += self._stops.feed(self._detokenizer.flush())
            if not self._stops.stopped:
                return Piece(text + self._stops.flush(), tokens.finish_reason)
        return Piece(text, "stop" if self._stops.stopped else None)

    def _measure(self, tokens: Tokens) -> None:
        count = len(tokens.token_ids)
        if not count:
            return
        now = time.monotonic()
        elapsed, self._last_token = now - self._last_token, now
        if not self._completion_tokens:
            self._metrics.first_token_seconds.observe(elapsed)
        else:
            self._metrics.between_tokens_seconds.observe(elapsed / count)
        self._completion_tokens += count
        self._metrics.generated_tokens.inc(count)


def token_budget(prompt_tokens: int, asked: int | None, context: int, *, prompt_param: str, limit_param: str) -> int:
    """Return how many tokens a request may generate: what it asks for, else what fits; raises the 400."""
    room = context - prompt_tokens
    if room < 1:
        raise invalid_request(
            f"The prompt has {prompt_tokens} tokens, and this model's context holds {context} tokens of prompt and "
            "answer; shorten the prompt.",
            param=prompt_param,
            code=CONTEXT_LENGTH_EXCEEDED,
        )
    if asked is not None and asked > room:
        raise invalid_request(
            f"{limit_param} is {asked}, but beside the prompt's {prompt_tokens} tokens this model's context of "
            f"{context} tokens has room for {room}; leave {limit_param} out to use what fits.",
            param=limit_param,
            code=CONTEXT_LENGTH_EXCEEDED,
        )
    return room if asked is None else asked


def _explained(error: GenerationError) -> ApiError:
    if isinstance(error, EngineGoneError):
        return server_error(str(error), status=HTTPStatus.SERVICE_UNAVAILABLE, code="engine_unavailable")
    code = "engine_crashed" if isinstance(error, EngineDiedError) else "engine_error"
    return server_error(str(error), code=code)
