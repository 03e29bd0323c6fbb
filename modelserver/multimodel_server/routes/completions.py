"""`POST /v1/completions`."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from multimodel_api.openai import Completion, CompletionRequest
from multimodel_server.routes.asked import parse_asked
from multimodel_server.routes.completion_reply import CompletionReply
from multimodel_server.routes.openapi import answers, takes
from multimodel_server.routes.prompts import completion_plans
from multimodel_server.routes.requests import Service
from multimodel_server.routes.streams import EventStream, until_disconnect

router = APIRouter()


@router.post("/v1/completions", openapi_extra=takes(CompletionRequest), responses=answers(Completion))
async def create_completion(request: Request, service: Service) -> Response:
    """Continue one or more texts."""
    model = service.loaded()
    asked = await parse_asked(request, CompletionRequest)
    body = asked.body
    service.require_model(body.model)
    plans = await asyncio.to_thread(completion_plans, model, body)
    choices = asked.choices(model, service.metrics, plans, body.candidates)
    reply = CompletionReply(choices, plans, body, service.config.api_id, model.text.tokenizer)
    if body.stream:
        return EventStream(choices, reply, marked=asked.may_go_on_elsewhere)
    completion = await until_disconnect(request.receive, reply.whole())
    return JSONResponse(completion.model_dump())
