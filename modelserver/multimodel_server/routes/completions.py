"""`POST /v1/completions`."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from multimodel_api.errors import invalid_request
from multimodel_api.openai import Completion, CompletionChoice, CompletionRequest, Usage
from multimodel_server.answer import Answer, Piece, token_budget
from multimodel_server.routes.requests import Service, parse_body
from multimodel_server.routes.streams import EventStream, until_disconnect

router = APIRouter()


class CompletionReply:
    """Writes one answer as a completion, whole or in chunks."""

    def __init__(self, answer: Answer, model: str) -> None:
        self._answer = answer
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model

    async def whole(self) -> Completion:
        """Return the completion."""
        pieces = [piece async for piece in self._answer.pieces()]
        text = "".join(piece.text for piece in pieces)
        return self._completion(
            [CompletionChoice(text=text, finish_reason=pieces[-1].finish_reason)], self._answer.usage
        )

    async def events(self, *, include_usage: bool) -> AsyncGenerator[str, None]:
        """Yield the chunks' JSON, and the usage if it is wanted."""
        unwanted = None if include_usage else {"usage"}
        async with aclosing(self._answer.pieces()) as pieces:
            async for piece in pieces:
                yield self._completion([_choice(piece)]).model_dump_json(exclude=unwanted)
        if include_usage:
            yield self._completion([], self._answer.usage).model_dump_json()

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)


def _choice(piece: Piece) -> CompletionChoice:
    return CompletionChoice(text=piece.text, finish_reason=piece.finish_reason)


@router.post("/v1/completions")
async def create_completion(request: Request, service: Service) -> Response:
    """Continue a text."""
    model = service.loaded()
    body = await parse_body(request, CompletionRequest)
    service.require_model(body.model)
    prompt_ids = await asyncio.to_thread(model.text.tokenizer.encode_prompt, body.prompt)
    if not prompt_ids:
        raise invalid_request("The prompt has no tokens.", param="prompt")
    max_tokens = token_budget(
        len(prompt_ids),
        body.token_limit,
        model.supervisor.max_request_tokens,
        prompt_param="prompt",
        limit_param="max_tokens",
    )
    reply = CompletionReply(Answer(model, service.metrics, body, prompt_ids, max_tokens), service.config.api_id)
    if body.stream:
        return EventStream(reply.events(include_usage=body.include_usage))
    completion = await until_disconnect(request.receive, reply.whole())
    return JSONResponse(completion.model_dump())
