"""`POST /v1/responses`, as far as it needs no memory of earlier responses."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from multimodel_api.responses import ResponseObject, ResponsesRequest
from multimodel_server.routes.asked import parse_asked
from multimodel_server.routes.openapi import answers, takes
from multimodel_server.routes.prompts import Params, chat_plan
from multimodel_server.routes.requests import Service
from multimodel_server.routes.responses_chat import chat_of
from multimodel_server.routes.responses_reply import ResponsesReply
from multimodel_server.routes.streams import EventStream, until_disconnect

router = APIRouter()


@router.post("/v1/responses", openapi_extra=takes(ResponsesRequest), responses=answers(ResponseObject))
async def create_response(request: Request, service: Service) -> Response:
    """Answer an input."""
    model = service.loaded()
    asked = await parse_asked(request, ResponsesRequest)
    body = asked.body
    service.require_model(body.model)
    plan = await asyncio.to_thread(chat_plan, model, chat_of(body), Params("input", "max_output_tokens"))
    choices = asked.choices(model, service.metrics, [plan], 1)
    reply = ResponsesReply(choices, body, service.config.api_id)
    if body.stream:
        return EventStream(choices, reply, marked=asked.may_go_on_elsewhere)
    response = await until_disconnect(request.receive, reply.whole())
    return JSONResponse(response.model_dump())
