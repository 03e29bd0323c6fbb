"""`GET /v1/models`: the one model of this server."""

from fastapi import APIRouter

from multimodel_api.lifecycle import ModelCard, ModelList
from multimodel_server.routes.requests import Service

router = APIRouter()


@router.get("/v1/models", response_model_exclude_none=True)
async def list_models(service: Service) -> ModelList:
    """List the model under the id that replies name."""
    card = ModelCard(
        id=service.config.api_id, created=service.created, status=service.state, canonical_id=service.config.model
    )
    return ModelList(data=[card])
