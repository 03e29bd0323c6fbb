"""Liveness, readiness, the progress of the load, and metrics."""

from http import HTTPStatus

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from multimodel_api.names import LIVE_PATH, PROGRESS_PATH, READY_PATH
from multimodel_api.progress import LoadProgress
from multimodel_server.routes.requests import Service

router = APIRouter()


@router.get(LIVE_PATH)
async def live(service: Service) -> Response:
    """Say whether the process works or will work again by itself; 503 asks for a restart."""
    return JSONResponse({"live": service.is_live}, _status(good=service.is_live))


@router.get(READY_PATH)
async def ready(service: Service) -> Response:
    """Say whether requests are answered at once; the body tells how far the load is, and which server this is."""
    return JSONResponse(service.readiness.model_dump(mode="json"), _status(good=service.is_ready))


@router.get(PROGRESS_PATH)
async def progress(service: Service) -> LoadProgress:
    """Tell how far the load is."""
    return service.progress.snapshot()


@router.get("/metrics")
async def metrics(service: Service) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def _status(*, good: bool) -> HTTPStatus:
    return HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
