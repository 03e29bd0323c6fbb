"""`POST /v1/embeddings`."""

import asyncio
import base64
import struct

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from multimodel_api.embeddings import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from multimodel_api.errors import invalid_request
from multimodel_api.openai import each_prompt
from multimodel_server.answer import CONTEXT_LENGTH_EXCEEDED, explained
from multimodel_server.errors import GenerationError
from multimodel_server.routes.openapi import answers, takes
from multimodel_server.routes.prompts import token_ids
from multimodel_server.routes.requests import Service, parse_body
from multimodel_server.routes.streams import until_disconnect
from multimodel_server.service import LoadedModel
from multimodel_server.supervisor import Supervisor

router = APIRouter()


@router.post("/v1/embeddings", openapi_extra=takes(EmbeddingRequest), responses=answers(EmbeddingList))
async def create_embeddings(request: Request, service: Service) -> Response:
    """Return the embeddings of texts."""
    model = service.loaded()
    body = await parse_body(request, EmbeddingRequest)
    service.require_model(body.model)
    inputs = await asyncio.to_thread(_inputs, model, body)
    vectors = await until_disconnect(request.receive, _embedded(model.supervisor, inputs))
    count = sum(map(len, inputs))
    service.metrics.prompt_tokens.inc(count)
    written = _in_base64 if body.encoding_format == "base64" else list[float]
    embeddings = EmbeddingList(
        data=[Embedding(index=index, embedding=written(vector)) for index, vector in enumerate(vectors)],
        model=service.config.api_id,
        usage=EmbeddingUsage(prompt_tokens=count, total_tokens=count),
    )
    return JSONResponse(embeddings.model_dump())


def _inputs(model: LoadedModel, body: EmbeddingRequest) -> list[list[int]]:
    """Return the token ids of each input, cut at their end where the request allows it; raises the 400."""
    room = model.supervisor.max_request_tokens
    inputs = [token_ids(model.text.tokenizer, one, "input") for one in each_prompt(body.input)]
    if body.truncate_sequence:
        return [ids[:room] for ids in inputs]
    longest = max(map(len, inputs))
    if longest > room:
        raise invalid_request(
            f"The input has {longest} tokens, and this model's context holds {room}; shorten it, or set "
            "truncate_sequence.",
            param="input",
            code=CONTEXT_LENGTH_EXCEEDED,
        )
    return inputs


async def _embedded(supervisor: Supervisor, inputs: list[list[int]]) -> list[list[float]]:
    """Return the embeddings, computed together; raises `ApiError`."""
    tasks = [asyncio.ensure_future(supervisor.embedding(ids)) for ids in inputs]
    try:
        return await asyncio.gather(*tasks)
    except GenerationError as error:
        raise explained(error) from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _in_base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
