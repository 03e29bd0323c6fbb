"""The HTTP application: its routes, and one shape for every error."""

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multimodel_api.anthropic import is_messages_path, messages_error
from multimodel_api.errors import ApiError, server_error
from multimodel_api.readiness import MODEL_HEADER, model_header
from multimodel_server.routes import (
    chat,
    completions,
    embeddings,
    health,
    messages,
    models,
    openapi,
    responses,
    rest,
    tokens,
)
from multimodel_server.service import RETRY_SECONDS, ModelService

_CLIENT_GONE = 499
"""The status in logs of a request whose client left; nobody receives it."""


def create_app(service: ModelService) -> FastAPI:
    """Return the application that serves `service`."""
    app = FastAPI(title="MultiModel model server", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    for routes in (chat, completions, embeddings, messages, responses, tokens, models, health, rest):
        app.include_router(routes.router)
    openapi.describe(app)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(WorkGate, service=service)
    return app


class WorkGate:
    """Counts the requests under way, lets no more in while the server drains, and says on answers which model it is."""

    def __init__(self, app: ASGIApp, service: ModelService) -> None:
        self._app = app
        self._service = service
        self._header = (MODEL_HEADER.encode(), model_header(service.config.api_id).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], self._header]
            await send(message)

        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
        elif self._service.draining:
            await _answer(scope["path"], _shutting_down(), {"connection": "close"})(scope, receive, signed)
        else:
            with self._service.in_flight():
                await self._app(scope, receive, signed)


def _shutting_down() -> ApiError:
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The server is shutting down.",
        type="server_error",
        code="shutting_down",
        retry_after=RETRY_SECONDS,
    )


def _answer(path: str, error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
    body = messages_error(error) if is_messages_path(path) else error.body
    return JSONResponse(body.model_dump(), error.status, headers={**error.headers, **(headers or {})})


async def _api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    # A body that was refused for its size is not read, so the connection cannot be used again.
    close = {"connection": "close"} if error.status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE else {}
    return _answer(request.url.path, error, close)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path
    message = f"{request.method} {path}: {HTTPStatus(error.status_code).phrase}."
    code = {HTTPStatus.NOT_FOUND: "unknown_url", HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed"}
    refused = ApiError(HTTPStatus(error.status_code), message, code=code.get(HTTPStatus(error.status_code)))
    return _answer(path, refused, dict(error.headers or {}))


async def _client_gone(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return Response(status_code=_CLIENT_GONE)


async def _unexpected(request: Request, error: Exception) -> Response:  # noqa: ARG001
    # Uvicorn logs the exception, which Starlette raises again after this answer.
    failed = server_error("The server made an error; its log says more.", code="internal_error")
    return _answer(request.url.path, failed)
