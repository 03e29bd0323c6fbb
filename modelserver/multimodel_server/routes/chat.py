"""`POST /v1/chat/completions`."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from multimodel_api.errors import invalid_request
from multimodel_api.openai import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatMessage,
    FinishReason,
)
from multimodel_server.answer import Answer, token_budget
from multimodel_server.routes.requests import Service, parse_body
from multimodel_server.routes.streams import EventStream, until_disconnect
from multimodel_server.text.model_text import ModelText
from multimodel_server.text.template import TemplateFailure

router = APIRouter()


class ChatReply:
    """Writes one answer as a chat completion, whole or in chunks."""

    def __init__(self, answer: Answer, model: str) -> None:
        self._answer = answer
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model

    async def whole(self) -> ChatCompletion:
        """Return the completion."""
        pieces = [piece async for piece in self._answer.pieces()]
        message = AssistantMessage(content="".join(piece.text for piece in pieces))
        choice = ChatChoice(message=message, finish_reason=pieces[-1].finish_reason or "stop")
        return ChatCompletion(
            id=self._id, created=self._created, model=self._model, choices=[choice], usage=self._answer.usage
        )

    async def events(self, *, include_usage: bool) -> AsyncGenerator[str, None]:
        """Yield the chunks' JSON: the role, the text, why it ends, and the usage if it is wanted."""
        async with aclosing(self._answer.pieces()) as pieces:
            begun = False
            async for piece in pieces:
                if not begun:
                    begun = True
                    yield self._chunk(ChatDelta(role="assistant", content=""), include_usage=include_usage)
                if piece.text:
                    yield self._chunk(ChatDelta(content=piece.text), include_usage=include_usage)
                if piece.finish_reason is not None:
                    yield self._chunk(ChatDelta(), piece.finish_reason, include_usage=include_usage)
        if include_usage:
            yield ChatCompletionChunk(
                id=self._id, created=self._created, model=self._model, choices=[], usage=self._answer.usage
            ).model_dump_json()

    def _chunk(self, delta: ChatDelta, finish_reason: FinishReason | None = None, *, include_usage: bool) -> str:
        choice = ChatChunkChoice(delta=delta, finish_reason=finish_reason)
        chunk = ChatCompletionChunk(id=self._id, created=self._created, model=self._model, choices=[choice])
        document = chunk.model_dump(exclude=None if include_usage else {"usage"})
        document["choices"][0]["delta"] = delta.model_dump(exclude_none=True)
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request, service: Service) -> Response:
    """Answer a conversation."""
    model = service.loaded()
    body = await parse_body(request, ChatCompletionRequest)
    service.require_model(body.model)
    prompt_ids = await asyncio.to_thread(_prompt_ids, model.text, body.messages)
    max_tokens = token_budget(
        len(prompt_ids),
        body.token_limit,
        model.supervisor.max_request_tokens,
        prompt_param="messages",
        limit_param="max_tokens" if body.max_completion_tokens is None else "max_completion_tokens",
    )
    reply = ChatReply(Answer(model, service.metrics, body, prompt_ids, max_tokens), service.config.api_id)
    if body.stream:
        return EventStream(reply.events(include_usage=body.include_usage))
    completion = await until_disconnect(request.receive, reply.whole())
    return JSONResponse(completion.model_dump())


def _prompt_ids(text: ModelText, messages: list[ChatMessage]) -> list[int]:
    if text.template is None:
        raise invalid_request(
            "This model has no chat template; use /v1/completions, or set chatTemplate (--chat-template).",
            param="messages",
            code="no_chat_template",
        )
    try:
        prompt_ids = text.tokenizer.encode_rendered(text.template.render(messages))
    except TemplateFailure as error:
        raise invalid_request(
            f"The chat template refused the messages: {error}", param="messages", code="chat_template_error"
        ) from error
    if not prompt_ids:
        raise invalid_request("The chat template made an empty prompt of the messages.", param="messages")
    return prompt_ids
