"""`POST /v1/messages` and `POST /v1/messages/count_tokens`, in Anthropic's manner."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from multimodel_api.anthropic import (
    MESSAGES_PATH,
    CountTokensRequest,
    MessagesAnswer,
    MessagesError,
    MessagesRequest,
    TokenCount,
)
from multimodel_server.routes.asked import parse_asked
from multimodel_server.routes.messages_chat import chat_of
from multimodel_server.routes.messages_reply import MessagesReply
from multimodel_server.routes.openapi import answers, takes
from multimodel_server.routes.prompts import Params, chat_plan, chat_tokens
from multimodel_server.routes.requests import Service, parse_body
from multimodel_server.routes.streams import EventStream, until_disconnect

router = APIRouter()


@router.post(
    MESSAGES_PATH, openapi_extra=takes(MessagesRequest), responses=answers(MessagesAnswer, errors=MessagesError)
)
async def create_message(request: Request, service: Service) -> Response:
    """Answer a conversation."""
    model = service.loaded()
    asked = await parse_asked(request, MessagesRequest)
    body = asked.body
    service.require_model(body.model)
    plan = await asyncio.to_thread(chat_plan, model, chat_of(body), Params())
    choices = asked.choices(model, service.metrics, [plan], 1)
    reply = MessagesReply(choices, service.config.api_id)
    if body.stream:
        return EventStream(choices, reply, marked=asked.may_go_on_elsewhere)
    message = await until_disconnect(request.receive, reply.whole())
    return JSONResponse(message.model_dump())


@router.post(
    f"{MESSAGES_PATH}/count_tokens",
    openapi_extra=takes(CountTokensRequest),
    responses=answers(TokenCount, errors=MessagesError),
)
async def count_tokens(request: Request, service: Service) -> TokenCount:
    """Count the tokens of a conversation, as `/v1/messages` would send it to the model."""
    model = service.loaded()
    body = await parse_body(request, CountTokensRequest)
    service.require_model(body.model)
    prompt_ids = await asyncio.to_thread(chat_tokens, model.text, chat_of(body), Params())
    return TokenCount(input_tokens=len(prompt_ids))
