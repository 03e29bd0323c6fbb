"""One answer: the engine's tokens as text, read for reasoning, stop strings and calls, counted and measured."""

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from http import HTTPStatus

import msgspec

from multimodel_api.errors import ApiError, invalid_request, server_error
from multimodel_api.openai import FinishReason
from multimodel_api.resume import FIELD
from multimodel_server.engine.messages import Sampling, TokenLogprobs, Tokens
from multimodel_server.errors import EngineDiedError, EngineGoneError, GenerationError, RequestRefusedError
from multimodel_server.metrics import Metrics
from multimodel_server.service import LoadedModel
from multimodel_server.text.parts import Content, Part
from multimodel_server.text.reply import ReplyReader

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
TOKEN_IDS = f"{FIELD}.token_ids"

_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class Beginning:
    """The part of an answer that another server made."""

    token_ids: list[int]
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """What the engine is asked, and how its answers are read; several answers may follow one plan."""

    prompt_ids: list[int]
    sampling: Sampling
    new_reader: Callable[[str], ReplyReader]
    """Makes the reader of an answer from the answer's name."""
    visible_tokens: frozenset[int] = frozenset()
    """Special tokens that the reader needs to see in the text."""
    priority: int = 0
    cache_salt: str = ""
    prompt_logprobs: int | None = None
    beginning: Beginning | None = None
    """With one, there is but one answer."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What an answer grows by; the last piece says why it ends."""

    parts: list[Part]
    token_ids: list[int]
    """The tokens that were read since the piece before."""
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Those of the tokens that are in the text, where asked for."""
    stopped_by: str | None = None
    """The stop string that ended the answer."""
    withholds: bool = False
    """Whether log-probabilities of tokens that were read are still to come: they could not be told again."""

    @property
    def text(self) -> str:
        """The content."""
        return "".join(part.text for part in self.parts if isinstance(part, Content))


class Answer:
    """An answer to a plan; iterate `pieces` once, after `replay` if the plan has a beginning."""

    def __init__(self, model: LoadedModel, metrics: Metrics, plan: AnswerPlan, name: str, index: int = 0) -> None:
        """`index` counts the answers of one plan: each is drawn by a seed of its own, and `name` tells them apart."""
        self._supervisor = model.supervisor
        self._metrics = metrics
        self._plan = plan
        self.sampling = msgspec.structs.replace(plan.sampling, seed=_nth_seed(plan.sampling.seed, index))
        self._detokenizer = model.text.tokenizer.detokenizer(plan.visible_tokens)
        self._reader = plan.new_reader(name)
        self._logprobs = _HeldLogprobs()
        self._unsaid: list[int] = []
        self._last: Piece | None = None
        self._last_token: float | None = None
        self._begun = time.monotonic()
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.cached_tokens = 0 if plan.beginning is None else plan.beginning.cached_tokens
        self.prompt_logprobs: list[TokenLogprobs] = []

    def replay(self) -> list[Piece]:
        """Read the beginning that the plan has; return its pieces, all of which were seen. Raises the 400.

        If the beginning is a whole answer, its last piece is not among them: it goes out with the answer's end.
        """
        token_ids = [] if self._plan.beginning is None else self._plan.beginning.token_ids
        if token_ids:  # Then the prompt was told of.
            self.prompt_logprobs = [TokenLogprobs(token_id, 0.0) for token_id in self._plan.prompt_ids[1:]]
        pieces = []
        for place, token_id in enumerate(token_ids, start=1):
            piece = self._next(self._told(token_id, is_last=place == self.sampling.max_tokens))
            if piece is not None and piece.finish_reason is None:
                pieces.append(piece)
            elif piece is not None:
                self._last = piece
                break
        untold = self._logprobs.withholds if self._last is None else bool(self._last.logprobs)
        if self.completion_tokens < len(token_ids) or untold:
            raise invalid_request(
                f"{TOKEN_IDS}: the answer cannot go on after {len(token_ids)} such tokens; send those of its markers.",
                param=TOKEN_IDS,
            )
        self._unsaid = []
        return pieces

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """Yield the answer as it comes, together what came at once; leaving early cancels the request.

        Raises:
            ApiError: the answer failed.
        """
        plan = self._plan
        self._metrics.prompt_tokens.inc(len(plan.prompt_ids))
        reason = "cancelled"
        if self._last is not None:
            self._metrics.completed(self._last.finish_reason or reason)
            yield [self._last]
            return
        try:
            with self._supervisor.generation(
                plan.prompt_ids,
                self.sampling,
                priority=plan.priority,
                cache_salt=plan.cache_salt,
                prompt_logprobs=None if self.completion_tokens else plan.prompt_logprobs,
                output_ids=[] if plan.beginning is None else plan.beginning.token_ids,
            ) as generation:
                async for tokens in generation.tokens():
                    told = [tokens, *generation.came()]
                    self._measure(told)
                    pieces = self._grown(told)
                    if not pieces:
                        continue
                    reason = pieces[-1].finish_reason or reason
                    yield pieces
                    if pieces[-1].finish_reason:
                        return
        except GenerationError as error:
            reason = "error"
            raise explained(error, param=TOKEN_IDS if plan.beginning is not None else None) from error
        finally:
            self._metrics.completed(reason)

    def _told(self, token_id: int, *, is_last: bool) -> Tokens:
        """Return a token of the beginning as the engine tells of one; nobody sees its log-probability again."""
        logprobs = None if self.sampling.logprobs is None else [TokenLogprobs(token_id, 0.0)]
        return Tokens("", [token_id], "length" if is_last else None, logprobs)

    def _grown(self, told: list[Tokens]) -> list[Piece]:
        """Return the pieces that tokens make; what comes after the answer's end is not read."""
        pieces: list[Piece] = []
        for tokens in told:
            piece = self._next(tokens)
            if piece is not None:
                pieces.append(piece)
                if piece.finish_reason:
                    break
        return pieces

    def _next(self, tokens: Tokens) -> Piece | None:
        """Return what the answer grows by, if it does."""
        count = len(tokens.token_ids)
        self.completion_tokens += count
        self.reasoning_tokens += count if self._reader.is_thinking else 0
        self._unsaid += tokens.token_ids
        piece = self._piece(tokens)
        if not (piece.parts or piece.logprobs or piece.finish_reason):
            return None
        self._unsaid = []
        return piece

    def _piece(self, tokens: Tokens) -> Piece:
        parts = self._read(tokens)
        ends = tokens.finish_reason is not None or self._reader.stopped
        if tokens.finish_reason is not None and not self._reader.stopped:
            parts += self._reader.feed(self._detokenizer.flush())
        if ends:
            parts += self._reader.flush()
        return Piece(
            parts,
            self._unsaid,
            self._finish_reason(tokens.finish_reason),
            self._logprobs.take(self._reader.withheld),
            self._reader.stopped_by,
            self._logprobs.withholds,
        )

    def _read(self, tokens: Tokens) -> list[Part]:
        if tokens.logprobs is None:
            return self._reader.feed(self._detokenizer.feed(tokens.token_ids))
        parts: list[Part] = []
        for token in tokens.logprobs:
            if self._reader.stopped:
                break
            text = self._detokenizer.feed([token.token_id])
            parts += self._reader.feed(text)
            self._logprobs.add(token, len(text))
        return parts

    def _finish_reason(self, of_engine: FinishReason | None) -> FinishReason | None:
        reason = "stop" if self._reader.stopped else of_engine
        return "tool_calls" if reason == "stop" and self._reader.has_called else reason

    def _measure(self, told: list[Tokens]) -> None:
        if self._plan.beginning is None:
            self.cached_tokens = self.cached_tokens or told[0].cached_tokens
        if told[0].prompt_logprobs is not None:
            self.prompt_logprobs = told[0].prompt_logprobs
        count = sum(len(tokens.token_ids) for tokens in told)
        if not count:
            return
        now = time.monotonic()
        if self._last_token is None:
            self._metrics.first_token_seconds.observe(now - self._begun)
        else:
            self._metrics.between_tokens_seconds.observe((now - self._last_token) / count)
        self._last_token = now
        self._metrics.generated_tokens.inc(count)


class _HeldLogprobs:
    """Holds tokens back for as long as a stop string may still take them out of the text."""

    def __init__(self) -> None:
        self._held: deque[tuple[int, TokenLogprobs]] = deque()
        self._length = 0

    @property
    def withholds(self) -> bool:
        """Whether any token is held back."""
        return bool(self._held)

    def add(self, token: TokenLogprobs, length: int) -> None:
        """Take a token that adds `length` characters to the text."""
        self._held.append((self._length, token))
        self._length += length

    def take(self, withheld: int) -> list[TokenLogprobs]:
        """Return the tokens that begin before the text's last `withheld` characters."""
        sure = self._length - withheld
        taken = []
        while self._held and (self._held[0][0] < sure or not withheld):
            taken.append(self._held.popleft()[1])
        return taken


def _nth_seed(seed: int, index: int) -> int:
    return (seed + index + _SEEDS) % (2 * _SEEDS) - _SEEDS


def explained(error: GenerationError, param: str | None = None) -> ApiError:
    """Return what a client is told of a request that failed in the engine; if it was wrong, `param` was."""
    if isinstance(error, EngineGoneError):
        return server_error(str(error), status=HTTPStatus.SERVICE_UNAVAILABLE, code="engine_unavailable")
    if isinstance(error, RequestRefusedError) and error.invalid:
        return invalid_request(str(error), param=param)
    code = "engine_crashed" if isinstance(error, EngineDiedError) else "engine_error"
    return server_error(str(error), code=code)
