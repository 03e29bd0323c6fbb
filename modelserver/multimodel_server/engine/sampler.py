"""From logits to tokens: each row by its own request's settings and its own random numbers, whatever its neighbours.

In this order: logit bias; penalties for repetition (prompt and answer), presence and frequency (answer), DRY; the
grammar's mask; temperature; top-k; top-p of what top-k left; min-p of what top-p left; the draw. The mask comes last of
what changes logits, so that nothing makes a forbidden token possible. Temperature 0 takes the likeliest token instead.
Log-probabilities are those of the logits before all this.

What a request needs between its tokens follows the tokens that the request has: a step that is computed again, after a
fault or a preemption, chooses the same token again.
"""

import logging
from collections.abc import Sequence
from typing import cast

import torch

from multimodel_server.engine.draw import draw
from multimodel_server.engine.grammar import GrammarError, GrammarGuide
from multimodel_server.engine.logprobs import PromptLogprobs, token_logprobs
from multimodel_server.engine.messages import Sampling, TokenLogprobs
from multimodel_server.engine.outcome import Outcome
from multimodel_server.engine.penalties import Penalties
from multimodel_server.engine.request import Request

NOT_FINITE = "the model's logits are not finite"

log = logging.getLogger(__name__)


class SamplerState:
    """What is kept for one request between its tokens."""

    def __init__(self, request: Request, guide: GrammarGuide | None = None) -> None:
        sampling = request.sampling
        self._bias = sampling.logit_bias
        self._penalties = (
            Penalties(sampling, request.token_ids[: request.prompt_length]) if sampling.penalises else None
        )
        self._guide = guide
        asked = request.prompt_logprobs
        self.prompt_logprobs = None if asked is None else PromptLogprobs(asked)

    @property
    def changes_logits(self) -> bool:
        """Tell whether the next token is chosen by other logits than the model's."""
        return bool(self._bias) or self._penalties is not None or self._guide is not None

    def adjusted(self, logits: torch.Tensor, request: Request) -> torch.Tensor:
        """Return the [vocabulary] logits to choose the request's next token by; raises `GrammarError`."""
        logits = logits.clone()
        if self._bias:
            ids = torch.tensor(list(self._bias), device=logits.device)
            logits[ids] += torch.tensor(list(self._bias.values()), device=logits.device)
        if self._penalties is not None:
            self._penalties.follow(_answer(request, self._penalties.followed))
            self._penalties.apply(logits)
        if self._guide is not None:
            self._guide.advance(_answer(request, self._guide.followed))
            self._guide.mask(logits, request.sampling.stop_token_ids)
        return logits


def refusal(sampling: Sampling, vocab_size: int) -> str | None:
    """Return why no token can be chosen so, or None if it can."""
    unknown = [token for token in sampling.logit_bias if not 0 <= token < vocab_size]
    if unknown:
        return f"logit_bias names token {unknown[0]}; the model's tokens are 0..{vocab_size - 1}"
    return None


def guide_request(request: Request, guide: GrammarGuide) -> None:
    """Hold a request's answer to a grammar, from its first token on."""
    request.sampling_state = SamplerState(request, guide)


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[Outcome]:
    """Return the next token of each request from its row of [requests, vocabulary] float32, or why there is none."""
    best, likeliest = logits.max(dim=-1)
    rows = zip(requests, logits, best.isfinite().tolist(), likeliest.tolist(), strict=True)
    outcomes = [_next(request, row, token if finite else None) for request, row, finite, token in rows]
    for row, entry in _logprobs(logits, requests, outcomes).items():
        outcomes[row] = Outcome(outcomes[row].token, logprobs=entry)
    return outcomes


def _next(request: Request, logits: torch.Tensor, likeliest: int | None) -> Outcome:
    """Choose by one row, whose best token is `likeliest`; a fault is this request's alone."""
    if likeliest is None:
        return Outcome(error=NOT_FINITE)
    try:
        return Outcome(_choose(request, logits, likeliest))
    except GrammarError as error:
        return Outcome(error=f"the grammar cannot be followed: {error}", invalid=True)
    except Exception as error:
        log.exception("The next token of request %s could not be chosen", request.request_id)
        return Outcome(error=f"the sampler failed: {type(error).__name__}: {error}")


def _choose(request: Request, logits: torch.Tensor, likeliest: int) -> int:
    state = state_of(request)
    if state.changes_logits:
        logits = state.adjusted(logits, request)
        likeliest = int(logits.argmax())
    if request.sampling.temperature > 0:
        return draw(logits, request.sampling, request.generated)
    return likeliest


def _answer(request: Request, start: int) -> list[int]:
    return request.token_ids[request.prompt_length + start :]


def state_of(request: Request) -> SamplerState:
    """Return what is kept for a request between its tokens."""
    if request.sampling_state is None:
        request.sampling_state = SamplerState(request)
    return cast("SamplerState", request.sampling_state)


def _logprobs(
    logits: torch.Tensor, requests: Sequence[Request], outcomes: Sequence[Outcome]
) -> dict[int, TokenLogprobs]:
    """Return the log-probabilities of the chosen tokens, by row, of the requests that ask for them."""
    asked = {
        row: (outcome.token, request.sampling.logprobs)
        for row, (request, outcome) in enumerate(zip(requests, outcomes, strict=True))
        if outcome.token is not None and request.sampling.logprobs is not None
    }
    if not asked:
        return {}
    tokens, tops = zip(*asked.values(), strict=True)
    return dict(zip(asked, token_logprobs(logits[list(asked)], tokens, tops), strict=True))
