"""Asks one model server whether it lives, is ready and for which model, and how far it has loaded."""

import asyncio
from http import HTTPStatus

from pydantic import ValidationError

from multimodel_api import names
from multimodel_api.progress import LoadProgress
from multimodel_api.readiness import Readiness
from multimodel_router.fleet import Endpoint
from multimodel_router.upstream import Upstream
from multimodel_router.upstream_connection import Outgoing, UpstreamError

PROBE_SECONDS = 5.0
"""A probe without an answer for this long has failed."""


class Probe:
    """The questions, over HTTP."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def ready(self, endpoint: Endpoint) -> bool:
        """Whether the server takes requests."""
        answer = await self._get(endpoint, names.READY_PATH)
        return answer is not None and answer[0] == HTTPStatus.OK

    async def readiness(self, endpoint: Endpoint) -> Readiness | None:
        """Return what a server that takes requests says of itself, None when it takes none or does not say."""
        answer = await self._get(endpoint, names.READY_PATH)
        if answer is None or answer[0] != HTTPStatus.OK:
            return None
        try:
            return Readiness.model_validate_json(answer[1])
        except ValidationError:
            return None

    async def answers(self, endpoint: Endpoint) -> bool:
        """Whether anybody answers there at all."""
        return await self._get(endpoint, names.LIVE_PATH) is not None

    async def wedged(self, endpoint: Endpoint) -> bool:
        """Whether the server itself says that only a restart helps."""
        answer = await self._get(endpoint, names.LIVE_PATH)
        return answer is not None and answer[0] == HTTPStatus.SERVICE_UNAVAILABLE

    async def progress(self, endpoint: Endpoint) -> LoadProgress | None:
        """Return how far the load has come, None when the server does not say."""
        answer = await self._get(endpoint, names.PROGRESS_PATH)
        if answer is None or answer[0] != HTTPStatus.OK:
            return None
        try:
            return LoadProgress.model_validate_json(answer[1])
        except ValidationError:
            return None

    async def _get(self, endpoint: Endpoint, path: str) -> tuple[int, bytes] | None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                response = await self._upstream.send(Outgoing(endpoint, "GET", path, []))
                try:
                    return response.status, await response.read()
                finally:
                    response.close()
        except (UpstreamError, TimeoutError):
            return None
