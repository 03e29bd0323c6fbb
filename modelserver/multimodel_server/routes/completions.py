"""`POST /v1/completions`."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from multimodel_api.openai import Completion, CompletionRequest
from multimodel_server.routes.choices import Choices
from multimodel_server.routes.completion_reply import CompletionReply
from multimodel_server.routes.openapi import answers, takes
from multimodel_server.routes.prompts import completion_plans
from multimodel_server.routes.requests import Service, parse_body
from multimodel_server.routes.streams import EventStream, until_disconnect

router = APIRouter()


@router.post("/v1/completions", openapi_extra=takes(CompletionRequest), responses=answers(Completion))
async def create_completion(request: Request, service: Service) -> Response:
    """Continue one or more texts."""
    model = service.loaded()
    body = await parse_body(request, CompletionRequest)
    service.require_model(body.model)
    plans = await asyncio.to_thread(completion_plans, model, body)
    choices = Choices(model, service.metrics, plans, body.candidates)
    reply = CompletionReply(choices, plans, body, service.config.api_id, model.text.tokenizer)
    if body.stream:
        return EventStream(reply.events())
    completion = await until_disconnect(request.receive, reply.whole())
    return JSONResponse(completion.model_dump())
