"""The control routes: models, their lifecycle, health, metrics and the console."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from multimodel_api import errors, names
from multimodel_api.anthropic import is_messages_path, messages_error
from multimodel_api.lifecycle import HTTP_STATUS, LifecycleReply, LifecycleRequest, ModelCard
from multimodel_api.manifest import Model
from multimodel_router.access import Access, Action, Caller
from multimodel_router.console import console_routes
from multimodel_router.fleet import Fleet
from multimodel_router.fleet.probe import Probe
from multimodel_router.lifecycle import Lifecycle
from multimodel_router.metrics import Metrics
from multimodel_router.relay import find_model, until_synced

LifecycleAction = Callable[[LifecycleRequest, str], Awaitable[LifecycleReply]]


@dataclass(frozen=True, slots=True)
class Control:
    """What the control routes work with; `stopping` tells that the router takes no new clients."""

    fleet: Fleet
    lifecycle: Lifecycle
    access: Access
    metrics: Metrics
    probe: Probe
    stopping: Callable[[], bool]


def create_app(control: Control) -> FastAPI:
    """Return the application."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    _add_error_handlers(app)
    _add_model_routes(app, control)
    _add_lifecycle_routes(app, control)
    _add_health_routes(app, control)
    app.include_router(console_routes(control.fleet, control.metrics, control.probe, control.access))
    return app


def _add_model_routes(app: FastAPI, control: Control) -> None:
    created = int(time.time())
    fleet, access = control.fleet, control.access

    def card(model: Model) -> ModelCard:
        return ModelCard(id=model.api_id, created=created, status=fleet.view(model.name).state)

    def visible(caller: Caller, model: Model | None) -> bool:
        return model is not None and access.may_see(caller, model)

    @app.get("/v1/models")
    async def list_models(request: Request) -> Response:
        await until_synced(fleet)
        caller = access.caller(request.headers.raw, None, None)
        default = [ModelCard(id=names.DEFAULT_MODEL_ID, created=created)]
        shown = default if visible(caller, fleet.catalog.default) else []
        cards = shown + [card(model) for model in fleet.catalog.models if visible(caller, model)]
        return JSONResponse({"object": "list", "data": [_document(entry) for entry in cards]})

    @app.get("/v1/models/{model_id:path}")
    async def show_model(request: Request, model_id: str) -> Response:
        await until_synced(fleet)
        model = find_model(fleet.catalog, access, request.headers.raw, model_id)
        access.caller(request.headers.raw, None, model)
        view = fleet.view(model.name)
        more = {"canonical_id": model.canonical_id, "progress": view.progress, "failure": view.failure}
        return JSONResponse(_document(card(model).model_copy(update=more)))


def _add_lifecycle_routes(app: FastAPI, control: Control) -> None:
    lifecycle = control.lifecycle
    actions = {
        "unload": (lifecycle.unload, Action.MANAGE),
        "reload": (lifecycle.reload, Action.MANAGE),
        "status": (lifecycle.status, None),
    }
    for name, (action, right) in actions.items():
        route = _lifecycle_route(control, action, right)
        app.add_api_route(f"/v1/models/{name}", route, methods=["POST"])


def _lifecycle_route(
    control: Control, action: LifecycleAction, right: Action | None
) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        control.access.caller(request.headers.raw, None, None)
        try:
            wanted = LifecycleRequest.model_validate_json(await request.body())
        except ValidationError as error:
            raise errors.from_validation(error) from error
        await until_synced(control.fleet)
        model = control.fleet.catalog.find(wanted.model_id)
        caller = control.access.caller(request.headers.raw, right, model)
        reply = await action(wanted, caller.name)
        return JSONResponse(_document(reply), HTTP_STATUS[reply.status])

    return route


def _add_health_routes(app: FastAPI, control: Control) -> None:
    fleet, metrics = control.fleet, control.metrics

    @app.get(names.LIVE_PATH)
    async def live() -> Response:
        return PlainTextResponse("OK")

    @app.get(names.READY_PATH)
    async def ready() -> Response:
        if control.stopping():
            return PlainTextResponse("the router stops", HTTPStatus.SERVICE_UNAVAILABLE)
        if fleet.synced:
            return PlainTextResponse("OK")
        return PlainTextResponse("the fleet has not been seen yet", HTTPStatus.SERVICE_UNAVAILABLE)

    @app.get("/metrics")
    async def show_metrics() -> Response:
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
