"""The OpenAPI document: routes read their bodies themselves, so they say here what these are."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from multimodel_api.anthropic import CountTokensRequest, MessagesRequest
from multimodel_api.chat import ChatCompletionRequest
from multimodel_api.embeddings import EmbeddingRequest
from multimodel_api.errors import ErrorBody
from multimodel_api.openai import CompletionRequest
from multimodel_api.responses import ResponsesRequest
from multimodel_api.tokens import DetokenizeRequest, TokenizeRequest

_REFERENCE = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (
    ChatCompletionRequest,
    CompletionRequest,
    CountTokensRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    MessagesRequest,
    ResponsesRequest,
    TokenizeRequest,
)


def takes(body: type[BaseModel]) -> dict[str, Any]:
    """Return what a route's operation says of its request body; `body` must be one of those listed above."""
    schema = {"$ref": _REFERENCE.format(model=body.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def answers(body: type[BaseModel], errors: type[BaseModel] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """Return what a route's operation says of its answers."""
    return {200: {"model": body}, "4XX": {"model": errors}, "5XX": {"model": errors}}


def describe(app: FastAPI) -> None:
    """Make the application's document complete."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, bodies = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_REFERENCE)
            app.openapi_schema.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
