"""`POST /sleep`, `POST /wake_up`, `GET /is_sleeping`: give the device's memory back for a while (vLLM's routes)."""

from fastapi import APIRouter
from pydantic import BaseModel

from multimodel_api.errors import invalid_request
from multimodel_server.answer import explained
from multimodel_server.errors import GenerationError
from multimodel_server.routes.openapi import answers
from multimodel_server.routes.requests import Service

router = APIRouter()

KEEPS_WEIGHTS = {"1": True, "2": False}
"""By the level of a sleep: whether the host may keep the weights, or they are read from their files again."""


class Sleeping(BaseModel):
    """Whether the engine sleeps."""

    is_sleeping: bool


@router.post("/sleep", responses=answers(Sleeping))
async def sleep(service: Service, level: str = "1") -> Sleeping:
    """Let running requests end, then sleep; requests that come meanwhile wait, and wake the engine afterwards."""
    if level not in KEEPS_WEIGHTS:
        raise invalid_request(f"level is {level}; it must be one of {', '.join(KEEPS_WEIGHTS)}.", param="level")
    rest = service.loaded().supervisor.rest
    try:
        await rest.sleep(keep_weights=KEEPS_WEIGHTS[level])
    except GenerationError as error:
        raise explained(error) from error
    return Sleeping(is_sleeping=rest.is_asleep)


@router.post("/wake_up", responses=answers(Sleeping))
async def wake_up(service: Service) -> Sleeping:
    """Wake the engine; a request would do so too."""
    rest = service.loaded().supervisor.rest
    try:
        await rest.wake()
    except GenerationError as error:
        raise explained(error) from error
    return Sleeping(is_sleeping=rest.is_asleep)


@router.get("/is_sleeping", responses=answers(Sleeping))
async def is_sleeping(service: Service) -> Sleeping:
    """Tell whether the engine sleeps."""
    return Sleeping(is_sleeping=service.loaded().supervisor.rest.is_asleep)
