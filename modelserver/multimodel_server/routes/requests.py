"""What the routes do with a request before it is their own: find the service, read and check the body."""

import asyncio
from http import HTTPStatus
from typing import Annotated, TypeVar, cast

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from multimodel_api.errors import ApiError, from_validation
from multimodel_server.config import MAX_BODY_BYTES
from multimodel_server.service import ModelService

Body = TypeVar("Body", bound=BaseModel)


async def _service(request: Request) -> ModelService:
    return cast("ModelService", request.app.state.service)


Service = Annotated[ModelService, Depends(_service)]


async def parse_body(request: Request, body: type[Body]) -> Body:
    """Return the request's body as `body`; raises the 400 or 413."""
    return await asyncio.to_thread(parsed, await read_body(request), body)


def parsed(raw: bytes, body: type[Body]) -> Body:
    """Return a JSON document as `body`; raises the 400."""
    try:
        return body.model_validate_json(raw)
    except ValidationError as error:
        raise from_validation(error) from error


async def read_body(request: Request) -> bytes:
    """Return the request's body; raises the 413."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        raise _too_large()
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(raw)


def _too_large() -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The request body is larger than {MAX_BODY_BYTES >> 20} MiB.",
        code="request_too_large",
    )
