"""The router's HTTP application: control routes here, inference routes handed to the relay."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from multimodel_api import errors, names
from multimodel_api.anthropic import is_messages_path, messages_error
from multimodel_api.lifecycle import HTTP_STATUS, LifecycleReply, LifecycleRequest, ModelCard
from multimodel_api.manifest import Model
from multimodel_router.fleet import Fleet
from multimodel_router.inference import INFERENCE_PATHS, InferenceRoute
from multimodel_router.lifecycle import Lifecycle
from multimodel_router.metrics import Metrics
from multimodel_router.relay import Relay
from multimodel_router.request_body import read_body
from multimodel_router.request_id import RequestId
from multimodel_router.upstream import Upstream
from multimodel_router.waiting import WaitingRoom


def create_app(fleet: Fleet, upstream: Upstream, metrics: Metrics, *, wait_seconds: float) -> FastAPI:
    """Return the application over a fleet, which it starts and stops."""
    waiting = WaitingRoom(fleet, metrics)
    app = FastAPI(lifespan=_lifespan(fleet, upstream), openapi_url=None, redirect_slashes=False)
    app.add_middleware(RequestId)
    _add_error_handlers(app)
    _add_model_routes(app, fleet)
    _add_lifecycle_routes(app, Lifecycle(fleet, waiting, wait_seconds))
    _add_health_routes(app, fleet, metrics)
    inference = InferenceRoute(Relay(fleet, waiting, upstream, metrics, wait_seconds), metrics)
    app.router.routes.extend(Route(path, inference, methods=["POST"]) for path in INFERENCE_PATHS)
    return app


def _lifespan(fleet: Fleet, upstream: Upstream) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await fleet.start()
        try:
            yield
        finally:
            await fleet.stop()
            upstream.close()

    return lifespan


def _add_model_routes(app: FastAPI, fleet: Fleet) -> None:
    created = int(time.time())

    def card(model: Model) -> ModelCard:
        return ModelCard(id=model.api_id, created=created, status=fleet.view(model.name).state)

    @app.get("/v1/models")
    async def list_models() -> Response:
        default = [ModelCard(id=names.DEFAULT_MODEL_ID, created=created)] if fleet.catalog.default else []
        cards = default + [card(model) for model in fleet.catalog.models]
        return JSONResponse({"object": "list", "data": [_document(entry) for entry in cards]})

    @app.get("/v1/models/{model_id:path}")
    async def show_model(model_id: str) -> Response:
        model = fleet.catalog.resolve(model_id)
        view = fleet.view(model.name)
        more = {"canonical_id": model.canonical_id, "progress": view.progress, "failure": view.failure}
        return JSONResponse(_document(card(model).model_copy(update=more)))


def _add_lifecycle_routes(app: FastAPI, lifecycle: Lifecycle) -> None:
    actions = {"unload": lifecycle.unload, "reload": lifecycle.reload, "status": lifecycle.status}
    for name, action in actions.items():
        app.add_api_route(f"/v1/models/{name}", _lifecycle_route(action), methods=["POST"])


def _lifecycle_route(action: Callable[[str], Awaitable[LifecycleReply]]) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        body = await read_body(request.scope, request.receive)
        try:
            wanted = LifecycleRequest.model_validate_json(body)
        except ValidationError as error:
            raise errors.from_validation(error) from error
        reply = await action(wanted.model_id)
        return JSONResponse(_document(reply), HTTP_STATUS[reply.status])

    return route


def _add_health_routes(app: FastAPI, fleet: Fleet, metrics: Metrics) -> None:
    @app.get(names.LIVE_PATH)
    async def live() -> Response:
        return PlainTextResponse("OK")

    @app.get(names.READY_PATH)
    async def ready() -> Response:
        if fleet.synced:
            return PlainTextResponse("OK")
        return PlainTextResponse("the fleet has not been seen yet", HTTPStatus.SERVICE_UNAVAILABLE)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        metrics.ready_endpoints.clear()
        for model in fleet.catalog.models:
            metrics.ready_endpoints.labels(model.name).set(len(fleet.view(model.name).ready))
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(errors.ApiError)
    async def api_error(request: Request, error: errors.ApiError) -> Response:
        return _error_response(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return _error_response(request, _route_error(request, HTTPStatus(error.status_code)), error.headers)

    @app.exception_handler(ClientDisconnect)
    async def client_left(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody reads it

    @app.exception_handler(Exception)
    async def unexpected(request: Request, _error: Exception) -> Response:
        return _error_response(request, errors.server_error("The router failed unexpectedly; its log says why."))


def _route_error(request: Request, status: HTTPStatus) -> errors.ApiError:
    words = {
        HTTPStatus.NOT_FOUND: f"There is no route {request.url.path}.",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{request.url.path} does not take {request.method}.",
    }
    code = status.name.lower()
    return errors.ApiError(status, words.get(status, f"{status.phrase}."), code=code)


def _error_response(request: Request, error: errors.ApiError, headers: Any = None) -> Response:
    body = messages_error(error) if is_messages_path(request.url.path) else error.body
    return JSONResponse(body.model_dump(), error.status, error.headers | dict(headers or {}))


def _document(value: BaseModel) -> dict[str, Any]:
    return value.model_dump(mode="json", exclude_none=True)
