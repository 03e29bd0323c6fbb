"""A request for an answer: the body, and whether the answer was begun elsewhere or may go on elsewhere."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import msgspec
from fastapi import Request

from multimodel_api.errors import ApiError, invalid_request
from multimodel_api.openai import SamplingFields
from multimodel_api.resume import FIELD, RESUMABLE_HEADER, Resume, ResumeRequest, is_resuming
from multimodel_server.answer import TOKEN_IDS, AnswerPlan, Beginning
from multimodel_server.answer_state import AnswerState, Identity, prompt_digest
from multimodel_server.metrics import Metrics
from multimodel_server.routes.choices import Choices
from multimodel_server.routes.requests import parsed, read_body
from multimodel_server.service import LoadedModel

Body = TypeVar("Body", bound=SamplingFields)


@dataclass(frozen=True, slots=True)
class Asked(Generic[Body]):
    """What a client asks for, and what its router does."""

    body: Body
    may_go_on_elsewhere: bool
    resume: Resume | None

    def choices(self, model: LoadedModel, metrics: Metrics, plans: list[AnswerPlan], each: int) -> Choices:
        """Return `each` answers to every plan; one that was begun elsewhere goes on. Raises the 400."""
        if self.resume is None:
            return Choices(model, metrics, plans, each, Identity.new())
        if not self.body.stream or len(plans) * each != 1:
            raise invalid_request(f"{FIELD}: only a stream of one answer can go on.", param=FIELD)
        state = _state(self.resume)
        return Choices(model, metrics, [_resumed(plans[0], state, self.resume.token_ids)], 1, state.identity)


async def parse_asked(request: Request, body: type[Body]) -> Asked[Body]:
    """Return a request for an answer; raises the 400 or 413."""
    raw = await read_body(request)
    may_go_on_elsewhere = RESUMABLE_HEADER in request.headers
    resume = None
    if may_go_on_elsewhere and is_resuming(raw):
        resume = (await asyncio.to_thread(parsed, raw, ResumeRequest)).multimodel_resume
    return Asked(await asyncio.to_thread(parsed, raw, body), may_go_on_elsewhere, resume)


def _state(resume: Resume) -> AnswerState:
    try:
        return AnswerState.decode(resume.state)
    except ValueError as error:
        raise _wrong_state("it cannot be read") from error


def _resumed(plan: AnswerPlan, state: AnswerState, token_ids: Sequence[int]) -> AnswerPlan:
    """Return the plan of an answer that goes on after its first tokens; raises the 400."""
    if state.prompt != prompt_digest(plan.prompt_ids):
        raise _wrong_state("it belongs to another prompt, tokenizer or template")
    max_tokens = min(state.max_tokens, plan.sampling.max_tokens)
    if len(token_ids) > max_tokens:
        raise invalid_request(
            f"{TOKEN_IDS}: {len(token_ids)} tokens are more than the answer may have, {max_tokens}.", param=TOKEN_IDS
        )
    return replace(
        plan,
        sampling=msgspec.structs.replace(plan.sampling, seed=state.seed, max_tokens=max_tokens),
        beginning=Beginning(list(token_ids), state.cached_tokens),
    )


def _wrong_state(why: str) -> ApiError:
    param = f"{FIELD}.state"
    return invalid_request(
        f"{param}: {why}; send the state of the stream that broke, and the same request.", param=param
    )
