"""The console: one page that shows every model live, loads and unloads it, and talks to it."""

from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from multimodel_router.access import Access
from multimodel_router.console.assets import Asset
from multimodel_router.console.loads import LastLoads
from multimodel_router.console.state import ConsoleState, console_model
from multimodel_router.console.traffic import Traffic, read_traffic
from multimodel_router.fleet import Fleet
from multimodel_router.fleet.probe import Probe
from multimodel_router.metrics import Metrics

PAGE_PATH = "/console"
STATE_PATH = "/console/state"
ASSETS = {PAGE_PATH: "index.html", "/console/console.css": "console.css", "/console/console.js": "console.js"}
"""The files of the page by the path that serves them."""


def console_routes(fleet: Fleet, metrics: Metrics, probe: Probe, access: Access) -> APIRouter:
    """Return the routes of the page and its files, open to all, and of `/console/state`, which any key may read.

    `probe` asks model servers how their load went.
    """
    router = APIRouter()
    last_loads = LastLoads(probe)
    for path, name in ASSETS.items():
        _add_asset(router, path, Asset.read(name))

    @router.get(f"{PAGE_PATH}/")
    async def without_slash() -> Response:
        return RedirectResponse("../console", HTTPStatus.PERMANENT_REDIRECT)

    @router.get(STATE_PATH)
    async def show_state(request: Request, response: Response) -> ConsoleState:
        caller = access.caller(request.headers.raw, None, None)
        response.headers["cache-control"] = "no-store"
        catalog = fleet.catalog
        models = [model for model in catalog.models if access.may_see(caller, model)]
        views = {model.name: fleet.view(model.name) for model in models}
        loads = await last_loads.of(views)
        traffic = read_traffic(metrics.registry.collect())
        return ConsoleState(
            models=[
                console_model(
                    model,
                    views[model.name],
                    default=model is catalog.default,
                    last_load=loads.get(model.name),
                    traffic=traffic.get(model.name, Traffic()),
                )
                for model in models
            ]
        )

    return router


def _add_asset(router: APIRouter, path: str, asset: Asset) -> None:
    @router.get(path)
    async def show_asset(request: Request) -> Response:
        return asset.response(request.headers.get("if-none-match"))
