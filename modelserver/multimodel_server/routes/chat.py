"""`POST /v1/chat/completions`."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from multimodel_api.chat import ChatCompletion, ChatCompletionRequest
from multimodel_server.routes.asked import parse_asked
from multimodel_server.routes.chat_reply import ChatReply
from multimodel_server.routes.openapi import answers, takes
from multimodel_server.routes.prompts import Params, chat_plan
from multimodel_server.routes.requests import Service
from multimodel_server.routes.streams import EventStream, until_disconnect

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=takes(ChatCompletionRequest), responses=answers(ChatCompletion))
async def create_chat_completion(request: Request, service: Service) -> Response:
    """Answer a conversation."""
    model = service.loaded()
    asked = await parse_asked(request, ChatCompletionRequest)
    body = asked.body
    service.require_model(body.model)
    limit = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    plan = await asyncio.to_thread(chat_plan, model, body, Params("messages", limit))
    choices = asked.choices(model, service.metrics, [plan], body.n)
    reply = ChatReply(choices, body, service.config.api_id, model.text.tokenizer)
    if body.stream:
        return EventStream(choices, reply, marked=asked.may_go_on_elsewhere)
    completion = await until_disconnect(request.receive, reply.whole())
    return JSONResponse(completion.model_dump())
